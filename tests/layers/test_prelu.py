"""PReLU: one slope a channel at any rank, as a layer and from a file."""

import keras
import numpy as np
import pytest

from kvision.layers import PReLU
from tests.support import assert_close

SLOPES = np.array([0.0, 0.25, -1.0], "float32")


@pytest.mark.parametrize("shape", [(3,), (5, 3), (4, 5, 3)], ids=str)
def test_each_channel_has_its_slope(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    layer = PReLU()
    layer.build(x.shape)
    assert_close(layer.alpha, np.full(layer.alpha.shape, 0.25))
    layer.set_weights([SLOPES.reshape(layer.alpha.shape)])
    assert_close(layer(x), np.where(x > 0, x, SLOPES * x))


def test_a_given_initializer_sets_the_slopes_and_survives_saving(tmp_path):
    image = keras.Input((4, 5, 3))
    model = keras.Model(image, PReLU("ones", name="prelu")(image))
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    assert_close(model(x), x)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(copy(x), x)
    assert copy.get_layer("prelu").get_config() == model.get_layer("prelu").get_config()
