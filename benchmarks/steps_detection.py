"""The detection of kvision: single operations, forward and backward, and whole training steps."""

import detection_inputs as inputs
import detection_parts
import detection_weights
import harness

tf = harness.tensorflow()

import keras
import numpy as np

from kvision import applications, ops
from kvision.optimizers import SGD, AdamW


def forward_and_backward(function, *tensors, gradient):
    """One call that returns the outputs and the gradient of every tensor (alone, the forward would be dropped)."""
    tensors = [tf.constant(tensor) for tensor in tensors]
    gradient = tf.constant(gradient)

    @tf.function
    def both():
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return outputs, tape.gradient(outputs, tensors, gradient)

    return both


def roi_align(level):
    def factory():
        features, boxes, gradient, scale = inputs.regions(**inputs.REGIONS[level])
        boxes = tf.constant(boxes[None])
        return forward_and_backward(
            lambda maps: ops.roi_align(maps, boxes, 7, scale, sampling_ratio=2), features, gradient=gradient[None]
        )

    return factory


def deform_conv():
    features, offsets, factors, kernel, gradient = inputs.deformable_inputs()
    return forward_and_backward(
        lambda x, moves, mask, taps: ops.deform_conv2d(x, moves, taps, mask=mask, padding=1),
        features,
        offsets,
        factors,
        kernel,
        gradient=gradient,
    )


def matching():
    anchors, boxes = (tf.constant(array) for array in inputs.anchors_and_truth())
    labels = tf.zeros((1, len(boxes)), "int32")
    return tf.function(lambda: ops.match(boxes[None], labels, anchors, low=0.3, high=0.7, allow_low_quality=True))


def suppression():
    boxes, scores = (tf.constant(array) for array in inputs.overlapping_boxes())
    return tf.function(lambda: ops.nms(boxes, scores, 0.7, max_outputs=len(scores)))


LEVELS = ("C2", "C3", "C4", "C5")


def backbone(*levels):
    return applications.ResNet50(
        include_top=False, input_shape=(inputs.SIZE, inputs.SIZE, 3), features=levels, norm="frozen_batch"
    )


def batch(with_masks):
    images, boxes, labels, masks = inputs.batch()
    targets = {"boxes": boxes, "labels": labels}
    return 255 * images, targets | ({"masks": masks} if with_masks else {})


def detector(builder, *levels, masks=False, inference=False, **options):
    """A training step by `train_on_batch`, or the detections of one image."""

    def factory():
        keras.utils.set_random_seed(0)
        shape = (inputs.SIZE, inputs.SIZE, 3)
        model = builder(input_shape=shape, classes=inputs.CLASSES, backbone=backbone(*levels), **options)
        model.compile(SGD(1e-4, momentum=0.9), jit_compile=False)
        images, targets = batch(masks)
        if inference:
            return lambda: model.predict_on_batch(images[:1])
        facts = {"images": inputs.BATCH}
        if hasattr(model.head, "proposals"):
            facts["parts"] = lambda: detection_parts.parts_of(model, images, targets)
        return lambda: model.train_on_batch(images, targets), facts

    return factory


def as_if_trained(builder, theirs, **options):
    """The detections of one generated photo, by the weights that torchvision's `theirs` has too."""

    def factory():
        shape = (inputs.SIZE, inputs.SIZE, 3)
        path = detection_weights.path_of(theirs)
        model = builder(
            input_shape=shape,
            classes=inputs.CLASSES,
            weights=path,
            backbone_norm="frozen_batch",
            anchor_strides="torchvision",
            **options,
        )
        image = np.stack(inputs.photographs(1)).astype("float32")

        def told():
            found = {"detections": int((model.predict_on_batch(image)["labels"] >= 0).sum())}
            if hasattr(model.head, "proposals"):
                proposals = keras.ops.convert_to_numpy(model.head.proposals.propose(model.trunk(image)))
                found = {"proposals": int(proposals.any(-1).sum())} | found
            return found

        return lambda: model.predict_on_batch(image), {"told": told}

    return factory


def detr(inference=False):
    """DETR trained by AdamW with a tenth of the rate for the backbone, as its authors do; the share of the matching."""

    def factory():
        keras.utils.set_random_seed(0)
        shape = (inputs.SIZE, inputs.SIZE, 3)
        model = applications.DETRResNet50(input_shape=shape, classes=inputs.CLASSES, backbone=backbone("C5"))
        rates = {applications.detr.BACKBONE: 0.1}
        model.compile(AdamW(1e-4, weight_decay=1e-4, global_clipnorm=0.1, rate_factors=rates), jit_compile=False)
        images, targets = batch(False)
        if inference:
            return lambda: model.predict_on_batch(images[:1])
        return lambda: model.train_on_batch(images, targets), {
            "images": inputs.BATCH,
            "parts": lambda: {"matching of all layers": matching_of(model, targets)},
        }

    return factory


def matching_of(model, targets):
    """Costs and assignment of one step, of random predictions."""
    network = model.head.network
    logits = tf.random.normal((6, inputs.BATCH, network.num_queries, inputs.CLASSES + 1))
    boxes = tf.random.uniform((6, inputs.BATCH, network.num_queries, 4), 0.1, 0.9)
    labels, wanted = (tf.constant(targets["labels"]), tf.constant(targets["boxes"]) / inputs.SIZE)
    found = {"class_logits": logits, "boxes_cxcywh": boxes}
    wanted = ops.xyxy_to_cxcywh(wanted)
    return tf.function(lambda: model.head.assign(found, labels, wanted))


def hungarian():
    """The assignment alone: 100 queries, 20 targets, six layers of a batch of two."""
    cost = tf.constant(inputs.assignment_costs())
    return tf.function(lambda: ops.hungarian(cost))


def efficientdet(inference=False):
    """EfficientDet-D0 at its own 512 pixels, its batch norms live in training."""

    def factory():
        keras.utils.set_random_seed(0)
        model = applications.EfficientDetD0(classes=inputs.CLASSES, backbone_norm="batch", norm="batch")
        model.compile(SGD(1e-4, momentum=0.9), jit_compile=False)
        images, boxes, labels, _ = inputs.batch(512)
        if inference:
            return lambda: model.predict_on_batch(255 * images[:1])
        targets = {"boxes": boxes, "labels": labels}
        return lambda: model.train_on_batch(255 * images, targets), {"images": inputs.BATCH}

    return factory


CASES = {f"roi-align:{level}": roi_align(level) for level in inputs.REGIONS}
CASES |= {"deform-conv": deform_conv, "matching": matching, "nms": suppression}
CASES |= {
    "retinanet": detector(applications.RetinaNet, *LEVELS[1:]),
    "retinanet-inference": detector(applications.RetinaNet, *LEVELS[1:], inference=True),
    "retinanet-as-if-trained": as_if_trained(applications.RetinaNet, "retinanet_resnet50_fpn"),
    "efficientdet": efficientdet(),
    "efficientdet-inference": efficientdet(inference=True),
    "faster-rcnn": detector(applications.FasterRCNN, *LEVELS),
    "faster-rcnn-inference": detector(applications.FasterRCNN, *LEVELS, inference=True),
    "detr": detr(),
    "detr-inference": detr(inference=True),
    "hungarian": hungarian,
    "mask-rcnn": detector(applications.MaskRCNN, *LEVELS, masks=True, num_mask_samples=32),
    "mask-rcnn-128": detector(applications.MaskRCNN, *LEVELS, masks=True, num_mask_samples=128),
    "mask-rcnn-inference": detector(applications.MaskRCNN, *LEVELS, inference=True),
    "faster-rcnn-as-if-trained": as_if_trained(applications.FasterRCNN, "fasterrcnn_resnet50_fpn", aligned=False),
    "mask-rcnn-as-if-trained": as_if_trained(applications.MaskRCNN, "maskrcnn_resnet50_fpn", aligned=False),
}

if __name__ == "__main__":
    harness.serve(CASES)
