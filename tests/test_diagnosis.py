"""The first layer that is not finite, the samples, and batches that go through a file."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kvision.diagnosis import batch_file, diagnose, notes_on, read_batch_file


@keras.saving.register_keras_serializable("tests")
class Break(layers.Layer):
    """Hands its inputs on; in one direction they are not finite."""

    def __init__(self, forward=False, backward=False, **options):
        super().__init__(**options)
        self.forward, self.backward = forward, backward

    def call(self, inputs):
        @ops.custom_gradient
        def broken(x):
            def grad(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                return upstream * float("nan") if self.backward else upstream

            return (x * float("inf") if self.forward else x), grad

        return broken(inputs)


def model(**broken):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = layers.Dense(5, activation="relu", name="one")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    x = Break(**broken, name="break")(x)
    made = keras.Model(inputs, layers.Dense(3, name="two")(x))
    made.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


def batch():
    return np.random.default_rng(0).normal(size=(6, 4)).astype("float32"), np.arange(6) % 3


@pytest.mark.parametrize(
    ("broken", "first"),
    [({}, None), ({"forward": True}, ("break", "output")), ({"backward": True}, ("norm", "gradient"))],
    ids=["nothing", "forward", "backward"],
)
def test_names_the_first_that_is_not_finite_and_changes_nothing(broken, first):
    made = model(**broken)
    before = [np.array(variable) for variable in (*made.variables, *made.metrics_variables)]
    found = diagnose(made, batch())
    assert found.first == first and found.batch_is_finite and found.weights_are_finite
    assert [layer.name for layer in found.layers] == ["one", "norm", "drop", "break", "two"]
    assert np.isfinite(found.loss) == (first != ("break", "output"))
    for old, variable in zip(before, (*made.variables, *made.metrics_variables), strict=True):
        np.testing.assert_array_equal(old, np.array(variable))
    assert found.sentence in str(found) and (first is None or first[0] in found.sentence)


def test_names_the_samples():
    x, y = batch()
    x[[1, 4], 2] = np.inf, np.nan
    found = diagnose(model(), (x, y))
    assert found.samples == (1, 4) and not found.batch_is_finite
    assert "(sample 1, 4 of the batch)" in found.sentence
    weights = np.array([1, 1, np.nan, 1, 1, 1], "float32")
    assert diagnose(model(), (*batch(), weights)).samples == (2,)


def test_says_how_many_samples_it_does_not_name():
    x, y = np.full((16, 4), np.nan, "float32"), np.arange(16) % 3
    assert "(sample 0, 1, 2, 3, 4, 5, 6, 7 and 8 more of the batch)" in diagnose(model(), (x, y)).sentence
    (_, labels) = notes_on(model(), (np.zeros((16, 4), "float32"), np.full(16, 7)))
    assert "sample 7 has label 7 and 8 more; expected 0...2" in labels


def test_names_the_samples_whose_loss_alone_is_not_finite():
    made = model()
    made.compile(
        "sgd", lambda y, outputs: ops.where(ops.reshape(y, (-1,)) == 2, float("inf"), ops.mean(outputs, axis=-1))
    )
    found = diagnose(made, batch())
    assert found.samples == (2, 5) and found.first is None and "the loss is inf" in found.sentence


def test_notes_tell_shapes_and_labels():
    x, y = batch()
    y[3] = 3
    assert notes_on(model(), (x, y))[1].startswith("Labels: sample 3 has label 3; expected 0...2.")
    assert notes_on(model(), batch()) == ["The batch: [6, 4] float32, [6] int64."]


def test_a_batch_goes_through_a_file(tmp_path):
    images = np.arange(24, dtype="uint8").reshape(2, 3, 4)
    data = (images, {"boxes": np.ones((2, 1, 4), "float32"), "more": [np.int64(3), None]}, None)
    half = np.asarray(ops.convert_to_numpy(ops.cast([1.0, 2.5], "bfloat16")))
    path = tmp_path / "batch.npz"
    path.write_bytes(batch_file(data, {"step": 3}, {"model/a/b": np.float32(2), "c": half}))
    found, facts, weights = read_batch_file(path)
    assert facts == {"step": 3} and list(weights) == ["model/a/b", "c"]
    assert weights["c"].dtype == half.dtype and np.array_equal(weights["c"], half)
    assert isinstance(found, tuple) and found[2] is None and found[1]["more"][1] is None
    assert found[0].dtype == np.uint8 and np.array_equal(found[0], images)
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_a_file_that_was_cut_is_refused(tmp_path):
    path = tmp_path / "batch.npz"
    path.write_bytes(batch_file(batch(), {}, {})[:-40])
    with pytest.raises(ValueError, match="Not a batch that Rollback saved"):
        read_batch_file(path)
