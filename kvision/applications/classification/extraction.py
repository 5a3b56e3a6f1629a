"""Extraction: the classifier YOLO starts from: Redmon et al., "You Only Look Once" (2016), section 2.2.

The first 20 convolutions of figure 3, a global average and one dense layer; the authors call it Extraction. As theirs:
convolutions are padded by half the window also at stride 2, the slope of the leaky ReLU is 0.1, images become −1…1.
"fast" is the same for Fast YOLO: its six convolutions before the last pooling. Deviation: He initialization, and a
linear dense layer before the softmax as in the paper (the authors' file has a leaky one). No reference implementation
can be installed.

How it trains: a week on ImageNet at 224x224, then the detector doubles the size (sections 2.2 and 2.3).
"""

import keras

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.applications.classification import imagenet
from kvision.layers.conventions import conventions
from kvision.network import Preprocessing

# Figure 3: filters and window of each convolution; between the stages a 2x2 max pooling. The first has stride 2, or 1.
VARIANTS = {
    "20": {
        "stages": (
            ((64, 7),),
            ((192, 3),),
            ((128, 1), (256, 3), (256, 1), (512, 3)),
            (*(((256, 1), (512, 3)) * 4), (512, 1), (1024, 3)),
            ((512, 1), (1024, 3)) * 2,
        ),
        "first_stride": 2,
    },
    "fast": {"stages": tuple(((filters, 3),) for filters in (16, 32, 64, 128, 256, 512)), "first_stride": 1},
    "tiny": {"stages": tuple(((filters, 3),) for filters in (16, 32, 64, 64, 64)), "first_stride": 2},
}

PROOF = "the layer table of the paper, written out in the tests"

TOP = ("fc",)

preprocess_input = Preprocessing(value_range=(-1.0, 1.0))
decode_predictions = imagenet.decode_predictions


def Extraction(
    variant="20",
    *,
    include_top=True,
    weights=None,
    input_shape=(224, 224, 3),
    classes=1000,
    classifier_activation="softmax",
    norm=None,
    activation="leaky_0.1",
    initializer="he",
    bias_initializer="zero",
    features=None,
    name=None,
):
    """Build the classifier whose convolutions YOLO starts from: 23,428,136 parameters.

    Args:
        variant: A row of `VARIANTS`: `"20"` or `"fast"`.
        include_top: End with the global average and the dense layer; otherwise the last map is returned.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels), at least 32 pixels.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: None as in the paper, `"batch"` as in the authors' later files, `"sync_batch"`, `"group"` or
            `"frozen_batch"`, after every convolution.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        features: Names of the maps to return instead, `"C1"` to `"C5"`, of `"fast"` also `"C0"`.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, or fewer than one class.

    >>> Extraction("fast", input_shape=(64, 64, 3), include_top=False).output_shape
    (None, 2, 2, 512)

    A pre-trained one becomes the backbone of a detector at twice the size:

    ```python
    classifier = Extraction(classes=10)
    classifier.save_weights("mine.weights.h5")  # after its training
    options = {"include_top": False, "features": ("C5",), "input_shape": (448, 448, 3)}
    backbone = Extraction(weights="mine.weights.h5", **options)
    detector = kvision.applications.YOLO(backbone=backbone)
    ```
    """
    row = variant_row("Extraction", VARIANTS, variant)
    images = image_input("Extraction", input_shape, stride=32, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)

    levels, x, index = {}, images, 0
    for stage, convolutions in enumerate(row["stages"]):
        if stage > 0:
            x = keras.layers.MaxPooling2D(2, name=f"pool{stage}")(x)
        for filters, kernel_size in convolutions:
            index += 1
            strides = row["first_stride"] if index == 1 else 1
            x = bound.conv(filters, kernel_size, strides=strides, name=f"conv{index}")(x)
            x = bound.activation(name=f"act{index}")(bound.norm(name=f"bn{index}")(x))
        levels[f"C{stage + row['first_stride'] - 1}"] = x

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avgpool")(x)
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="fc")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"extraction_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=TOP)
