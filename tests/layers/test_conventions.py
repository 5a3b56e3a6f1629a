"""Parts by name: what each name stands for, and errors that list the nearest."""

import dataclasses

import keras
import numpy as np
import pytest

from kvision.layers.conventions import activation_layer, conventions, kernel_initializer
from tests.support import assert_close

X = np.linspace(-3, 3, 13, dtype="float32").reshape(1, 13)


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("leaky", lambda x: np.where(x > 0, x, 0.01 * x)),
        ("leaky_0.1", lambda x: np.where(x > 0, x, 0.1 * x)),
        ("prelu", lambda x: np.where(x > 0, x, 0.25 * x)),
        ("elu", lambda x: np.where(x > 0, x, np.exp(x) - 1)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
    ],
)
def test_activations_equal_their_closed_forms(name, closed_form):
    assert_close(activation_layer(name)(X), closed_form(X))


def test_prelu_has_one_slope_a_channel():
    image = keras.Input((8, 8, 5))
    model = keras.Model(image, activation_layer("prelu", name="act")(image))
    assert model.count_params() == 5


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("zero", 0, 0),
        ("normal_0.01", 0, 0.01),
        ("normal_1", 0, 1),
        ("xavier", 0, np.sqrt(2 / (400 + 100))),
        ("he", 0, np.sqrt(2 / 400)),
        (keras.initializers.Constant(0.5), 0.5, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.initializers.Initializer) else str(value),
)
def test_initializers_have_the_published_moments(name, mean, deviation):
    kernel = keras.ops.convert_to_numpy(kernel_initializer(name)((400, 100)))
    assert_close(kernel.mean(), mean, tolerance=(0, 0.01))
    assert_close(kernel.std(), deviation, tolerance=(0.02, 1e-7))


def test_two_layers_of_one_network_start_differently():
    bound = conventions()
    first, second = bound.conv(4, 3, name="a"), bound.conv(4, 3, name="b")
    for layer in (first, second):
        layer.build((1, 8, 8, 4))
    assert not np.array_equal(first.get_weights()[0], second.get_weights()[0])


@pytest.mark.parametrize(("norm", "weights"), [("batch", 4), ("sync_batch", 4), ("frozen_batch", 4), ("group", 2)])
def test_norms_and_the_bias_they_replace(norm, weights):
    bound = conventions(norm=norm)
    assert not bound.conv(4, 3).use_bias
    assert not bound.depthwise(3).use_bias
    assert not bound.deformable(4, 3).use_bias
    layer = bound.norm(name="norm")
    layer.build((1, 8, 8, 64))
    assert len(layer.weights) == weights


def test_without_a_norm_convolutions_carry_a_bias():
    bound = conventions(norm=None, bias_initializer="small_positive")
    layer = bound.conv(4, 3)
    layer.build((1, 8, 8, 3))
    assert_close(layer.get_weights()[1], np.full(4, 0.01))
    assert bound.norm(name="norm")(X) is X


@pytest.mark.parametrize("norm", ["batch", "sync_batch", "frozen_batch", "group"])
def test_epsilon_and_momentum_reach_the_norm(norm):
    layer = conventions(norm=norm, epsilon=0.25, momentum=0.75).norm()
    assert layer.epsilon == 0.25
    assert getattr(layer, "momentum", 0.75) == 0.75
    assert conventions(norm=norm).norm().epsilon == 1e-5
    assert getattr(conventions(norm=norm).norm(), "momentum", 0.9) == 0.9


@pytest.mark.parametrize("dilation_rate", [1, 2, (2, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, (1, 7), (7, 1), np.int64(3)])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "deformable"])
def test_maps_keep_their_size_at_stride_one(kind, kernel_size, dilation_rate):
    factory = getattr(conventions(norm=None), kind)
    layer = factory(*([4] if kind != "depthwise" else []), kernel_size, dilation_rate=dilation_rate)
    assert layer.compute_output_shape((1, 16, 17, 4)) == (1, 16, 17, 4)


def test_a_given_padding_is_used():
    for factory in (conventions().conv, conventions().deformable):
        assert factory(4, 3, padding=0).compute_output_shape((1, 16, 17, 4)) == (1, 14, 15, 4)
    assert conventions().depthwise(3, padding=0).compute_output_shape((1, 16, 17, 4)) == (1, 14, 15, 4)


def test_the_factories_cannot_be_exchanged():
    with pytest.raises(dataclasses.FrozenInstanceError):
        conventions().conv = None


@pytest.mark.parametrize(
    ("name", "deviation"), [("he", np.sqrt(2 / 9)), ("xavier", np.sqrt(1 / 9)), ("normal_0.01", 0.01)]
)
def test_depthwise_kernels_start_by_the_one_channel_they_see(name, deviation):
    layer = conventions(initializer=name).depthwise(3, strides=2)
    layer.build((1, 8, 8, 2000))
    assert layer.compute_output_shape((1, 8, 8, 2000)) == (1, 4, 4, 2000)
    assert_close(layer.get_weights()[0].std(), deviation, tolerance=(0.03, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bacth"}, "Unknown norm: got 'bacth'"),
        ({"initializer": "xaviar"}, "Unknown initializer: got 'xaviar'.*'xavier'"),
        ({"bias_initializer": "smal_positive"}, "Unknown bias initializer.*'small_positive'"),
    ],
)
def test_unknown_names_list_the_nearest(options, message):
    with pytest.raises(ValueError, match=message):
        conventions(**options)


def test_unknown_activations_list_the_nearest():
    with pytest.raises(ValueError, match="Unknown activation: got 'leeky'.*'leaky'"):
        activation_layer("leeky")
