"""Where a run stands: its epochs, its optimizer steps and images, and the learning rate of a step."""

import weakref

import keras

from kvision._keras import calls_variable, learning_rate_schedule

_clocks = weakref.WeakKeyDictionary()


def clock_of(model):
    """The `Clock` of a model, one for all its fits."""
    if model not in _clocks:
        _clocks[model] = Clock()
    return _clocks[model]


class Clock:
    """Counts the epochs and steps of a run that has several fits.

    Keras counts epochs anew in each `fit`, from `initial_epoch`, and an optimizer counts the steps it took itself. The
    run goes on where it was when the same model is trained again, compiled anew or not; when `initial_epoch` says so;
    and when the optimizer was restored. A new model that starts at epoch 0 with a new optimizer is a new run.

    Attributes:
        steps_before: Steps that the run took with other optimizers than the present one.
        epochs_before: Epochs of the run before Keras's epoch 0 of the present fit.
        anew: Whether the present fit began at epoch 0 with an optimizer that had taken no step.
        is_known: False where a resumed run cannot tell its steps: the optimizer is new, and the length of its data
            unknown.
        scheduled: The `params` of the latest fit in which a schedule sets the rate; Keras gives one dict to all
            callbacks of one fit.
        starts: `{callback: position}` of the schedules that began somewhere in the run.
    """

    def __init__(self):
        self.steps_before = self.epochs_before = 0
        self.anew = self.is_known = True
        self.scheduled = self
        self.starts = weakref.WeakKeyDictionary()
        self._params = self
        self._optimizer = lambda: None
        self._ends = {}  # steps at the end of each epoch of the run
        self._steps = self._next_epoch = 0  # when the latest epoch ended; the next one by Keras's count
        self._remembered = []
        self._images = 0, 0  # steps at the beginning of the present fit, and images
        self._batch_size = None

    def remember(self, ends):
        """Offer `ends()`, which gives `{epoch: steps at its end}` as a directory holds them; asked where needed."""
        self._remembered.append(ends)

    def begin(self, callback, epoch):
        """Settle where the fit of `callback` begins, in its first `on_epoch_begin`: what is restored was by then."""
        if callback.params is self._params and callback.params is not None:
            return
        self._params = callback.params
        model = callback.model
        optimizer, taken = unwrapped_optimizer(model), applied_steps(model)
        is_new = optimizer is not self._optimizer()
        self._optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)
        if self._batch_size is not None:
            self._images = self._steps, self.images(self._steps, self._batch_size)
        self._batch_size = None
        self.anew, self.is_known = is_new and taken == 0 and epoch == 0, True
        if epoch not in (0, self._next_epoch):
            self.epochs_before = 0
        if is_new:
            self.steps_before = self._begin_steps(optimizer, taken, epoch) - taken
        if epoch == 0:
            ended = [done + 1 for done, steps in self._ends.items() if steps <= taken + self.steps_before]
            self.epochs_before = max(ended, default=0)
        self._ends = {done: steps for done, steps in self._ends.items() if done < self.epoch(epoch)}
        self._remembered = []

    def _begin_steps(self, optimizer, taken, epoch):
        """Where a fit with an optimizer that is new to the run begins."""
        if epoch == 0:
            return taken or self._steps
        done = self.epoch(epoch) - 1
        ends = dict(self._ends)
        for remembered in self._remembered:
            ends = remembered() | ends
        if done in ends:
            return max(ends[done], taken)
        steps = (self._params or {}).get("steps")
        if taken or not steps:
            self.is_known = bool(taken)
            return taken
        return epoch * steps // (getattr(optimizer, "gradient_accumulation_steps", None) or 1)

    def end_epoch(self, callback, epoch):
        """Take note of where an epoch ended."""
        self._steps = applied_steps(callback.model) + self.steps_before
        self._next_epoch = epoch + 1
        self._ends[self.epoch(epoch)] = self._steps

    def get_state(self):
        """Where the run stands, to go on from in another process."""
        return {
            "steps_before": self.steps_before,
            "epochs_before": self.epochs_before,
            "ends": dict(self._ends),
            "latest": (self._steps, self._next_epoch),
            "images": self._images,
        }

    def set_state(self, state, model):
        """Take over what `get_state` gave; the optimizer of `model` was restored, so it is the one of that run."""
        self.steps_before = state["steps_before"]
        self.epochs_before = state["epochs_before"]
        self._ends = dict(state["ends"])
        self._steps, self._next_epoch = state["latest"]
        self._images, self._batch_size = state["images"], None
        optimizer = unwrapped_optimizer(model)
        self._optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)

    def go_back(self, steps):
        """The optimizer was put back by so many steps: the run, whose data go on, counts them all the same."""
        self.steps_before += steps

    def epoch(self, epoch):
        """The number in the run, from 0, of what Keras counts as `epoch` in the present fit."""
        return self.epochs_before + epoch

    def images(self, steps, batch_size):
        """Images that the run had seen after so many steps; those of the present fit have `batch_size` each."""
        self._batch_size = batch_size
        begin, seen = self._images if steps >= self._images[0] else (0, 0)
        return seen + (steps - begin) * batch_size


def applied_steps(model):
    """The steps that the present optimizer of `model` has taken: batches divided by gradient accumulation."""
    optimizer = getattr(model, "optimizer", None)
    return 0 if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations))


def optimizer_steps(model):
    """The optimizer steps of the run: those of the present optimizer, and of earlier ones where the run went on.

    Inside a callback give `self.model`: on JAX that brings the optimizer's variables up to date within an epoch.
    """
    clock = _clocks.get(model)
    return applied_steps(model) + (clock.steps_before if clock is not None else 0)


def unwrapped_optimizer(model):
    """The optimizer of a compiled model, without the loss scaling of mixed precision around it; or None."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def learning_rate(optimizer):
    """The rate an optimizer's next step is taken with, as a tensor; the largest one of a `MultiOptimizer`."""
    parts = getattr(optimizer, "optimizers", None)
    if parts is None:
        return optimizer.learning_rate
    return keras.ops.max(keras.ops.stack([keras.ops.cast(part.learning_rate, "float32") for part in parts]))


def last_learning_rate(model):
    """The rate the last step of `model` was taken with; None without an optimizer that has one rate.

    A schedule inside the optimizer stands at the next step already.
    """
    optimizer = unwrapped_optimizer(model)
    if getattr(optimizer, "learning_rate", None) is None:
        return None
    schedule = learning_rate_schedule(optimizer)
    if schedule is None:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    calls = int(keras.ops.convert_to_numpy(calls_variable(optimizer)))
    return float(keras.ops.convert_to_numpy(schedule(max(calls - 1, 0))))
