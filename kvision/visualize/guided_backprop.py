"""Guided backpropagation: a gradient that no ReLU passes back to an inactive unit, nor where it is negative.

Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net", section 3.4. Every ReLU of a graph is
found, however it is written: a layer, an activation of a layer, used several times, or a bare operation. What a class
computes inside its own `call` by `keras.ops.relu` is not.
"""

from keras import ops

from kvision.visualize.gradient import image_gradients
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.probe import Probe, guided
from kvision.visualize.targets import check_unit, chunks, target_score, unit_values


def guided_backprop(model, images, target=None, *, layer=None, unit=None, preprocess=None, batch_size=32, verbose=0):
    """What in an image excites a class or a unit: its gradient, with every ReLU passing back what is positive only.

    Springenberg 2015, section 3.4. It draws the edges of an image sharply, and hardly depends on the class nor on the
    upper layers (Adebayo 2018; `randomization_test`).

    Args:
        model, images, target, preprocess, batch_size, verbose: As of `gradient`; a model with ReLUs.
        layer: Instead of a target, the layer of a unit: its name at any depth, the end of its path, the layer, or
            `(name, call)` of one that is called several times.
        unit: With a layer, a channel, of which the position with the highest activation is taken, or the whole index of
            one unit, such as `(row, column, channel)`.

    Returns:
        float32 [b, h, w, c], signed, in units of score by units of `images`. Ctrl-C gives the first ones.

    Raises:
        ValueError: as `gradient`, and on a model without ReLU, a layer that does not exist or is not unique, a unit out
            of range, a layer without a unit, and a target together with a layer.

    >>> model = keras.Sequential([keras.Input((2, 2, 1)), layers.Conv2D(3, 1, activation="relu", name="conv")])
    >>> guided_backprop(model, np.ones((5, 2, 2, 1)), layer="conv", unit=2).shape
    (5, 2, 2, 1)
    """
    return backward(guided, model, images, target, layer, unit, preprocess, batch_size, verbose)


def backward(rule, model, images, target, layer, unit, preprocess, batch_size, verbose, by_activation=False):
    """The gradient under a rule for ReLUs, of a target or of the most active position of a unit.

    Args:
        rule: `guided` or `rectified`.
        by_activation: Whether what goes back from a unit is its activation, instead of 1.
    """
    if (layer is None) != (unit is None):
        raise ValueError(f"A unit is told by layer and unit: got layer={layer!r}, unit={unit!r}. Give both.")
    if layer is not None and target is not None:
        raise ValueError(f"Got target={target!r} and layer={layer!r}. Give a target, or layer and unit.")
    probe = Probe(model, () if layer is None else (layer,), preprocess=preprocess, relu=rule)
    images = checked_images(model, images, preprocess)
    check_differentiable(model)
    if layer is None:
        score, arguments = target_score(probe, images, target, batch_size)
    else:
        score, arguments = _unit_score(probe, images, unit, batch_size, by_activation), ()
    return image_gradients(probe, images, score, arguments, batch_size, verbose)


def _unit_score(probe, images, unit, batch_size, by_activation):
    ((name, activations),) = probe(next(chunks(batch_size, images))[0]).activations.items()
    index = check_unit(name, activations.shape, unit)

    def score(look):
        values = ops.cast(unit_values(look.activations[name], index), "float32")
        top = ops.one_hot(ops.argmax(values, axis=1), values.shape[1], dtype="float32")
        top = top * values if by_activation else top
        return ops.sum(ops.stop_gradient(top) * values, axis=1)

    return score
