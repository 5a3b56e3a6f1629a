"""SqueezeNet's paper in numbers; its outputs are compared in test_parity.py."""

import keras
import pytest

from kvision.applications import SqueezeNet


def test_table_1_of_the_paper():
    """Parameters of conv1, of the eight fire modules and of conv10, biases included."""
    with keras.StatelessScope():
        model = SqueezeNet("1.0")
    modules = {}
    for layer in model.layers:
        if layer.count_params():
            module = ".".join(layer.name.split(".")[:2])
            modules[module] = modules.get(module, 0) + layer.count_params()
    published = [14_208, 11_920, 12_432, 45_344, 49_440, 104_880, 111_024, 188_992, 197_184, 513_000]
    assert list(modules.values()) == published


@pytest.mark.parametrize(("variant", "smallest"), [("1.0", 21), ("1.1", 17)])
def test_smallest_size(variant, smallest):
    with keras.StatelessScope():
        model = SqueezeNet(variant, input_shape=(smallest, smallest, 3), include_top=False)
    assert model.output_shape[1:3] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {smallest} pixels"):
        SqueezeNet(variant, input_shape=(smallest - 1, smallest, 3))
