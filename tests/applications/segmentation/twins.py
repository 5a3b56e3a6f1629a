"""Slow layers in NumPy for networks that label every pixel; float64, one image [h, w, c] at a time."""

import numpy as np
import scipy.ndimage
from numpy.lib.stride_tricks import sliding_window_view


def convolve(x, weights, name):
    """The kernel and bias of layer `name` at every cell, zeros around; the longer half of an even window before."""
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    x = np.pad(x, [(size // 2, (size - 1) // 2) for size in kernel.shape[:2]] + [(0, 0)])
    windows = sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
    return np.einsum("ijcrk,rkco->ijo", windows, kernel) + bias


def pool(x):
    """The largest of 2x2 cells; what reaches over the edge counts less than anything."""
    x = np.pad(x, [(0, n % 2) for n in x.shape[:2]] + [(0, 0)], constant_values=-np.inf)
    return x.reshape(len(x) // 2, 2, x.shape[1] // 2, 2, -1).max(axis=(1, 3))


def read(x, rows, columns):
    """A map at fractional rows and columns, bilinear; the outer cells go on."""
    points = np.meshgrid(rows, columns, indexing="ij")
    channels = [scipy.ndimage.map_coordinates(x[..., c], points, order=1, mode="nearest") for c in range(x.shape[-1])]
    return np.stack(channels, axis=-1)
