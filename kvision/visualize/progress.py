"""Progress on long work, which Ctrl-C ends after the present step."""

import inspect
import signal

import keras

from kvision.stop_signals import StopSignals


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
        return self._wish is not None and self._wish.received is not None

    def __iter__(self):
        return self

    def __next__(self):
        if self._wish is None:
            self._wish = StopSignals(_is_called_by(inspect.currentframe().f_back), [signal.SIGINT], ends_outer=True)
            self._wish.install()
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
            self._wish.uninstall()

    __del__ = close


def _is_called_by(consumer):
    """A function of a frame: whether it is that of the loop, or called by it."""

    def is_within(frame):
        while frame is not None and frame is not consumer:
            frame = frame.f_back
        return frame is not None

    return is_within
