"""Deconvnet: an activation projected back to the pixels by transposed filters, switches of pooling and rectification.

Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks" (arXiv 2013), section 2.1. As that of a
gradient the way down runs through transposed filters and to the largest value of each pooling window, the paper's
switches; only a ReLU differs, which passes back what is positive, to active units or not.
Deviations: from a class score, which the paper does not project, goes back 1; norms pass back their gradient, where the
paper leaves them out.
"""

from kvision.visualize.guided_backprop import backward
from kvision.visualize.probe import rectified


def deconvnet(model, images, target=None, *, layer=None, unit=None, preprocess=None, batch_size=32, verbose=0):
    """The pattern in each image that excites a unit or a class, projected back to the pixels.

    Zeiler 2013, section 2.1. The activation of the unit alone goes back, all others of its layer being set to 0.

    Args:
        model, images, target, preprocess, batch_size, verbose: As of `gradient`; a model with ReLUs.
        layer, unit: As of `guided_backprop`: of a channel the position with the highest activation is taken, the
            paper's top activation.

    Returns:
        float32 [b, h, w, c], signed; of a unit it scales with its activation. Ctrl-C gives the first ones.

    Raises:
        ValueError: as `guided_backprop`.

    >>> model = keras.Sequential([keras.Input((2, 2, 1)), layers.Conv2D(3, 1, activation="relu", name="conv")])
    >>> deconvnet(model, np.ones((5, 2, 2, 1)), layer="conv", unit=2).shape
    (5, 2, 2, 1)
    """
    return backward(rectified, model, images, target, layer, unit, preprocess, batch_size, verbose, by_activation=True)
