"""Patches: Cireşan, Giusti, Gambardella, Schmidhuber, "Deep Neural Networks Segment Neuronal Membranes …" (2012).

A network names the class of a pixel from the window around it; the layers of "n4" are those of the paper's table 1.
`dense` gives the same scores for all pixels of an image in one pass: a step of two becomes a step of one, and all that
follows takes its inputs twice as far apart (Long, Shelhamer, Darrell (2015), section 3.2). Deviations: ReLU, He
initialization, and windows as they are (the paper blurs and samples them more coarsely away from the middle).

How it trains: on windows around as many pixels of each class; here with `"adam"` at its default.
"""

import keras
import numpy as np

from kvision import layers
from kvision._keras import call_of
from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.errors import choose
from kvision.layers.conventions import conventions
from kvision.layers.convolution import pair
from kvision.network import Network

# Table 1: maps and windows of the convolutions, each followed by 2x2 max pooling; units of the hidden dense layer.
VARIANTS = {
    "n4": {"widths": (48, 48, 48, 48), "kernel_sizes": (4, 5, 4, 4), "units": 200},
    "tiny": {"widths": (8, 8), "kernel_sizes": (3, 3), "units": 16},
}

TOP = ("fc2",)

PROOF = "windows cut by NumPy and by torch, through the same weights: all pixels equal to 1e-5"

preprocess_input = imagenet.preprocess_input


def PatchClassifier(
    variant="n4",
    *,
    weights=None,
    input_shape=(95, 95, 3),
    classes=2,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=0.0,
    widths=None,
    kernel_sizes=None,
    units=None,
    name=None,
):
    """Build a network on the window around a pixel.

    Args:
        variant: A row of `VARIANTS`: `"n4"`, the paper's for windows of 95 pixels.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels) of the window.
        classes: Number of classes of the pixel in its middle.
        classifier_activation: Of the last layer; None gives logits.
        norm: None, `"batch"`, `"sync_batch"` or `"frozen_batch"`, after every convolution. (A group norm's mean is that
            of a window, which `dense` cannot share.)
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Behind the hidden dense layer, in [0, 1).
        widths, kernel_sizes, units: Maps and windows of the convolutions, units of the dense layer; None takes the
            row's.
        name: Of the model.

    Returns:
        A `keras.Model`: windows [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, fewer than one class, or a window that the convolutions use up.

    >>> PatchClassifier(input_shape=(95, 95, 1)).count_params()
    219290
    """
    row = variant_row("PatchClassifier", VARIANTS, variant, widths=widths, kernel_sizes=kernel_sizes, units=units)
    if norm == "group":
        raise ValueError(
            'PatchClassifier: got norm="group", whose mean is that of one window, which all pixels at once cannot '
            'share. Take "batch" or None.'
        )
    if len(row["widths"]) != len(row["kernel_sizes"]):
        raise ValueError(
            f"PatchClassifier: got {len(row['widths'])} widths and {len(row['kernel_sizes'])} kernel_sizes: give one "
            "of each for every convolution."
        )
    stride = 2 ** len(row["widths"])
    images = image_input("PatchClassifier", input_shape, stride=stride, smallest=_smallest(row), classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)
    x = images
    for number, (width, kernel_size) in enumerate(zip(row["widths"], row["kernel_sizes"], strict=True), start=1):
        x = bound.conv(width, kernel_size, padding="valid", name=f"conv{number}")(x)
        x = bound.activation(name=f"relu{number}")(bound.norm(name=f"bn{number}")(x))
        x = keras.layers.MaxPooling2D(2, name=f"pool{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = bound.activation(name="relu_fc1")(bound.dense(row["units"], name="fc1")(x))
    x = keras.layers.Dropout(dropout_rate, name="dropout")(x)
    x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="fc2")(x)
    model = build_network(
        images,
        x,
        {},
        include_top=True,
        features=None,
        name=name or f"patch_classifier_{variant}",
        preprocessing=preprocess_input if images.shape[-1] == 3 else None,
    )
    return finish(model, weights, top=TOP)


def _smallest(row):
    """The least height of a window that leaves one cell."""
    size = 1
    for kernel_size in reversed(row["kernel_sizes"]):
        size = 2 * size + kernel_size - 1
    return size


def windows(images, pixels, size):
    """Cut the windows around pixels, as `dense` sees them: zeros beyond the edge.

    Args:
        images: [b, h, w, c], a NumPy array, prepared as the classifier's windows.
        pixels: [n, 3] whole numbers: image, row, column of each.
        size: Height and width of a window in pixels. The pixel is in its middle; of an even number, just below.

    Returns:
        [n, *size, c], of the images' dtype.

    Raises:
        ValueError: on other shapes, or pixels outside of the images.

    >>> windows(np.ones((1, 5, 5, 1)), [(0, 0, 0)], (3, 3))[0, :, :, 0]
    array([[0., 0., 0.],
           [0., 1., 1.],
           [0., 1., 1.]])
    """
    images, pixels, size = np.asarray(images), np.asarray(pixels), pair(size)
    if images.ndim != 4 or pixels.ndim != 2 or pixels.shape[1] != 3:
        raise ValueError(
            "windows: expected images [b, h, w, c] and pixels [n, 3] (image, row, column), got "
            f"{images.shape} and {pixels.shape}."
        )
    outside = ((pixels < 0) | (pixels >= images.shape[:3])).any(axis=1)
    if outside.any():
        raise ValueError(
            f"windows: pixel {tuple(pixels[outside][0].tolist())} lies outside of images of shape {images.shape}."
        )
    around = np.pad(images, ((0, 0), *map(_around, size), (0, 0)))
    cut = np.lib.stride_tricks.sliding_window_view(around, size, axis=(1, 2))
    return np.moveaxis(cut[tuple(pixels.T)], 1, -1)


def _around(size):
    """Zeros before and behind an axis with which every pixel has a window of `size`."""
    return size // 2, size - 1 - size // 2


def dense(model, image_size, *, padding="zero", name=None):
    """The network that gives for every pixel of an image what a classifier gives for the window around it.

    Strides become one, and what lies behind them is dilated; the first dense layer becomes a convolution. The weights
    are copied as they are; `windows` cuts what each pixel sees.

    Args:
        model: A chain of layers from windows [b, h, w, c] to scores [b, classes]: convolutions, poolings and global
            poolings without padding, activations, batch normalisation, dropout, flattening, dense layers. Such as
            `PatchClassifier`, or any functional or sequential Keras model of these.
        image_size: Height and width of the images in pixels.
        padding: `"zero"`: zeros beyond the image's edge, all pixels have scores. `"valid"`: only those whose window
            lies inside, `h - window + 1` rows of them.
        name: Of the new model.

    Returns:
        A `kvision.network.Network`: images [b, *image_size, c] → scores [b, rows, columns, classes], float32 as the
        model's are.

    Raises:
        ValueError: on a model of other layers or with branches (names the first), on one that pads inside its windows,
            or images smaller than a window without padding.

    >>> classifier = PatchClassifier("tiny", input_shape=(14, 14, 3), classes=4)
    >>> dense(classifier, (32, 48)).output_shape
    (None, 32, 48, 4)
    """
    choose("padding of dense", {"zero": 0, "valid": 0}, padding)
    chain = _chain(model)
    window, size = tuple(model.inputs[0].shape[1:3]), pair(image_size)
    if padding == "valid" and any(pixels < least for pixels, least in zip(size, window, strict=True)):
        raise ValueError(
            f'dense: images of {size} have no window of {window} inside; enlarge them, or take padding="zero".'
        )
    x = images = keras.Input((*size, model.inputs[0].shape[-1]), name="images")
    if padding == "zero":
        x = keras.layers.ZeroPadding2D(tuple(map(_around, window)), name="around")(x)
    state, copied = _State(), []
    for layer, shape in chain:
        spread = _spread(layer, shape, state)
        if spread is not None:
            x = spread(x)
            if layer.weights:
                copied.append((spread, layer))
    if state.flattened is not None or tuple(model.outputs[0].shape[1:-1]) not in ((), (1, 1)):
        raise ValueError(
            f"dense: {model.name} gives {tuple(model.outputs[0].shape[1:])} for a window, and not a score a class: "
            "end it with a global pooling, or with a dense layer behind the flattening."
        )
    around = 0 if padding == "zero" else 1
    wanted = [pixels - around * (least - 1) for pixels, least in zip(size, window, strict=True)]
    behind = [(0, rows - most) for rows, most in zip(x.shape[1:3], wanted, strict=True)]
    if behind != [(0, 0), (0, 0)]:  # a pooling in the window leaves out its last rows
        x = keras.layers.Cropping2D(behind, dtype=x.dtype, name="pixels")(x)
    network = Network(images, x, name=name or f"{model.name}_dense")
    network.preprocessing = getattr(model, "preprocessing", None)
    network.class_names = getattr(model, "class_names", None)
    for spread, layer in copied:
        shapes = [tuple(weight.shape) for weight in spread.weights]
        values = zip(layer.get_weights(), shapes, strict=True)
        spread.set_weights([value.reshape(shape) for value, shape in values])
    return network


def _chain(model):
    """`[(layer, shape of its input without the batch), …]` in their order, without the input; refuses branches."""
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or None in inputs[0].shape[1:]:
        raise ValueError(
            "dense needs a functional or sequential model from one batch of windows [b, h, w, c] of a static size to "
            f"one batch of scores, got {getattr(model, 'name', model)!r}."
        )
    chain, tensor = [], outputs[0]
    while True:
        layer, given = call_of(tensor)
        if not given:
            return chain[::-1]
        if len(given) > 1 or any(layer is other for other, _ in chain):
            raise ValueError(
                f"dense: {layer.name} ({type(layer).__name__}) has {len(given)} inputs, or comes twice: a patch "
                "classifier is a chain of layers."
            )
        (tensor,) = given
        chain.append((layer, tuple(tensor.shape[1:])))


class _State:
    """What has been spread so far: the product of the strides, and the cells that a flattening has joined."""

    dilation = (1, 1)
    flattened = None


# Layers that do the same with every number, and those that do the same in every cell.
ELEMENTWISE = (
    *(keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU),
    *(keras.layers.Dropout, keras.layers.Identity),
)
POINTWISE = (
    *ELEMENTWISE,
    *(keras.layers.Softmax, keras.layers.SpatialDropout2D, keras.layers.Rescaling, keras.layers.BatchNormalization),
    *(layers.BatchNormalization, layers.PReLU, layers.Maxout, layers.LocalResponseNormalization),
)
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, layers.Conv2D, layers.DepthwiseConv2D)
MAX_POOLING = (keras.layers.MaxPooling2D, layers.MaxPooling2D, keras.layers.GlobalMaxPooling2D)
AVERAGE_POOLING = (keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D)


def _spread(layer, shape, state):
    """The layer that does for all pixels what `layer` does for one; None: nothing is left to do. Updates the state."""
    config, kind = layer.get_config(), type(layer)
    if kind is keras.layers.Flatten:
        state.flattened = shape if shape[:-1] not in ((), (1, 1)) else None
        return None
    if kind is keras.layers.Dense:
        return _spread_dense(layer, state)
    if kind in (POINTWISE if state.flattened is None else ELEMENTWISE) and _along_channels(layer, shape, state):
        return kind.from_config(config | ({"axis": -1} if "axis" in config else {}))
    if kind in CONVOLUTIONS:
        _refuse_padding(layer, layer.kernel_size)
        taps = _product(state.dilation, layer.dilation_rate)
        state.dilation = _product(state.dilation, layer.strides)
        return kind.from_config(config | {"strides": (1, 1), "dilation_rate": taps, "padding": "valid"})
    if kind in MAX_POOLING + AVERAGE_POOLING:
        pool_size, dilation = shape[:2], state.dilation
        if hasattr(layer, "pool_size"):
            pool_size, state.dilation = layer.pool_size, _product(dilation, layer.strides)
            _refuse_padding(layer, pool_size)
        name = "max" if kind in MAX_POOLING else "average"
        return layers.DilatedPooling2D(pool_size, dilation, name, dtype=layer.dtype_policy, name=layer.name)
    raise ValueError(
        f"dense: {layer.name} ({kind.__name__}) cannot be done for all pixels at once. Known are convolutions, "
        "poolings, activations, batch normalisation, dropout, flattening and dense layers."
    )


def _product(a, b):
    return tuple(left * right for left, right in zip(a, b, strict=True))


def _along_channels(layer, shape, state):
    """Whether a layer that has an axis works along the last, which is not one of flattened cells."""
    if getattr(layer, "activation", None) in (keras.activations.softmax, keras.activations.log_softmax):
        return state.flattened is None
    return getattr(layer, "axis", -1) in (-1, len(shape))


def _spread_dense(layer, state):
    if state.flattened is None:
        return keras.layers.Dense.from_config(layer.get_config())
    kernel_size, state.flattened = state.flattened[:2], None
    config = layer.get_config()
    same = ("name", "trainable", "dtype", "activation", "use_bias", "kernel_initializer", "bias_initializer")
    return keras.layers.Conv2D.from_config(
        {key: config[key] for key in same}
        | {"filters": layer.units, "kernel_size": kernel_size, "dilation_rate": state.dilation, "padding": "valid"}
    )


def _refuse_padding(layer, size):
    pads = layer.padding != "valid" or any(getattr(layer, "pixels", None) or ()) or getattr(layer, "ceil", False)
    if pads and tuple(size) != (1, 1):
        raise ValueError(
            f"dense: {layer.name} pads: at the edge of a window it sees zeros where the image has pixels, so the "
            'windows of neighbours share nothing. Build the classifier with padding="valid".'
        )
