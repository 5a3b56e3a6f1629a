"""The one place that reaches into a training step: what vitals read is measured here, once for all of them.

A vital cannot stand around the step: it would see the update of k steps where `steps_per_execution=k`, no gradient at
all, and no activation. So the tap measures inside the compiled step. It lets Keras make a second train function from a
`train_step` of its own, which puts wrappers around `optimizer.apply`, activations and ReLU layers while Keras's step
runs, and takes them off in a `finally`. A compiled step runs as Python only while it is traced; the wrappers are on
for as long as that and at no other time, so no exception, wherever it comes from, can leave one behind, and every
retracing (a last batch of another size) is tapped as the first one was.

The tapped train function is put in place by `on_train_batch_begin` for one call, and puts Keras's own back before it
runs. It belongs to one `fit` and is dropped with it; a later fit without vitals runs the function it always ran.
"""

import contextlib
import dataclasses
import functools
import math
import weakref

import keras
import numpy as np
from keras import ops

from kvision._keras import accumulated_gradient, calls_variable, layers_of, optimized_variables
from kvision.trackers import tracker

if keras.backend.backend() == "jax":
    from kvision.callbacks.vitals._recorder_jax import Recorder
else:
    from kvision.callbacks.vitals._recorder_tensorflow import Recorder

EXAMPLES = 1024  # examples to look at before a unit that never fired is called dead

_taps = weakref.WeakValueDictionary()


@dataclasses.dataclass(frozen=True)
class Norms:
    """What one optimizer step did.

    Args:
        step: Optimizer steps taken, this one included.
        learning_rate: The rate this step was taken with.
        shapes: `{weight path: shape}` of the trainable weights, in the model's order.
        gradients: `{weight path: norm}`, before clipping, unscaled; weights without a gradient are missing.
        weights: `{weight path: norm}` before the step.
        updates: `{weight path: norm}` of what the step added.
    """

    step: int
    learning_rate: float
    shapes: dict
    gradients: dict
    weights: dict
    updates: dict

    @property
    def kernels(self):
        """Paths of the weights that medians and advice look at: rank 2 or more, root mean square above 1e-6."""
        return [path for path, shape in self.shapes.items() if len(shape) >= 2 and self.root_mean_square(path) > 1e-6]

    def root_mean_square(self, path):
        """Root mean square of the elements of a weight before the step."""
        return self.weights[path] / math.sqrt(max(1, math.prod(self.shapes[path])))


class Vital(keras.callbacks.Callback):
    """Base of the callbacks that read a step tap.

    Args:
        every: Optimizer steps from one measurement to the next. The first step of a fit is measured as well.
    """

    def __init__(self, every=100):
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` counts optimizer steps: got {every!r}, expected an integer of at least 1.")
        self.every = every
        self._tap = None

    def measured(self, norms):
        """Receive the `Norms` of a step; the first of a fit, and every `every`-th."""

    def looked(self, fired):
        """Receive `{layer path: (units that fired, examples looked at)}` since the last call."""

    def summary(self):
        """What goes into `logs` at the end of an epoch: the numbers last measured."""
        return {}

    def emit(self, name, step, values, healthy):
        """Hand numbers by weight or layer to the trackers of this fit, once however often a vital is listed."""
        if self._tap.first(type(self)) is self:
            tracker.emit(self, tracker.Measurement(name, step, values, healthy))

    def on_train_begin(self, logs=None):
        self._tap = tap_of(self)
        self._tap.join(self)

    def on_train_batch_begin(self, batch, logs=None):
        self._tap.before_batch(self, batch)

    def on_train_batch_end(self, batch, logs=None):
        self._tap.after_batch(self, batch)

    def on_epoch_end(self, epoch, logs=None):
        self._tap.look()
        if logs is not None:
            logs.update(self.summary())

    def on_train_end(self, logs=None):
        self._tap.close()


def tap_of(vital):
    """The tap of the fit that `vital` takes part in; Keras gives one `params` dict to all callbacks of one fit."""
    tap = _taps.get(id(vital.params))
    if tap is None or tap.model is not vital.model:
        tap = _taps[id(vital.params)] = StepTap(vital.model, vital.params)
    return tap


class StepTap:
    """Measures inside the steps of one `fit` and tells every vital that joined.

    Args:
        model: A compiled model.
        params: The `params` of the callbacks of this fit; held, so that its identity stands for the fit.
    """

    def __init__(self, model, params):
        self.model = model
        self.params = params
        self._history = getattr(model, "history", None)
        self._vitals = []
        self._plain = None
        self._tapped = None

    def join(self, vital):
        """Let `vital` receive what is measured; before the first batch."""
        self._vitals.append(vital)

    def first(self, kind):
        """The first vital of a class that joined."""
        return next(vital for vital in self._vitals if isinstance(vital, kind))

    def before_batch(self, vital, batch):
        """Put the tapped train function in place for one call."""
        if vital is not self._vitals[0]:
            return
        if self._tapped is None or self.model.train_function is not self._plain:
            self._make()
        self._begin = batch
        self.model.train_function = self._once

    def after_batch(self, vital, batch):
        """Tell the vitals of a new measurement, if there is one."""
        if vital is not self._vitals[0]:
            return
        executed = batch - self._begin + 1
        self._reachable += executed
        if self._reachable < self._next:
            return
        found = self._recorder.measured()
        if found is None or found[0] <= self._step:
            return
        self._step, values = found
        self._reachable = self._step + executed - 1
        self._next = min((self._step // vital.every + 1) * vital.every for vital in self._vitals)
        self.look()
        norms = self._norms(values())
        for vital in self._vitals:
            if self._step == self._first or self._step % vital.every == 0:
                vital.measured(norms)

    def look(self):
        """Tell the vitals which units fired since the last look."""
        fired = self._recorder.take_fired() if self._tapped is not None else {}
        if fired:
            paths = tracker.unique_names(layer.path or layer.name for layer, _ in self._relus.values())
            fired = {path: fired[key] for key, path in zip(self._relus, paths, strict=True) if key in fired}
            for vital in self._vitals:
                vital.looked(fired)

    def close(self):
        """Deliver what is left and drop the tapped function."""
        self.look()
        self._tapped = self._recorder = None

    def _once(self, *arguments):
        self.model.train_function = self._plain
        if self.model.history is not self._history:  # left in place by a fit that broke off before its step
            return self._plain(*arguments)
        return self._tapped(*arguments)

    def _make(self):
        model = self.model
        self._optimizer = model.optimizer
        if isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer):
            self._optimizer = self._optimizer.inner_optimizer
        self._recorder = Recorder(model)
        self._relus = {
            id(layer): (layer, name) for layer in layers_of(model, include_self=True) if (name := relu_attribute(layer))
        }
        self._variables = []
        self._without_gradient = set()
        self._running = 0
        self._step = self._reachable = tracker.optimizer_steps(model)
        self._first = self._next = self._step + 1
        self._plain = model.train_function
        step = model.train_step

        def tapped_step(*arguments):
            self._calls = self._recorder.calls(self._optimizer, arguments)
            with self._wrapped():
                return step(*arguments)

        with replaced([(model, "train_step", tapped_step)]):
            model.make_train_function(force=True)
        self._tapped, model.train_function = model.train_function, self._plain

    @contextlib.contextmanager
    def _wrapped(self):
        """Put the wrappers on while Keras's step runs as Python; the replicas of one step share them."""
        if self._running == 0:
            self._wrappers = contextlib.ExitStack()
            self._wrappers.enter_context(replaced(list(self._wrapped_attributes())))
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._running == 0:
                self._wrappers.close()

    def _wrapped_attributes(self):
        yield self._optimizer, "apply", self._measure(self._optimizer.apply)
        for key, (layer, name) in self._relus.items():
            yield layer, name, self._watch(key, getattr(layer, name))

    def _measure(self, apply):
        optimizer, recorder = self._optimizer, self._recorder
        every = {vital.every for vital in self._vitals}
        accumulation = optimizer.gradient_accumulation_steps or 1

        @functools.wraps(apply)
        def measured_apply(grads, trainable_variables=None):
            grads = list(grads)
            variables = list(optimized_variables(optimizer) if trainable_variables is None else trainable_variables)
            if not optimizer.built:  # its variables cannot be made inside a condition
                with keras.name_scope(optimizer.name, caller=optimizer):
                    optimizer.build(variables)
            self._variables = variables
            self._without_gradient = {index for index, gradient in enumerate(grads) if gradient is None}
            calls = recorder.value(calls_variable(optimizer)) + 1
            step = calls // accumulation
            due = step == self._first
            for interval in every:
                due = due | (step % interval == 0)
            due = due & (calls % accumulation == 0)

            def before():
                gradients = recorder.whole_batch(grads)
                if optimizer.loss_scale_factor:
                    gradients = [None if grad is None else grad / optimizer.loss_scale_factor for grad in gradients]
                if accumulation > 1:
                    sums = [recorder.value(accumulated_gradient(optimizer, variable)) for variable in variables]
                    pairs = zip(gradients, sums, strict=True)
                    gradients = [None if grad is None else (grad + sum) / accumulation for grad, sum in pairs]
                return optimizer.learning_rate, gradients, [recorder.value(variable) for variable in variables]

            def after(read):
                rate, gradients, weights = read
                squares = [0.0 if gradient is None else sum_of_squares(gradient) for gradient in gradients]
                squares += map(sum_of_squares, weights)
                for new, old in zip(variables, weights, strict=True):
                    squares.append(sum_of_squares(float32(recorder.value(new)) - float32(old)))
                return step, ops.concatenate([ops.reshape(float32(rate), [1]), ops.sqrt(ops.stack(squares))])

            def update():
                apply(grads, trainable_variables=trainable_variables)

            recorder.around_update(due, 1 + 3 * len(variables), before, update, after)

        return measured_apply

    def _watch(self, key, function):
        """`function`, a ReLU, with a look at the units that fire at some of the steps."""
        window = min(vital.every for vital in self._vitals) * (self._optimizer.gradient_accumulation_steps or 1)
        window = min(window, (self.params or {}).get("steps") or window, 100_000)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            outputs = function(*args, **kwargs)
            units = outputs.shape[-1]
            if len(outputs.shape) > 1 and units is not None and not isinstance(outputs, keras.KerasTensor):
                examples = ops.shape(outputs)[0]
                # Look at about EXAMPLES a window, at steps spread by the golden section: no period of the data hides.
                stride = ops.clip(ops.cast(window * examples // EXAMPLES, "int32"), 1, 4096)
                look = ops.cast(self._calls % 4096, "int32") * 2531 % 4096 < 4096 // stride
                values = outputs

                def fired():
                    axes = tuple(range(len(values.shape) - 1))
                    return ops.logical_not(ops.max(ops.stop_gradient(values), axis=axes) <= 0)

                self._recorder.count_fired(key, look, units, fired, examples)
            return outputs

        return watched

    def _norms(self, values):
        rate, values = float(values[0]), values[1:].reshape(3, -1).tolist()
        paths = tracker.unique_names(variable.path for variable in self._variables)
        shapes = {path: tuple(variable.shape) for path, variable in zip(paths, self._variables, strict=True)}
        gradients, weights, updates = (dict(zip(paths, row, strict=True)) for row in values)
        for index in self._without_gradient:
            del gradients[paths[index]]
        return Norms(self._step, rate, shapes, gradients, weights, updates)


def float32(tensor):
    """`tensor` in the precision that numbers are measured in, under any policy."""
    return ops.cast(tensor, "float32")


def sum_of_squares(tensor):
    """Sum of the squared elements."""
    return ops.sum(ops.square(float32(tensor)))


def relu_attribute(layer):
    """Name of the attribute of `layer` that is a ReLU: `"call"`, `"activation"`, or None."""
    if isinstance(layer, keras.layers.ReLU | keras.layers.LeakyReLU):
        return "call" if layer.negative_slope == 0 else None
    return "activation" if is_relu(vars(layer).get("activation")) else None


def is_relu(function):
    """Whether `function` is 0 left of 0 and positive far right of it, by trying: any ReLU, however it is written."""
    if not callable(function) or isinstance(function, keras.Layer):
        return False
    try:
        left, right = np.split(ops.convert_to_numpy(function(ops.convert_to_tensor([-8.0, -1.0, -0.1, 8.0]))), [3])
    except Exception:  # a function of something else: no ReLU
        return False
    return bool(np.all(left == 0) and np.all(right > 0))


@contextlib.contextmanager
def replaced(attributes):
    """Instance attributes `(object, name, value)` replaced for a while, past Keras's tracking of attributes."""
    absent = object()
    before = [(vars(owner), name, vars(owner).get(name, absent)) for owner, name, _ in attributes]
    try:
        for owner, name, value in attributes:
            vars(owner)[name] = value
        yield
    finally:
        for namespace, name, value in before:
            if value is absent:
                namespace.pop(name, None)
            else:
                namespace[name] = value
