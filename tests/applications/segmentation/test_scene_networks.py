"""What every network for scene labeling must do: the multiscale net and the recurrent one."""

import functools

import keras
import numpy as np
import pytest

from kvision import applications as A
from tests.support import SLOW, assert_close

SHAPE = (24, 32, 3)
BUILDERS = {
    "multiscale": functools.partial(A.MultiscaleNet, "tiny", classes=3),
    "multiscale-linear-grey": lambda input_shape=(24, 32, 1), **options: A.MultiscaleNet(
        "tiny", input_shape=(*input_shape[:2], 1), classes=3, hidden_units=0, **options
    ),
    "recurrent": functools.partial(A.RecurrentCNN, "tiny", classes=3),
    "recurrent-strided": functools.partial(A.RecurrentCNN, "tiny", classes=3, passes=2, dense=False),
}
networks = pytest.mark.parametrize("name", BUILDERS)
QUICK = ["multiscale", "recurrent"]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)


@functools.cache
def tiny(name):
    """Built once; no test changes it."""
    return BUILDERS[name](input_shape=SHAPE)


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    yield
    tiny.cache_clear()


def images_for(model, count=2):
    return np.random.default_rng(0).uniform(-1, 1, (count, *model.input_shape[1:])).astype("float32")


def labels_for(model, count=2):
    return np.random.default_rng(1).integers(0, 3, (count, *model.input_shape[1:3])).astype("uint8")


@networks
def test_logits_of_every_pixel_are_float32_and_paths_unique(name):
    model = tiny(name)
    logits = keras.ops.convert_to_numpy(model(images_for(model)))
    assert logits.shape == (2, 24, 32, 3)
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all() and logits.std() > 0
    paths = [weight.path for weight in model.weights]
    assert len(set(paths)) == len(paths)


@networks
@pytest.mark.parametrize("size", [(43, 37), (17, 16)], ids=str)
def test_odd_sizes(name, size):
    model = BUILDERS[name](input_shape=(*size, 3))
    assert model(images_for(model, 1)).shape == (1, *size, 3)


@networks
def test_save_and_load(name, tmp_path):
    model = tiny(name)
    want = model(images_for(model))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(copy(images_for(model)), want)
    assert copy.preprocessing == model.preprocessing is not None
    model.save_weights(tmp_path / "tiny.weights.h5")
    assert_close(BUILDERS[name](input_shape=SHAPE, weights=tmp_path / "tiny.weights.h5")(images_for(model)), want)


STEPS = [  # the linear, the grey and the strided ones have the same layers
    pytest.param(name, policy, jit, id=f"{name}-{policy}{'-jit' * jit}", marks=[] if policy == "float32" else SLOW)
    for name in QUICK
    for policy, jit in (("float32", False), ("mixed_float16", True), ("mixed_bfloat16", False))
]


@pytest.mark.parametrize(("name", "policy", "jit"), STEPS)
def test_one_step_of_fit(name, policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    model = BUILDERS[name](input_shape=SHAPE)
    images, labels = images_for(model), labels_for(model)
    labels[:, :5] = 255
    before = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=jit)
    first = model.fit(images, labels, verbose=0).history["loss"][0]
    after = [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]
    assert np.isfinite(first)
    assert all(np.isfinite(w).all() for w in after)
    if policy != "mixed_float16":  # loss scaling may skip the first step
        assert all(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if (policy, jit) == ("float32", False):
        ignored = np.full_like(labels, 255)
        assert model.fit(images, ignored, verbose=0).history["loss"] == [0.0]
        for got, want in zip(model.trainable_weights, after, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(got), want)


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=SLOW)])
@pytest.mark.parametrize("name", QUICK)
def test_norms(name, norm):
    model = BUILDERS[name](input_shape=SHAPE, norm=norm)
    assert np.isfinite(keras.ops.convert_to_numpy(model(images_for(model), training=True))).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("multiscale", {"scales": 0}, "at least 1 scale"),
        ("multiscale", {"hidden_units": -1}, "no negative number of hidden units"),
        ("multiscale", {"input_shape": (15, 32, 3)}, "at least 16 pixels"),
        ("multiscale", {"weights": "imagenet"}, "neither a file nor published"),
        ("recurrent", {"passes": 0}, "at least 1 pass"),
        ("recurrent", {"classes": 0}, "classes must be a whole number of at least 1"),
        ("recurrent-strided", {"input_shape": (15, 32, 3)}, "at least 16 pixels"),
        ("recurrent", {"norm": "bach"}, "Unknown norm: got 'bach'"),
    ],
    ids=str,
)
def test_errors_say_what_to_do(name, options, message):
    with pytest.raises(ValueError, match=message):
        BUILDERS[name](**{"input_shape": SHAPE} | options)
