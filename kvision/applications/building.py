"""What every builder does first and last: the row of a variant, the checked input, the model, its weights."""

import dataclasses
import inspect
import math
import numbers
import operator
import os
import re

import keras
import numpy as np

from kvision import weights as weight_files
from kvision.errors import choose, unknown
from kvision.layers.convolution import require_channels_last
from kvision.network import Network


def variant_row(family, variants, variant, **overrides):
    """The row of `variant` in a family's `VARIANTS`, where keyword arguments that are not None beat the row."""
    row = choose(f"{family} variant", variants, variant)
    given = {key: _plain(value) for key, value in overrides.items() if value is not None}
    if surplus := sorted(set(given) - set(row)):
        raise unknown(f"argument of {family}", surplus[0], row)
    return row | given


def _plain(value):
    """A NumPy number as Python's own, which a config can hold."""
    return value.item() if isinstance(value, np.generic) else value


def variant_of(family, variant, name, summary, **defaults):
    """The builder of one variant, for one line of its family's file: `ResNet50 = variant_of(ResNet, "50", …)`.

    Args:
        family: The family's builder, whose first argument is the variant; the others are keywords.
        variant: A key of its `VARIANTS`.
        name: The variable it is assigned to.
        summary: First line of its docstring.
        **defaults: Of arguments whose default differs from the family's.

    Returns:
        A function with the family's signature but for `variant`, its documented arguments and its module.

    >>> tiny = variant_of(kvision.applications.ResNet, "tiny", "tiny", "A small ResNet.", classes=10)
    >>> tiny(input_shape=(32, 32, 3)).output_shape
    (None, 10)
    """

    def build(**options):
        return family(variant, **(defaults | options))

    first, *others = inspect.signature(family).parameters.values()
    others = [argument.replace(default=defaults.get(argument.name, argument.default)) for argument in others]
    build.__signature__ = inspect.Signature(others)
    build.__name__ = build.__qualname__ = name
    build.__module__ = family.__module__
    build.__doc__ = f"{summary}\n\n{_without_first_argument(inspect.getdoc(family), first.name)}"
    return build


def _without_first_argument(docstring, name):
    """The sections of a builder's docstring from `Args` on, without its first argument and its example."""
    body = docstring[docstring.index("Args:\n") :]
    body = re.sub(rf"^    {name}: .*\n(?:     +.*\n)*", "", body, count=1, flags=re.MULTILINE)
    return re.split(r"^(?:>>>|```)", body, maxsplit=1, flags=re.MULTILINE)[0].rstrip()


def image_input(family, input_shape, *, stride=1, smallest=None, classes=1):
    """The input tensor of a network whose last map has stride `stride`, checked before anything is built.

    `smallest` is the least height and width where windows without padding need more pixels than the stride.

    Raises:
        ValueError: unless `input_shape` is (height, width, channels) in whole numbers of at least `stride` (`smallest`)
            pixels, `classes` is a positive whole number, and channels come last in Keras's configuration.
    """
    require_channels_last(family)
    smallest = smallest or stride
    shape = tuple(input_shape) if isinstance(input_shape, tuple | list) else (input_shape,)
    if len(shape) != 3 or not all(_is_whole(size) and size > 0 for size in shape):
        raise ValueError(
            f"{family}: input_shape must be (height, width, channels), three positive whole numbers without the batch; "
            f"got {input_shape!r}. Sizes are static so that XLA can compile: give the size you train at."
        )
    if min(shape[:2]) < smallest:
        raise ValueError(
            f"{family}: got input_shape={shape}, but its last map has stride {stride}: height and width must be at "
            f"least {smallest} pixels. Enlarge the images, or take a network with fewer stages."
        )
    if not _is_whole(classes) or classes < 1:
        raise ValueError(f"{family}: classes must be a whole number of at least 1, got {classes!r}.")
    return keras.Input([operator.index(size) for size in shape], name="images")


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def build_network(images, output, levels, *, include_top, features, name, preprocessing=None, model_class=Network):
    """The model of a builder: images → class scores, the last map, or a dict of named levels.

    Args:
        images: The input tensor.
        output: What the model returns when no `features` are asked for.
        levels: `{"C2": tensor, …}`: Ck is the last map of stride 2^k before it is pooled.
        include_top, features, name: The builder's arguments of these names.
        preprocessing: The family's `preprocess_input`.
        model_class: A subclass of `Network` for networks that train differently.

    Returns:
        A `Network` that carries the preprocessing, and `feature_info` of every level that lies in its graph.

    Raises:
        ValueError: if `features` are asked for together with the classifier, or are unknown.
    """
    if features is not None:
        if include_top:
            raise ValueError(
                f"{name}: features={tuple(features)!r} gives named maps, which a network with its classifier does not "
                "return. Pass include_top=False as well."
            )
        whole = keras.Model(images, output)
        output = {level: choose(f"level of {name}", levels, level) for level in features}
    model = model_class(images, output, name=name)
    if features is not None:  # weights of what lies behind the last of them have no place
        kept = {layer.name for layer in model.layers}
        left_out = [layer.name for layer in whole.layers if layer.weights and layer.name not in kept]
        model.weight_sources = weight_files.WeightSources(top=left_out)
    layers = {id(layer.output): layer.name for layer in model.layers}
    model.preprocessing = preprocessing
    model.feature_info = {
        level: {"stride": 2 ** int(level[1:]), "channels": tensor.shape[-1], "layer": layers[id(tensor)]}
        for level, tensor in levels.items()
        if id(tensor) in layers
    }
    return model


def finish(model, weights, published=None, renames=None, older_names=None, top=()):
    """The last step of every builder: the model learns how others name its weights, and loads those asked for.

    Args:
        model: As built.
        weights: The builder's argument: None, a published name, or the path of a weight file.
        published: `{weights name: row}` of the family's `WEIGHTS`, for the variant built.
        renames: The family's `RENAMES`, `{source: [(pattern, replacement), …]}`.
        older_names: `{source: [(pattern, replacement), …]}`, from names that published files carry to today's.
        top: Names of the layers that depend on the number of classes or belong to the classifier: those of
            `include_top`, in whatever form they are built. They stay fresh where a file does not fit them.

    Returns:
        The model.

    Raises:
        ValueError: if `weights` is neither a file nor published, or does not fit the model.
    """
    weight_files.remember(model, renames, published, older_names, (*top, *weight_files.sources_of(model).top))
    return load_weights(model, weights, published or {})


def load_weights(model, weights, published=()):
    """The model, with the weights its builder was asked for: None, a published name, or a path."""
    if weights is None:
        return model
    is_text = isinstance(weights, str | os.PathLike)
    if is_text and weights in published:
        weight_files.load_published(model, published[weights])
    elif is_text and os.path.exists(weights):
        weight_files.load(model, weights)
    else:
        raise unknown_weights(model.name, weights, published)
    return model


def unknown_weights(name, weights, published=()):
    """The error for weights that are neither a file nor published."""
    known = ", ".join(repr(name) for name in published) or "none for this variant"
    return ValueError(
        f"{name}: weights={weights!r} is neither a file nor published weights (those are: {known}). Pass None to train "
        "from scratch, the path of a weight file, or a published name."
    )


def round_channels(channels, multiple=8):
    """The nearest multiple of 8 that does not fall below nine tenths: how scaled networks choose their widths."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


def cut(model, levels, name=None):
    """A model that returns named inner maps of a functional model, ready to be a detector's backbone.

    Args:
        model: Any functional `keras.Model`: ours, of `keras.applications`, of KerasHub.
        levels: `{"C3": layer name, …}`, or the names alone of levels in the `feature_info` of a network of ours.
        name: Of the new model; None keeps the model's.

    Returns:
        A `kvision.network.Network` from the same inputs to `{"C3": map, …}`. It shares layers and weights with `model`,
        has its preprocessing and names of foreign weights, and `feature_info` of the maps it returns.

    Raises:
        ValueError: if a layer or level does not exist (lists the nearest) or the model is not functional.

    >>> trunk = cut(kvision.applications.ResNet("tiny", include_top=False), {"C2": "layer1.0.relu3"})
    >>> trunk.feature_info
    {'C2': {'stride': 4, 'channels': 32, 'layer': 'layer1.0.relu3'}}
    """
    if not hasattr(model, "get_layer") or not getattr(model, "inputs", None):
        raise ValueError(f"cut needs a functional keras.Model with known inputs, got {type(model).__name__}.")
    known = getattr(model, "feature_info", {})
    if not isinstance(levels, dict):
        levels = {level: choose(f"level of {model.name}", known, level)["layer"] for level in levels}
    layers = {layer.name: layer for layer in model.layers}
    outputs = {level: choose(f"layer of {model.name}", layers, layer).output for level, layer in levels.items()}
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    network = Network(inputs, outputs, name=name or model.name)
    network.preprocessing = getattr(model, "preprocessing", None)
    network.class_names = getattr(model, "class_names", None)
    sources = weight_files.sources_of(model)
    kept = {layer.name for layer in network.layers}
    left_out = [name for name, layer in layers.items() if layer.weights and name not in kept]
    network.weight_sources = dataclasses.replace(sources, top=(*sources.top, *left_out))
    strides = {info["layer"]: info["stride"] for info in known.values()}
    network.feature_info = {
        level: {
            "stride": strides.get(layer) or _stride(model.inputs[0].shape, outputs[level].shape),
            "channels": outputs[level].shape[-1],
            "layer": layer,
        }
        for level, layer in levels.items()
    }
    return network


def _stride(shape, map_shape):
    """Pixels per cell of a map, from static shapes: exact, else the power of two that explains the sizes."""
    if len(map_shape) != 4 or None in (*shape[1:3], *map_shape[1:3]):
        return None
    sizes = list(zip(shape[1:3], map_shape[1:3], strict=True))
    ratios = {pixels / cells for pixels, cells in sizes}
    if len(ratios) == 1 and min(ratios).is_integer():
        return int(min(ratios))
    powers = [2**k for k in range(12)]
    for stride in powers:
        if all(math.ceil(pixels / stride) == cells for pixels, cells in sizes):
            return stride
    return min(powers, key=lambda stride: abs(math.log2(max(ratios) / stride)))
