"""Ctrl-C and SIGTERM as a wish to stop after the present step; the second one stops at once."""

import signal
import threading

from kvision._keras import fit_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Notes the first signal that comes within a fit, instead of what it would do; any other does what it did before.

    Args:
        callbacks: The `CallbackList` of the fit.

    Attributes:
        received: The signal, as a `signal.Signals`, or None.
    """

    def __init__(self, callbacks):
        self.received = None
        self._callbacks = callbacks
        self._former = {}

    def install(self):
        """Begin to listen; only the main thread may, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            former = signal.getsignal(number)
            stale = getattr(former, "__self__", None)
            if isinstance(stale, StopSignals):  # of a fit that broke off
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
        if self.received is None and fit_of(self._callbacks, frame) is not None:
            self.received = signal.Signals(number)
            return
        self.uninstall()
        signal.raise_signal(number)
