"""The learning rate of a run: set by a schedule, and always in the logs."""

import math
import numbers

import keras

from kvision.errors import unknown
from kvision.trackers.clock import last_learning_rate, optimizer_steps

UNITS = ("step", "epoch", "images")


class LearningRate(keras.callbacks.Callback):
    """Sets the optimizer's learning rate by a schedule and logs it as `learning_rate`.

    The optimizer keeps a plain float rate, so a run may change its schedule without being compiled again. Whatever the
    unit, the schedule is asked where the run stands: a resumed run (`optimizer.iterations` restored, or
    `initial_epoch` given) goes on where it was. The logs of an epoch hold the rate of its last step.

    - `unit="step"`: optimizer steps taken, as `optimizer.iterations` counts them. With gradient accumulation that is
      one step for several batches (a schedule inside the Keras optimizer counts batches there). With
      `steps_per_execution=k` the rate can change only between executions, that is every k batches. On JAX each change
      brings the state of the model back from the compiled step: a few milliseconds a batch for a large network.
    - `unit="epoch"`: epochs finished, from 0, as `fit` counts them; the rate is constant within an epoch.
    - `unit="images"`: images seen by the optimizer, `batch_size` a step.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`, a function of one number (the position in `unit`)
            that returns the rate, or a number for a constant rate. None changes nothing and only logs the rate,
            whoever sets it.
        unit: `"step"`, `"epoch"` or `"images"`.
        batch_size: Images in one optimizer step, all replicas and accumulated batches together; needed for
            `unit="images"`.

    Raises:
        ValueError: For an unknown unit, a missing batch size, or a schedule of another type; before the first batch,
            for an optimizer that was compiled with a schedule of its own; and for a rate that is negative or not
            finite.

    ```python
    warm_up = lambda step: 0.1 * min(1.0, (step + 1) / 500)
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.LearningRate(warm_up)])
    ```
    """

    def __init__(self, schedule=None, unit="step", batch_size=None):
        super().__init__()
        if not (schedule is None or callable(schedule) or isinstance(schedule, numbers.Real)):
            raise ValueError(
                f"Unusable schedule: got {schedule!r}, expected a keras.optimizers.schedules.LearningRateSchedule, a "
                "function of one number, a number, or None. Give one of these."
            )
        if unit not in UNITS:
            raise unknown("unit", unit, UNITS)
        if unit == "images" and not (isinstance(batch_size, numbers.Integral) and batch_size > 0):
            raise ValueError(
                f'unit="images" needs the batch size: got batch_size={batch_size!r}, expected a positive integer. '
                "Give the number of images in one optimizer step."
            )
        self.schedule = schedule
        self.unit = unit
        self.batch_size = batch_size

    def on_train_begin(self, logs=None):
        rate = getattr(self.model.optimizer, "learning_rate", None)
        if self.schedule is not None and not isinstance(rate, keras.Variable):
            raise ValueError(
                "LearningRate cannot set the rate of this optimizer: got "
                f"{type(self.model.optimizer).__name__} with a schedule of its own or without a rate, expected an "
                "optimizer compiled with a float learning_rate. Compile with a float and give the schedule to "
                "LearningRate, or use LearningRate() to log the rate only."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._set_rate(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.unit != "epoch" and callable(self.schedule):
            self._set_rate()

    def on_epoch_end(self, epoch, logs=None):
        rate = last_learning_rate(self.model)
        if logs is not None and rate is not None:
            logs["learning_rate"] = rate

    def _set_rate(self, epoch=None):
        if self.schedule is None:
            return
        model = self.model  # on JAX, asking for it brings the optimizer's variables up to date
        position = epoch if self.unit == "epoch" else optimizer_steps(model)
        if self.unit == "images":
            position *= self.batch_size
        rate = self.schedule(position) if callable(self.schedule) else self.schedule
        rate = float(keras.ops.convert_to_numpy(rate))
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"Unusable learning rate: got {rate} from the schedule at {self.unit} {position}, expected a finite "
                "number of at least 0. Mend the schedule."
            )
        model.optimizer.learning_rate = rate
