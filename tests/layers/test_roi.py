"""RoI layers: the operations, boxes in float32 under any policy, models that train, save and load."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.layers import RoIAlign, RoIPooling, RoIWarp
from kvision.ops import multilevel_roi_align, roi_align, roi_pool, roi_warp
from tests.support import SLOW, TOLERANCES, assert_close

RNG = np.random.default_rng(0)
MAPS = {f"P{k}": RNG.normal(size=(2, 128 >> k, 160 >> k, 3)).astype("float32") for k in (2, 3, 4)}
CORNERS = RNG.uniform(0, 100, (2, 6, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(1, 130, (2, 6, 2))], axis=-1).astype("float32")

# layer, its features, the same by the operation
ROWS = {
    "align": (
        lambda: RoIAlign(3, 1 / 4, sampling_ratio=1, aligned=False),
        MAPS["P2"],
        lambda x: roi_align(x, BOXES, 3, 1 / 4, sampling_ratio=1, aligned=False),
    ),
    "align by level": (lambda: RoIAlign(2), MAPS, lambda x: multilevel_roi_align(x, BOXES, 2)),
    "pool": (lambda: RoIPooling(3, 1 / 4), MAPS["P2"], lambda x: roi_pool(x, BOXES, 3, 1 / 4)),
    "warp": (lambda: RoIWarp(3, 1 / 4), MAPS["P2"], lambda x: roi_warp(x, BOXES, 3, 1 / 4)),
}
EVERY_ROW = pytest.mark.parametrize("name", ROWS)


def rounded(features, dtype):
    return keras.tree.map_structure(lambda x: ops.cast(ops.cast(x, dtype), "float32"), features)


@EVERY_ROW
def test_equals_the_operation(name):
    make, features, operation = ROWS[name]
    layer = make()
    got = layer(features, BOXES)
    assert_close(got, operation(features))
    shapes = keras.tree.map_structure(np.shape, features) if isinstance(features, dict) else features.shape
    assert layer.compute_output_shape(shapes, BOXES.shape) == tuple(got.shape)


@EVERY_ROW
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_boxes_stay_float32_under_a_16_bit_policy(name, dtype):
    make, features, operation = ROWS[name]
    keras.mixed_precision.set_dtype_policy(f"mixed_{dtype}")
    got = make()(features, BOXES)
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    # One rounding of the result; boxes rounded to 16 bits would be off by whole cells.
    assert_close(ops.cast(got, "float32"), operation(rounded(features, dtype)), tolerance=(TOLERANCES[dtype][0], 1e-4))


def model_of(name):
    make, features, _ = ROWS[name]
    inputs = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:]), features)
    boxes = keras.Input((6, 4))
    width = keras.layers.Conv2D(4, 1, name="width")
    regions = make()(keras.tree.map_structure(width, inputs), boxes)
    model = keras.Model([inputs, boxes], keras.layers.Dense(2)(keras.layers.Reshape((6, -1))(regions)))
    return model, [features, BOXES]


@EVERY_ROW
def test_saves_and_loads(name, tmp_path):
    model, data = model_of(name)
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(data), model(data))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[SLOW] * (name != next(iter(ROWS)))) for name in ROWS])
@pytest.mark.parametrize(
    ("policy", "jit"),
    [("float32", False), pytest.param("float32", True, marks=SLOW), pytest.param("mixed_bfloat16", False, marks=SLOW)],
)
def test_trains(name, policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    model, data = model_of(name)
    model.compile("sgd", "mse", jit_compile=jit)
    before = model.get_layer("width").get_weights()[0]
    model.fit(data, np.ones((2, 6, 2), "float32"), verbose=0)
    after = model.get_layer("width").get_weights()[0]
    assert np.isfinite(after).all()
    assert not np.array_equal(after, before)
    assert model.predict(data, verbose=0).shape == (2, 6, 2)


@pytest.mark.parametrize(("scale", "features"), [(None, MAPS["P2"]), (0.25, MAPS)])
def test_scale_and_features_must_fit(scale, features):
    layer = RoIAlign(3, scale)
    message = r"needs spatial_scale.*Pass RoIAlign\(3, spatial_scale=1 / stride" if scale is None else "got a pyramid"
    with pytest.raises(ValueError, match=message):
        layer(features, BOXES)
    symbolic = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:]), features)
    with pytest.raises(ValueError, match=message):  # when a model is built, not when it predicts
        layer(symbolic, keras.Input((6, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (((7, 7),), r"output_size is one whole number.*got \(7, 7\)\. Of 7x7 bins, pass 7"),
        ((0,), "output_size is one whole number.*got 0"),
        ((7, 16), "spatial_scale is in cells of the map per pixel.*got 16. Of a map of stride 16, pass 1 / 16"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, message):
    for layer in (RoIAlign, RoIPooling, RoIWarp):
        with pytest.raises(ValueError, match=f"{layer.__name__}: {message}"):
            layer(*(options if len(options) > 1 else (*options, 1 / 16)))
