"""The activations of a model, watched while a training step is traced: active units, and statistics."""

import collections
import functools
import threading

import keras
from keras import ops

from kvision.callbacks.vitals.active_units import active_units
from kvision.callbacks.vitals.saturating import bounds_attribute, saturated_units
from kvision.relus import relu_attribute

EXAMPLES = 1024  # examples to read before a unit that was never active is called dead


class WatchedUnits:
    """Wrappers around the activations, which record the units of some of the steps.

    Args:
        recorder: The `Recorder` of the step.
        measuring: Context manager around all that is measurement.
        layers: `{id(layer): layer}` of the model.
        with_statistics: Whether mean, deviation and saturation of all activations are recorded too.

    Attributes:
        relus: `{id(layer): attribute}` of the ReLUs that are watched.
        bounded: `{id(layer): (attribute, bounds)}` of the activations whose statistics are recorded: bounds is None
            where they do not saturate at both ends.
    """

    def __init__(self, recorder, measuring, layers, with_statistics):
        self.relus = {key: name for key, layer in layers.items() if (name := relu_attribute(layer))}
        found = {key: bounds_attribute(layer) for key, layer in layers.items()} if with_statistics else {}
        self.bounded = {key: pair for key, pair in found.items() if pair[0] is not None}
        self._recorder = recorder
        self._measuring = measuring
        self._layers = layers
        self._names = {}  # of the watched calls, in the order of the first trace
        self._calls = threading.local()  # replicas are traced one after another, each in a thread of its own

    @property
    def saturating(self):
        """Paths of the layers whose activation is a sigmoid or tanh."""
        layers = (self._layers[key] for key, (_, bounds) in self.bounded.items() if bounds is not None)
        return [layer.path or layer.name for layer in layers]

    def begin(self):
        """A step is traced from now on."""
        self._calls.stack = [(None, collections.Counter())]

    def wrapped_attributes(self):
        """`(object, name, value)` of what is to be replaced while a step is traced."""
        for key, layer in self._layers.items() if self.relus or self.bounded else ():
            attribute = self.relus.get(key) or self.bounded.get(key, (None,))[0]
            if attribute != "call":
                yield layer, "call", self._counted_call(key, layer.call)
            if attribute is not None:
                yield layer, attribute, self._watched(layer, getattr(layer, attribute))

    def _counted_call(self, key, call):
        """`call` of a layer that may hold activations: inside it their calls are counted from 0."""

        @functools.wraps(call)
        def counted(*args, **kwargs):
            self._calls.stack.append((key, collections.Counter()))
            try:
                return call(*args, **kwargs)
            finally:
                self._calls.stack.pop()

        return counted

    def _watched(self, layer, function):
        """`function`, an activation, which records the units of some of the steps."""

        @functools.wraps(function)
        def watched(*args, **kwargs):
            outputs = function(*args, **kwargs)
            rank, units = len(outputs.shape), outputs.shape[-1] if len(outputs.shape) else None
            if rank > 1 and units is not None and not isinstance(outputs, keras.KerasTensor):
                with self._measuring():
                    self._record(layer, outputs)
            return outputs

        return watched

    def _record(self, layer, outputs):
        examples = ops.shape(outputs)[0]
        # Read about EXAMPLES a window, at batches spread by the golden section: no period of the data hides.
        _, window = self._recorder.plan()
        stride = ops.clip(window * ops.cast(examples, "int32") // EXAMPLES, 1, 4096)
        due = ops.cast(self._recorder.batch() % 4096, "int32") * 2531 % 4096 < 4096 // stride
        units = outputs.shape[-1]
        name = self._name(layer, units)
        if id(layer) in self.relus:
            self._recorder.count_active(name, due, units, lambda: active_units(outputs), examples)
        if id(layer) in self.bounded:
            bounds = self.bounded[id(layer)][1]
            self._recorder.add_up(name, due, 4, lambda: statistics_of(outputs, bounds))

    def _name(self, layer, units):
        """One activation may stand behind several layers: it is known by its surroundings and its number there."""
        surroundings, counts = self._calls.stack[-1]
        call = id(layer), surroundings, counts[id(layer)], units
        counts[id(layer)] += 1
        if call not in self._names:
            path = layer.path or layer.name
            same = sum(1 for known in self._names.values() if known[0] == path)
            self._names[call] = path, path if same == 0 else f"{path} ({same + 1})"
        return self._names[call][1]


def statistics_of(outputs, bounds):
    """`[1, mean, mean of the squares, fraction of saturated units or -1]` of one batch, float32."""
    values = ops.cast(ops.stop_gradient(outputs), "float32")
    saturated = -1.0 if bounds is None else ops.mean(ops.cast(saturated_units(values, bounds), "float32"))
    numbers = (1.0, ops.mean(values), ops.mean(ops.square(values)), saturated)
    return ops.stack([ops.cast(number, "float32") for number in numbers])
