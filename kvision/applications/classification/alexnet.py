"""AlexNet: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012).

Section 3.5 and figure 2, on 227x227 pixels (the 224 of the paper do not give its 55x55 maps): "2012" has the two groups
of the two GPUs, "ungrouped" their union. ReLU, then local response normalisation, then overlapping pooling. "2014" is
the one-column net of Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014), without
response normalisation; with 224x224 pixels it equals torchvision's `alexnet`, but for the dropouts, which stand after
the hidden dense layers in all three. Deviation: dropout is Keras's inverted form. With `norm`, that replaces the
response normalisation and follows every convolution.

How it trains (section 5): SGD with momentum 0.9, batch 128, weight decay 5e-4, rate 0.01 divided by 10 at plateaus,
kernels from a normal distribution of deviation 0.01, biases 1 in conv2, conv4, conv5 and the hidden dense layers.
"""

import keras

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.layers import AdaptiveAveragePooling2D, LocalResponseNormalization
from kvision.layers.conventions import conventions

# Figure 2. `padding` is that of conv1, `groups` those of conv2, conv4 and conv5.
_PAPER = {"widths": (96, 256, 384, 384, 256), "units": 4096, "padding": 0, "response_normalization": True}
VARIANTS = {
    "2012": {**_PAPER, "groups": 2},
    "ungrouped": {**_PAPER, "groups": 1},
    "2014": {
        "widths": (64, 192, 384, 256, 256),
        "units": 4096,
        "padding": 2,
        "response_normalization": False,
        "groups": 1,
    },
    "tiny": {**_PAPER, "widths": (8, 8, 8, 8, 8), "units": 16, "groups": 2},
}

WEIGHTS = {"2014": {"imagenet": imagenet.torchvision_weights("alexnet-owt-7be5be79.pth", 56.522)}}

# torchvision counts every layer of its two sequences.
RENAMES = {
    "torchvision": [
        (r"^conv1\.", "features.0."),
        (r"^conv2\.", "features.3."),
        (r"^conv3\.", "features.6."),
        (r"^conv4\.", "features.8."),
        (r"^conv5\.", "features.10."),
        (r"^fc6\.", "classifier.1."),
        (r"^fc7\.", "classifier.4."),
        (r"^fc8\.", "classifier.6."),
    ]
}

PROOF = "a NumPy twin of the grouped network and the layer table; torchvision alexnet for the form of 2014"

preprocess_input = imagenet.preprocess_input
decode_predictions = imagenet.decode_predictions


def AlexNet(
    variant="2012",
    *,
    include_top=True,
    weights=None,
    input_shape=(227, 227, 3),
    classes=1000,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="normal_0.01",
    bias_initializer=None,
    dropout_rate=0.5,
    features=None,
    widths=None,
    units=None,
    groups=None,
    name=None,
):
    """Build AlexNet: 60,965,224 parameters ("2012"), 62,378,344 ("ungrouped"), 61,100,840 ("2014").

    Args:
        variant: A row of `VARIANTS`: `"2012"`, `"ungrouped"` or `"2014"`.
        include_top: End with the three dense layers; otherwise the map after the last pooling is returned.
        weights: None, `"imagenet"` (of "2014" without `norm`, see `WEIGHTS`; torchvision's file, which needs torch), or
            the path of a weight file.
        input_shape: (height, width, channels), at least 67 pixels ("2014": 63).
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: None, the paper's local response normalisation, or `"batch"`, `"sync_batch"`, `"group"`, `"frozen_batch"`.
        activation, initializer: Names, see `kvision.layers.conventions.conventions`.
        bias_initializer: A name, likewise; None is the paper's ones in conv2, conv4, conv5, fc6, fc7, zeros elsewhere.
        dropout_rate: Of the two hidden dense layers, in [0, 1).
        features: Names of the maps to return instead: `"C2"` (conv1), `"C3"` (conv2), both before the response
            normalisation, `"C4"` (conv5), `"C5"` (pool5).
        widths, units, groups: Channels of the convolutions, width of the dense layers, groups; None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32. Maps of another
        size than 6x6 are averaged to 6x6 before the dense layers.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> AlexNet("tiny", include_top=False).output_shape
    (None, 6, 6, 8)
    """
    row = variant_row("AlexNet", VARIANTS, variant, widths=widths, units=units, groups=groups)
    smallest = 67 - 2 * row["padding"]
    images = image_input("AlexNet", input_shape, stride=32, smallest=smallest, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer or "zero")
    ones = {} if bias_initializer else {"bias_initializer": "ones"}
    groups = {"groups": row["groups"]}

    def convolve(x, index, kernel_size, **options):
        x = bound.conv(row["widths"][index - 1], kernel_size, name=f"conv{index}", **options)(x)
        return bound.activation(name=f"relu{index}")(bound.norm(name=f"bn{index}")(x))

    def normalize_response(x, index):
        if norm is None and row["response_normalization"]:
            return LocalResponseNormalization(name=f"norm{index}")(x)
        return x

    def pool(x, index):
        return keras.layers.MaxPooling2D(3, strides=2, name=f"pool{index}")(x)

    levels = {}
    x = levels["C2"] = convolve(images, 1, 11, strides=4, padding=row["padding"])
    x = levels["C3"] = convolve(pool(normalize_response(x, 1), 1), 2, 5, **groups, **ones)
    x = convolve(pool(normalize_response(x, 2), 2), 3, 3)
    x = convolve(x, 4, 3, **groups, **ones)
    x = levels["C4"] = convolve(x, 5, 3, **groups, **ones)
    x = levels["C5"] = pool(x, 5)

    if include_top:
        if x.shape[1:3] != (6, 6):
            x = AdaptiveAveragePooling2D((6, 6), name="avgpool")(x)
        x = keras.layers.Flatten(name="flatten")(x)
        for index in (6, 7):
            x = bound.activation(name=f"relu{index}")(bound.dense(row["units"], name=f"fc{index}", **ones)(x))
            x = keras.layers.Dropout(dropout_rate, name=f"drop{index}")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="fc8")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"alexnet_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(
        model, weights, WEIGHTS.get(variant) if norm is None else None, renames=RENAMES, top=("fc6", "fc7", "fc8")
    )
