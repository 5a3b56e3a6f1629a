"""Numeric against automatic gradients: CS231n, "Gradient checks"."""

import dataclasses
import itertools
import math

import keras
import numpy as np
from keras import ops

from kvision._keras import print_message
from kvision.batches import for_arrays
from kvision.task_model import TaskModel
from kvision.training.batches import first_batch
from kvision.training.losses import compiled, prepare, step_loss, tensors, with_gradients
from kvision.training.precision import in_precision, may_be_float64
from kvision.training.untouched import untouched
from kvision.training.verdict import Verdict

# Steps relative to the size of the weights, from large to small, and the relative error allowed, by precision.
STEPS = {"float64": (1e-4, 1e-5, 1e-6), "float32": (3e-2, 1e-2, 2e-3, 3e-4, 4e-5)}
TOLERANCES = {"float64": 1e-5, "float32": 5e-2}

UNSETTLED = {"float64": 1e-3, "float32": 0.1}  # relative disagreement between steps from which a probe says nothing
ROUNDED = 1e-2  # relative error by rounding up to which a smaller step is the better one
FEWEST_SETTLED = {"float64": 0.5, "float32": 0.1}  # of the probes that are not negligible
NEGLIGIBLE = 1e-6  # derivatives that lie this far below the largest are rounding, relative to it;
ABOVE_ROUNDING = 20.0  # so are those that are not this many times what rounding makes of a large step


@dataclasses.dataclass(frozen=True)
class GradientProbe:
    """The derivative of the loss along one direction of one weight, two ways.

    Args:
        weight: Path of the weight.
        kind: `"direction"`, through all numbers of the weight, or `"coordinate"`, one of them.
        numeric, automatic: The centred difference, and the gradient times the direction.
        error: |numeric - automatic| / max(|numeric|, |automatic|), 0 where both are negligible.
        negligible: Whether both are too small for this precision, and equal as far as it can tell.
        settled: Whether differences of several steps agree. At a kink of a ReLU or of max pooling they don't.
        ok: Whether the two agree, or the probe is excused as unsettled.
    """

    weight: str
    kind: str
    numeric: float
    automatic: float
    error: float
    negligible: bool
    settled: bool
    ok: bool


@dataclasses.dataclass(frozen=True)
class GradientCheck(Verdict):
    """The result of `check_gradients`.

    Args:
        probes: A tuple of `GradientProbe`, weight by weight.
        precision: `"float64"` or `"float32"`: in which the differences were taken.
        worst: The largest relative error of the settled probes, or None where none settled.
        excused: Probes that were left out as they met a kink.
    """

    probes: tuple
    precision: str
    worst: float | None
    excused: int


def check_gradients(
    model,
    batch,
    *,
    samples=4,
    directions=1,
    coordinates=1,
    weights=None,
    precision="auto",
    tolerance=None,
    seed=0,
    verbose=0,
):
    """Compare the gradient of the training loss with centred differences, for every trainable weight.

    Directions are half random and half along the gradient, so that they rise above rounding. Each difference is taken
    with several steps; where these disagree the loss has a kink nearby, and the probe is excused. Dropout draws the
    same each time; batch norm uses the batch's statistics. The model itself is not changed.

    In float64 the model is built again from its config with the same weights, so the rounding is far below any fault.
    Losses of detectors are float32 by design, models that are not functional cannot be built again, and Keras on JAX
    has no float64: these are checked in float32, with a wider tolerance, and small gradients, such as a fresh
    detector has, are beyond what it can tell: the sentence counts them.

    Proposals carry no gradient, so the weights below them are checked against the losses of the proposals, those of a
    later stage against that stage's.

    CS231n, "Neural Networks Part 3: Learning and Evaluation", "Gradient checks".

    Args:
        model: A compiled `keras.Model`.
        batch: `(x, y)` or `(x, y, sample_weight)`, or a data set, of which the first batch is taken.
        samples: Rows of it to use: few, as each has kinks of its own.
        directions, coordinates: Probes of each weight, of either kind; coordinates only in float64.
        weights: How many weights to probe, spread evenly from the first to the last; None probes all.
        precision: `"float64"`, `"float32"`, or `"auto"`, the former where the model allows it.
        tolerance: Relative error allowed. None: 1e-5 in float64, 5e-2 in float32.
        seed: Of the directions.
        verbose: 1 prints a line for each weight.

    Returns:
        A `GradientCheck`.

    Raises:
        ValueError: on a model that is not compiled or has no trainable weights, numbers out of range, or
            `precision="float64"` where the model cannot be built so.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(2, "softmax")])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    >>> check_gradients(model, (x, np.arange(4) % 2)).ok
    True
    """
    _check_numbers(samples, directions, coordinates, weights, precision, tolerance)
    batch = first_batch(batch, samples)
    prepare(model, batch)
    if not model.trainable_variables:
        raise ValueError(f"{model.name} has no trainable weights to check. Set trainable=True where it should learn.")
    is_wide = precision != "float32" and may_be_float64(model)
    if precision == "float64" and not is_wide:
        raise ValueError(
            'precision="float64" needs TensorFlow and a functional or sequential model with a loss of compile: got '
            f'{type(model).__name__} on {keras.backend.backend()}. Use precision="auto".'
        )
    precision = "float64" if is_wide else "float32"
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    counts = {"direction": directions, "coordinate": coordinates if is_wide else 0}
    if not any(counts.values()):
        raise ValueError(
            "Coordinates alone cannot be checked in float32: got directions=0. Give directions of 1 or more."
        )
    probes = []
    with untouched(model), in_precision(model, precision, batch) as probed:
        paths = {
            id(variable): model.trainable_variables[index].path
            for index, variable in enumerate(probed.trainable_variables)
        }
        dtype = "float64" if is_wide else None
        batch = tuple(tensors(for_arrays(lambda array: _cast(array, dtype), part)) for part in batch)
        rng = np.random.default_rng(seed)
        total = len(probed.trainable_variables)
        chosen = np.linspace(0, total - 1, min(weights or total, total)).round().astype(int)
        chosen = {id(probed.trainable_variables[index]) for index in chosen}
        for variables, names in _groups(probed):
            differences = _Differences(step_loss(probed, variables, names), variables, batch, STEPS[precision])
            for index, variable in enumerate(variables):
                if id(variable) not in chosen:
                    continue
                found = [
                    (paths[id(variable)], kind, *differences.along(index, kind, rng))
                    for kind, count in counts.items()
                    for _ in range(count)
                ]
                probes += found
                if verbose:
                    numbers = ", ".join(f"{numeric:.4g} ({automatic:.4g})" for _, _, numeric, automatic, *_ in found)
                    print_message(f"check_gradients: {found[0][0]}: numeric (automatic) {numbers}")
    return _verdict(probes, precision, tolerance)


def _check_numbers(samples, directions, coordinates, weights, precision, tolerance):
    if weights is not None and weights < 1:
        raise ValueError(f"weights is how many to probe, at least 1, or None for all: got {weights!r}.")
    if samples < 1 or directions < 0 or coordinates < 0 or directions + coordinates < 1:
        raise ValueError(
            "check_gradients needs at least one sample and one direction or coordinate: got "
            f"samples={samples!r}, directions={directions!r}, coordinates={coordinates!r}."
        )
    if precision not in ("auto", *STEPS):
        raise ValueError(f'precision is "float64", "float32" or "auto": got {precision!r}.')
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is a relative error above 0: got {tolerance!r}.")


def _cast(array, dtype):
    return array.astype(dtype) if dtype and np.issubdtype(array.dtype, np.floating) else array


# What is differentiated with respect to what


def _groups(model):
    """`(variables, names of losses)`: pairs between which no proposals stand; None for all losses as they are."""
    head = getattr(model, "head", None)
    proposals = getattr(head, "proposals", None)
    if not isinstance(model, TaskModel) or proposals is None:
        return [(model.trainable_variables, None)]
    stages = [[stage] for stage in head.box_stages]
    for parts, mask_stage in zip(stages, head.mask_stages, strict=False):
        parts.append(mask_stage)
    later = [name for name in head.loss_names if name not in proposals.loss_names]
    groups = []
    for index, parts in enumerate(stages):
        variables = [variable for part in parts for variable in part.trainable_variables]
        names = later if len(stages) == 1 else [name for name in later if name.endswith(f"_{index + 1}")]
        groups.append((variables, names))
    inside = {id(variable) for variables, _ in groups for variable in variables}
    below = [variable for variable in model.trainable_variables if id(variable) not in inside]
    groups.insert(0, (below, list(proposals.loss_names) or groups[0][1]))
    return [group for group in groups if group[0]]


class _Differences:
    """Derivatives of a loss along directions, by its gradient and by centred differences."""

    def __init__(self, loss, variables, batch, steps):
        self.arrays = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
        self.values = [ops.convert_to_tensor(array) for array in self.arrays]  # a variable would be traced anew
        self.batch = batch
        self.steps = steps
        self.loss = compiled(loss)
        value, gradients = with_gradients(loss)(self.values, batch)
        self.value = float(value)
        self.rounding = 4 * np.finfo(keras.backend.standardize_dtype(value.dtype)).eps * abs(float(value))
        self.gradients = [np.asarray(ops.convert_to_numpy(gradient), "float64") for gradient in gradients]

    def along(self, index, kind, rng):
        """`(numeric, automatic, error of numeric by two steps, rounding)` along a direction of one weight."""
        weight, gradient = self.arrays[index], self.gradients[index]
        size = float(np.sqrt(np.mean(np.square(weight, dtype="float64")))) or 0.1
        direction = np.zeros(weight.shape)
        if kind == "coordinate":
            direction.flat[rng.integers(weight.size)] = size
        else:
            direction = _unit(rng.normal(size=weight.shape)) + _unit(gradient)
            direction = _unit(direction) * size * math.sqrt(weight.size)
        slopes = [self._slope(index, step * direction) / step for step in self.steps]
        gaps = [abs(one - other) for one, other in itertools.pairwise(slopes)]
        errors = [gap + self.rounding / step for gap, step in zip(gaps, self.steps[1:], strict=True)]
        precise = [i for i, step in enumerate(self.steps[1:]) if self.rounding / step <= ROUNDED * abs(slopes[i + 1])]
        # The smallest step that rounding allows, as kinks weigh in proportion to the step.
        best = max(precise) if precise else int(np.argmin(errors))
        error = errors[best]
        if self.arrays[index].dtype == np.float64:  # at a kink the slopes of both sides differ at any step
            above, below = (self._at(index, sign * self.steps[best + 1] * direction) for sign in (1, -1))
            error += abs(above + below - 2 * self.value) / self.steps[best + 1] / 2
        return slopes[best + 1], float(np.sum(gradient * direction)), error, self.rounding / self.steps[1]

    def _slope(self, index, change):
        above, below = (self._at(index, sign * change) for sign in (1, -1))
        return (above - below) / 2

    def _at(self, index, change):
        values = list(self.values)
        moved = (self.arrays[index] + change).astype(self.arrays[index].dtype)
        values[index] = ops.convert_to_tensor(moved)
        return float(ops.convert_to_numpy(self.loss(values, self.batch)))


def _unit(direction):
    norm = float(np.linalg.norm(direction))
    return direction / norm if norm > 0 and math.isfinite(norm) else direction


# The verdict


def _verdict(found, precision, tolerance):
    finite = [abs(value) for _, _, *values in found for value in values[:2] if math.isfinite(value)]
    floor = NEGLIGIBLE * max(finite, default=0.0)
    probes = tuple(_probe(*each, floor, precision, tolerance) for each in found)
    wrong = [probe for probe in probes if not probe.ok]
    told = [probe for probe in probes if not probe.negligible]
    settled = [probe for probe in told if probe.settled]
    worst = max((probe.error for probe in settled), default=None)
    excused = len(told) - len(settled)
    ok = not wrong and bool(told) and len(settled) >= FEWEST_SETTLED[precision] * len(told)
    return GradientCheck(
        ok, _sentence(probes, wrong, worst, excused, precision, tolerance), probes, precision, worst, excused
    )


def _probe(weight, kind, numeric, automatic, gap, rounding, floor, precision, tolerance):
    scale = max(abs(numeric), abs(automatic))
    if not all(map(math.isfinite, (numeric, automatic))):
        return GradientProbe(weight, kind, numeric, automatic, math.inf, False, True, False)
    error = abs(numeric - automatic) / scale if scale > 0 else 0.0
    if scale <= max(floor, ABOVE_ROUNDING * rounding):
        return GradientProbe(weight, kind, numeric, automatic, error, True, True, True)
    settled = bool(gap <= UNSETTLED[precision] * scale)
    ok = not settled or bool(error <= tolerance + 4 * gap / scale)
    return GradientProbe(weight, kind, numeric, automatic, error, False, settled, ok)


def _sentence(probes, wrong, worst, excused, precision, tolerance):
    weights = len({probe.weight for probe in probes})
    if wrong:
        probe = max(wrong, key=lambda probe: probe.error)
        names = list(dict.fromkeys(probe.weight for probe in wrong))
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"The gradient of {listed} is wrong: numeric {probe.numeric:.4g}, automatic {probe.automatic:.4g} at "
            f"{probe.weight}, relative error {probe.error:.1e}, expected at most {tolerance:.0e}. Look at what stands "
            "behind the last of these weights: a custom_gradient, a stop_gradient or a rounding."
        )
    small = sum(probe.negligible for probe in probes)
    excuse = f", {excused} of {len(probes)} probes at kinks" if excused else ""
    excuse += f", {small} too small to tell" if small else ""
    if worst is None or excused > (1 - FEWEST_SETTLED[precision]) * (len(probes) - small):
        return (
            f"Too few of {len(probes)} probes can be told in {precision}{excuse}; expected more. The loss has kinks or "
            "noise everywhere, or no weight moves it: use fewer samples, look for randomness without a seed in the "
            "model, and run compare_initialisations."
        )
    return f"Gradients of {weights} weights agree in {precision}: largest relative error {worst:.1e}{excuse}."
