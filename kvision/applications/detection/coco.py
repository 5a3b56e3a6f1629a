"""What the COCO networks share: the names of the categories, and how torchvision publishes and names its detectors."""

import dataclasses
import os

import keras

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


# The ids of the 80 categories in use, in the order of the labels: those of `kvision.data.coco` on COCO's own files.
CATEGORY_IDS = tuple(number for number, name in enumerate(CATEGORIES, start=1) if name != "N/A")
ROWS_OF_FILES = 91  # id 0, which is the background or unused, and the ids 1 to 90


def class_names():
    """The names of COCO's 80 classes in the order of the labels, as detectors built with `weights="coco"` carry them.

    All of these have the same labels, and so has `kvision.data.coco` on COCO's own files; `CATEGORY_IDS` leads back to
    the ids.

    >>> class_names()[:2], class_names()[11], CATEGORY_IDS[11]
    (('person', 'bicycle'), 'stop sign', 13)
    """
    return tuple(CATEGORIES[number - 1] for number in CATEGORY_IDS)


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class CategoryRows:
    """Takes the rows of the 80 categories out of the last layers of a file, which have a row for each id up to 90.

    Args:
        layers: `{name of a layer in the file: its numbers for each class in a row}`.
        background: Whether row 0 is the background, which stays; else it is unused, and goes.
        first_id: The id of the first row: 0, or 1 where the file has no row 0.
        no_object: Whether a row for "no object" comes after the others, and stays.

    Call: state dict → state dict. Arrays that hold other numbers of classes stay as they are.
    """

    layers: dict
    background: bool
    first_id: int = 0
    no_object: bool = False

    def __call__(self, state):
        return {key: self._chosen(value, self.layers.get(key.rpartition(".")[0])) for key, value in state.items()}

    def _chosen(self, value, numbers):
        count = ROWS_OF_FILES - self.first_id + self.no_object
        if numbers is None or value.shape[0] % (count * numbers):
            return value
        rows = [0] * self.background + [number - self.first_id for number in CATEGORY_IDS]
        rows += [count - 1] * self.no_object
        rest = tuple(value.shape[1:])
        return value.reshape(-1, count, numbers, *rest)[:, rows].reshape(-1, *rest)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def torchvision_weights(file, box_ap, head, mask_ap=None, background=True):
    """The row of a detector's COCO_V1 weights; facts from torchvision's table of weights.

    Their recipe, near that of the papers, stands in references/detection of torchvision's repository, which uses them
    with an epsilon of 0. The licence is torchvision's; it says that a data set's terms may bind its weights as well.
    `head` and `background` are the arguments of `CategoryRows`.
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
        adapt=CategoryRows(head, background),
    )


def changed(**arguments):
    """The names of arguments that published weights don't allow: `name=(value, those allowed)`."""
    return tuple(name for name, (value, allowed) in arguments.items() if value not in allowed)


def finish(detector, weights, published=None, changed=(), renames=RENAMES, older_names=OLDER_NAMES, top=TOP):
    """The detector of a builder, weights loaded.

    Args:
        detector: As built.
        weights: None, a published name, or a path.
        published: The family's `WEIGHTS`.
        changed: Names of arguments by which the detector is of another form than those weights.
        renames, older_names, top: As in `building.finish`; torchvision's.

    Raises:
        ValueError: on a published name together with such arguments, and as `building.finish`.
    """
    is_published = isinstance(weights, str) and weights in (published or {})
    if isinstance(weights, str) and not is_published and not os.path.exists(weights):
        raise building.unknown_weights(detector.name, weights, published or {})
    if changed and is_published:
        raise ValueError(
            f"{detector.name}: weights={weights!r} are published for the network as it is by default, but "
            f"{', '.join(changed)} {'makes' if len(changed) == 1 else 'make'} another one of it. Leave "
            f"{'it' if len(changed) == 1 else 'them'} out, or train without weights."
        )
    building.finish(detector, weights, None if changed else published, renames, older_names, top)
    if is_published and detector.head.classes == len(CATEGORY_IDS):
        detector.class_names = class_names()
    return detector


def num_classes(family, classes, weights, published=()):
    """The number of classes of a detector: as asked for, or COCO's 80.

    Args:
        family: Name of the builder, for the message.
        classes, weights: The builder's arguments.
        published: Names of the family's published weights.

    Raises:
        ValueError: on None with the path of a file, which does not say it, or with unknown weights.
    """
    if classes is not None:
        return classes
    if weights is None or weights in published:
        return len(CATEGORY_IDS)
    if not isinstance(weights, str | os.PathLike) or not os.path.exists(weights):
        raise building.unknown_weights(family, weights, published)
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
