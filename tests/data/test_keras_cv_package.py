"""A real augmenter of keras-cv feeds `fit` of a detector, and its boxes stay on their objects."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kvision import applications, data

pytestmark = [pytest.mark.keras_cv, pytest.mark.tensorflow_only]

SIZE, COUNT = 64, 8


def samples(keras_cv, box_format):
    """Dark images with a bright rectangle each, and its box as keras-cv has it."""
    rng = np.random.default_rng(0)
    images = np.zeros((COUNT, SIZE, SIZE, 3), "float32")
    corners = rng.integers(4, 24, (COUNT, 2))
    boxes = np.concatenate([corners, corners + rng.integers(16, 32, (COUNT, 2))], axis=-1)
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        image[top:bottom, left:right] = 255
    boxes = keras_cv.bounding_box.convert_format(
        boxes[:, None].astype("float32"), source="xyxy", target=box_format, images=images
    )
    labels = np.zeros((COUNT, 1), "float32")
    made = {"images": images, "bounding_boxes": {"boxes": boxes, "classes": labels}}
    return tf.data.Dataset.from_tensor_slices(made).batch(4)


def augmented(box_format):
    """The samples after keras-cv's layers, as batches of the data contract."""
    import keras_cv  # in an environment of its own

    layers = [
        keras_cv.layers.RandomFlip("horizontal", bounding_box_format=box_format),
        keras_cv.layers.JitteredResize((SIZE, SIZE), (0.8, 1.25), bounding_box_format=box_format),
        keras_cv.layers.RandomSaturation((0.4, 0.6)),
    ]

    def change(batch):
        for layer in layers:
            batch = layer(batch, training=True)
        return batch

    return data.from_keras_cv(samples(keras_cv, box_format).map(change), box_format, max_boxes=4)


@pytest.mark.parametrize("box_format", ["xyxy", "rel_yxyx", "center_xywh"])
def test_boxes_stay_on_their_objects(box_format):
    seen = 0
    for images, targets in augmented(box_format):
        for image, boxes, labels in zip(images.numpy(), targets["boxes"].numpy(), targets["labels"], strict=True):
            for left, top, right, bottom in np.round(boxes[labels >= 0]).astype(int):
                outside = image.copy()
                outside[top:bottom, left:right] = 0
                assert image[top + 2 : bottom - 2, left + 2 : right - 2].min() > 200
                assert outside.mean() < 0.1 * image.mean()
                seen += 1
    assert seen > COUNT / 2


def test_a_detector_is_fitted():
    shape = (SIZE, SIZE, 3)
    backbone = applications.ResNet(
        "tiny", include_top=False, input_shape=shape, features=("C3", "C4", "C5"), norm="group"
    )
    detector = applications.RetinaNet(input_shape=shape, classes=1, backbone=backbone, channels=8, num_detections=10)
    detector.compile(keras.optimizers.SGD(0.01))
    history = detector.fit(augmented("xyxy"), epochs=2, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert min(history["box_loss"]) > 0
