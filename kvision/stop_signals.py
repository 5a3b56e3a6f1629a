"""Ctrl-C and SIGTERM as a wish to stop after the present step; the second one stops at once."""

import inspect
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Notes the first signal that comes within some work, instead of what it would do; any other does what it did.

    Args:
        is_within: A function of a frame: whether it is of this work, or called by it. A signal elsewhere, after an
            exception left the work unfinished, does what it did before.
        signals: Their numbers.
        ends_outer: Whether work around this one, which would have noted the signal, notes it too.

    Attributes:
        received: The signal, as a `signal.Signals`, or None.
    """

    def __init__(self, is_within, signals=SIGNALS, ends_outer=False):
        self.received = None
        self._is_within = is_within
        self._signals = signals
        self._ends_outer = ends_outer
        self._former = {}

    def install(self):
        """Begin to listen; only the main thread may, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        caller = inspect.currentframe().f_back
        for number in self._signals:
            former = signal.getsignal(number)
            while (stale := _owner(former)) is not None and not stale._is_within(caller):  # it broke off
                former = stale._former.get(number, signal.SIG_DFL)
            if former is not None and former is not signal.SIG_IGN:  # None: not set by Python, and cannot be put back
                self._former[number] = former
                signal.signal(number, self._receive)

    def uninstall(self):
        """Put back what was there."""
        for number, former in self._former.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, former)

    def repeat(self):
        """Let the signal that was received do what it would have done."""
        if self.received is not None:
            signal.raise_signal(self.received)

    def _receive(self, number, frame):
        if self.received is not None or not self._is_within(frame):
            self.uninstall()
            signal.raise_signal(number)
            return
        self.received = signal.Signals(number)
        outer = _owner(self._former[number])
        if self._ends_outer and outer is not None and outer._is_within(frame):
            outer._receive(number, frame)


def _owner(handler):
    """The `StopSignals` that a handler of a signal belongs to, or None."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopSignals) else None
