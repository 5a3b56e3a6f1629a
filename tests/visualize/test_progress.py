"""A loop with progress: Ctrl-C ends it after the present step, and is as it was afterwards."""

import signal
import threading

import pytest

from kvision.stop_signals import StopSignals
from kvision.visualize.progress import progress


def test_ctrl_c_ends_a_loop_after_the_present_step(plain_ctrl_c, capsys):
    done = []
    for step in progress(range(10), verbose=1):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        done.append(step)
    assert done == [0, 1, 2, 3]
    assert "/10" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is plain_ctrl_c
    with pytest.raises(KeyboardInterrupt):
        for _ in progress(range(3)):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is plain_ctrl_c


def test_a_loop_that_broke_off_leaves_ctrl_c_alone(plain_ctrl_c):
    held = []  # as a traceback holds what stands in a broken function

    def broken():
        held.append(progress(range(3)))
        for _ in held[0]:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert signal.getsignal(signal.SIGINT) is not plain_ctrl_c
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is plain_ctrl_c


def test_ctrl_c_in_an_inner_loop_ends_the_outer_one_too(plain_ctrl_c):
    outer, done = progress(range(5)), []
    for step in outer:
        for inner in progress(range(5)):
            if (step, inner) == (1, 2):
                signal.raise_signal(signal.SIGINT)
            done.append((step, inner))
        if outer.stopped:
            break
    assert done[-1] == (1, 2)
    assert len(done) == 5 + 3
    outer.close()
    assert signal.getsignal(signal.SIGINT) is plain_ctrl_c


def test_ctrl_c_in_a_loop_ends_the_training_around_it_too(plain_ctrl_c):
    around, done = StopSignals(lambda frame: True, [signal.SIGINT]), []
    around.install()
    for step in progress(range(5)):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        done.append(step)
    assert done == [0, 1]
    assert around.received == signal.SIGINT
    around.uninstall()
    assert signal.getsignal(signal.SIGINT) is plain_ctrl_c


def test_work_that_broke_off_is_passed_over(plain_ctrl_c):
    for is_running in (False, True):
        StopSignals(lambda frame, is_running=is_running: is_running, [signal.SIGINT]).install()
        before = signal.getsignal(signal.SIGINT)
        later = StopSignals(lambda frame: True, [signal.SIGINT])
        later.install()
        later.uninstall()
        assert signal.getsignal(signal.SIGINT) == (before if is_running else plain_ctrl_c)


def test_progress_works_in_other_threads():
    done = []
    thread = threading.Thread(target=lambda: done.extend(progress(range(3))))
    thread.start()
    thread.join()
    assert done == [0, 1, 2]
