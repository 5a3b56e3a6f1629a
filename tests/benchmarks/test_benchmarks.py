"""The benchmark's machinery on the CPU: plans name cases, a worker replies, the page shows misses as misses."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import plans
import run

SLOW_WORKER = """
import harness, time
def wait():
    return lambda: time.sleep(0.01), {"images": 3, "parts": lambda: {"nap": lambda: time.sleep(0.005)}}
harness.serve({"wait": wait, "fail": lambda: 1 / 0})
"""


@pytest.mark.parametrize("comparison", plans.COMPARISONS, ids=lambda comparison: comparison.name)
def test_targets_name_peers_and_cases_name_files(comparison):
    assert {*comparison.targets, *comparison.memory} <= set(comparison.peers)
    for case in (comparison.ours, *comparison.peers.values()):
        assert (FOLDER / case.file).is_file()
        assert case.environment in run.ENVIRONMENTS


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
    assert 5.0 <= parts["parts"]["nap"] < min(ran["times"])


def test_a_case_that_fails_is_a_reply():
    (reply,) = ask({"build": "fail"})
    assert reply["error"].startswith("ZeroDivisionError")


@pytest.mark.parametrize(("ratio", "mark"), [(0.97, "1.00 ✓"), (1.01, "1.00 ✗")])
def test_the_page_shows_misses_as_misses(ratio, mark):
    row = {"median_ms": 1500, "low_ms": 1490, "high_ms": 1600, "peak_mb": 4000, "first_s": 9.0}
    rows = {
        "kvision": row | {"parts": {"head": 3, "trunk": 12}},
        "torchopt": row | {"ratio": ratio},
        "Keras layers": {"error": "boom"},
    }
    machine = {"processor": "P", "threads": 2, "versions": {"keras": "3"}, "torchopt": "tuned"}
    result = {"date": "2026-11-22", "rounds": 5, "foreign": 0.01, "rows": rows, "machine": machine}
    page = run.page({"results": {"resnet50": result}})
    assert f"| {ratio:.2f} | {mark} |" in page
    assert "failed: boom" in page
    assert "timed one by one: trunk 12 ms, head 3 ms." in page
    assert "P, 2 threads; keras 3; `torchopt`: tuned." in page
    other = result | {"machine": machine | {"processor": "Q"}}
    page = run.page({"results": {"resnet50": result, "vgg16": other}})
    assert "P, 2 threads; keras 3; `torchopt`: tuned: resnet50." in page
    assert "Q, 2 threads; keras 3; `torchopt`: tuned: vgg16." in page


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
