"""A model that is run and looked into, and stays as it is."""

import contextlib
import logging
import typing
import weakref

import keras
from keras import ops

from kvision._keras import layers_of, replaced
from kvision.ops import traced, value_and_gradients
from kvision.relus import bare_relus, relu_attribute
from kvision.visualize.logits import logit_changes
from kvision.visualize.places import check_built, find_place

LOSS_SCALE = 1024.0  # of a float16 network: without it small gradients become 0 in the layers

_TOLD = weakref.WeakSet()  # the models of which it was said that their logits are taken


class Look(typing.NamedTuple):
    """What a run of a model gave.

    Args:
        images: As they were given, before `preprocess`.
        outputs: Of the model, logits where it ends in probabilities.
        activations: `{layer as it was named: its output}`.
    """

    images: object
    outputs: object
    activations: dict


class Probe:
    """Runs a built model and gives the outputs of layers at any depth, and gradients by images and by those outputs.

    The model is any built `keras.Model`: functional, nested, of a class of its own, on TensorFlow or JAX. Nothing of it
    changes, also on errors: layers are replaced only while a graph is traced, and what a forward pass would assign is
    forgotten. Its weights are read at each run, so a probe sees the model of that moment.

    Args:
        model: A built `keras.Model`.
        layers: What to look at: names of layers or operations at any depth, ends of paths such as `"backbone/conv1"`,
            or layers. One that is called several times is given as `(name, call)`, counted from 0.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`, which is part of what
            is differentiated; None: images are what the model takes.
        relu: A rule of this file, `guided` or `rectified`, by which every ReLU gets another gradient; None: its own. It
            finds layers, `activation=` of layers and operations in a graph, at any depth, and no `keras.ops.relu` that
            a class calls inside its own `call`.
        logits: Whether a softmax or sigmoid at the end is taken away. It is said once for each model.
        changes: Further `(object, attribute, value)` that are replaced while a graph is traced, such as other pooling.

    Raises:
        ValueError: on a model that is not built, and a layer that does not exist or is not unique.
    """

    def __init__(self, model, layers=(), *, preprocess=None, relu=None, logits=True, changes=()):
        check_built(model)
        self.model = model
        self.preprocess = preprocess
        given = [layer if isinstance(layer, tuple) else (layer, None) for layer in layers]
        self._places = {_name(*each): find_place(model, each[0])[1] for each in given}
        self._calls = {_name(*each): each[1] for each in given}
        self.names = tuple(self._places)  # of the activations, in the order given
        if len(self._places) < len(given):
            raise ValueError(f"{model.name}: a layer was given twice, got {[_name(*each) for each in given]}.")
        self._changes = [*(logit_changes(model) if logits else ()), *(_relu_changes(model, relu) if relu else ())]
        is_told = logits and self._changes and relu is None and model not in _TOLD
        self._changes += changes
        self._scale = LOSS_SCALE if _is_float16(model) else 1.0
        self._run = traced(self._look)
        self._shapes = {}
        if is_told:
            _TOLD.add(model)
            logging.getLogger("kvision").warning(
                "%s ends in probabilities: the logits before them are used.", model.name
            )

    def __call__(self, images):
        """A `Look` at a batch of images, of tensors."""
        return self._run(self._values(), images)

    def compute(self, function):
        """A function that gives what is computed of a run, in the graph of the run.

        What it does not give never leaves the graph, and layers behind those it uses are not run.

        Args:
            function: `function(look, *arguments)` → a structure of tensors, of a `Look`; it is traced.

        Returns:
            `function(images, *arguments)` → that structure.
        """
        run = traced(lambda values, images, *arguments: function(self._look(values, images), *arguments))
        return lambda images, *arguments: run(self._values(), images, *arguments)

    def with_gradients(self, score, layers=()):
        """A function that gives scores of images and their gradients.

        Args:
            score: `function(look, *arguments)` → a score for each image [b], of a `Look`, or several whose sum counts
                [b, k]; it is traced. As a network treats each image for itself, the gradients are those of each
                image's own score.
            layers: Those of the probe, as they were named, by whose outputs to differentiate too.

        Returns:
            `function(images, *arguments)` → `(scores, gradient by the images, {layer: gradient by its output})`.
        """
        layers = [_name(*layer) if isinstance(layer, tuple) else _name(layer, None) for layer in layers]

        def total(values, weights, *arguments):
            images, added = values
            look = self._look(weights, images, added)
            scores = ops.cast(score(look, *arguments), "float32")
            return ops.sum(scores) * self._scale, scores

        both = value_and_gradients(total)

        def run(images, *arguments):
            images = keras.tree.map_structure(lambda image: ops.convert_to_tensor(image, "float32"), images)
            added = self._zeros(images, layers) if layers else {}
            (_, scores), (by_images, by_layers) = both([images, added], self._values(), *arguments)
            undo = 1 / self._scale
            return (
                scores,
                keras.tree.map_structure(lambda g: g * undo, by_images),
                {name: gradient * undo for name, gradient in by_layers.items()},
            )

        return run

    def _values(self):
        if hasattr(self.model, "jax_state_sync"):  # a `fit` on JAX holds the weights elsewhere
            self.model.jax_state_sync()
        return [variable.value for variable in self.model.variables]

    def _zeros(self, images, layers):
        """What is added to outputs of layers, to differentiate by it."""
        key = tuple(tuple(image.shape) for image in keras.tree.flatten(images))
        if key not in self._shapes:
            self._shapes[key] = {name: tuple(each.shape) for name, each in self(images).activations.items()}
        return {name: ops.zeros(self._shapes[key][name], "float32") for name in layers}

    def _look(self, values, images, added=None):
        """One run, with the layers replaced that are looked at. `added` to outputs of layers: `{name: tensor}`."""
        added = added or {}
        given = images if self.preprocess is None else self.preprocess(images)
        calls = {name: [] for name in self._places}
        owners = {id(place): place for place in self._places.values()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(self._changes))
            stack.enter_context(
                replaced([(place, "call", self._recording(place, calls, added)) for place in owners.values()])
            )
            stack.enter_context(keras.StatelessScope(list(zip(self.model.variables, values, strict=True))))
            outputs = self.model(given, training=False)
        return Look(images, outputs, {name: self._chosen(name, calls[name]) for name in self._places})

    def _recording(self, place, calls, added):
        call = place.call
        names = [name for name, each in self._places.items() if each is place]

        def recorded(*args, **kwargs):
            outputs = call(*args, **kwargs)
            for name in names:
                if name in added and len(calls[name]) == (self._calls[name] or 0):
                    outputs = outputs + ops.cast(added[name], outputs.dtype)
            for name in names:
                calls[name].append(outputs)
            return outputs

        return recorded

    def _chosen(self, name, outputs):
        number = self._calls[name]
        if not outputs:
            raise ValueError(f"{self.model.name} does not call its layer {name!r} when it predicts: choose another.")
        if (number is None and len(outputs) > 1) or (number is not None and not 0 <= number < len(outputs)):
            raise ValueError(
                f"{self.model.name} calls its layer {name!r} {len(outputs)} times. Give (name, call) with a call from "
                f"0 to {len(outputs) - 1}."
            )
        output = outputs[number or 0]
        if not hasattr(output, "shape"):
            raise ValueError(
                f"The layer {name!r} gives a {type(output).__name__}: expected one tensor. Choose another."
            )
        return output


def _name(layer, call):
    name = layer if isinstance(layer, str) else getattr(layer, "name", None)
    if name is None:
        raise ValueError(f"A layer is told by its name, its path, itself, or (name, call): got {layer!r}.")
    return name if call is None else f"{name} ({call})"


def _is_float16(model):
    return any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers_of(model, include_self=True))


# Other gradients of ReLU


@ops.custom_gradient
def _only_positive(outputs):
    """The identity, whose gradient is cut below 0."""

    def gradient(*upstream):
        (upstream,) = upstream
        return ops.maximum(upstream, 0)

    return outputs, gradient


def _relu_changes(model, rule):
    """`(object, attribute, value)` that gives every ReLU of a model another gradient."""
    owners = [(layer, name) for layer in layers_of(model, include_self=True) if (name := relu_attribute(layer))]
    owners += [(operation, "call") for operation in bare_relus(model)]
    if not owners:
        raise ValueError(
            f"{model.name} has no ReLU, whose gradient this technique replaces. Use gradient or integrated_gradients."
        )
    return [(owner, name, rule(getattr(owner, name))) for owner, name in owners]


def guided(relu):
    """A ReLU that passes back only what is positive and goes to active units (Springenberg 2015)."""

    def call(inputs, *args, **kwargs):
        return _only_positive(relu(inputs, *args, **kwargs))

    return call


def rectified(relu):
    """A ReLU that passes back only what is positive, to active units or not (Zeiler 2013)."""

    def call(inputs, *args, **kwargs):
        passed = _only_positive(inputs)
        return ops.stop_gradient(relu(inputs, *args, **kwargs)) + (passed - ops.stop_gradient(passed))

    return call
