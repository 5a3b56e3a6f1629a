"""The training step with the measurements inside: the one place that reaches into it.

Keras makes a second train function out of a `train_step` of ours, which puts wrappers around `optimizer.apply` and
around the ReLUs while Keras's step runs, and takes them off in a `finally`. A compiled step runs as Python only while
it is traced; the wrappers are on for as long as that and at no other time, so no exception, wherever it comes from, can
leave one behind, and every retracing (a last batch of another size) is tapped as the first one was.

The tapped function hangs on Keras's own train function: the next fit finds it there and traces nothing, and a model
that is compiled anew or forgotten takes it along.
"""

import contextlib
import functools
import math
import threading

import keras
from keras import ops

from kvision._keras import (
    accumulated_gradient,
    before_averaging,
    calls_variable,
    is_traced,
    layers_of,
    optimized_variables,
    replaced,
)
from kvision.callbacks.vitals.guard import Guard
from kvision.callbacks.vitals.readings import Norms
from kvision.callbacks.vitals.watched_units import WatchedUnits
from kvision.trackers.clock import learning_rate, unwrapped_optimizer
from kvision.trackers.events import unique_names

if keras.backend.backend() == "jax":
    from kvision.callbacks.vitals._recorder_jax import Recorder
else:
    from kvision.callbacks.vitals._recorder_tensorflow import Recorder

INTERVALS = 14  # different `every` in one fit; where there are more, their common divisor serves all
NEVER = 2**31 - 1
NORMS, STATISTICS, READS, GUARDS = "norms", "statistics", "reads", "guards"  # what a tapped step does
HEAD = 5  # numbers ahead of the norms: rate, largest input, loss scale, fractions below float16
NORMAL, LEAST = 2.0**-14, 2.0**-24  # of float16
_ATTRIBUTE = "kvision_tapped_step"


class MeasurementError(Exception):
    """The measurement itself failed while the step was traced."""


def tapped_step_of(model, plain, parts):
    """The tapped step that belongs to the train function `plain` of `model`, made where there is none.

    Args:
        model: A compiled model.
        plain: Its train function.
        parts: What it does, as in `TappedStep`.

    Returns:
        The `TappedStep` and None; or None and the reason why this model's step is left alone.
    """
    made = getattr(plain, _ATTRIBUTE, {})
    if parts in made:
        return made[parts], None
    if _trains_other_weights(model, plain):
        return None, (
            f"`trainable` was changed after {model.name} had been trained, and Keras goes on with the weights it was "
            "compiled with; compile the model again"
        )
    _build_optimizer(model)
    tapped = TappedStep(model, plain, parts)
    with contextlib.suppress(AttributeError):  # a train function of the user's own may take no attributes
        setattr(plain, _ATTRIBUTE, made | {parts: tapped})
    return tapped, None


def _build_optimizer(model):
    """Before the first step: TensorFlow traces a step that makes variables twice, and one that fails spoils them."""
    own = type(model).train_step is not keras.Model.train_step
    optimizer = model.optimizer
    if keras.backend.backend() != "tensorflow" or own or not model.built or optimizer is None or optimizer.built:
        return
    with model.distribute_strategy.scope():
        optimizer.build(model.trainable_weights)


def _trains_other_weights(model, plain):
    """Whether TensorFlow has traced the step with other trainable weights: a second trace could not train these."""
    optimizer = unwrapped_optimizer(model)
    if optimizer is None or not optimizer.built or not is_traced(plain):
        return False
    own = type(model).train_step is not keras.Model.train_step
    return not own and list(map(id, optimized_variables(optimizer))) != list(map(id, model.trainable_weights))


class TappedStep:
    """A train function of `model` that measures; called as Keras's own.

    Args:
        model: A compiled model.
        plain: Its train function, as Keras made it; left in place.
        parts: Frozen set of what it does: `NORMS` and units, `STATISTICS` of the activations, `READS` the batches one
            by one, `GUARDS` against what is not finite.

    Attributes:
        guard: The `Guard` that hands on the batches; None where they are neither read nor guarded.
        recorder: Where the numbers lie until the host reads them.
        units: The `WatchedUnits`.
        variables: The weights whose norms are measured; empty until a step that calls `optimizer.apply` was traced.
        failure: The exception behind a `MeasurementError`; Keras takes it away as that one passes.
    """

    def __init__(self, model, plain, parts):
        self.guard = Guard(model, GUARDS in parts) if parts & {READS, GUARDS} else None
        self.recorder = Recorder(model, 2 + INTERVALS)
        self.variables = []
        self.failure = None
        self._measures_step = NORMS in parts
        layers = {id(layer): layer for layer in layers_of(model, include_self=True)}
        self.units = WatchedUnits(
            self.recorder, self._measuring, layers if self._measures_step else {}, STATISTICS in parts
        )
        self._optimizer = unwrapped_optimizer(model)
        self._scaling = model.optimizer if self._optimizer is not model.optimizer else None
        self._without_gradient = set()
        self._reads_images = False
        self._running = 0
        self._calls = threading.local()  # replicas are traced one after another, each in a thread of its own
        step = model.train_step

        def reading_step(*arguments):  # the data come last, on every backend
            self._calls.images = images_of(arguments[-1])
            return step(*arguments) if self.guard is None else self.guard.run(step, arguments)

        def tapped_step(*arguments):
            with self._wrapped():
                return self.recorder.run(reading_step, arguments)

        one_by_one = [(model, "steps_per_execution", 1)] if self.guard else []
        with replaced([(model, "train_step", tapped_step), *one_by_one]):
            model.make_train_function(force=True)
        self._function, model.train_function = model.train_function, plain

    def begin(self, first, window, intervals, batches=0):
        """Set what a fit measures.

        Args:
            first: The optimizer step to measure first.
            window: Batches over which the examples of one verdict on the units are spread.
            intervals: Optimizer steps from one measurement to the next, of every vital.
            batches: Those that the run has seen.
        """
        self.recorder.begin([first, window, *_few(intervals)], batches)

    def __call__(self, *arguments):
        if self.guard is None:
            return self.recorder.call(self._function, arguments)
        return self.guard.call(lambda *each: self.recorder.call(self._function, each), arguments)

    def unread(self, arguments):
        """The arguments of a call that failed to trace, with the data that it has read."""
        return (self.recorder if self.guard is None else self.guard).unread(arguments)

    def norms(self, step, values):
        """The `Norms` in a vector that the recorder held."""
        (rate, largest, *precision), values = values[:HEAD].tolist(), values[HEAD:].reshape(3, -1).tolist()
        paths = unique_names(variable.path for variable in self.variables)
        shapes = {path: tuple(variable.shape) for path, variable in zip(paths, self.variables, strict=True)}
        gradients, weights, updates = (dict(zip(paths, row, strict=True)) for row in values)
        for index in self._without_gradient:
            del gradients[paths[index]]
        largest = largest if self._reads_images else None
        return Norms(step, rate, shapes, gradients, weights, updates, largest, *precision)

    @contextlib.contextmanager
    def _wrapped(self):
        """Put the wrappers on while Keras's step runs as Python; the replicas of one step share them."""
        self.units.begin()
        if self._running == 0:
            self._wrappers = contextlib.ExitStack()
            self._wrappers.enter_context(replaced(list(self._wrapped_attributes())))
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._calls.images = self._calls.scale = None
            if self._running == 0:
                self._wrappers.close()

    def _wrapped_attributes(self):
        if self._optimizer is not None and self._measures_step:
            yield self._optimizer, "apply", self._measured_apply(self._optimizer.apply)
            if self._scaling is not None:
                yield self._scaling, "stateless_apply", self._kept_scale(self._scaling.stateless_apply)
        yield from self.units.wrapped_attributes()

    @contextlib.contextmanager
    def _measuring(self):
        """What fails in here is the measurement, not the user's step."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise MeasurementError(str(error)) from error

    def _measured_apply(self, apply):
        optimizer, recorder = self._optimizer, self.recorder
        accumulation = optimizer.gradient_accumulation_steps or 1

        @functools.wraps(apply)
        def measured_apply(grads, trainable_variables=None):
            grads = list(grads)
            if not optimizer.built and trainable_variables is not None:  # its variables cannot be made in a condition
                with keras.name_scope(optimizer.name, caller=optimizer):
                    optimizer.build(list(trainable_variables))
            built = optimized_variables(optimizer) if optimizer.built else []
            variables = built if trainable_variables is None else list(trainable_variables)
            if not self._measures(variables):
                return apply(grads, trainable_variables=trainable_variables)
            self._without_gradient = {index for index, gradient in enumerate(grads) if gradient is None}
            images = getattr(self._calls, "images", None)
            self._reads_images = images is not None

            def largest():
                return float32(0.0) if images is None else ops.max(ops.abs(float32(images)))

            averaged = []

            def keep_before_averaging():
                averaged[:] = [recorder.value(variable) for variable in variables]

            def update():
                hooks = [before_averaging(optimizer, keep_before_averaging)] if _overwrites(optimizer) else []
                with replaced(hooks):
                    apply(grads, trainable_variables=trainable_variables)

            with self._measuring():
                calls = recorder.value(calls_variable(optimizer)) + 1
                step = calls // accumulation
                due = recorder.is_due(step) & (calls % accumulation == 0)

            @self._measuring()
            def before():
                gradients = recorder.whole_batch(grads)
                if optimizer.loss_scale_factor:
                    gradients = [None if grad is None else grad / optimizer.loss_scale_factor for grad in gradients]
                if accumulation > 1:
                    sums = [recorder.value(accumulated_gradient(optimizer, variable)) for variable in variables]
                    pairs = zip(gradients, sums, strict=True)
                    gradients = [None if grad is None else (grad + sum) / accumulation for grad, sum in pairs]
                return learning_rate(optimizer), gradients, [recorder.value(variable) for variable in variables]

            @self._measuring()
            def after(read):
                rate, gradients, weights = read
                updated = [recorder.value(variable) for variable in variables]
                if averaged:  # moving averages that overwrite the weights are no update
                    overwritten = step % optimizer.ema_overwrite_frequency == 0
                    pairs = zip(averaged, updated, strict=True)
                    updated = [ops.where(overwritten, own, weight) for own, weight in pairs]
                squares = [0.0 if gradient is None else sum_of_squares(gradient) for gradient in gradients]
                squares += map(sum_of_squares, weights)
                for new, old in zip(updated, weights, strict=True):
                    squares.append(sum_of_squares(float32(new) - float32(old)))
                head = ops.stack([float32(rate), largest(), *below_float16(gradients, variables, self._loss_scale())])
                return step, ops.concatenate([head, ops.sqrt(ops.stack(squares))])

            return recorder.around_update(due, HEAD + 3 * len(variables), before, update, after)

        return measured_apply

    def _kept_scale(self, apply):
        """`stateless_apply` of JAX: in the update inside it the variables of loss scaling have no values."""

        @functools.wraps(apply)
        def kept_scale(optimizer_variables, grads, trainable_variables):
            values = dict(zip(map(id, self._scaling.variables), optimizer_variables, strict=True))
            self._calls.scale = values[id(self._scaling.dynamic_scale)]
            return apply(optimizer_variables, grads, trainable_variables)

        return kept_scale

    def _loss_scale(self):
        if getattr(self._calls, "scale", None) is not None:
            return self._calls.scale
        if self._scaling is not None:
            return self.recorder.value(self._scaling.dynamic_scale)
        return self._optimizer.loss_scale_factor or 1.0

    def _measures(self, variables):
        """Whether a call of `apply` is one to measure: the first of a step decides for which weights."""
        if any(part.gradient_accumulation_steps for part in getattr(self._optimizer, "optimizers", ())):
            return False
        if not self.variables:
            self.variables = list(variables)
        return bool(variables) and list(map(id, self.variables)) == list(map(id, variables))


def images_of(data):
    """The first images [b, h, w, 1 or 3] among the inputs of a batch, or None."""
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    shapes = ((getattr(tensor, "shape", ()), tensor) for tensor in keras.tree.flatten(x))
    return next((tensor for shape, tensor in shapes if len(shape) == 4 and shape[-1] in (1, 3)), None)


def float32(tensor):
    """`tensor` in the precision that numbers are measured in, under any policy."""
    return ops.cast(tensor, "float32")


def sum_of_squares(tensor):
    """Sum of the squared elements."""
    return ops.sum(ops.square(float32(tensor)))


def below_float16(gradients, variables, scale):
    """The loss scale, and the fractions of the gradients, times that, which float16 holds badly and not at all."""
    scale = float32(scale)
    pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
    magnitudes = [ops.abs(float32(gradient)) * scale for gradient, _ in pairs]
    count = max(1, sum(math.prod(variable.shape) for _, variable in pairs))  # a sparse gradient knows no shape

    def fraction(bound):
        below = [ops.sum(float32((each > 0) & (each < bound))) for each in magnitudes]
        return ops.sum(ops.stack(below)) / count if below else float32(0.0)

    return scale, fraction(NORMAL), fraction(LEAST)


def _overwrites(optimizer):
    return bool(optimizer.use_ema and optimizer.ema_overwrite_frequency)


def _few(intervals):
    """The intervals in a list of fixed length."""
    intervals = sorted(intervals)
    if len(intervals) > INTERVALS:
        intervals = [functools.reduce(math.gcd, intervals)]
    return intervals + [NEVER] * (INTERVALS - len(intervals))
