"""The learning-rate range test: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3."""

import dataclasses
import math

import numpy as np
from keras import ops

from kvision._keras import learning_rate_schedule, print_message
from kvision.training.batches import batches, first_batch, position_kept
from kvision.training.losses import prepare, tensors
from kvision.training.untouched import copy_optimizer, untouched
from kvision.training.verdict import Verdict

SMOOTHING = 0.9  # of the losses, for the eye and for the stop; the losses that are returned are as they were
MARGIN = 10.0  # how far below the rate of the lowest loss the suggestion lies
FELL = 0.98  # of the first losses: what the lowest must reach


@dataclasses.dataclass(frozen=True)
class LearningRateRange(Verdict):
    """The result of `find_learning_rate`.

    Args:
        rates: The learning rate of each step, rising.
        losses: Of each step before its update, not averaged.
        suggestion: A tenth of the rate at which the smoothed loss was lowest, or None where it never fell.
        diverged: The rate at which the loss went beyond all bounds, or None.
        compiled: The rate the model was compiled with, or None if it has a schedule.
    """

    rates: tuple
    losses: tuple
    suggestion: float | None
    diverged: float | None
    compiled: float | None

    def plot(self):
        """The loss by learning rate as a `matplotlib.figure.Figure`; write it with `figure.savefig(path)`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.semilogx(self.rates, self.losses, color="0.75", linewidth=1, label="loss of the batch")
        axes.semilogx(self.rates, smoothed(self.losses), label="smoothed")
        for rate, label, style in ((self.suggestion, "suggestion", "--"), (self.compiled, "compiled", ":")):
            if rate:
                axes.axvline(rate, linestyle=style, color="0.3", label=f"{label}: {rate:.2g}")
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        if finite:
            axes.set_ylim(min(finite) - 0.05 * abs(min(finite)), 2 * max(finite[: max(1, len(finite) // 3)]))
        axes.set(xlabel="learning rate", ylabel="loss", title="Range test")
        axes.legend(frameon=False, fontsize="small")
        return figure


def find_learning_rate(model, data, *, low=1e-6, high=10.0, steps=100, batch_size=32, divergence=4.0, verbose=0):
    """Raise the learning rate from step to step, watch the loss of each batch, and put everything back bit for bit.

    The suggestion is a tenth of the rate at which the smoothed loss was lowest, a rate for the constant part of a
    schedule or its peak. The test takes a fresh copy of the model's optimizer, whose schedule, if it has one, is not
    used; regularization and dropout are as in the training.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3.

    Args:
        model: A compiled `keras.Model`; weights, seeds, metrics, optimizer and compiled functions stay as they are.
        data: What `fit` takes: a data set of batches, or arrays `(x, y)` or `(x, y, sample_weight)`. A data set of
            `kvision.data` begins its next epoch where it would have; a `tf.data` shuffle goes on with its own numbers.
        low, high: First and last rate.
        steps: Steps from the one to the other, at most: the test stops when the smoothed loss diverges.
        batch_size: Rows of a batch that arrays are cut into; a data set has batches of its own.
        divergence: Multiple of the lowest smoothed loss at which the test stops, above 1.
        verbose: 1 prints rate and loss ten times.

    Returns:
        A `LearningRateRange`. It is not `ok` if the loss never fell, or if the compiled rate lies where it diverged.

    Raises:
        ValueError: on a model that is not compiled, an optimizer without a learning rate, numbers out of range, or data
            that can be read only once.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(keras.optimizers.SGD(0.05), "mse")
    >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    >>> found = find_learning_rate(model, (x, x.sum(axis=1, keepdims=True)))
    >>> found.ok, 1e-3 < found.suggestion < 1
    (True, True)
    """
    _check_numbers(low, high, steps, batch_size, divergence)
    arrays = isinstance(data, tuple | list)
    prepare(model, first_batch(data, batch_size if arrays else None))
    optimizer = model.optimizer
    if not hasattr(optimizer, "learning_rate"):
        raise ValueError(f"find_learning_rate needs an optimizer with a learning_rate: got {type(optimizer).__name__}.")
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = None if learning_rate_schedule(inner) else _compiled_rate(optimizer)
    rates, losses, lowest = [], [], math.inf
    diverged = None
    with position_kept(data), untouched(model, copy_optimizer(optimizer, low)):
        stream = batches(data, batch_size)
        for step, now in enumerate(np.geomspace(low, high, steps).tolist()):
            model.optimizer.learning_rate = now
            loss = float(model.train_on_batch(*map(tensors, next(stream)), return_dict=True)["loss"])
            rates.append(now)
            losses.append(loss)
            level = smoothed(losses)[-1]
            if verbose and step % max(1, steps // 10) == 0:
                print_message(f"find_learning_rate: step {step} of {steps}, rate {now:.2e}, loss {loss:.4g}")
            if not math.isfinite(level) or (step > 10 and level > lowest + (divergence - 1) * abs(lowest)):
                diverged = now
                break
            lowest = min(lowest, level)
        stream.close()
    suggestion, lowest_at = _suggest(rates, losses)
    ok, sentence = _judge(rates, losses, suggestion, lowest_at, diverged, rate)
    return LearningRateRange(ok, sentence, tuple(rates), tuple(losses), suggestion, diverged, rate)


def _check_numbers(low, high, steps, batch_size, divergence):
    if not 0 < low < high < math.inf:
        raise ValueError(f"The range test needs 0 < low < high: got low={low!r}, high={high!r}.")
    check_steps(steps)
    if batch_size < 1 or not divergence > 1:
        raise ValueError(
            "The range test needs a batch_size of at least 1 and divergence above 1: got "
            f"{batch_size} and {divergence}."
        )


def check_steps(steps):
    """Raise on so few that the test would tell nothing."""
    if steps < 20:
        raise ValueError(f"The range test needs steps of at least 20: got {steps}. Give more steps.")


def _compiled_rate(optimizer):
    return float(ops.convert_to_numpy(optimizer.learning_rate))


def smoothed(losses):
    """The exponential mean of losses, without the bias of its beginning."""
    mean, out = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        out.append(mean / (1 - SMOOTHING**step))
    return out


def _suggest(rates, losses):
    """A tenth of the rate at the lowest smoothed loss, and that rate; (None, None) where the loss never fell."""
    levels = [level for level in smoothed(losses) if math.isfinite(level)]
    if len(levels) < 2:
        return None, None
    first = float(np.mean(levels[: max(1, len(levels) // 10)]))
    best = int(np.argmin(levels))
    if levels[best] > first - (1 - FELL) * abs(first):
        return None, None
    return rates[best] / MARGIN, rates[best]


def _judge(rates, losses, suggestion, lowest_at, diverged, compiled):
    tested = f"from {rates[0]:.1e} to {rates[-1]:.1e} in {len(rates)} steps"
    if suggestion is None:
        return False, (
            f"The loss did not fall at any rate {tested}: it began at {losses[0]:.3g} and ended at {losses[-1]:.3g}. "
            "Nothing is learned: run check_initial_loss, check_gradients and overfit_one_batch, or lower `low` if it "
            "diverged at once."
        )
    advice = f"Suggested learning rate {suggestion:.1e}; the loss was lowest at {lowest_at:.1e}"
    advice += f" and diverged at {diverged:.1e}" if diverged else f", and it never diverged up to {rates[-1]:.1e}"
    if compiled is None:
        return True, f"{advice}. The optimizer has a schedule: let its highest rate be about this."
    if compiled > lowest_at and (diverged is None or compiled >= diverged / 2):
        return False, f"{advice}; the model was compiled with {compiled:.1e}, too high. Compile it with the suggestion."
    return True, f"{advice}; compiled with {compiled:.1e}."
