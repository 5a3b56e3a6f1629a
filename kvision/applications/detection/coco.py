"""What the COCO networks share: the names of the categories, and how torchvision publishes and names its detectors."""

from kvision.applications import building
from kvision.errors import choose
from kvision.weights import Published

# Torchvision's detectors keep the backbone in `backbone.body`; all their other names are ours.
RENAMES = {"torchvision": [(r"^(conv1|bn1|layer\d)\b", r"backbone.body.\1")]}

# What the published files call otherwise than torchvision does today: a convolution stood alone where it now is the
# first of a block, Mask R-CNN counted from 1, and RetinaNet counted the ReLUs in between.
OLDER_NAMES = {
    "torchvision": [
        (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
        (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        *(
            (rf"^roi_heads\.mask_head\.mask_fcn{index + 1}\.(weight|bias)$", rf"roi_heads.mask_head.{index}.0.\1")
            for index in range(4)
        ),
        *(
            (rf"^(head\.(?:classification|regression)_head\.conv)\.{2 * index}\.(weight|bias)$", rf"\1.{index}.0.\2")
            for index in range(4)
        ),
    ]
}

# The layers of these detectors that depend on the number of classes; a cascade counts its stages from 2 on.
_STAGES = ("roi_heads", "roi_heads.stage2", "roi_heads.stage3")
_PREDICTORS = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
TOP = (
    "head.classification_head.cls_logits",
    *(f"{stage}.{predictor}" for stage in _STAGES for predictor in _PREDICTORS),
)

# Of the ids 1 to 90, in this order; ten of them were never used in the data set and are called "N/A".
CATEGORIES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "N/A", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep"),
    *("cow", "elephant", "bear", "zebra", "giraffe", "N/A", "backpack", "umbrella", "N/A", "N/A"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat"),
    *("baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "N/A", "wine glass", "cup", "fork"),
    *("knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza"),
    *("donut", "cake", "chair", "couch", "potted plant", "bed", "N/A", "dining table", "N/A", "N/A", "toilet"),
    *("N/A", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "N/A", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)


def class_names(classes=90):
    """The names in the order of a detector's labels, for `drawing.detections` and `callbacks.DetectionImages`.

    Args:
        classes: As the detector was built: 90, where label k is the category of id k + 1; or 91, as RetinaNet's
            published weights have it, where the label is the id itself and label 0 is nothing.

    Returns:
        A tuple of as many names; what is no category is `"N/A"`.

    Raises:
        ValueError: on another number: `kvision.data.coco` numbers the categories that a file has without gaps, and
            brings the names for it.

    >>> class_names(90)[0], class_names(91)[1]
    ('person', 'person')
    """
    if classes not in (90, 91):
        raise ValueError(
            f"coco.class_names knows the labels of published weights: classes must be 90 (ids from 1) or 91 (ids, 0 is "
            f"nothing), got {classes!r}. A detector of your own has the `class_names` of the data it trained on."
        )
    return CATEGORIES if classes == 90 else ("N/A", *CATEGORIES)


def torchvision_weights(file, box_ap, mask_ap=None):
    """The row of a detector's COCO_V1 weights; facts from torchvision's table of weights.

    Their recipe, near that of the papers, stands in references/detection of torchvision's repository, which uses them
    with an epsilon of 0. The licence is torchvision's; it says that a data set's terms may bind its weights as well.
    """
    return Published(
        "https://download.pytorch.org/models",
        file,
        "torchvision",
        "BSD-3-Clause",
        box_ap,
        "short side to 800, long side at most 1333 (bilinear); 0…255, the detector prepares them",
        mask_ap=mask_ap,
        epsilon=0.0,
    )


def finish(detector, weights, published=None):
    """The detector of a builder, weights loaded.

    Args:
        detector: As built.
        weights: None, a published name, or a path.
        published: The family's `WEIGHTS`, if the detector is of the form they belong to.
    """
    return building.finish(detector, weights, published, RENAMES, OLDER_NAMES, TOP)


def num_classes(family, classes, weights, published, default=80):
    """The number of classes of a detector: as asked for, or that of its weights.

    Args:
        family: Name of the builder, for the message.
        classes, weights: The builder's arguments.
        published: `{weights name: number}`.
        default: Without weights; 80 is COCO's.

    Raises:
        ValueError: on None with the path of a file, which does not say it.
    """
    if classes is not None:
        return classes
    if weights is None or weights in published:
        return published.get(weights, default)
    raise ValueError(f"{family}: classes=None takes the number of published weights; of a file of yours, pass it.")


def torchvision_geometry(weights, published, anchor_strides, aligned=True):
    """What `"auto"` means: torchvision's rules with its published weights, those of the levels' strides otherwise.

    Args:
        weights: The builder's argument.
        published: Names of torchvision's weights.
        anchor_strides: `"level"`, `"torchvision"` or `"auto"`.
        aligned: Of RoIAlign: True, False or `"auto"`.

    Returns:
        (`"level"` or `"torchvision"`, True or False)
    """
    theirs = weights in published
    rules = {"auto": "torchvision" if theirs else "level", "level": "level", "torchvision": "torchvision"}
    return choose("anchor_strides", rules, anchor_strides), not theirs if aligned == "auto" else aligned
