"""What the tests of a run that was stopped share."""

import signal

import pytest

from tests.callbacks.resume_runs import train


@pytest.fixture(autouse=True)
def ctrl_c_counts():
    """A shell starts what runs in the background with Ctrl-C ignored, and so it stays."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run of `train` that was never stopped."""
    return train(tmp_path_factory.mktemp("straight"))
