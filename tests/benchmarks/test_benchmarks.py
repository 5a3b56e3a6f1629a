"""The benchmark's machinery on the CPU: plans name cases, a worker replies, the page shows misses as misses."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import pytest

from tests.support import SLOW
from tests.without_tensorflow import WITHOUT_TENSORFLOW

FOLDER = pathlib.Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import folders
import gpu
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


def test_a_folder_is_made_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "CACHE", tmp_path / ".cache")
    calls = []

    def write(home):
        calls.append(home)
        (home / "a").write_text("1")

    def broken(home):
        write(home)
        raise OSError("no space left")

    def overtaken(home):
        folders.made_once("raced", write)
        (home / "b").write_text("2")

    with pytest.raises(OSError, match="no space"):
        folders.made_once("files", broken)
    assert not list(folders.CACHE.iterdir())
    homes = {folders.made_once("files", write), folders.made_once("files", write)}
    assert homes == {folders.CACHE / "files"}
    assert len(calls) == 2
    assert folders.made_once("raced", overtaken) == folders.CACHE / "raced"
    assert sorted(path.name for path in folders.CACHE.glob("*/*")) == ["a", "a"]
    assert len(list(folders.CACHE.iterdir())) == 2  # nothing partial stays


CARD = {
    "cards": ["Card X"],
    "backend": "jax",
    "jax": "0.1",
    "keras": "3.15.1",
    "peak_tflops": 500.0,
    "minutes": 7.5,
    "steps": {
        "resnet50": {
            "kvision": {"median_ms": 50.0, "images_s": 2560.0, "tflops": 250.0},
            "torchvision": {"median_ms": 100.0, "images_s": 1280.0},
        },
        "mask-rcnn": {"kvision": {"error": "the process ended with code -9"}},
    },
    "training": [
        {"network": "vit", "policy": "mixed_float16", "loss": 1.0},
        {"network": "detr", "policy": "mixed_float16", "error": "the loss is nan"},
        {"network": "yolo", "policy": "mixed_float16", "missing": True},
    ],
    "tests": {"tests/ops": gpu.last_line("..F\nFAILED tests/ops/test_a.py::b - 1\n1 failed, 2 passed in 3s\n")},
}


@pytest.mark.parametrize(
    "line",
    [
        "device +Card X",
        "versions +jax 0.1, keras 3.15.1",
        "resnet50, .* 50.0 ms, 2560 images/s, 50% of the matrix product; torchvision: 100.0 ms, .*torchvision 0.50",
        "mask-rcnn, .* the process ended with code -9; torchvision: torchvision is not installed",
        "mixed_float16 +1 of 3 networks train; detr: the loss is nan; not reached: yolo",
        "tests/ops +1 failed, 2 passed in 3s; tests/ops/test_a.py::b",
        "all +7.5 minutes",
    ],
)
def test_the_table_of_a_card(line):
    assert re.search(f"^{line}$", gpu.table(CARD), re.MULTILINE)


@pytest.fixture
def interruptible():
    """Children take an interrupt, which those of a run in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_what_time_runs_out_for_is_stopped_and_tells_how_far_it_came():
    script = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('half')"
    start = time.monotonic()
    assert gpu.output([sys.executable, "-c", script], start + 1, subprocess.DEVNULL) == "half\n"
    assert gpu.output([sys.executable, "-c", "print(1)"], start, subprocess.DEVNULL) == ""
    assert time.monotonic() - start < 30


def card_run(tmp_path, *arguments, **environment):
    """`gpu.py` with TensorFlow out of reach where the backend is JAX, and its JSON."""
    if keras.backend.backend() == "jax":
        (tmp_path / "sitecustomize.py").write_text(WITHOUT_TENSORFLOW)
        environment["PYTHONPATH"] = str(tmp_path)
    command = [sys.executable, str(FOLDER / "gpu.py"), *arguments, "--json", str(tmp_path / "gpu.json")]
    environment = os.environ | {"KERAS_BACKEND": keras.backend.backend()} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@SLOW
def test_the_gpu_run_works_on_the_cpu(tmp_path):
    few = ["--networks", "convnet", "--steps", "resnet50", "--tests", "tests/layers/test_maxout.py", "--minutes", "15"]
    done = card_run(tmp_path, "--cpu", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["backend"] == keras.backend.backend()
    assert result["peak_tflops"] > 0
    assert result["steps"]["resnet50"]["kvision"]["images_s"] > 0
    assert [(row["network"], row["policy"]) for row in result["training"] if "loss" in row] == [
        ("convnet", "mixed_float16"),
        ("convnet", "mixed_bfloat16"),
    ]
    assert "passed" in result["tests"]["tests/layers/test_maxout.py"]
    assert "convnet" not in done.stdout
    assert "mixed_float16 " in done.stdout


@SLOW
def test_without_a_card_the_gpu_run_says_what_to_do(tmp_path):
    done = card_run(tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 1
    assert f"pip install '{'jax[cuda13]' if keras.backend.backend() == 'jax' else 'kvision[gpu]'}'" in done.stderr
