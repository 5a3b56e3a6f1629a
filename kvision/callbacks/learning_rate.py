"""The learning rate of a run: set by a schedule, and always in the logs."""

import inspect
import math
import numbers

import keras
import numpy as np

from kvision.errors import unknown
from kvision.trackers.clock import clock_of, last_learning_rate, optimizer_steps

UNITS = ("step", "epoch", "images")
AHEAD = 1_000  # steps whose rates are asked for at once, since asking takes a dozen operations


class LearningRate(keras.callbacks.Callback):
    """Sets the optimizer's learning rate by a schedule and logs it as `learning_rate`.

    The optimizer keeps a plain float rate, so a run may change its schedule without being compiled again. Whatever the
    unit, the schedule is asked where the run stands: it goes on in a second `fit` with the same callback (compiled anew
    or not), where `initial_epoch` is given, and where `optimizer.iterations` was restored. A new `LearningRate` for a
    model that was compiled anew and starts at epoch 0 begins at 0: a phase with a schedule of its own. The logs of an
    epoch hold the rate of its last step.

    - `unit="step"`: optimizer steps taken, as `optimizer.iterations` counts them. With gradient accumulation that is
      one step for several batches (a schedule inside the Keras optimizer counts batches there). With
      `steps_per_execution=k` the rate can change only between executions, that is every k batches. On JAX each change
      brings the state of the model back from the compiled step: a few milliseconds a batch for a large network.
    - `unit="epoch"`: epochs finished, from 0; the rate is constant within an epoch.
    - `unit="images"`: images seen by the optimizer, `batch_size` a step.

    What another callback does to the rate is kept as a factor on the schedule: beside `ReduceOnPlateau` or Keras's
    `ReduceLROnPlateau`, the rate is that of the schedule times all the drops so far.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`, a function of one number (the position in `unit`)
            that returns the rate, a number for a constant rate, or a function `(epoch, lr)` as Keras's
            `LearningRateScheduler` takes it, `lr` being the present rate. None changes nothing and only logs the rate,
            whoever sets it.
        unit: `"step"`, `"epoch"` or `"images"`; None is `"epoch"` for a function `(epoch, lr)`, else `"step"`.
        batch_size: Images in one optimizer step, all replicas and accumulated batches together; needed for
            `unit="images"`, and for nothing else.

    Raises:
        ValueError: For an unknown unit, a batch size that is missing or not needed, a schedule of another type, or a
            function `(epoch, lr)` with another unit than epochs; before the first batch, for an optimizer that was
            compiled with a schedule of its own, and for `initial_epoch` with a new optimizer and data of unknown
            length; and for a rate that is negative or not finite.

    ```python
    warm_up = lambda step: 0.1 * min(1.0, (step + 1) / 500)
    model.fit(x, y, epochs=3, callbacks=[kvision.callbacks.LearningRate(warm_up)])
    ```
    """

    def __init__(self, schedule=None, unit=None, batch_size=None):
        super().__init__()
        if not (schedule is None or callable(schedule) or isinstance(schedule, numbers.Real)):
            raise ValueError(
                f"Unusable schedule: got {schedule!r}, expected a keras.optimizers.schedules.LearningRateSchedule, a "
                "function of one number, a number, or None. Give one of these."
            )
        takes_rate = _takes_rate(schedule)
        unit = unit or ("epoch" if takes_rate else "step")
        if unit not in UNITS:
            raise unknown("unit", unit, UNITS)
        if takes_rate and unit != "epoch":
            raise ValueError(
                f'A schedule of an epoch and a rate is asked once an epoch: got unit="{unit}". Leave out `unit`, or '
                "give a function of one number."
            )
        if unit == "images" and not (isinstance(batch_size, numbers.Integral) and batch_size > 0):
            raise ValueError(
                f'unit="images" needs the batch size: got batch_size={batch_size!r}, expected a positive integer. '
                "Give the number of images in one optimizer step."
            )
        if unit != "images" and batch_size is not None:
            raise ValueError(
                f'batch_size has no effect with unit="{unit}": got {batch_size!r}. Leave it out, or give unit="images".'
            )
        self.schedule = schedule
        self.unit = unit
        self.batch_size = batch_size
        self._takes_rate = takes_rate
        self._factor, self._set = 1.0, None  # what others made of the rate; the rate that was set last
        self._start = None  # where the schedule began in the run, if restored
        self._ahead, self._asked = {}, None  # rates of positions to come, and of which schedule

    def get_state(self):
        """What other callbacks made of the rate, `factor`, and where in the run the schedule began, `start`."""
        self._notice()
        start = self._start if self._model is None else clock_of(self.model).starts.get(self, self._start)
        return {"factor": self._factor, "start": start}

    def set_state(self, state):
        """Take over what `get_state` gave, to go on in another process."""
        self._factor, self._start = state["factor"], state["start"]

    def on_train_begin(self, logs=None):
        rate = getattr(self.model.optimizer, "learning_rate", None)
        if self.schedule is not None and not isinstance(rate, keras.Variable):
            raise ValueError(
                "LearningRate cannot set the rate of this optimizer: got "
                f"{type(self.model.optimizer).__name__} with a schedule of its own or without a rate, expected an "
                "optimizer compiled with a float learning_rate. Compile with a float and give the schedule to "
                "LearningRate, or use LearningRate() to log the rate only."
            )
        self._begun = False
        if self.schedule is not None:
            clock_of(self.model).scheduled = self.params

    def on_epoch_begin(self, epoch, logs=None):
        clock_of(self.model).begin(self, epoch)
        if not self._begun:
            self._begun = True
            self._begin_fit(epoch)
        self._set_rate(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.unit != "epoch" and callable(self.schedule):
            self._set_rate()

    def on_epoch_end(self, epoch, logs=None):
        clock_of(self.model).end_epoch(self, epoch)
        rate = last_learning_rate(self.model)
        if logs is not None and rate is not None:
            logs["learning_rate"] = rate

    def _begin_fit(self, epoch):
        """Settle where the schedule begins in the run, and whether what others made of the rate still holds."""
        clock = clock_of(self.model)
        if not clock.is_known and self.schedule is not None and self.unit != "epoch":
            raise ValueError(
                f"LearningRate cannot tell how many steps initial_epoch={epoch} stands for: got a new optimizer and "
                'data of unknown length. Restore the optimizer, give fit steps_per_epoch, or use unit="epoch".'
            )
        if clock.anew:
            self._factor = 1.0
        self._set = None
        if self not in clock.starts:
            clock.starts[self] = self._position(epoch) if clock.anew else self._start or 0

    def on_train_end(self, logs=None):
        self._notice()
        self._set = None

    def _notice(self):
        """Keep as a factor what another callback has made of the rate since it was set."""
        if self._set and not self._takes_rate:
            present = _number(self.model.optimizer.learning_rate)
            self._factor, self._set = self._factor * present / self._set, present

    def _position(self, epoch):
        """Where the run stands, in `unit`."""
        model = self.model  # on JAX, asking for it brings the optimizer's variables up to date
        clock = clock_of(model)
        if self.unit == "epoch":
            return clock.epoch(epoch)
        steps = optimizer_steps(model)
        return clock.images(steps, self.batch_size) if self.unit == "images" else steps

    def _set_rate(self, epoch=None):
        if self.schedule is None:
            return
        model = self.model
        position = max(self._position(epoch) - clock_of(model).starts[self], 0)
        if self._takes_rate:
            rate = _number(self.schedule(position, _number(model.optimizer.learning_rate)))
        else:
            self._notice()
            rate = self._rate_at(position) * self._factor
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"Unusable learning rate: got {rate} from the schedule at {self.unit} {position}, expected a finite "
                "number of at least 0. Mend the schedule."
            )
        model.optimizer.learning_rate = rate
        self._set = _number(model.optimizer.learning_rate)

    def _rate_at(self, position):
        """The schedule's rate."""
        if not callable(self.schedule):
            return _number(self.schedule)
        takes_arrays = type(self.schedule).__module__.startswith("kvision.")  # what others wrote may take one number
        if self.unit == "epoch" or not takes_arrays:
            return _number(self.schedule(position))
        asked = (self.schedule, str(self.schedule.get_config()))  # which may be changed as the run goes
        if position not in self._ahead or self._asked != asked:
            self._asked = asked
            positions = position + (self.batch_size or 1) * np.arange(AHEAD)
            rates = np.broadcast_to(keras.ops.convert_to_numpy(self.schedule(positions)), AHEAD)
            self._ahead = dict(zip(positions.tolist(), rates.tolist(), strict=True))
        return self._ahead[position]


def _number(value):
    return float(keras.ops.convert_to_numpy(value))


def _takes_rate(schedule):
    """Whether `schedule` is a function of an epoch and a rate, as Keras's `LearningRateScheduler` takes it."""
    if not callable(schedule) or isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return False
    try:
        parameters = list(inspect.signature(schedule).parameters.values())
    except (TypeError, ValueError):  # a function written in C
        return False
    second = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)][1:2]
    return any(each.default is each.empty or each.name in ("lr", "learning_rate") for each in second)
