"""Steps along a gradient inside a ball around each image: what the gradient attacks have in common."""

import math
import typing

import numpy as np
from keras import ops

from kvision.errors import choose
from kvision.visualize.adversarial.attack import check_epsilon
from kvision.visualize.adversarial.blocks import attack_blocks

TINY = 1e-12  # a norm that is divided by is at least this


class Norm(typing.NamedTuple):
    """A norm of changes [b, h, w, c], by which a budget is measured.

    Args:
        direction: The change of norm 1 along which a linear function rises most, of its gradient.
        project: The nearest changes of a norm up to epsilon.
        draw: `(rng, shape, epsilon)`, a change drawn evenly from those of a norm up to epsilon.
        largest: The norm of the largest change, of the range of a pixel and the shape of an image.
    """

    direction: typing.Callable
    project: typing.Callable
    draw: typing.Callable
    largest: typing.Callable


def _lengths(changes):
    return ops.maximum(ops.sqrt(ops.sum(ops.square(changes), axis=(1, 2, 3), keepdims=True)), TINY)


def _draw_l2(rng, shape, epsilon):
    direction = rng.standard_normal(shape)
    return epsilon * rng.random() ** (1 / direction.size) * direction / np.linalg.norm(direction)


NORMS = {
    "linf": Norm(
        direction=ops.sign,
        project=lambda changes, epsilon: ops.clip(changes, -epsilon, epsilon),
        draw=lambda rng, shape, epsilon: rng.uniform(-epsilon, epsilon, shape),
        largest=lambda span, shape: span,
    ),
    "l2": Norm(
        direction=lambda gradients: gradients / _lengths(gradients),
        project=lambda changes, epsilon: changes * ops.minimum(1.0, epsilon / _lengths(changes)),
        draw=_draw_l2,
        largest=lambda span, shape: span * math.sqrt(math.prod(shape)),
    ),
}


def chosen_norm(norm, epsilon, images, bounds):
    """The `Norm` of a name, after the check of a budget that it measures."""
    chosen = choose("norm", NORMS, norm)
    check_epsilon(epsilon, chosen.largest(bounds[1] - bounds[0], np.shape(images)[-3:]))
    return chosen


def attack_by_steps(case, norm, epsilon, steps, step_size, *, starts=1, seed=None, verbose=0):
    """The `Attack` after steps up the loss of the labels, or down that of the targets, inside a ball.

    Args:
        case: A `Case`.
        norm: A `Norm`.
        epsilon: Radius of the ball.
        steps, step_size: How many, of which norm each.
        starts: How often to begin.
        seed: Of a random place in the ball to begin at; None: at the image itself.
        verbose: 1 shows a bar.
    """
    low, high = case.bounds
    epsilon, step_size = float(epsilon), float(step_size)
    classes, sign = (case.labels, 1.0) if case.targets is None else (case.targets, -1.0)

    def run(rows, start):
        given = ops.convert_to_tensor(case.images[rows], "float32")
        images = given if seed is None else _start(case, norm, epsilon, rows, start, seed)
        for _ in range(steps):
            _, gradients = case.classifier.margins(images, classes[rows])
            images = images + sign * step_size * norm.direction(gradients)
            images = ops.clip(given + norm.project(images - given, epsilon), low, high)
            yield images

    return attack_blocks(case, run, steps, starts=starts, verbose=verbose)


def _start(case, norm, epsilon, rows, start, seed):
    """A place in the ball around each image, the same whatever the size of the batch."""
    shape = case.images.shape[1:]
    changes = [norm.draw(np.random.default_rng([seed, start, row]), shape, epsilon) for row in rows.tolist()]
    images = case.images[rows] + np.stack(changes).astype("float32")
    return ops.convert_to_tensor(np.clip(images, *case.bounds), "float32")
