"""YOLO: Redmon, Divvala, Girshick, Farhadi, "You Only Look Once: Unified, Real-Time Object Detection" (2016).

Figure 3 and section 2. Where the paper leaves something open, the authors' code (darknet, `detection_layer.c` and its
`cfg`) decides: padding of half the window also at stride 2, square roots of the sides as outputs, the overlap itself
as target of the confidence, the nearest box where none overlaps. Deviations: He initialization, small weights in the
last layer, and Fast YOLO's dense layer of 256 is leaky, as the paper has all but the last (its file: linear). The
authors' weights are of `"darknet"`, in a format that is not read here.

How it trains (section 2.2): SGD with momentum 0.9 and weight decay 5e-4, 64 images a batch, the rate from 1e-3 to 1e-2
in the first epochs, 75 epochs at 1e-2, 30 at 1e-3, 30 at 1e-4 (half of these for the loss as the paper writes it, see
`GridHead`); scaled and shifted by up to 20 %, exposure and saturation by up to 1.5.
"""

import math

import keras

from kvision.applications.building import finish, image_input, variant_row
from kvision.applications.classification import extraction
from kvision.applications.classification.extraction import Extraction
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms
from kvision.detection.detector import Detector
from kvision.detection.grid_head import GridHead, check_grid
from kvision.layers import LocallyConnected2D
from kvision.layers.conventions import conventions

# Figure 3 ("24"), section 2.2 ("fast", dense layers of the authors' yolo-tiny.cfg) and the authors' yolov1.cfg
# ("darknet"). neck: filters and stride of 3x3 convolutions on the backbone's level; then a locally connected layer, or
# dense layers, before the last.
_NECK = ((1024, 1), (1024, 2), (1024, 1), (1024, 1))
VARIANTS = {
    "24": {"trunk": "20", "level": "C5", "neck": _NECK, "local": None, "units": (4096,), "boxes_per_cell": 2},
    "fast": {
        "trunk": "fast",
        "level": "C5",
        "neck": ("pool", (1024, 1), (1024, 1), (1024, 1)),
        "local": None,
        "units": (256, 4096),
        "boxes_per_cell": 2,
    },
    "darknet": {"trunk": "20", "level": "C5", "neck": _NECK, "local": 256, "units": (), "boxes_per_cell": 3},
    "tiny": {"trunk": "tiny", "level": "C4", "neck": ((64, 1),), "local": 32, "units": (), "boxes_per_cell": 2},
}

PROOF = "NumPy twins of loss and decoding that loop over cells and boxes, and the layer table"

TOP = ("output",)


def YOLO(
    variant="24",
    *,
    input_shape=(448, 448, 3),
    classes=20,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    norm="auto",
    grid_size=7,
    boxes_per_cell=None,
    units=None,
    dropout_rate=0.5,
    coordinate_weight=5.0,
    no_object_weight=0.5,
    score_threshold=0.05,
    num_candidates=1000,
    nms_threshold=0.5,
    num_detections=100,
    preprocess="auto",
    name="yolo",
):
    """Build a YOLO: with the paper's 20 classes and no norms 271,703,550 parameters, `"fast"` 45,089,374.

    Args:
        variant: A row of `VARIANTS`: `"24"`, the network of figure 3; `"fast"`, Fast YOLO; `"darknet"`, that of the
            authors' code, with a locally connected layer and three boxes a cell; `"tiny"`, for small images.
        input_shape: (height, width, channels), at least 64 pixels a side (`"tiny"` 32); `grid_size` divides both.
        classes: Number of classes, without a background; the paper's VOC has 20.
        backbone: A `keras.Model` from images of `input_shape` to a dict of maps with `"C5"` (`"tiny"`: `"C4"`), such
            as `ResNet50(include_top=False, features=("C5",), …)`. None is an `Extraction` of `backbone_norm`.
        weights: None, or the path of weights of the whole detector: a file of Keras says which norms it was trained
            with, and other classes start a fresh last layer.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None (the
            paper's). `"auto"`: what the file of `weights` was trained with, batch norm frozen; else group norm, which
            trains from scratch.
        norm: Of the convolutions after it: `"group"`, `"batch"`, `"sync_batch"` or None. `"auto"`: that in the file of
            `weights`, None with other weights, a `backbone` or a frozen norm, else group norm.
        grid_size: Cells along each side of the image.
        boxes_per_cell: Boxes that each cell predicts; None takes the row's.
        units: Of the dense layers before the last, such as `(4096,)`; None takes the row's.
        dropout_rate: Before the last layer, in [0, 1).
        coordinate_weight, no_object_weight: λ_coord and λ_noobj of equation 3, at least 0.
        score_threshold, num_candidates: Of an image go on to suppression at most `num_candidates` boxes with a score
            above the threshold. The authors draw from 0.2 on, and measure from 0.001 on.
        nms_threshold: Overlap in [0, 1] above which the lower score of the same class gives way.
        num_detections: Given for an image, at most, and at fixed size.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; −1…1 for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector`. Its losses are `box_loss`, `object_loss`, `no_object_loss` and
        `classification_loss`.

    Raises:
        ValueError: on an unknown variant or norm, a wrong shape, a grid that does not divide the image, a backbone
            without the level or with one of another stride, or numbers out of range.

    ```python
    detector = kvision.applications.YOLO("tiny", input_shape=(112, 112, 3), classes=3)
    detector.compile(keras.optimizers.Adam(1e-3, global_clipnorm=10.0))
    ```
    """
    row = variant_row("YOLO", VARIANTS, variant, boxes_per_cell=boxes_per_cell, units=units)
    level, boxes_per_cell = row["level"], row["boxes_per_cell"]
    stride = math.prod(2 if step == "pool" else step[1] for step in row["neck"]) * 2 ** int(level[1:])
    images = image_input("YOLO", input_shape, stride=stride, classes=classes)
    check_grid(images.shape[1:3], grid_size, boxes_per_cell)
    if not isinstance(row["units"], tuple | list):
        raise ValueError(f"YOLO: units are those of the dense layers, such as (4096,): got {row['units']!r}.")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"YOLO: dropout_rate lies in [0, 1): got {dropout_rate!r}.")
    norms = choose_norms(
        "YOLO", backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm=norm, initializer="he"
    )
    preprocess = backbone_preprocessing("YOLO", backbone, preprocess, extraction.preprocess_input)
    if backbone is None:
        backbone = Extraction(
            row["trunk"], include_top=False, input_shape=input_shape, norm=norms.backbone, features=(level,)
        )
    x = backbone_maps("YOLO", backbone, (level,), images, preprocess)[level]
    x = _layers_before_the_last(x, row, conventions(norms.inner, "leaky_0.1"), dropout_rate)
    features = _outputs_by_kind(x, grid_size, boxes_per_cell, classes)
    trunk = keras.Model(images, features, name=f"{name}_trunk")
    head = GridHead(
        classes,
        images.shape[1:3],
        grid_size,
        boxes_per_cell,
        coordinate_weight=coordinate_weight,
        no_object_weight=no_object_weight,
        score_threshold=score_threshold,
        num_candidates=num_candidates,
        nms_threshold=nms_threshold,
        num_detections=num_detections,
        name=f"{name}_head",
    )
    return finish(Detector(trunk, head, name=name), weights, top=TOP)


def _layers_before_the_last(x, row, bound, dropout_rate):
    """Figure 3 from the backbone's map on: convolutions, dense layers, dropout."""
    for index, step in enumerate(row["neck"], 1):
        if step == "pool":
            x = keras.layers.MaxPooling2D(2, name=f"neck.pool{index}")(x)
            continue
        filters, strides = step
        x = bound.conv(filters, 3, strides=strides, name=f"neck.conv{index}")(x)
        x = bound.activation(name=f"neck.act{index}")(bound.norm(name=f"neck.bn{index}")(x))
    if row["local"] is not None:
        x = LocallyConnected2D(row["local"], 3, kernel_initializer="he_normal", name="local")(x)
        x = bound.activation(name="local.act")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for index, units in enumerate(row["units"], 1):
        x = bound.activation(name=f"fc{index}.act")(bound.dense(units, name=f"fc{index}")(x))
    return keras.layers.Dropout(dropout_rate, name="dropout")(x)


def _outputs_by_kind(x, grid_size, boxes_per_cell, classes):
    """The last layer, laid out as the authors do: class scores of all cells, then confidences, then boxes."""
    shapes = {"class_scores": (classes,), "confidences": (boxes_per_cell,), "cell_boxes": (boxes_per_cell, 4)}
    sizes = {kind: grid_size**2 * math.prod(shape) for kind, shape in shapes.items()}
    small = keras.initializers.VarianceScaling(0.01)  # outputs begin near 0, as square roots and scores do
    x = keras.layers.Dense(sum(sizes.values()), kernel_initializer=small, dtype="float32", name="output")(x)
    features, begin = {}, 0
    for kind, shape in shapes.items():
        part = x[:, begin : begin + sizes[kind]]
        features[kind] = keras.layers.Reshape((grid_size, grid_size, *shape), dtype="float32", name=kind)(part)
        begin += sizes[kind]
    return features
