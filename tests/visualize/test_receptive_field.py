"""The field of a layer by its name; the arithmetic is tested beside its module."""

import keras
import pytest

from kvision.visualize import receptive_field


def test_by_name_at_any_depth_and_by_call():
    inner = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3, name="conv.1")], name="inner")
    image = keras.Input((9, 9, 1))
    model = keras.Model(image, keras.layers.Dense(1, name="top")(keras.layers.Flatten()(inner(inner(image)))))
    assert receptive_field(model, ("conv.1", 1)).boxes_xyxy([4], [0]).tolist() == [[0, 4, 5, 9]]
    assert receptive_field(model, "top") is None
    with pytest.raises(ValueError, match="2 times"):
        receptive_field(model, "inner/conv.1")
    with pytest.raises(ValueError, match="from 0 to 1"):
        receptive_field(model, ("conv.1", 2))
    with pytest.raises(ValueError, match=r"inner/conv\.1"):
        receptive_field(model, "conv.2")


def test_a_model_of_a_class_of_its_own_has_no_graph():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(1, 3, name="conv")

        def call(self, x):
            return self.conv(x)

    model = Own()
    model(keras.ops.zeros((1, 5, 5, 1)))
    assert receptive_field(model, "conv") is None
