"""Progress on long work, which Ctrl-C ends after the present step."""

import inspect
import signal
import threading

import keras


class _StopWish:
    """Notes the first Ctrl-C within a loop instead of raising; the second one raises.

    Args:
        consumer: The frame of the loop. A Ctrl-C outside of it, after an exception left the loop unfinished, does what
            it did before.
    """

    def __init__(self, consumer):
        self.received = False
        self._consumer = consumer
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            before = signal.getsignal(signal.SIGINT)
            self._before = signal.SIG_DFL if before is None else before
            signal.signal(signal.SIGINT, self.note)

    def put_back(self):
        if self._installed and signal.getsignal(signal.SIGINT) == self.note:
            signal.signal(signal.SIGINT, self._before)

    def note(self, number, frame):
        if not self.is_within(frame) or self.received or self._before == signal.SIG_IGN:
            self.put_back()
            signal.raise_signal(number)
            return
        self.received = True
        around = getattr(self._before, "__self__", None)
        if isinstance(around, _StopWish) and around.is_within(frame):  # the loop around this one ends, too
            around.note(number, frame)

    def is_within(self, frame):
        """Whether a frame is that of the loop, or called by it."""
        while frame is not None and frame is not self._consumer:
            frame = frame.f_back
        return frame is not None


class progress:  # as `range` and `enumerate` are
    """The elements of `steps`, with a bar, until they end or Ctrl-C is pressed.

    What a loop over it has by then is whole: the first Ctrl-C ends it after the present step, the second one raises.

    Args:
        steps: An iterable.
        total: How many there are; None: its length where it has one.
        verbose: 1 shows Keras's bar, 0 nothing.
    """

    def __init__(self, steps, total=None, verbose=0):
        total = total if total is not None else len(steps) if hasattr(steps, "__len__") else None
        self._bar = keras.utils.Progbar(total, unit_name="step", verbose=1) if verbose else None
        self._steps, self._done, self._wish = iter(steps), 0, None

    @property
    def stopped(self):
        """Whether Ctrl-C was pressed, also within a loop inside of this one, whose result is then a part."""
        return self._wish is not None and self._wish.received

    def __iter__(self):
        return self

    def __next__(self):
        if self._wish is None:
            self._wish = _StopWish(inspect.currentframe().f_back)
        elif self._bar is not None:
            self._bar.update(self._done)
        try:
            if self.stopped:
                raise StopIteration
            step = next(self._steps)
        except BaseException:
            self.close()
            raise
        self._done += 1
        return step

    def close(self):
        """Let Ctrl-C do what it did before; an unfinished loop does it when it is forgotten."""
        if self._wish is not None:
            self._wish.put_back()

    __del__ = close
