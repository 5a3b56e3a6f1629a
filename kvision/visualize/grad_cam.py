"""Grad-CAM: the maps of a layer, weighed by the mean gradients of a class score.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", section 3.
"""

import keras
import numpy as np
from keras import ops

from kvision.ops import resize_bilinear
from kvision.visualize.gradient import chunks_with_progress
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.places import places
from kvision.visualize.probe import Probe
from kvision.visualize.targets import chunks, target_score

PASSED_OVER = ("Pooling", "Pool", "Dropout", "Identity", "Resizing", "Padding", "Cropping", "Cast")


def grad_cam(model, images, target=None, *, layer=None, resize=True, preprocess=None, batch_size=32, verbose=0):
    """Where an image shows what raises a class score, as coarsely as the maps of a layer.

    Selvaraju 2017, section 3: the rectified sum of the maps, each times the mean of its gradient. On a network that
    ends in global average pooling and a dense layer it is the class activation map (Zhou 2016), up to a factor.

    Args:
        model, images, target, preprocess, batch_size, verbose: As of `gradient`.
        layer: Whose maps [b, h, w, c] to take: a name at any depth, the end of a path such as `"backbone/conv5"`, the
            layer, or `(name, call)` of one that is called several times. None: the last one with maps of more than one
            position, pooling and dropout being passed over, as the paper takes the last convolutional layer.
        resize: Whether the map is enlarged to the size of the images, bilinear.

    Returns:
        float32 [b, h, w] of the size of the images, or of the layer without `resize`, 0 or more. Ctrl-C gives the first
        ones.

    Raises:
        ValueError: as `gradient`, and on a layer that does not exist, is not unique, or has no maps.

    >>> model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(2)])
    >>> grad_cam(model, np.ones((5, 8, 8, 1)), target=0).shape
    (5, 8, 8)
    """
    if isinstance(model, keras.Model) and model.built and layer is None:
        layer = _last_with_maps(model)
    probe = Probe(model, (layer,) if layer is not None else (), preprocess=preprocess)
    images = checked_images(model, images, preprocess)
    check_differentiable(model)
    score, arguments = target_score(probe, images, target, batch_size)
    ((name, maps),) = probe(next(chunks(batch_size, images))[0]).activations.items()
    if len(maps.shape) != 4:
        raise ValueError(
            f"The layer {name!r} of {model.name} gives {list(maps.shape)}: expected maps [b, h, w, c]. Give another "
            "layer."
        )
    run = probe.with_gradients(score, [layer])
    parts = []
    for rows, *more, count in chunks_with_progress(batch_size, verbose, images, *arguments):
        maps = ops.cast(probe(rows).activations[name], "float32")
        _, _, gradients = run(rows, *more)
        weights = ops.mean(ops.cast(gradients[name], "float32"), axis=(1, 2), keepdims=True)
        weighed = ops.relu(ops.sum(weights * maps, axis=-1, keepdims=True))
        weighed = resize_bilinear(weighed, images.shape[1:3]) if resize else weighed
        parts.append(ops.convert_to_numpy(weighed)[:count, ..., 0])
    return np.concatenate(parts)


def _last_with_maps(model):
    """The path of the last layer or operation of the graph that gives maps of more than one position."""
    for path, place in reversed(places(model).items()):
        if any(word in type(place).__name__ for word in PASSED_OVER):
            continue
        try:
            shape = place.output.shape
        except (AttributeError, ValueError):  # not called by itself in a graph, or with several outputs
            continue
        if len(shape) == 4 and (shape[1], shape[2]) != (1, 1):
            return path
    raise ValueError(
        f"{model.name} has no layer that is known to give maps [b, h, w, c]. Give layer=, one of {model.name}'s own."
    )
