"""The benchmark's machinery on the CPU: plans name cases, a worker replies, the page shows misses as misses."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import growth
import plans
import results_page
import results_store
import run
import workers

SLOW_WORKER = """
import harness, time
def wait():
    return lambda: time.sleep(0.01), {"images": 3, "parts": lambda: {"nap": lambda: time.sleep(0.03)}}
calls = []
def whole():
    return lambda: calls.append(0), {"once": True, "told": lambda: {"calls": len(calls)}}
harness.serve({"wait": wait, "whole": whole, "fail": lambda: 1 / 0})
"""


@pytest.mark.parametrize("comparison", plans.COMPARISONS, ids=lambda comparison: comparison.name)
def test_targets_name_peers_and_cases_name_files(comparison):
    assert {*comparison.targets, *comparison.memory} <= set(comparison.peers)
    for case in (comparison.ours, *comparison.peers.values()):
        assert (FOLDER / case.file).is_file()
        assert case.environment in workers.ENVIRONMENTS


def ask(*requests):
    lines = "\n".join(json.dumps(request) for request in requests) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", SLOW_WORKER], input=lines, cwd=FOLDER, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_worker_times_what_it_is_told():
    built, ran, parts = ask({"build": "wait"}, {"run": 3}, {"parts": 2})
    assert built["images"] == 3
    assert len(ran["times"]) == 3
    assert min(ran["times"]) >= 10.0
    assert ran["peak_mb"] > 0
    assert parts["parts"]["nap"] >= 30.0


def test_a_case_that_fails_is_a_reply():
    (reply,) = ask({"build": "fail"})
    assert reply["error"].startswith("ZeroDivisionError")


def test_a_step_that_is_a_whole_run_is_not_warmed_up():
    built, ran, told = ask({"build": "whole"}, {"run": 1}, {"told": True})
    assert built["first_ms"] is None
    assert len(ran["times"]) == 1
    assert told["told"] == {"calls": 1}


def test_the_short_set_names_rows():
    assert set(plans.SHORT) <= set(run.KNOWN)
    assert len(run.KNOWN) == len(plans.COMPARISONS)


ROW = {"median_ms": 1500, "low_ms": 1490, "high_ms": 1600, "peak_mb": 4000, "first_s": 9.0}
MACHINE = {"processor": "P", "threads": 2, "versions": {"keras": "3"}, "torchopt": "tuned", "gflops": 400.0}


def result(ratio=0.97, date="2026-11-22", foreign=0.01, **ours):
    rows = {
        "kvision": ROW | {"parts": {"head": 3, "trunk": 12}} | ours,
        "torchopt": ROW | {"ratio": ratio},
        "Keras layers": {"error": "boom"},
    }
    return {"date": date, "rounds": 5, "foreign": foreign, "rows": rows, "machine": MACHINE}


@pytest.mark.parametrize(("ratio", "mark"), [(0.97, "1.00 ✓"), (1.01, "1.00 ✗")])
def test_the_page_shows_misses_as_misses(ratio, mark):
    page = results_page.page({"machines": {"400 GFLOP/s": {"results": {"resnet50": result(ratio)}}}})
    assert f"| {ratio:.2f} | {mark} |" in page
    assert "failed: boom" in page
    assert "timed one by one: trunk 12 ms, head 3 ms." in page
    assert "**400 GFLOP/s**: P; keras 3; `torchopt`: tuned." in page


def test_the_page_has_a_table_for_each_kind_of_machine():
    other = result(1.05) | {"machine": MACHINE | {"processor": "Q"}}
    fast = {"results": {"resnet50": result(), "vgg16": other}}
    page = results_page.page({"machines": {"400 GFLOP/s": fast, "200 GFLOP/s": {"results": {"resnet50": other}}}})
    assert page.count("## ResNet-50 training step, batch 16, float32") == 1
    assert "400 GFLOP/s; 2026-11-22" in page
    assert "200 GFLOP/s; 2026-11-22" in page
    assert "**400 GFLOP/s**: Q; keras 3; `torchopt`: tuned: vgg16." in page


def test_the_page_tells_whether_the_peers_did_the_same():
    rows = {
        label: ROW | {"images": 512, "first_s": None, "told": {"parameters": 7000, "loss": loss, "form": "compiled"}}
        for label, loss in (("kvision", 0.8), ("torchopt", 0.9), ("plain Keras", 1.1))
    }
    page = results_page.page({"machines": {"400 GFLOP/s": {"results": {"fit-jpeg": result() | {"rows": rows}}}}})
    assert "Images a second: kvision 341, torchopt 341, plain Keras 341." in page
    assert "Parameters: kvision 7,000, torchopt 7,000, plain Keras 7,000 (equal ✓)." in page
    assert "Loss: kvision 0.8, torchopt 0.9, plain Keras 1.1 (within 30% of ours ✗)." in page
    assert "Form: kvision compiled" in page


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (result(1.06), []),
        (result(1.08), ["row: 1.08x torchopt, was 0.97x on 2026-11-22"]),
        (result(1.08, foreign=0.3), ["row: 1.08x torchopt, was 0.97x on 2026-11-22; others used 30% of the cores"]),
        (result(peak_mb=4401), ["row: 4,401 MB, was 4,000 MB on 2026-11-22"]),
        (result(median_ms=9000), []),  # a slower machine, the peer as well: the ratio tells
        (result(error="boom"), ["row: fails, boom; it ran on 2026-11-22"]),
    ],
)
def test_what_became_a_tenth_worse_is_told(new, found):
    assert results_store.regressions("row", new, result()) == found


def test_without_a_peer_the_times_are_compared():
    old, new = ({"rows": {"kvision": ROW | {"median_ms": ms}}, "date": "d", "foreign": 0.0} for ms in (100, 111))
    assert results_store.regressions("row", new, old) == ["row: 111 ms, was 100 ms on d"]


@pytest.mark.parametrize(
    ("gflops", "kind"),
    [(372.0, "411 GFLOP/s, 2 threads"), (209.0, "218 GFLOP/s, 2 threads"), (100.4, "100 GFLOP/s, 2 threads")],
)
def test_the_matrix_product_tells_kinds_of_machine_apart(gflops, kind):
    known = ["Unmeasured matrix product, 2 threads", "218 GFLOP/s, 1 threads", "411 GFLOP/s, 2 threads"]
    known.append("218 GFLOP/s, 2 threads")
    assert results_store.kind_of({"gflops": gflops, "threads": 2}, known) == kind


def test_a_line_and_what_lies_beside_it():
    straight = growth.line([1, 2, 4], [5, 7, 11])
    assert (straight.start, straight.slope, straight.deviation) == pytest.approx((3, 2, 0), abs=1e-9)
    bent = growth.line([1, 2, 3], [1, 2, 6])  # 2.5 x - 2
    assert (bent.start, bent.slope) == pytest.approx((-2, 2.5))
    assert (bent.deviation, bent.at) == (pytest.approx(1.0), 1)


def test_growth_is_a_table_with_its_lines(tmp_path, monkeypatch):
    points = [{"number": n, "median_ms": 5 + 2 * n, "peak_mb": 900 + n, "first_s": 1, "foreign": 0} for n in (1, 2, 4)]
    axes = {"batch": [*points, {"number": 8, "error": "boom"}]}
    measured = {"date": "2026-11-30", "machine": MACHINE, "axes": axes}
    store = {"machines": {"400 GFLOP/s": {"growth": measured}}}
    page = results_page.page(store)
    assert "| images a batch | 1 | 2 | 4 | 8 | 16 | 32 |" in page
    assert "| ms at 400 GFLOP/s | 7 | 9 | 13 |  |  |  |" in page
    assert "At 400 GFLOP/s: 5 + 2 x (images a batch) ms, at most 0% beside it" in page
    monkeypatch.setattr(growth, "PLOT", tmp_path / "growth.png")
    growth.draw(store)
    assert growth.PLOT.stat().st_size > 10_000


@pytest.mark.slow
def test_the_gpu_run_works_on_the_cpu():
    few = ["--networks", "convnet", "--cases", "--tests", "tests/layers/test_maxout.py"]
    command = [sys.executable, str(FOLDER / "gpu.py"), "--cpu", *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "convnet, mixed_float16  loss" in done.stdout
    assert "NOT FINITE" not in done.stdout
    assert "numeric tests" in done.stdout
    assert "passed" in done.stdout


@pytest.mark.slow
def test_without_a_card_the_gpu_run_says_what_to_do():
    done = subprocess.run([sys.executable, str(FOLDER / "gpu.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'kvision[gpu]'" in done.stderr
