"""Progress on long work, which Ctrl-C ends after the present step."""

import contextlib
import inspect
import signal
import threading

import keras


@contextlib.contextmanager
def _stop_wish(consumer):
    """A list that Ctrl-C fills, the first time, instead of raising; the second one raises.

    Args:
        consumer: The frame of the loop. A Ctrl-C outside of it, after an exception left the loop unfinished, does what
            it did before.
    """
    wishes = []
    if threading.current_thread() is not threading.main_thread():
        yield wishes
        return
    before = signal.getsignal(signal.SIGINT)
    before = signal.SIG_DFL if before is None else before

    def put_back():
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)

    def note(number, frame):
        while frame is not None and frame is not consumer:
            frame = frame.f_back
        if frame is None or wishes or before == signal.SIG_IGN:
            put_back()
            signal.raise_signal(number)
        else:
            wishes.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield wishes
    finally:
        put_back()


def progress(steps, total=None, verbose=0):
    """The elements of `steps`, with a bar, until they end or Ctrl-C is pressed.

    What a loop over it has by then is whole: the first Ctrl-C ends it after the present step, the second one raises.

    Args:
        steps: An iterable.
        total: How many there are; None: its length where it has one.
        verbose: 1 shows Keras's bar, 0 nothing.
    """
    total = total if total is not None else len(steps) if hasattr(steps, "__len__") else None
    bar = keras.utils.Progbar(total, unit_name="step", verbose=1) if verbose else None
    with _stop_wish(inspect.currentframe().f_back) as wishes:
        for done, step in enumerate(steps, start=1):
            yield step
            if bar is not None:
                bar.update(done)
            if wishes:
                return
