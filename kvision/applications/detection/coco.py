"""What the COCO networks share: the names of the categories, and how torchvision publishes its detectors."""

from kvision.weights import Published

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


def torchvision_weights(file, box_ap, head, mask_ap=None):
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
        head,
        mask_ap=mask_ap,
        epsilon=0.0,
    )
