"""Ten kills of a training, seven at planted points; `python -m tests.crash 100` does the rest."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.tensorflow_only
def test_ten_kills():
    """The processes are forked from one that has imported TensorFlow once."""
    command = [sys.executable, "-m", "tests.crash", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 kills" in done.stdout
