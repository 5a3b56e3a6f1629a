"""The filters of a first convolution as images (Krizhevsky 2012, figure 3; CS231n, "Visualizing what ConvNets learn").

Deviation: where the model is fed by a `preprocess`, the filters are shown as they act on the images before it, so that
colours are right in networks that take blue, green, red.
"""

import keras
import numpy as np
from keras import ops

from kvision.errors import unknown
from kvision.visualize.places import check_built, find_place, places


def first_layer_filters(model, layer=None, *, preprocess=None, scale="each"):
    """The filters of a convolution as images: edges, colours and noise of a first layer.

    Krizhevsky 2012, figure 3. Smooth filters of many orientations speak for a trained layer, noise for too high a rate,
    too little training or too weak a regularization. Above the first layer the channels have no colour, and filters say
    little: look at `maximally_activating_patches`.

    Args:
        model: A built `keras.Model`.
        layer: The name of a convolution at any depth, the end of its path, or the layer; None: the first one.
        preprocess: What images go through before they reach the model; three channels are then mapped back to those of
            the images, channel order and standard deviations included.
        scale: `"each"`: each filter by its own largest magnitude, so that weak ones show; `"all"`: one for all, so that
            they can be compared. Weights of 0 are mid-grey in both.

    Returns:
        uint8 in 0…255: [filters, h, w, 3] over images of three channels, [filters, h, w, 1] over one; of any other
        number [filters, channels, h, w, 1], a grey image for each channel.

    Raises:
        ValueError: on a model that is not built or has no convolution, a layer that is none, and another `scale`.

    >>> first_layer_filters(kvision.applications.LeNet5("modern")).shape
    (6, 5, 5, 1)
    """
    if scale not in ("each", "all"):
        raise unknown("scale of first_layer_filters", scale, ("each", "all"))
    check_built(model)
    name, place = (None, None) if layer is None else find_place(model, layer)
    if layer is None:
        found = [(path, each) for path, each in places(model).items() if _kernel(each) is not None]
        if not found:
            raise ValueError(f"{model.name} has no convolution over images, whose filters would be shown.")
        name, place = found[0]
    kernel = _kernel(place)
    if kernel is None:
        raise ValueError(
            f"The layer {name!r} is a {type(place).__name__}: expected a two-dimensional convolution with a kernel "
            "[h, w, channels, filters]."
        )
    kernel = ops.convert_to_numpy(kernel).astype("float32")
    if preprocess is not None:
        kernel = kernel_on_images(kernel, preprocess)
    filters = np.moveaxis(kernel, 3, 0)
    if filters.shape[-1] not in (1, 3):
        filters = np.moveaxis(filters, 3, 1)[..., None]
    axes = tuple(range(1, filters.ndim)) if scale == "each" else None
    largest = np.abs(filters).max(axis=axes, keepdims=True)
    return np.round(127.5 + 127.5 * filters / np.maximum(largest, 1e-12)).astype("uint8")


def _kernel(layer):
    """The kernel [h, w, channels, filters] of a convolution over more than single pixels, else None."""
    if "Transpose" in type(layer).__name__ or not isinstance(layer, keras.Layer):
        return None
    kernel = getattr(layer, "kernel", None)
    if kernel is None or len(kernel.shape) != 4 or not hasattr(layer, "kernel_size"):
        return None
    return kernel


def kernel_on_images(kernel, preprocess):
    """A kernel [h, w, channels, filters] as it acts on images before `preprocess`, that of single pixels and affine."""
    channels = kernel.shape[2]
    colours = np.concatenate([np.zeros((1, channels)), 255 * np.eye(channels)]).astype("float32")
    outputs = np.asarray(ops.convert_to_numpy(preprocess(colours[:, None, None, :])))
    if outputs.shape != (channels + 1, 1, 1, channels):
        raise ValueError(
            f"preprocess of {channels} channels gives {outputs.shape}: expected one that changes pixels one by one."
        )
    slopes = (outputs[1:] - outputs[:1])[:, 0, 0, :] / 255  # [channel of the image, channel of the model]
    return np.einsum("im,hwmf->hwif", slopes, kernel)
