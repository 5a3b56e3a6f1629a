"""Weight files of Keras: all fits, or nothing is changed."""

import keras
import numpy as np
import pytest

from kvision import weights
from kvision.applications import ResNet
from tests.weights.states import unchanged


@pytest.mark.parametrize("name", ["net.weights.h5", "net.keras"])
def test_keras_files_load_and_those_of_another_network_are_refused(model, tmp_path, name):
    same = ResNet("tiny", input_shape=(32, 32, 3), classes=3)
    other = ResNet("tiny", input_shape=(32, 32, 3), classes=4)
    for net, path in ((same, tmp_path / "same"), (other, tmp_path / "other")):
        path.mkdir()
        net.save(path / name) if name.endswith(".keras") else net.save_weights(path / name)
    with unchanged(model), pytest.raises(ValueError, match=r"\(4,\).*nothing|nothing.*\(4,\)|gives \(256, 4\)"):
        weights.load(model, tmp_path / "other" / name)
    weights.load(model, tmp_path / "same" / name)
    assert all(np.array_equal(a, b) for a, b in zip(same.get_weights(), model.get_weights(), strict=True))


def test_a_keras_file_with_a_lambda_is_refused(model, tmp_path):
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)).save(tmp_path / "code.keras")
    with unchanged(model), pytest.raises(ValueError, match="holds a Lambda layer"):
        weights.load(model, tmp_path / "code.keras")
