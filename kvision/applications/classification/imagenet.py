"""What the ImageNet networks share: how images are prepared, and the names of the 1000 classes (ILSVRC 2012)."""

import functools
import importlib.resources

import numpy as np
from keras import ops

from kvision.network import Preprocessing
from kvision.weights import Published

# Mean and standard deviation of the training images in RGB, for values in 0…1, as torchvision's weights expect them.
MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)

# RGB images of 0…255 to zero mean and unit deviation per channel.
preprocess_input = Preprocessing(mean=MEAN, deviation=STANDARD_DEVIATION)


def decode_predictions(predictions, top=5):
    """The most probable classes of each image, best first.

    Args:
        predictions: [b, 1000] scores of the ImageNet classes.
        top: How many to give, 1 to 1000.

    Returns:
        For each image a list of `(class index, class name, score)`.

    Raises:
        ValueError: if there are not 1000 scores an image.
    """
    predictions = np.asarray(ops.convert_to_numpy(predictions))
    if predictions.ndim != 2 or predictions.shape[1] != 1000:
        raise ValueError(
            f"decode_predictions expects scores of shape [images, 1000], got {predictions.shape}. A network with other "
            "classes has other names: take argmax and look them up in your own list."
        )
    names = class_names()
    order = np.argsort(-predictions, axis=1)[:, :top]
    return [[(int(k), names[k], float(row[k])) for k in best] for row, best in zip(predictions, order, strict=True)]


@functools.cache
def class_names():
    """The 1000 names, in the order of the scores."""
    text = importlib.resources.files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def torchvision_weights(file, accuracy, *, resize=256, crop=224, interpolation="bilinear", **more):
    """A row of weights that torchvision publishes; facts from its table of weights, `torchvision/models/*.py`."""
    address = "https://download.pytorch.org/models"
    licence = more.pop("licence", "BSD-3-Clause")
    return Published(address, file, "torchvision", licence, accuracy, resizing(resize, crop, interpolation), **more)


def timm_weights(name, accuracy, *, licence, resize=256, crop=224, interpolation="bilinear", **more):
    """A row of weights that timm publishes, its own or others'; facts from the settings in `timm/models/*.py`."""
    repository, file = f"timm/{name}", "model.safetensors"
    return Published(repository, file, "timm", licence, accuracy, resizing(resize, crop, interpolation), **more)


def resizing(short_side, crop, interpolation):
    return f"short side to {short_side} ({interpolation}), centre {crop}x{crop}"
