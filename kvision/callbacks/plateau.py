"""Dropping the learning rate on a plateau, with a memory that survives a resumed run."""

import keras

from kvision.trackers.clock import clock_of


class ReduceOnPlateau(keras.callbacks.ReduceLROnPlateau):
    """Lower the learning rate when a number has stopped improving; what it has seen so far can be saved and restored.

    The rule is Keras's `ReduceLROnPlateau`, with the same arguments (He et al., *Deep Residual Learning*, arXiv
    1512.03385, section 3.4, divide by 10 when the error plateaus). That one forgets its best value, its patience and
    the rate it had reached when a run is resumed; this one takes them back from `set_state`, whatever the order of the
    callbacks. Beside a `LearningRate` with a schedule, the drops are a factor on what the schedule says.

    Args:
        monitor: Name of the number watched, as in `logs`.
        factor: What the rate is multiplied by, in (0, 1).
        patience: Epochs without improvement before it is.
        mode: `"min"`, `"max"` or `"auto"`; needed for names that Keras does not know, such as `"val_AP"`.
        min_delta: Least change that counts as an improvement.
        cooldown: Epochs after a drop in which none are counted.
        min_lr: The rate does not fall below this.
        **options: Keras's others.

    Example:

    ```python
    plateau = ReduceOnPlateau(patience=2)
    model.fit(data, epochs=5, validation_data=held_out, callbacks=[plateau])
    state = plateau.get_state()      # {"best": 0.31, "wait": 1, "cooldown": 0, "rates": [0.001]}

    plateau = ReduceOnPlateau(patience=2)     # in another process
    plateau.set_state(state)
    model.fit(data, epochs=10, initial_epoch=5, validation_data=held_out, callbacks=[plateau])
    ```
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._restored = None

    def _optimizers(self):
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            return []
        return getattr(optimizer, "optimizers", [optimizer])

    def get_state(self):
        """The memory as plain numbers: `best` (None before the first epoch), `wait`, `cooldown`, and the `rates`.

        There is one rate an optimizer: one, except under Keras's `MultiOptimizer`; none before the first fit.
        """
        if self._restored is not None:
            return dict(self._restored)
        return {
            "best": None if self.best is None else float(self.best),
            "wait": int(self.wait),
            "cooldown": int(self.cooldown_counter),
            "rates": [
                float(keras.ops.convert_to_numpy(each.learning_rate))
                for each in (self._optimizers() if self._model else ())
            ],
        }

    def set_state(self, state):
        """Take over what `get_state` gave; it holds from the next epoch's beginning."""
        self._restored = dict(state)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        for optimizer in self._optimizers():  # raises now, not at the first plateau, if a schedule owns the rate
            optimizer.learning_rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored is None:
            return
        self.best = self._restored["best"]
        self.wait = self._restored["wait"]
        self.cooldown_counter = self._restored["cooldown"]
        rates = self._restored["rates"]
        if rates and clock_of(self.model).scheduled is not self.params:  # else the schedule says the rate
            for optimizer, rate in zip(self._optimizers(), rates, strict=True):
                optimizer.learning_rate = rate
        self._restored = None
