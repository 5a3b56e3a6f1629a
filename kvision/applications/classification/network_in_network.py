"""Network in network: Lin, Chen, Yan, "Network In Network" (2013).

Section 3: after each convolution, 1x1 convolutions ("cascaded cross channel pooling") make every window a small
perceptron, and instead of dense layers the maps of the last 1x1 convolution, one per class, are averaged. "cifar10" is
the network of section 4.1 as its authors published it; "imagenet" their network of Caffe's model zoo. As there, ReLU
also follows the class maps, and the last window of a pooling may reach over the edge. Deviation: He initialization. No
reference implementation is their equal.

How it trains (section 4): SGD with momentum in batches of 128; the rate falls to a tenth when the training error stops
falling, twice; weight decay, and dropout between the stages.
"""

import keras

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import MaxPooling2D
from kvision.layers.conventions import conventions

# Each stage: channels of its convolution and of its 1x1 convolutions, window, stride, padding. Between stages a pooling
# of 3x3 at stride 2, and a dropout before the stages `dropped`. The last stage ends with one more 1x1 convolution.
VARIANTS = {
    "imagenet": {
        "stages": (
            ((96, 96, 96), 11, 4, 0),
            ((256, 256, 256), 5, 1, 2),
            ((384, 384, 384), 3, 1, 1),
            ((1024, 1024), 3, 1, 1),
        ),
        "pools": ("max", "max", "max"),
        "dropped": (4,),
        "stride": 32,
        "smallest": 39,
    },
    "cifar10": {
        "stages": (((192, 160, 96), 5, 1, 2), ((192, 192, 192), 5, 1, 2), ((192, 192), 3, 1, 1)),
        "pools": ("max", "average"),
        "dropped": (2, 3),
        "stride": 4,
        "smallest": 4,
    },
    "tiny": {
        "stages": (((8, 8), 5, 1, 2), ((8, 8), 3, 1, 1), ((8,), 3, 1, 1)),
        "pools": ("max", "average"),
        "dropped": (2, 3),
        "stride": 4,
        "smallest": 4,
    },
}

PROOF = "a NumPy twin of the network and the layer table"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def NetworkInNetwork(
    variant="imagenet",
    *,
    include_top=True,
    weights=None,
    input_shape=None,
    classes=None,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    dropout_rate=0.5,
    features=None,
    name=None,
):
    """Build a network in network: 7,595,176 parameters ("imagenet"), 966,986 ("cifar10").

    Args:
        variant: A row of `VARIANTS`: `"imagenet"` or `"cifar10"`.
        include_top: End with the class maps and their means; otherwise the last map before them is returned.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels); None is 224x224x3, for CIFAR 32x32x3. At least 39 pixels, for CIFAR 4.
        classes: Number of classes; None is 1000, for CIFAR 10.
        classifier_activation: Of the mean class maps; None gives logits, which are not negative.
        norm: None, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`, after every convolution but the last.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        dropout_rate: Between the stages, in [0, 1).
        features: Names of the maps to return instead: `"C2"` to `"C5"`, for CIFAR `"C0"` to `"C2"`, one per stage,
            before the convolution of the class maps.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> NetworkInNetwork("cifar10").output_shape
    (None, 10)
    """
    row = variant_row("NetworkInNetwork", VARIANTS, variant)
    large = row["stride"] == 32
    input_shape = input_shape or ((224, 224, 3) if large else (32, 32, 3))
    classes = (1000 if large else 10) if classes is None else classes
    images = image_input(
        "NetworkInNetwork", input_shape, stride=row["stride"], smallest=row["smallest"], classes=classes
    )
    bound = conventions(norm, activation, initializer, bias_initializer)

    levels, x, pointwise, stride = {}, images, 0, 1
    for stage, (widths, kernel_size, strides, padding) in enumerate(row["stages"], 1):
        if stage > 1:
            x = POOLINGS[row["pools"][stage - 2]](name=f"pool{stage - 1}")(x)
        if stage in row["dropped"]:
            x = keras.layers.Dropout(dropout_rate, name=f"drop{stage - 1}")(x)
        x = bound.conv(widths[0], kernel_size, strides=strides, padding=padding, name=f"conv{stage}")(x)
        x = bound.activation(name=f"conv{stage}.relu")(bound.norm(name=f"conv{stage}.bn")(x))
        for width in widths[1:]:
            pointwise += 1
            x = bound.conv(width, 1, name=f"cccp{pointwise}")(x)
            x = bound.activation(name=f"cccp{pointwise}.relu")(bound.norm(name=f"cccp{pointwise}.bn")(x))
        stride = stride * strides * (2 if stage > 1 else 1)
        levels[f"C{stride.bit_length() - 1}"] = x

    if include_top:
        x = bound.conv(classes, 1, use_bias=True, name=f"cccp{pointwise + 1}")(x)
        x = bound.activation(name=f"cccp{pointwise + 1}.relu")(x)
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = keras.layers.Activation(classifier_activation or "linear", dtype="float32", name="scores")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"network_in_network_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=(f"cccp{pointwise + 1}",))


def _max_pooling(name):
    return MaxPooling2D(3, strides=2, padding="ceil", name=name)


def _average_pooling(name):
    return keras.layers.AveragePooling2D(3, strides=2, padding="same", name=name)  # means over the pixels there are


POOLINGS = {"max": _max_pooling, "average": _average_pooling}
