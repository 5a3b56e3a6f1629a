"""Hypercolumns: the columns against torch's interpolation, the grid of classifiers against a twin, and training."""

import functools

import keras
import numpy as np
import pytest
import scipy.ndimage

from kvision import applications as A
from kvision.applications.segmentation.hypercolumns import HypercolumnBranch, Hypercolumns
from tests.ops.differentiation import value_and_gradients
from tests.support import SLOW, assert_close

SHAPE = (64, 64, 3)
SMALL = {"input_shape": SHAPE, "classes": 3, "grid_size": 3, "heatmap_size": 20, "channels": 8}
WHOLE = np.array([[[0.0, 0.0, 64.0, 64.0]]], "float32")


def build(**options):
    backbone = A.VGG("tiny", include_top=False, input_shape=SHAPE, features=("C2", "C4", "C5"), norm="group")
    return Hypercolumns(backbone=backbone, **SMALL | options)


@functools.cache
def tiny():
    """Built once; no test changes it."""
    return build()


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    yield
    tiny.cache_clear()


def data(count=2):
    """Images with one box each, whose mask is the left half of it, and a padding row."""
    rng = np.random.default_rng(0)
    boxes = np.tile(np.array([[8.0, 12.0, 48.0, 52.0], [0.0, 0.0, 0.0, 0.0]], "float32"), (count, 1, 1))
    masks = np.zeros((count, 2, 64, 64), "uint8")
    masks[:, 0, 12:52, 8:28] = 1
    targets = {"boxes": boxes, "labels": np.tile(np.array([[1, -1]], "int32"), (count, 1)), "masks": masks}
    return rng.uniform(0, 255, (count, *SHAPE)).astype("float32"), targets


def randomised(branch):
    rng = np.random.default_rng(0)
    for weight in branch.weights:
        weight.assign(rng.normal(size=weight.shape))
    return branch


def features_of(channels, size=64):
    rng = np.random.default_rng(1)
    return {
        level: rng.normal(size=(1, size // 2 ** int(level[1:]), size // 2 ** int(level[1:]), width)).astype("float32")
        for level, width in channels.items()
    }


@pytest.mark.parametrize("box", [(0.0, 0.0, 64.0, 64.0), (3.0, 10.0, 35.0, 60.5)], ids=str)
def test_a_column_is_the_stack_of_the_maps_at_its_pixel(box):
    channels = {"C2": 3, "C4": 2}
    features, (left, top, right, bottom) = features_of(channels), box
    branch = HypercolumnBranch(3, channels, grid_size=3, size=20)
    got = keras.ops.convert_to_numpy(branch.columns(features, np.array([[box]], "float32")))[0, 0]
    points = [low + (np.arange(20) + 0.5) * (high - low) / 20 for low, high in ((top, bottom), (left, right))]
    want = [
        scipy.ndimage.map_coordinates(
            maps[0, ..., c],
            np.meshgrid(*(p / 2 ** int(level[1:]) - 0.5 for p in points), indexing="ij"),
            order=1,
            mode="nearest",
        )
        for level, maps in features.items()
        for c in range(maps.shape[-1])
    ]
    assert_close(got, np.moveaxis(want, 0, -1))


@pytest.mark.parity
def test_torch_interpolates_the_maps_alike():
    import torch

    channels = {"C2": 3, "C3": 4, "C4": 2}
    features = features_of(channels)
    got = HypercolumnBranch(3, channels, size=50).columns(features, WHOLE)[0, 0]
    maps = [torch.from_numpy(maps.transpose(0, 3, 1, 2)) for maps in features.values()]
    sizes = {"size": (50, 50), "mode": "bilinear", "align_corners": False}
    want = torch.cat([torch.nn.functional.interpolate(each, **sizes) for each in maps], dim=1)
    assert_close(got, want[0].permute(1, 2, 0).numpy())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("grid_size", [1, 3, 5])
def test_what_the_nearest_classifiers_say_is_interpolated(grid_size):
    """Not their columns, nor the columns' maps: each says what it does of the pixel's own column."""
    channels, size, label = {"C2": 3, "C4": 2}, 10, 2
    branch = randomised(HypercolumnBranch(3, channels, grid_size=grid_size, size=size))
    features, boxes = features_of(channels), np.array([[[3.0, 10.0, 35.0, 60.5]]], "float32")
    columns = keras.ops.convert_to_numpy(branch.columns(features, boxes))[0, 0]
    kernel = np.concatenate([keras.ops.convert_to_numpy(kernel)[label] for kernel in branch.kernels])
    bias = keras.ops.convert_to_numpy(branch.bias)[label]
    want = np.zeros((size, size))
    for row, column in np.ndindex(size, size):
        opinions = sigmoid(columns[row, column] @ kernel + bias).reshape(grid_size, grid_size)
        place = [[(index + 0.5) / size * grid_size - 0.5] for index in (row, column)]
        want[row, column] = scipy.ndimage.map_coordinates(opinions, place, order=1, mode="nearest")[0]
    got = sigmoid(keras.ops.convert_to_numpy(branch.predict(features, boxes, np.array([[label]])))[0, 0])
    assert_close(got, want)


def test_certain_classifiers_stay_finite_and_learn():
    branch = HypercolumnBranch(1, {"C2": 1}, grid_size=3, size=4)
    branch.kernels[0].assign(np.ones((1, 1, 9)))
    certain = np.repeat(np.array([-300.0, 300.0], "float32"), 8)
    logits, (gradient,) = value_and_gradients(
        lambda maps: branch.predict({"C2": maps}, WHOLE, np.array([[0]])),
        [np.tile(certain, (1, 16, 1))[..., None]],
        np.ones((1, 1, 4, 4), "float32"),
    )
    assert_close(logits[0, 0, 0], [-300.0, -300.0, 300.0, 300.0])
    assert_close(keras.ops.sum(gradient), 16.0)


@pytest.mark.parametrize(
    ("policy", "jit"),
    [
        ("float32", False),
        pytest.param("mixed_float16", True, marks=SLOW),
        pytest.param("mixed_bfloat16", False, marks=SLOW),
    ],
)
def test_it_trains_with_fit(policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    model = build()
    images, targets = data()
    before = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), jit_compile=jit)
    history = model.fit(images, targets, epochs=3, verbose=0).history["mask_loss"]
    assert np.isfinite(history).all()
    assert all(np.isfinite(keras.ops.convert_to_numpy(w)).all() for w in model.weights)
    assert history[0] == pytest.approx(np.log(2), abs=0.1)  # classifiers that know nothing
    if policy == "float32":
        assert history[-1] < history[0]
        after = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
        assert sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2
        empty = targets | {"labels": np.full((2, 2), -1, "int32")}
        assert model.fit(images, empty, verbose=0).history["mask_loss"] == [0.0]
        for got, want in zip(model.trainable_weights, after, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(got), want)


def test_in_training_boxes_move_and_what_counts_nowhere_moves_nothing():
    model = tiny()
    images, targets = data()
    features = model.trunk(images)
    losses = [float(model.head.losses(features, targets, training)["mask_loss"]) for training in (True, True, False)]
    assert len(set(losses)) == 3
    assert losses[2] == float(model.head.losses(features, targets)["mask_loss"])
    crowd = targets | {"crowd": np.ones((2, 2), "int32")}
    assert float(model.head.losses(features, crowd)["mask_loss"]) == 0.0


@SLOW
def test_detections_of_any_detector_get_masks():
    images, _ = data()
    backbone = A.ResNet("tiny", include_top=False, input_shape=SHAPE, features=("C3", "C4", "C5"), norm="group")
    detector = A.RetinaNet(
        input_shape=SHAPE, classes=3, backbone=backbone, channels=16, num_detections=5, score_threshold=0.0
    )
    found = detector.predict(images, verbose=0)
    refined = tiny().predict({"images": images} | found, verbose=0)
    for name in ("boxes", "scores", "labels"):
        assert_close(refined[name], found[name])
    masks = refined["box_masks"]
    assert masks.shape == (2, 5, 20, 20)
    assert ((masks >= 0) & (masks <= 1)).all()
    assert (masks[found["labels"] < 0] == 0).all()


def test_save_and_load(tmp_path):
    images, targets = data()
    inputs = {"images": images, "boxes": targets["boxes"], "labels": targets["labels"]}
    want = tiny()(inputs)["detections"]["box_masks"]
    assert keras.ops.std(want[0, 0]) > 0
    assert_close(want[:, 1], np.zeros((2, 20, 20)))
    tiny().save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(copy(inputs)["detections"]["box_masks"], want)
    tiny().save_weights(tmp_path / "tiny.weights.h5")
    again = build(weights=tmp_path / "tiny.weights.h5")
    assert_close(again(inputs)["detections"]["box_masks"], want)
    paths = [weight.path for weight in tiny().weights]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 0}, "1 to 20 classifiers"),
        ({"grid_size": 21}, "1 to 20 classifiers"),
        ({"jitter": 0.5}, r"in \[0, 0.5\)"),
        ({"levels": ("C2", "C3")}, "returns C2, C3"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_what_is_missing_is_told():
    images, targets = data()
    with pytest.raises(ValueError, match=r"boxes and labels are missing.*detector.predict"):
        tiny()(images)
    del targets["masks"]
    model = build()
    model.compile("sgd")
    with pytest.raises(ValueError, match="Training masks needs targets"):
        model.fit(images, targets)


def test_detections_of_other_classes_are_refused():
    images, targets = data()
    given = {"images": images, "boxes": targets["boxes"], "labels": targets["labels"] + 2}
    with pytest.raises(ValueError, match=r"has 3 classes, counted from 0: .* have the label 3\."):
        tiny().predict(given, verbose=0)


@pytest.mark.slow
@pytest.mark.tensorflow_only
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_a_litert_file_draws_the_masks_that_predict_draws(tmp_path):
    import tensorflow as tf

    model, (images, targets) = tiny(), data()
    given = {"images": images, "boxes": targets["boxes"], "labels": np.maximum(targets["labels"], 0)}
    specs = {name: keras.InputSpec(shape=(None, *x.shape[1:]), dtype=str(x.dtype)) for name, x in given.items()}
    model.export(tmp_path / "masks.tflite", format="litert", verbose=False, input_signature=specs)
    got = tf.lite.Interpreter(str(tmp_path / "masks.tflite")).get_signature_runner()(**given)
    want = model.predict(given, verbose=0)
    assert set(got) == set(want)
    assert want["box_masks"][:, 0].std() > 0
    for name in want:
        assert_close(got[name], want[name])
