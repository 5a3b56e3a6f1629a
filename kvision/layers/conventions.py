"""What one network does everywhere: its convolution, normalisation and activation, bound once and handed to the blocks.

bound = conventions(norm="group", activation="relu", initializer="he")
x = bound.conv(64, 7, strides=2, name="conv1")(x)
x = bound.activation(name="relu")(bound.norm(name="bn1")(x))
"""

import collections.abc
import dataclasses
import functools
import operator

import keras

from kvision.errors import unknown
from kvision.layers.convolution import Conv2D, DepthwiseConv2D, centered_padding
from kvision.layers.deformable import DeformableConv2D
from kvision.layers.maxout import Maxout
from kvision.layers.normalization import BatchNormalization, GroupNormalization
from kvision.layers.prelu import PReLU
from kvision.ops.activations import silu

INITIALIZERS = {
    "zero": lambda: keras.initializers.Zeros(),
    "normal_0.01": lambda: keras.initializers.RandomNormal(stddev=0.01),  # Krizhevsky 2012
    "normal_1": lambda: keras.initializers.RandomNormal(stddev=1.0),
    "xavier": lambda: keras.initializers.GlorotUniform(),  # Glorot & Bengio 2010
    "he": lambda: keras.initializers.HeNormal(),  # He 2015, "Delving Deep into Rectifiers"
}

BIAS_INITIALIZERS = {
    "zero": lambda: keras.initializers.Zeros(),
    "small_positive": lambda: keras.initializers.Constant(0.01),  # no ReLU is dead initially
    "one": lambda: keras.initializers.Ones(),  # Krizhevsky 2012, conv2, conv4, conv5 and the dense layers
}

NORMS = ("batch", "sync_batch", "group", "frozen_batch", None)


@dataclasses.dataclass(frozen=True)
class Conventions:
    """Factories of layers, bound by `conventions`; each takes the layer's own arguments and its `name`.

    Args:
        conv: `(filters, kernel_size, strides=1, padding=None, dilation_rate=1, use_bias=…)` → `Conv2D`. It keeps a
            map's size at stride one, for odd windows, unless `padding` says otherwise; so do the next two.
        depthwise: `(kernel_size, …)` → `DepthwiseConv2D`, one window per channel.
        deformable: `(filters, kernel_size, …, modulated=True)` → `DeformableConv2D`.
        dense: `(units)` → `keras.layers.Dense`.
        norm: `()` → the normalisation, or the identity.
        activation: `()` → the activation.
    """

    conv: collections.abc.Callable
    depthwise: collections.abc.Callable
    deformable: collections.abc.Callable
    dense: collections.abc.Callable
    norm: collections.abc.Callable
    activation: collections.abc.Callable


def conventions(norm="batch", activation="relu", initializer="he", bias_initializer="zero", epsilon=1e-5, momentum=0.9):
    """Bind what a network does everywhere.

    Args:
        norm: `"batch"`, `"sync_batch"`, `"group"`, `"frozen_batch"` or None; without one, convolutions have a bias.
        activation: A name that `activation_layer` knows.
        initializer: Of all kernels: a name of `INITIALIZERS`, of Keras, or a `keras.initializers.Initializer`.
        bias_initializer: Of all biases: a name of `BIAS_INITIALIZERS`, of Keras, or an Initializer.
        epsilon: Added to the variance, > 0.
        momentum: Of the moving statistics of batch normalisation (Keras's sense: 0.9 is torch's 0.1).

    Returns:
        `Conventions`: the factories `conv`, `depthwise`, `deformable`, `dense`, `norm`, `activation`.

    Raises:
        ValueError: on an unknown name; lists the nearest.

    >>> bound = conventions(norm=None)
    >>> bound.conv(8, (1, 7)).compute_output_shape((1, 32, 32, 3))
    (1, 32, 32, 8)
    """
    kernel = kernel_initializer(initializer)
    bias = _named(bias_initializer, "bias initializer", BIAS_INITIALIZERS)

    def fresh():  # one Initializer gives every layer the same numbers
        return {"kernel_initializer": kernel.clone(), "bias_initializer": bias.clone()}

    def window(layer, *size, strides=1, padding=None, dilation_rate=1, use_bias=norm is None, **options):
        if padding is None:
            padding = centered_padding(size[-1], dilation_rate)
        geometry = {"strides": strides, "padding": padding, "dilation_rate": dilation_rate}
        return layer(*size, use_bias=use_bias, **geometry, **options)

    def conv(filters, kernel_size, **options):
        return window(Conv2D, filters, kernel_size, **(fresh() | options))

    def depthwise(kernel_size, **options):
        initializers = {"depthwise_initializer": one_channel(kernel), "bias_initializer": bias.clone()}
        return window(DepthwiseConv2D, kernel_size, **(initializers | options))

    def deformable(filters, kernel_size, **options):
        return window(DeformableConv2D, filters, kernel_size, **(fresh() | options))

    def dense(units, **options):
        return keras.layers.Dense(operator.index(units), **(fresh() | options))

    return Conventions(
        conv=conv,
        depthwise=depthwise,
        deformable=deformable,
        dense=dense,
        norm=normalization(norm, epsilon=epsilon, momentum=momentum),
        activation=functools.partial(activation_layer, activation),
    )


def normalization(norm, *, epsilon=1e-5, momentum=0.9):
    """The factory of one kind of normalisation: called with `name`, it gives a layer (None gives the identity)."""
    batch = functools.partial(BatchNormalization, epsilon=epsilon, momentum=momentum)
    factories = {
        "batch": batch,
        "sync_batch": functools.partial(batch, synchronized=True),
        "frozen_batch": functools.partial(batch, frozen=True),
        "group": functools.partial(GroupNormalization, epsilon=epsilon),
        None: _identity,
    }
    if norm not in factories:
        raise unknown("norm", norm, [kind or "None" for kind in NORMS])
    return factories[norm]


def activation_layer(activation, name=None):
    """The layer of a named activation.

    Args:
        activation: `"sigmoid"`, `"tanh"`, `"relu"`, `"leaky"` (slope 0.01), `"leaky_0.1"` (Redmon 2016), `"prelu"` (one
            slope per channel, initially 0.25 as He 2015), `"elu"`, `"maxout"` (two pieces), any other name of
            `keras.activations`, or a function.
        name: Of the layer.
    """
    makers = {
        "relu": keras.layers.ReLU,
        "leaky": functools.partial(keras.layers.LeakyReLU, negative_slope=0.01),
        "leaky_0.1": functools.partial(keras.layers.LeakyReLU, negative_slope=0.1),
        "prelu": PReLU,
        "elu": keras.layers.ELU,
        "silu": functools.partial(keras.layers.Activation, silu),
        "maxout": Maxout,
    }
    if activation in makers:
        return makers[activation](name=name)
    if isinstance(activation, str) and not hasattr(keras.activations, activation):
        public = [known for known in dir(keras.activations) if known.islower() and not known.startswith("_")]
        raise unknown("activation", activation, [*makers, *public])
    return keras.layers.Activation(activation, name=name)


def kernel_initializer(initializer):
    """The `keras.initializers.Initializer` of a name of `INITIALIZERS`, of Keras, or of an Initializer itself."""
    return _named(initializer, "initializer", INITIALIZERS)


def one_channel(initializer):
    """The same initializer for a depthwise kernel [k, k, channels, 1], of which Keras counts every channel as an input
    of every output: fan-in and fan-out are both k²."""
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return initializer.clone()
    return keras.initializers.VarianceScaling(initializer.scale, "fan_out", initializer.distribution)


def _named(initializer, kind, table):
    if initializer in table:
        return table[initializer]()
    try:
        return keras.initializers.get(initializer)
    except ValueError:
        public = [known for known in dir(keras.initializers) if "_" in known and not known.startswith("_")]
        raise unknown(kind, initializer, [*table, *public]) from None


def _identity(name=None):
    return lambda x: x
