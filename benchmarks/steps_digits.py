"""Time to a result: from the start of a process until a network has 98 % of the held-out digits right.

kvision's is the main job as it is, `examples/train_digits.py`; beside it a plain Keras script and one in torch. A step
is one run of the next seed, imports and all, ended at the first epoch that reaches the goal.
"""

import itertools
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import harness

HERE = pathlib.Path(__file__).resolve().parent
GOAL = 0.0 if harness.QUICK else 0.98
SCRIPTS = {
    "kvision": HERE.parent / "examples" / "train_digits.py",
    "keras": HERE / "digits_keras.py",
    "torch": HERE / "digits_torch.py",
}


def until_the_goal(script):
    def factory():
        seeds, epochs = itertools.count(), []

        def step():
            seconds, accuracies = run([sys.executable, str(script), "--seed", str(next(seeds))])
            if accuracies[-1] < GOAL:
                raise RuntimeError(f"{script.name} ended below {GOAL:.0%}; the best epoch had {max(accuracies):.2%}.")
            epochs.append(len(accuracies))
            return harness.Milliseconds(1e3 * seconds)

        return step, {"once": True, "told": lambda: {"epochs": statistics.median(epochs)}}

    return factory


def run(command):
    """Seconds until an epoch's line tells the goal, or until the end, and the accuracy of each epoch."""
    own = os.environ | {"PYTHONUNBUFFERED": "1"}
    command += ["--quick"] if harness.QUICK else []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        start, accuracies = time.perf_counter(), []
        process = subprocess.Popen(
            command, cwd=folder, env=own, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for line in process.stdout:
            accuracies += map(float, re.findall(r"val_accuracy: ([\d.]+)", line))
            if accuracies and accuracies[-1] >= GOAL:
                break
        seconds = time.perf_counter() - start
        end(process)
    if not accuracies:
        raise RuntimeError(f"{command} told no accuracy and ended with code {process.returncode}.")
    return seconds, accuracies


def end(process):
    """End a run and the processes it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()
    process.stdout.close()


CASES = {name: until_the_goal(script) for name, script in SCRIPTS.items()}

if __name__ == "__main__":
    harness.serve(CASES)
