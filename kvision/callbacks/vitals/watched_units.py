"""The units of a model's ReLUs, watched while a training step is traced."""

import collections
import functools
import threading

import keras
from keras import ops

from kvision.callbacks.vitals.relu import active_units, relu_attribute

EXAMPLES = 1024  # examples to read before a unit that was never active is called dead


class WatchedUnits:
    """Wrappers around the ReLUs, which record the active units of some of the steps.

    Args:
        recorder: The `Recorder` of the step.
        measuring: Context manager around all that is measurement.
        layers: `{id(layer): layer}` of the model.

    Attributes:
        relus: `{id(layer): attribute}` of the ReLUs that are watched.
    """

    def __init__(self, recorder, measuring, layers):
        self.relus = {key: name for key, layer in layers.items() if (name := relu_attribute(layer))}
        self._recorder = recorder
        self._measuring = measuring
        self._layers = layers
        self._names = {}  # of the watched calls, in the order of the first trace
        self._calls = threading.local()  # replicas are traced one after another, each in a thread of its own

    def begin(self):
        """A step is traced from now on."""
        self._calls.stack = [(None, collections.Counter())]

    def wrapped_attributes(self):
        """`(object, name, value)` of what is to be replaced while a step is traced."""
        for key, layer in self._layers.items() if self.relus else ():
            attribute = self.relus.get(key)
            if attribute != "call":
                yield layer, "call", self._counted_call(key, layer.call)
            if attribute is not None:
                yield layer, attribute, self._watched(layer, getattr(layer, attribute))

    def _counted_call(self, key, call):
        """`call` of a layer that may hold ReLUs: inside it their calls are counted from 0."""

        @functools.wraps(call)
        def counted(*args, **kwargs):
            self._calls.stack.append((key, collections.Counter()))
            try:
                return call(*args, **kwargs)
            finally:
                self._calls.stack.pop()

        return counted

    def _watched(self, layer, function):
        """`function`, a ReLU, which records the active units of some of the steps."""

        @functools.wraps(function)
        def watched(*args, **kwargs):
            outputs = function(*args, **kwargs)
            rank, units = len(outputs.shape), outputs.shape[-1] if len(outputs.shape) else None
            if rank > 1 and units is not None and not isinstance(outputs, keras.KerasTensor):
                with self._measuring():
                    self._count(layer, outputs)
            return outputs

        return watched

    def _count(self, layer, outputs):
        examples = ops.shape(outputs)[0]
        # Read about EXAMPLES a window, at batches spread by the golden section: no period of the data hides.
        _, window = self._recorder.plan()
        stride = ops.clip(window * ops.cast(examples, "int32") // EXAMPLES, 1, 4096)
        due = ops.cast(self._recorder.batch() % 4096, "int32") * 2531 % 4096 < 4096 // stride
        name = self._name(layer, outputs.shape[-1])
        self._recorder.count_active(name, due, outputs.shape[-1], lambda: active_units(outputs), examples)

    def _name(self, layer, units):
        """One ReLU may stand behind several layers: what counts is the how-manieth call of its surroundings it is."""
        surroundings, counts = self._calls.stack[-1]
        call = id(layer), surroundings, counts[id(layer)], units
        counts[id(layer)] += 1
        if call not in self._names:
            path = layer.path or layer.name
            same = sum(1 for known in self._names.values() if known[0] == path)
            self._names[call] = path, path if same == 0 else f"{path} ({same + 1})"
        return self._names[call][1]
