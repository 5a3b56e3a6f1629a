"""The plain pattern of CS231n, "Convolutional Neural Networks: Architectures" (Stanford):

[(convolution - activation) * n - pooling?] * m - (dense - activation) * k - softmax
"""

import keras

from kvision.applications.building import build_network, finish, image_input
from kvision.layers.conventions import conventions
from kvision.network import Preprocessing

PROOF = "a NumPy twin of the whole network, and the 760 parameters of the lecture"


preprocess_input = Preprocessing(value_range=(-1.0, 1.0))


def ConvNet(
    n,
    m,
    k,
    *,
    include_top=True,
    weights=None,
    input_shape=(32, 32, 3),
    classes=10,
    classifier_activation="softmax",
    norm=None,
    activation="relu",
    initializer="he",
    bias_initializer="zero",
    filters=32,
    kernel_size=3,
    pool=True,
    units=128,
    features=None,
    name=None,
):
    """Build [(conv - activation)·n - pool?]·m - (dense - activation)·k - softmax.

    Args:
        n: Convolutions before each pooling, ≥ 1; the lecture says usually at most 3.
        m: Such groups, ≥ 0.
        k: Hidden dense layers, ≥ 0; the lecture says usually below 3.
        include_top: End with the dense layers and the classifier; otherwise the last map is returned.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels), at least 2^m pixels when pooling.
        classes: Number of classes.
        classifier_activation: Of the last layer; None gives logits.
        norm: None, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`, after every convolution.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        filters: Channels of the first group; doubles after each pooling.
        kernel_size: Of all convolutions, odd, in pixels; maps keep their size (zero padding (F − 1) / 2).
        pool: Whether a 2x2 max pooling ends each group.
        units: Width of the hidden dense layers.
        features: Names of the maps to return instead, `"C0"` to `"C<m>"`: Ck is the last map of stride 2^k.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → [b, classes] float32.

    Raises:
        ValueError: on counts out of range, an even kernel, an unknown name or a wrong shape.

    >>> ConvNet(2, 3, 1).output_shape
    (None, 10)
    """
    if n < 1 or m < 0 or k < 0:
        raise ValueError(f"ConvNet: needs n of at least 1, m and k of at least 0; got n={n}, m={m}, k={k}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"ConvNet: kernel_size must be odd so that maps keep their size, got {kernel_size}.")
    images = image_input("ConvNet", input_shape, stride=2**m if pool else 1, classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)

    levels, x = {}, images
    for group in range(m):
        for layer in range(n):
            label = f"{group + 1}_{layer + 1}"
            x = bound.conv(filters * 2 ** (group * pool), kernel_size, name=f"conv{label}")(x)
            x = bound.activation(name=f"act{label}")(bound.norm(name=f"norm{label}")(x))
        levels[f"C{group * pool}"] = x
        if pool:
            x = keras.layers.MaxPooling2D(2, name=f"pool{group + 1}")(x)
            levels[f"C{group + 1}"] = x

    if include_top:
        x = keras.layers.Flatten(name="flatten")(x)
        for layer in range(k):
            x = bound.activation(name=f"dense{layer + 1}.act")(bound.dense(units, name=f"dense{layer + 1}")(x))
        x = bound.dense(classes, activation=classifier_activation, dtype="float32", name="classifier")(x)
    model = build_network(
        images,
        x,
        levels,
        include_top=include_top,
        features=features,
        name=name or f"convnet_{n}_{m}_{k}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=(*(f"dense{layer + 1}" for layer in range(k)), "classifier"))
