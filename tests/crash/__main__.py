"""Kills a training so many times: `python -m tests.crash 100`. The first seven kills are at the planted points."""

import os

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}

import itertools
import json
import pathlib
import random
import sys
import tempfile

import numpy as np

from tests.crash.training import BATCHES, EPOCHS, EVERY, POINTS, attempt

VITALS = ("update_ratio", "dead_relu", "gradient_norm")  # of the last measured step: a fit measures its first as well
IN_A_RUN = 7  # kills of one run before it may end
SECONDS = 1.0  # of training, within which a random kill falls


def result(folder):
    history = json.loads((folder / "history.json").read_text())
    with np.load(folder / "variables.npz", allow_pickle=False) as arrays:
        variables = [arrays[name] for name in arrays.files]
    return {name: values for name, values in history.items() if name not in VITALS}, variables


def steps(folder):
    """The steps that were trained, those that were trained again twice."""
    return [int(line) for line in (folder / "progress").read_text().split()]


def lost(before, after):
    """Steps that a kill lost."""
    return before[-1] + 1 - after[len(before)] if before and len(after) > len(before) else 0


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(kills, seed=0):
    rng = random.Random(seed)
    home = pathlib.Path(tempfile.mkdtemp(prefix="crash"))
    straight = home / "straight"
    attempt(straight)
    history, variables = result(straight)
    assert steps(straight) == list(range(1, BATCHES * EPOCHS + 1))
    planned = itertools.chain(POINTS, iter(lambda: rng.uniform(0, SECONDS), None))
    done, most = 0, 0
    for run in itertools.count():
        folder = home / f"run{run}"
        before = []
        for point in itertools.islice(planned, min(IN_A_RUN, kills - done)):
            killed = attempt(folder, point)
            now = steps(folder) if (folder / "progress").exists() else []
            most = max(most, lost(before, now))
            before = now
            done += killed
            say(f"{done}: {point if isinstance(point, str) else f'{point:.3f} s'}: at step {now[-1] if now else 0}")
            if not killed:
                break
        else:
            attempt(folder)
            most = max(most, lost(before, steps(folder)))
        again, arrays = result(folder)
        assert again == history, (again, history)
        assert len(arrays) == len(variables) and all(map(np.array_equal, arrays, variables)), folder
        if done >= kills:
            break
    say(f"{done} kills of {run + 1} runs: each went on and ended as the straight run; at most {most} steps lost")
    assert most < 2 * EVERY, "more than an interval, and what is trained while a checkpoint is written"


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(int, sys.argv[2:]))
