"""What leaves Keras gives what `predict` gives: SavedModel, LiteRT and ONNX files, and weights of 8 bits."""

import keras
import numpy as np
import pytest

from tests.applications.classification.rows import ROWS
from tests.support import PARITY, assert_close

QUICK = "vit"  # the one of these that has parts of its own in it: attention, GELU, stochastic depth


def rows(but=()):
    cases = [
        pytest.param(row, id=row.module, marks=[pytest.mark.slow] * (row.module != QUICK))
        for row in ROWS
        if row.module not in but
    ]
    return pytest.mark.parametrize("row", cases)


def images_of(row):
    return np.random.default_rng(0).normal(size=(2, *row.shape)).astype("float32")


def scores_of(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@rows()
def test_quantised_as_it_is_built_it_predicts_nearly_the_same(row):
    model = row.tiny(input_shape=row.shape, **row.head)
    want = scores_of(model, images_of(row))
    model.quantize("int8")
    assert {str(weight.dtype) for weight in model.weights} & {"int8"} or row.module not in (QUICK, "swin")
    got = scores_of(model, images_of(row))
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()  # eight bits


@pytest.mark.tensorflow_only
@rows()
def test_a_saved_model_gives_what_predict_gives(row, tmp_path):
    import tensorflow as tf

    model, images = row.tiny(input_shape=row.shape, **row.head), images_of(row)
    model.export(tmp_path / "net", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "net")
    assert_close(loaded.serve(images), scores_of(model, images), tolerance=PARITY)


@pytest.mark.tensorflow_only
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@rows()
def test_a_litert_file_gives_what_predict_gives(row, tmp_path):
    import tensorflow as tf

    model, images = row.tiny(input_shape=row.shape, **row.head), images_of(row)
    model.export(tmp_path / "net.tflite", format="litert", verbose=False)
    runner = tf.lite.Interpreter(str(tmp_path / "net.tflite")).get_signature_runner()
    (name,) = runner.get_input_details()
    (got,) = runner(**{name: images}).values()
    assert_close(got, scores_of(model, images), tolerance=PARITY)


@pytest.mark.tensorflow_only
@pytest.mark.filterwarnings("ignore:In the future `np.object` will be defined:FutureWarning")
@rows()
def test_an_onnx_file_gives_what_predict_gives(row, tmp_path):
    import onnxruntime

    model, images = row.tiny(input_shape=row.shape, **row.head), images_of(row)
    want = scores_of(model, images)
    model.export(tmp_path / "net.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (name,) = (given.name for given in session.get_inputs())
    (got,) = session.run(None, {name: images})
    assert_close(got, want, tolerance=PARITY)
