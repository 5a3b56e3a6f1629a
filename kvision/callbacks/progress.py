"""What a person sees of a run while it goes."""

import os
import sys
import time

import keras

from kvision._keras import print_message


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar where it can be drawn; elsewhere one line an epoch.

    Takes the place of the bar that `fit` adds by itself. The bar rewrites its line with control characters, which is
    what a terminal and a notebook want and what makes the log file of a batch job unreadable. `fit(verbose=0)` stays
    silent and `fit(verbose=2)` is one line an epoch everywhere.

    ```python
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.Progress()])
    ```
    """

    def set_params(self, params):
        super().set_params(params)
        if self.verbose == 1 and not _can_draw():
            self.verbose = 2

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        if self.verbose != 2:
            super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.verbose != 2:
            super().on_epoch_end(epoch, logs)
            return
        values = [f"{name}: {value:.4g}" for name, value in (logs or {}).items() if isinstance(value, float | int)]
        seconds = f"{time.perf_counter() - self._start:.1f} s"
        print_message(" - ".join([f"Epoch {epoch + 1}/{self.epochs}", seconds, *values]))


def _can_draw():
    return getattr(sys.stdout, "isatty", bool)() or "ipykernel" in sys.modules or "PYCHARM_HOSTED" in os.environ
