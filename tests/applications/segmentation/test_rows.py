"""What every semantic network must do, over every row of `rows.py`."""

import functools
import importlib

import keras
import numpy as np
import pytest

from kvision import _keras
from tests.applications.segmentation.rows import CLASSES, ROWS
from tests.support import SLOW, assert_close

IGNORED = 255


def rows(condition=lambda row: True):
    """One test case for each row that meets the condition."""
    return pytest.mark.parametrize("row", [row for row in ROWS if condition(row)], ids=lambda row: row.name)


by_name = rows()
by_name_in_training = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[SLOW] * row.slow)
        for row in ROWS
        if row.jit or keras.backend.backend() == "tensorflow"  # JAX compiles every step
    ],
)


def build(row, **options):
    return row.tiny(**({"input_shape": row.shape, "classes": CLASSES} | options))


def images_of(shape, count=2):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


def batch_of(row):
    """Images, and labels that can be seen in them: 1 and 2 in two rectangles of their own colour; some unknown."""
    images = 0.1 * images_of(row.shape)
    labels = np.zeros(images.shape[:3], "int32")
    height, width = row.shape[:2]
    labels[:, : height // 2, : width // 2] = 1
    labels[:, height // 2 :, : width // 3] = 2
    colours = np.eye(3) if images.shape[-1] == 3 else np.array([[0.0], [0.5], [1.0]])
    images += colours[labels].astype("float32")
    labels[:, -2:] = IGNORED
    return images, labels


def trained_by(model, rate=0.01, jit=False):
    """The model with Keras's own loss, one for each of its outputs."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    losses = dict.fromkeys(model.output, loss) if isinstance(model.output, dict) else loss
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=1.0), losses, jit_compile=jit)
    return model


def trainable(model):
    """Copies of the trained weights: JAX gives its own buffers away in each step."""
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_weights]


def labels_for(row, labels):
    return dict.fromkeys(row.outputs, labels) if row.outputs else labels


def outputs_of(row, got):
    return [got[name] for name in row.outputs] if row.outputs else [got]


@functools.cache
def tiny(name):
    """The tiny network of a row, built and compiled once; a test that trains it gives the weights back."""
    (row,) = [row for row in ROWS if row.name == name]
    keras.utils.set_random_seed(0)
    model = trained_by(build(row), row.rate)
    model.optimizer.build(model.trainable_variables)
    model.first_weights = model.get_weights()
    return model


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    yield
    tiny.cache_clear()


@pytest.fixture(autouse=True)
def fresh_session():
    """No new session: it would throw away what the shared networks have compiled."""
    keras.mixed_precision.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_dtype_policy("float32")


@by_name
def test_module_is_cited_and_proved(row):
    module = importlib.import_module(f"kvision.applications.segmentation.{row.module}")
    assert any(f"({year})" in module.__doc__ for year in range(2010, 2027))
    assert row.proof
    assert module.PROOF


COUNTS = [(label, *entry) for row in ROWS for label, entry in row.counts.items()]


@pytest.mark.parametrize(("label", "builder", "expected"), COUNTS, ids=[case[0] for case in COUNTS])
def test_published_parameter_count(label, builder, expected):
    with _keras.shapes_only():
        model = builder()
    assert sum(np.prod(w.shape, dtype="int64") for w in model.trainable_weights) == expected


@by_name
def test_weight_paths_are_unique(row):
    paths = [weight.path for weight in tiny(row.name).weights]
    assert len(set(paths)) == len(paths) > 0


@by_name
def test_logits_are_float32_and_of_the_images_size(row):
    for logits in outputs_of(row, tiny(row.name)(images_of(row.shape))):
        assert tuple(logits.shape) == (2, *row.shape[:2], CLASSES)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        assert np.isfinite(keras.ops.convert_to_numpy(logits)).all()


@rows(lambda row: row.odd_shape)
def test_odd_input_sizes(row):
    model = build(row, input_shape=row.odd_shape)
    for logits in outputs_of(row, model(images_of(row.odd_shape))):
        assert tuple(logits.shape) == (2, *row.odd_shape[:2], CLASSES)
        assert np.isfinite(keras.ops.convert_to_numpy(logits)).all()


@by_name
def test_save_and_load(row, tmp_path):
    model = tiny(row.name)
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.normal(scale=0.05, size=w.shape).astype(w.dtype) for w in model.first_weights])
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    images = images_of(row.shape)
    for got, want in zip(outputs_of(row, copy(images)), outputs_of(row, model(images)), strict=True):
        assert_close(got, want)
    assert copy.preprocessing == model.preprocessing
    if row.is_builder:
        again = build(row, weights=str(tmp_path / "model.keras"))
        assert all(map(np.array_equal, again.get_weights(), model.get_weights()))
    model.set_weights(model.first_weights)


@by_name_in_training
def test_a_few_steps_of_fit_lower_the_loss(row):
    """As built by default, with Keras's own loss, which is a mean."""
    model = tiny(row.name)
    model.set_weights(model.first_weights)
    images, labels = batch_of(row)
    history = model.fit(images, labels_for(row, labels), batch_size=2, epochs=40, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]
    assert np.isfinite(history).all()
    model.set_weights(model.first_weights)


@by_name_in_training
def test_an_image_without_a_known_pixel_changes_nothing(row):
    model = tiny(row.name)
    model.set_weights(model.first_weights)
    images, labels = batch_of(row)
    for variable in model.optimizer.variables[1:]:  # the momentum of another test would move the weights
        if "momentum" in variable.path:
            variable.assign(np.zeros(variable.shape, "float32"))
    before = trainable(model)
    history = model.fit(images, labels_for(row, np.full_like(labels, IGNORED)), batch_size=2, verbose=0)
    assert history.history["loss"] == [0.0]
    after = trainable(model)
    assert all(map(np.array_equal, before, after))
    model.set_weights(model.first_weights)


# Float16 overflows and is scaled, so it finds more than bfloat16, which one network tries.
STEPS = [(row, "mixed_float16") for row in ROWS if row.jit and keras.backend.backend() == "tensorflow"]
STEPS.append((ROWS[0], "mixed_bfloat16"))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "policy"), STEPS, ids=[f"{row.name}-{policy}" for row, policy in STEPS])
def test_compiled_steps_in_16_bits(row, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    model = trained_by(build(row), row.rate, jit=True)
    images, labels = batch_of(row)
    before = trainable(model)
    history = model.fit(images, labels_for(row, labels), batch_size=2, epochs=3, verbose=0)
    after = trainable(model)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in after)
    assert policy == "mixed_float16" or not all(map(np.array_equal, before, after))  # loss scaling may skip steps
    assert {keras.backend.standardize_dtype(tensor.dtype) for tensor in keras.tree.flatten(model.output)} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "imagnet"}, "weights='imagnet' is neither a file nor published"),
        ({"classes": 0}, "classes must be a whole number of at least 1, got 0"),
        ({"input_shape": (64, 64)}, "input_shape must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@rows(lambda row: row.is_builder)
def test_errors_say_what_to_do(row, options, message):
    with pytest.raises(ValueError, match=message):
        build(row, **options)


@rows(lambda row: row.stride)
def test_input_smaller_than_the_stride_is_refused(row):
    with pytest.raises(ValueError, match=f"its last map has stride {row.stride}"):
        build(row, input_shape=(row.stride - 1, row.stride, 3))
