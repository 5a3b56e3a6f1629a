"""Slow layers in NumPy, one image at a time, float64: oracles of networks without a reference implementation."""

import keras
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def randomised(model, deviation=0.2):
    """Give every weight a random value; return them as `{path: float64 array}`."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.normal(0, deviation, variable.shape))
    return {variable.path: keras.ops.convert_to_numpy(variable).astype("float64") for variable in model.weights}


def scores_of(model, image):
    return keras.ops.convert_to_numpy(model(image[None].astype("float32")))[0]


def convolve(x, weights, name, stride=1, padding=0, groups=1):
    """x [h, w, c] with the kernel and bias of layer `name`, then ReLU."""
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    windows = sliding_window_view(x, kernel.shape[:2], axis=(0, 1))[::stride, ::stride]  # [i, j, c, rows, columns]
    parts = zip(np.split(windows, groups, axis=2), np.split(kernel, groups, axis=3), strict=True)
    maps = [np.einsum("ijcrk,rkco->ijo", *part) for part in parts]
    return np.maximum(np.concatenate(maps, axis=-1) + bias, 0)


def pool(x, size=3, stride=2, reach_over=False, reduce=np.max):
    """Windows of `size` at `stride`; with `reach_over` the last one may be cut by the edge."""
    rows, columns = (
        range(0, n - size + stride if reach_over else n - size + 1, stride) if n > size else range(1)
        for n in x.shape[:2]
    )
    return np.array([[reduce(x[i : i + size, j : j + size], axis=(0, 1)) for j in columns] for i in rows])


def normalize_response(x, size=5, alpha=1e-4, beta=0.75, k=2.0):
    """Local response normalisation (Krizhevsky 2012, section 3.3)."""
    squares = np.pad(x**2, ((0, 0), (0, 0), (size // 2, size // 2)))
    return x / (k + alpha * sum(squares[..., i : i + x.shape[-1]] for i in range(size))) ** beta


def adapt(x, size):
    """Means of `size` x `size` windows that cover the map."""
    rows, columns = ([(i * n // size, -(-(i + 1) * n // size)) for i in range(size)] for n in x.shape[:2])
    return np.array([[x[a:b, c:d].mean(axis=(0, 1)) for c, d in columns] for a, b in rows])


def dense(x, weights, name, relu=True):
    y = x.ravel() @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
    return np.maximum(y, 0) if relu else y


def count(table):
    """Parameters of a layer table: rows of (window, inputs of one window, outputs), each output with a bias."""
    return sum((window * window * inputs + 1) * outputs for window, inputs, outputs in table)
