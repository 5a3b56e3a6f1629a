"""The plain pattern of CS231n, "Convolutional Neural Networks: Architectures" (Stanford):

[(convolution - activation) * n - pooling?] * m - (dense - activation) * k - softmax
"""

import keras

from kvision.applications.building import finish, image_input
from kvision.layers.conventions import conventions

PROOF = "a NumPy twin of the whole network, and the 760 parameters of the lecture"


def preprocess_input(images):
    """Images of 0…255 to −1…1."""
    return images / 127.5 - 1.0


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
        kernel_size: Of all convolutions, odd, in pixels; maps keep their size (zero margin (F − 1) / 2).
        pool: Whether a 2x2 max pooling ends each group.
        units: Width of the hidden dense layers.
        features: Names of the maps to return instead, `"C0"` to `"C<m>"`: Ck is the last map of stride 2^k.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c] → [b, classes] float32.

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
    conv, dense, norm, act = conventions(norm, activation, initializer, bias_initializer)

    levels, x = {}, images
    for group in range(m):
        for layer in range(n):
            label = f"{group + 1}_{layer + 1}"
            x = conv(filters * 2 ** (group * pool), kernel_size, name=f"conv{label}")(x)
            x = act(name=f"act{label}")(norm(name=f"norm{label}")(x))
        levels[f"C{group * pool}"] = x
        if pool:
            x = keras.layers.MaxPooling2D(2, name=f"pool{group + 1}")(x)
            levels[f"C{group + 1}"] = x

    if include_top:
        x = keras.layers.Flatten(name="flatten")(x)
        for layer in range(k):
            x = act(name=f"dense{layer + 1}.act")(dense(units, name=f"dense{layer + 1}")(x))
        x = dense(classes, activation=classifier_activation, dtype="float32", name="classifier")(x)
    name = name or f"convnet_{n}_{m}_{k}"
    return finish(images, x, levels, include_top=include_top, features=features, name=name, weights=weights)
