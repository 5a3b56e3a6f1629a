"""The box operations together inside `fit` and `predict`, as detectors use them: unknown batch size, jit, 16 bits."""

import keras
import numpy as np
import pytest

from kvision import losses, ops

ANCHORS = np.concatenate(ops.anchors_xyxy((32, 32), [(4, 4), (2, 2)], ((8,), (16,))))


class ToyHead(keras.layers.Layer):
    """Scores and shifts anchors, is trained to match `boxes`, and outputs the boxes it keeps."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(len(ANCHORS) * 5)
        self.seed_generator = keras.random.SeedGenerator(0)

    def build(self, shape):
        self.dense.build(shape[0])

    def call(self, inputs):
        features, boxes, labels = inputs
        outputs = keras.ops.reshape(self.dense(features), (-1, len(ANCHORS), 5))
        logits, deltas = outputs[..., 0], outputs[..., 1:]
        proposals = ops.clip_xyxy(ops.decode_deltas(deltas, ANCHORS), (32, 32))

        matches = ops.match(boxes, labels, ANCHORS, 0.3, 0.6, allow_low_quality=True)
        sample, drawn = ops.sample_balanced(matches, 16, 0.5, seed=self.seed_generator)
        positive = keras.ops.cast(matches > ops.BACKGROUND, "float32")
        focal = losses.sigmoid_focal_loss(positive, logits)
        self.add_loss(keras.ops.mean(keras.ops.take_along_axis(focal, sample, 1) * keras.ops.cast(drawn, "float32")))
        truth = keras.ops.take_along_axis(boxes, keras.ops.maximum(matches, 0)[..., None], axis=1)
        errors = losses.smooth_l1_loss(ops.encode_deltas(truth, ANCHORS), deltas)
        self.add_loss(keras.ops.mean(keras.ops.sum(errors, -1) * positive))
        queries = ops.hungarian(-ops.giou_xyxy(proposals, boxes), labels >= 0)
        chosen = keras.ops.take_along_axis(proposals, keras.ops.maximum(queries, 0)[..., None], axis=1)
        self.add_loss(keras.ops.mean(losses.giou_loss(boxes, chosen) * keras.ops.cast(queries >= 0, "float32")))

        kept, count = ops.nms(proposals, keras.ops.cast(logits, "float32"), 0.5, 5)
        return keras.ops.take_along_axis(proposals, keras.ops.maximum(kept, 0)[..., None], axis=1), count


def toy():
    inputs = [keras.Input(shape) for shape in ((6,), (3, 4), (3,))]
    boxes, count = ToyHead()(inputs)
    return keras.Model(inputs, {"boxes": boxes, "count": count})


def data():
    """Four images, the second without boxes."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (4, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 12, (4, 3, 2))], axis=-1).astype("float32")
    labels = np.array([[0, 1, -1], [-1, -1, -1], [0, 0, 0], [2, -1, -1]], "float32")
    return [rng.normal(size=(4, 6)).astype("float32"), boxes * (labels >= 0)[..., None], labels]


@pytest.mark.parametrize("policy, jit", [("mixed_bfloat16", False), ("mixed_float16", True)])
@pytest.mark.slow  # a dozen compilations
def test_trains_and_predicts(policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    model = toy()
    model.compile(keras.optimizers.SGD(0.02), jit_compile=jit)
    history = model.fit(data(), batch_size=2, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
    outputs = model.predict(data(), batch_size=2, verbose=0)
    assert outputs["boxes"].shape == (4, 5, 4) and np.isfinite(outputs["boxes"]).all()
    assert (outputs["count"] >= 1).all() and (outputs["count"] <= 5).all()
