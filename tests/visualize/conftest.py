"""What the tests of this folder share."""

import signal

import pytest


@pytest.fixture(autouse=True)
def plain_ctrl_c():
    """Python's own handler, whatever a loop of another test left, and where a run in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)
