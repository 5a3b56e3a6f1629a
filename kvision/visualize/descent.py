"""Images changed step by step until a loss of them is small: by an optimizer of Keras, or by L-BFGS."""

import contextlib
import dataclasses

import keras
import numpy as np
from keras import ops

from kvision.errors import unknown
from kvision.visualize.progress import progress

LBFGS = "l-bfgs"
RATE = 4.0  # pixels of 0…255 a step, for optimizers that divide the gradient by its size
NAMES = (LBFGS, "adam", "adamw", "adamax", "nadam", "rmsprop", "adagrad", "adadelta", "sgd", "lion")


@dataclasses.dataclass(frozen=True, eq=False)
class OptimizedImages:
    """Images that were made by optimisation, and the way there.

    Args:
        images: [b, h, w, c] float32, in the units of the images of the technique.
        history: `{name: values [steps + 1, b]}` of scores or losses: the first row is the start, the last one that of
            `images`.
    """

    images: np.ndarray
    history: dict

    @property
    def image(self):
        """The one image [h, w, c] of a result with one."""
        if len(self.images) != 1:
            raise ValueError(f"There are {len(self.images)} images: expected one. Take one of `images`.")
        return self.images[0]


def checked_steps(steps):
    """`steps` as it is; the ValueError unless it is a whole number of at least 1."""
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}.")
    return int(steps)


def checked_strengths(**strengths):
    """The ValueError on a strength that is no finite number of at least 0."""
    for name, value in strengths.items():
        if not np.isscalar(value) or not np.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a number of at least 0, which turns it off, got {value!r}.")


def checked_optimizer(optimizer, learning_rate=None, lbfgs=True):
    """An optimizer of Keras of one's own, or `LBFGS`, checked before any work begins.

    Args:
        optimizer: The name of one, one of `keras.optimizers`, of which a fresh copy is taken, or `"l-bfgs"`.
        learning_rate: Of an optimizer given by name, in pixels of 0…255; None: `RATE`.
        lbfgs: Whether the loss is the same at each step, which L-BFGS needs.

    Raises:
        ValueError: on an unknown one, on L-BFGS where it cannot be, and on a learning rate without effect.
        ImportError: on `"l-bfgs"` without SciPy.
    """
    if optimizer == LBFGS:
        if not lbfgs:
            raise ValueError(
                "L-BFGS needs a loss that is the same at each step: set jitter=0 and blur=0, or take optimizer='adam'."
            )
        if learning_rate is not None:
            raise ValueError(f"L-BFGS finds its own step length: got learning_rate={learning_rate!r}, give none.")
        _scipy()
        return LBFGS
    if isinstance(optimizer, str):
        try:
            optimizer = keras.optimizers.get(optimizer)
        except ValueError:
            raise unknown("optimizer", optimizer, NAMES) from None
        rate = RATE if learning_rate is None else learning_rate
        if not np.isscalar(rate) or not rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate!r}.")
        optimizer.learning_rate = rate
        return optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"optimizer is a name, one of keras.optimizers, or {LBFGS!r}: got {type(optimizer).__name__}.")
    if learning_rate is not None:
        raise ValueError(f"The optimizer given has a learning rate: got learning_rate={learning_rate!r}, give none.")
    return type(optimizer).from_config(optimizer.get_config())  # the user's own may be built for a model


def layer_weights(argument, layers):
    """`{layer: weight}` of a layer, several (of the same weight, which add up to 1), or such a dict."""
    if isinstance(layers, dict):
        weights = dict(layers)
    else:
        is_call = isinstance(layers, tuple) and len(layers) == 2 and isinstance(layers[1], int)
        layers = list(layers) if isinstance(layers, list | tuple) and not is_call else [layers]
        weights = {layer: 1 / len(layers) for layer in layers}
    if not weights or any(not np.isscalar(w) or not np.isfinite(w) or w <= 0 for w in weights.values()):
        raise ValueError(f"{argument}: give at least one layer, and weights above 0, got {weights!r}.")
    return weights


def minimize(loss, start, steps, *, optimizer, project=None, bounded=True, verbose=0):
    """Change images so that a loss of them becomes small.

    Args:
        loss: `function(pixels [b, h, w, c], step)` → `(terms [b, k], gradient)` in NumPy: the sum of the terms is to
            become small. `step` is None at the end, when only the terms are wanted.
        start: Pixels of 0…255 to begin with.
        steps: Updates of an optimizer, or iterations of L-BFGS.
        optimizer: What `checked_optimizer` gave.
        project: `function(pixels, step)` → pixels after each update of an optimizer; None: they are clipped to 0…255.
            L-BFGS keeps them there by itself.
        bounded: Whether L-BFGS keeps them there on the way, which takes it three times as long, or clips them at the
            end.
        verbose: 1 shows a bar.

    Returns:
        `(pixels, terms [steps + 1, b, k])`: less rows where Ctrl-C or convergence ended it.

    Raises:
        ValueError: when loss or gradient are not finite.
    """
    if optimizer == LBFGS:
        return _by_lbfgs(loss, start, steps, bounded, verbose)
    project = project or (lambda pixels, step: pixels)
    variable = keras.Variable(start, dtype="float32", trainable=True)
    rows = []
    with contextlib.closing(progress(range(steps), verbose=verbose)) as running:
        for step in running:
            terms, gradient = _finite(*loss(_values(variable), step), step)
            rows.append(terms)
            optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
            variable.assign(np.clip(project(_values(variable), step), 0, 255))
    pixels = _values(variable)
    rows.append(loss(pixels, None)[0])
    return pixels, np.stack(rows)


def _values(variable):
    return np.array(ops.convert_to_numpy(variable.value))  # a copy, which the optimizer does not write into


def _by_lbfgs(loss, start, steps, bounded, verbose):
    shape, rows, seen = start.shape, [], {}
    unit = np.sqrt(start.size)  # in which the first step, of length 1, changes a pixel by about 1

    def value(flat):
        terms, gradient = _finite(*loss((flat * unit).reshape(shape).astype("float32"), len(rows)), len(rows))
        seen.update(flat=flat.copy(), terms=terms)
        if not rows:
            rows.append(terms)
            seen["accepted"] = flat.copy()
        return float(terms.sum(dtype="float64")), gradient.astype("float64").ravel() * unit

    with contextlib.closing(progress(range(steps), verbose=verbose)) as running:
        next(running, None)

        def accepted(intermediate_result):
            flat = intermediate_result.x
            if not np.array_equal(flat, seen["flat"]):  # the line search may end at a point before its last one
                value(flat)
            rows.append(seen["terms"])
            seen["accepted"] = flat.copy()
            next(running)  # raises StopIteration when it is to end, which SciPy takes as such

        search, Bounds = _scipy()
        search(
            value,
            np.clip(start, 0, 255).astype("float64").ravel() / unit,
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(np.zeros(start.size), np.full(start.size, 255 / unit)) if bounded else None,
            callback=accepted,
            options={"maxiter": steps + 1, "maxfun": 20 * steps + 20, "ftol": 0.0, "gtol": 0.0},
        )
    pixels = (seen["accepted"] * unit).reshape(shape).astype("float32")
    clipped = np.clip(pixels, 0, 255)
    if not bounded and not np.array_equal(clipped, pixels):
        rows[-1] = np.array(loss(clipped, None)[0])
    return clipped, np.stack(rows)


def _scipy():
    try:
        from scipy.optimize import Bounds, minimize
    except ImportError:
        raise ImportError(
            "L-BFGS comes with SciPy: pip install 'kvision[classic]', or take optimizer='adam'."
        ) from None
    return minimize, Bounds


def _finite(terms, gradient, step):
    terms, gradient = np.array(terms), np.array(gradient)
    if not np.isfinite(terms).all() or not np.isfinite(gradient).all():
        raise ValueError(
            f"Step {step}: the loss or its gradient is not finite. Lower the strengths or the learning rate, or build "
            "the model in float32."
        )
    return terms, gradient
