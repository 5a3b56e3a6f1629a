"""Activations by depth under different initial weights: CS231n, "Weight initialization", and its histograms.

Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks"; He et al. 2015,
"Delving Deep into Rectifiers".
"""

import contextlib
import dataclasses
import math

import keras
import numpy as np
from keras import ops

from kvision._keras import layers_of, own_variables
from kvision.batches import for_arrays, num_rows
from kvision.errors import choose
from kvision.task_model import TaskModel
from kvision.training.batches import first_batch
from kvision.training.losses import check_finite, tensors
from kvision.training.untouched import untouched
from kvision.training.verdict import Verdict

SCHEMES = {
    "zero": lambda seed: keras.initializers.Zeros(),
    "0.01": lambda seed: keras.initializers.RandomNormal(stddev=0.01, seed=seed),
    "1": lambda seed: keras.initializers.RandomNormal(stddev=1.0, seed=seed),
    "xavier": lambda seed: keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal", seed=seed),
    "he": lambda seed: keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal", seed=seed),
}
OWN = "as built"  # the weights a given model has

SATURATED = 0.97  # |tanh| or distance of a sigmoid from its middle, doubled, from which the gradient is a 17th or less
MOST_SATURATED = 0.5  # of a layer
MOST_ZEROS = 0.99  # of a layer of ReLUs
CHANGE = 100.0  # between the deviations of the first layer and the last
CHANGE_OF_HEADS = 1e4  # likewise in models that bring their own losses: their heads begin small by design
BINS = 40


@dataclasses.dataclass(frozen=True)
class ActivationStatistics:
    """The activations of one layer over a batch.

    Args:
        layer: Its name.
        mean, deviation: Over all units and samples.
        zeros: Fraction that is exactly 0.
        saturated: Fraction beyond 0.97 of the way to the ends of a tanh or sigmoid, 0 for other activations.
        counts, edges: The histogram: [40] and [41].
    """

    layer: str
    mean: float
    deviation: float
    zeros: float
    saturated: float
    counts: tuple
    edges: tuple


@dataclasses.dataclass(frozen=True)
class InitialisationComparison(Verdict):
    """The result of `compare_initialisations`.

    Args:
        statistics: `{configuration: (ActivationStatistics of each layer, by depth)}`.
        healthy: Names of the configurations whose activations neither vanish, explode nor saturate.
    """

    statistics: dict
    healthy: tuple

    def table(self):
        """Deviations by depth, a line for each configuration, as text."""
        width = max(map(len, self.statistics))
        lines = [
            f"{name:{width}}  " + " ".join(f"{layer.deviation:9.2e}" for layer in _few(layers))
            for name, layers in self.statistics.items()
        ]
        return "\n".join(lines)

    def plot(self):
        """The histograms as a `matplotlib.figure.Figure`: a row for each configuration, a column for each depth."""
        from matplotlib.figure import Figure

        columns = max(1, *(len(_few(layers)) for layers in self.statistics.values()))
        figure = Figure(figsize=(1.4 * columns + 2, 0.9 * len(self.statistics)))
        figure.subplots_adjust(left=0.2, right=0.99, bottom=0.01, hspace=0.6)
        grid = figure.subplots(len(self.statistics), columns, squeeze=False)
        for axes_of_row, (name, layers) in zip(grid, self.statistics.items(), strict=True):
            axes_of_row[0].set_ylabel(name, rotation=0, ha="right", fontsize="small")
            for axes, layer in zip(axes_of_row, _few(layers), strict=False):
                axes.stairs(layer.counts, layer.edges, fill=True)
                low, high = layer.edges[0], layer.edges[-1]
                axes.set_title(f"{low:.1e} … {high:.1e}", fontsize="xx-small")
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
        return figure


def compare_initialisations(
    model=None, batch=None, *, schemes=tuple(SCHEMES), activations=None, batch_norm=None, depth=10, width=500, seed=0
):
    """Compare the activations by depth under different initial weights.

    Without a model it is the lecture's experiment: `depth` dense layers of `width` units, with tanh and with ReLU, with
    batch norm and without. Zero weights give zeros, small ones vanish with depth, large ones saturate; Xavier keeps the
    deviation with tanh, He with ReLU, batch norm with any. With a model, its own weights are judged and set beside the
    schemes, all else being as in the model; it stays as it was.

    CS231n, "Weight initialization"; Glorot 2010; He 2015.

    Args:
        model: A built `keras.Model`, or None.
        batch: Inputs, a batch `(x, y)` or a data set of them; needed with a model. Without, [n, width]; None: a normal
            sample of 256 rows.
        schemes: Of the kernels, out of `"zero"`, `"0.01"`, `"1"` (deviations of a normal distribution), `"xavier"` and
            `"he"` (deviations 1 / √fan_in and √(2 / fan_in)).
        activations: Of the lecture's network: `"tanh"`, `"relu"`, both if None; not with a model, which has its own.
        batch_norm: Of the lecture's network: True or False in a tuple, both if None; not with a model.
        depth, width: Of the lecture's network.
        seed: Of the weights.

    Returns:
        An `InitialisationComparison`. `ok` says whether the model's own weights are healthy; without a model, whether
        any of the configurations is.

    Raises:
        ValueError: on an unknown scheme, a model without a batch, one that is not finite, or arguments without
            effect with a model.

    >>> found = compare_initialisations(schemes=("0.01", "he"), activations=("relu",), batch_norm=(False,), width=100)
    >>> found.healthy
    ('he, relu',)
    """
    makers = {name: choose("initialisation", SCHEMES, name) for name in map(str, schemes)}
    if model is None:
        statistics = _lecture(batch, makers, activations, batch_norm, depth, width, seed)
    else:
        if batch is None or activations is not None or batch_norm is not None:
            raise ValueError(
                "compare_initialisations of a model needs a batch, and takes activations and norms from the model: got "
                f"batch={'None' if batch is None else 'given'}, activations={activations!r}, batch_norm={batch_norm!r}."
            )
        x = batch if hasattr(batch, "shape") else first_batch(batch)[0]
        check_finite(for_arrays(np.asarray, x))
        with untouched(model):
            statistics = {OWN: _statistics(model, x, {})}
            for name, maker in makers.items():
                statistics[name] = _statistics(model, x, _kernels(model, maker, seed))
    if not all(statistics.values()):
        sentence = f"{model.name} has no layer with an activation that could vanish, explode or saturate."
        return InitialisationComparison(True, sentence, statistics, tuple(statistics))
    change = CHANGE_OF_HEADS if isinstance(model, TaskModel) else CHANGE
    faults = {name: _fault(layers, change) for name, layers in statistics.items()}
    healthy = tuple(name for name, fault in faults.items() if fault is None)
    ok = bool(healthy) if model is None else faults[OWN] is None
    return InitialisationComparison(ok, _sentence(statistics, faults, healthy), statistics, healthy)


def _lecture(batch, makers, activations, batch_norm, depth, width, seed):
    x = np.random.default_rng(seed).normal(size=(256, width)) if batch is None else np.asarray(batch)
    if x.ndim != 2:
        raise ValueError(f"The lecture's network takes rows [n, width]: got {x.shape}. Pass a model, or flatten them.")
    statistics = {}
    for activation in ("tanh", "relu") if activations is None else activations:
        for has_norm in (False, True) if batch_norm is None else batch_norm:
            layers = [keras.Input(x.shape[1:])]
            for _ in range(depth):
                layers += [keras.layers.Dense(width, use_bias=False)]
                layers += [keras.layers.BatchNormalization()] if has_norm else []
                layers += [keras.layers.Activation(activation)]
            network = keras.Sequential([*layers, keras.layers.Identity()])  # the last activation is no output either
            for name, maker in makers.items():
                key = ", ".join([name, activation, *(["batch norm"] if has_norm else [])])
                statistics[key] = _statistics(network, x.astype("float32"), _kernels(network, maker, seed))
    return statistics


def _kernels(model, maker, seed):
    """`{id of a kernel: (kernel, fresh values)}`, each kernel with a seed of its own."""
    kernels = [variable for layer in layers_of(model) for variable in own_variables(layer) if "kernel" in variable.name]
    kernels = [variable for variable in kernels if len(variable.shape) > 1]
    return [(variable, maker(seed + index)(variable.shape, variable.dtype)) for index, variable in enumerate(kernels)]


def _statistics(model, x, values):
    """Of every layer with an activation, in the order they run, in a training step's pass."""
    found = []
    with _watched(model, found), keras.StatelessScope(list(values)):
        model(tensors(for_arrays(np.asarray, x)), training=True)
    rows = num_rows(x)
    return tuple(_of_layer(*each) for each in found if each[1].ndim > 1 and len(each[1]) >= min(rows, 1))


@contextlib.contextmanager
def _watched(model, found):
    """Within it, the outputs of layers with an activation are appended to `found`, as (layer, array)."""
    layers = [layer for layer in layers_of(model) if _activation(layer)]
    outputs = {id(tensor) for tensor in keras.tree.flatten(getattr(model, "outputs", None) or [])}
    layers = [layer for layer in layers if not _is_output(layer, outputs)]

    def watching(layer, call):
        def watched(*arguments, **options):
            output = call(*arguments, **options)
            found.append((layer, np.asarray(ops.convert_to_numpy(ops.cast(output, "float32")))))
            return output

        return watched

    try:
        for layer in layers:
            vars(layer)["call"] = watching(layer, layer.call)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)


def _activation(layer):
    """The name of a layer's activation, or None where it has none or gives the scores of classes."""
    if isinstance(layer, keras.layers.Softmax):
        return None
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__) if callable(activation) else None
    if name is None and any(kind in type(layer).__name__.lower() for kind in ("relu", "elu", "maxout")):
        name = type(layer).__name__.lower()
    return None if name in ("linear", "softmax", "log_softmax") else name


def _is_output(layer, outputs):
    try:
        tensors_out = keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):
        return False
    return any(id(tensor) in outputs for tensor in tensors_out)


def _of_layer(layer, values):
    values = values.astype("float64")
    ends = {"tanh": abs(values), "sigmoid": abs(2 * values - 1)}.get(_activation(layer))
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite if finite.size else np.zeros(1), bins=BINS)
    return ActivationStatistics(
        layer.name,
        float(values.mean()),
        float(values.std()),
        float((values == 0).mean()),
        0.0 if ends is None else float((ends > SATURATED).mean()),
        tuple(counts.tolist()),
        tuple(edges.tolist()),
    )


def _few(layers):
    """At most eight layers, evenly spread from the first to the last."""
    indices = np.unique(np.linspace(0, len(layers) - 1, min(8, len(layers))).round().astype(int))
    return [layers[index] for index in indices]


def _fault(layers, change):
    """What is wrong with the activations of a network, or None."""
    deviations = [layer.deviation for layer in layers]
    if not all(map(math.isfinite, deviations)):
        return "explode: they are not finite"
    silent = next((layer for layer in layers if layer.deviation == 0 or layer.zeros > MOST_ZEROS), None)
    if silent is not None:
        return f"are dead at {silent.layer}: {silent.zeros:.0%} are 0, deviation {silent.deviation:.1e}"
    if deviations[-1] * change < deviations[0]:
        return f"vanish with depth: deviation {deviations[0]:.1e} at first, {deviations[-1]:.1e} at last"
    if deviations[-1] > change * deviations[0]:
        return f"explode with depth: deviation {deviations[0]:.1e} at first, {deviations[-1]:.1e} at last"
    saturated = max(layers, key=lambda layer: layer.saturated)
    if saturated.saturated > MOST_SATURATED:
        return f"saturate: {saturated.saturated:.0%} of {saturated.layer} stand at the ends of their activation"
    return None


def _sentence(statistics, faults, healthy):
    if OWN not in faults:
        return f"{len(healthy)} of {len(faults)} keep their activations with depth: {'; '.join(healthy) or 'none'}."
    first, last = statistics[OWN][0].deviation, statistics[OWN][-1].deviation
    if faults[OWN] is None:
        depth = len(statistics[OWN])
        return f"Activations keep their scale: deviation {first:.2g} at first, {last:.2g} at the last of {depth}."
    others = [name for name in ("he", "xavier", *healthy) if name in healthy]
    advice = f"The same network is healthy with {others[0]!r} weights" if others else "Put a norm behind each layer"
    return f"Activations {faults[OWN]}; expected about the same at every depth. {advice}."
