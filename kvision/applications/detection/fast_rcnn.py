"""Fast R-CNN: Girshick, "Fast R-CNN" (2015).

Class 0 of the head is the background, as in the author's code and in torchvision; the labels of targets and detections
count no background.

How it trains (section 2.3): SGD with momentum 0.9 and weight decay 5e-4, 2 images a batch with 64 regions each, 30k
steps at 0.001 and 10k at 0.0001. The 2,000 regions of an image came from selective search. Deviations: the dense layers
start fresh by He initialization (the paper: with VGG's ImageNet weights), and box targets are scaled by 10 and 5 as in
the author's code (the paper: to unit variance).
"""

import keras

from kvision.applications.building import finish, image_input
from kvision.applications.classification import imagenet
from kvision.applications.classification.resnet import ResNet50
from kvision.applications.classification.vgg import VGG16
from kvision.applications.detection import coco
from kvision.detection.assigner import Assigner
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms, split_at_c4
from kvision.detection.box_branch import BoxBranch, dense_box_head, stage_box_head
from kvision.detection.detector import Detector
from kvision.detection.proposals import GivenProposals
from kvision.detection.two_stage import TwoStageHead
from kvision.errors import choose
from kvision.layers import RoIPooling

UNITS, DROPOUT_RATE = 4096, 0.5

PROOF = "torchvision's box head, losses and decoding, by tests/applications/detection/test_detector_parity.py"


def FastRCNN(
    *,
    input_shape=(512, 512, 3),
    classes=20,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    head="fc",
    units=None,
    dropout_rate=None,
    num_samples=64,
    matching_iou_threshold=0.5,
    min_background_iou=0.1,
    score_threshold=0.05,
    nms_threshold=0.3,
    num_detections=100,
    preprocess="auto",
    name="fast_rcnn",
):
    """Build a Fast R-CNN, which takes `x = {"images": [b, h, w, 3], "proposals": [b, m, 4]}`.

    Proposals are boxes xyxy in pixels of the padded image, m fixed, padded with rows of zeros.

    Args:
        input_shape: (height, width, channels), at least 32 pixels a side.
        classes: Number of classes, without a background; the paper's VOC has 20.
        backbone: A `keras.Model` from images to a dict of maps with `"C4"` and, for `head="conv5"`, `"C5"`. None is a
            VGG-16, or for `head="conv5"` a ResNet-50, of `backbone_norm`.
        weights: None, or the path of weights of the whole detector.
        backbone_norm: Of the backbone built here: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None.
            `"auto"`: none in VGG-16, as in the paper; of ResNet-50, frozen with `weights`, else group norm.
        head: `"fc"`: two dense layers on 7x7 bins (VGG). `"conv5"`: what lies between the backbone's C4 and C5, on
            14x14 bins, and the mean over the map (He 2015, "Deep Residual Learning", appendix A).
        units: Of the dense layers of `head="fc"`; None is 4096.
        dropout_rate: After each of them, in [0, 1); None is 0.5.
        num_samples: Regions of an image that a step trains on, at most a quarter of them positives.
        matching_iou_threshold: Overlap with a box from which on a region is a positive.
        min_background_iou: Overlap with some box below which a region is not used as background, in an image that has
            boxes; 0 uses all.
        score_threshold: Detections with a score of at most this are left out.
        nms_threshold: Overlap in [0, 1] above which the lower score of the same class gives way.
        num_detections: Given for an image, at most, and at fixed size.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the losses `classification_loss` and `box_loss`.

    Raises:
        ValueError: on a wrong shape, an unknown head or norm, a backbone without the levels needed or with a level of
            another stride, or an argument that the head has no use for.

    ```python
    detector = kvision.applications.FastRCNN(input_shape=(256, 256, 3), classes=3)
    detector.compile(keras.optimizers.SGD(0.001, momentum=0.9, global_clipnorm=1.0))
    detector.fit({"images": images, "proposals": proposals}, targets)
    ```
    """
    images = image_input("FastRCNN", input_shape, stride=32, classes=classes)
    bins, levels = choose("head of FastRCNN", {"fc": (7, ("C4",)), "conv5": (14, ("C4", "C5"))}, head)
    units, dropout_rate = _dense_numbers(head, units, dropout_rate)
    norms = choose_norms(
        "FastRCNN", backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm="auto", initializer="auto"
    )
    preprocess = backbone_preprocessing("FastRCNN", backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = _backbone(
            head, levels, input_shape, None if head == "fc" and backbone_norm == "auto" else norms.backbone
        )
    if head == "fc":
        maps = backbone_maps("FastRCNN", backbone, levels, images, preprocess)
        shape = (bins, bins, maps["C4"].shape[-1])
        box_head = dense_box_head(shape, classes, units=units, dropout_rate=dropout_rate)
    else:
        lower, stage = split_at_c4("FastRCNN", backbone, bins)
        maps = backbone_maps("FastRCNN", lower, ("C4",), images, preprocess)
        box_head = stage_box_head(stage, classes)
    branch = BoxBranch(
        classes,
        input_shape[:2],
        ("C4",),
        RoIPooling(bins, spatial_scale=1 / 16),
        box_head,
        Assigner(
            matching_iou_threshold, min_background_iou=min_background_iou, num_samples=num_samples, name="box_assigner"
        ),
        beta=1.0,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        num_detections=num_detections,
        name="box_branch",
    )
    trunk = keras.Model(images, {"C4": maps["C4"]}, name=f"{name}_trunk")
    proposals = GivenProposals(input_shape[:2], name="proposals")
    detector = Detector(trunk, TwoStageHead(proposals, [branch], name=f"{name}_head"), name=name)
    return finish(detector, weights, top=coco.TOP)


def _backbone(head, levels, input_shape, norm):
    build = VGG16 if head == "fc" else ResNet50
    return build(include_top=False, input_shape=input_shape, features=levels, norm=norm)


def _dense_numbers(head, units, dropout_rate):
    """The numbers of the dense layers, refused where there are none."""
    if head != "fc":
        for argument, value in (("units", units), ("dropout_rate", dropout_rate)):
            if value is not None:
                raise ValueError(
                    f'FastRCNN: {argument}={value!r} is of the dense layers of head="fc"; head={head!r} has none. '
                    "Leave it out."
                )
    units = UNITS if units is None else units
    dropout_rate = DROPOUT_RATE if dropout_rate is None else dropout_rate
    if not isinstance(units, int) or units < 1 or not 0 <= dropout_rate < 1:
        raise ValueError(
            f"FastRCNN: units must be a whole number of at least 1, and dropout_rate lie in [0, 1): got {units!r} and "
            f"{dropout_rate!r}."
        )
    return units, dropout_rate
