"""All sanity checks before a training, in one call."""

import dataclasses

from kvision._keras import print_message
from kvision.task_model import TaskModel
from kvision.training.batches import first_batch
from kvision.training.gradients import check_gradients
from kvision.training.initial_loss import check_initial_loss
from kvision.training.initialisations import compare_initialisations
from kvision.training.learning_rate import check_steps, find_learning_rate
from kvision.training.losses import prepare
from kvision.training.overfit import overfit_one_batch
from kvision.training.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Preflight:
    """What `preflight` found. `str()` of it is a table; its truth is `ok`.

    Args:
        verdicts: `{name of the check: its verdict}`, in the order they ran.
    """

    verdicts: dict

    @property
    def ok(self):
        """Whether every check passed."""
        return all(self.verdicts.values())

    def __bool__(self):
        return self.ok

    def __str__(self):
        return "\n".join(_line(name, verdict) for name, verdict in self.verdicts.items())


def preflight(model, data, *, steps=100, seed=0, verbose=1):
    """Run every sanity check on an untrained model, print a verdict each, and leave the model bit for bit as it was.

    In this order: `check_initial_loss`, `compare_initialisations` (of the model's own weights), `check_gradients` (one
    direction of 24 weights), `overfit_one_batch`, `find_learning_rate`. Each may be run alone, with more options. A
    ResNet-18 at 64 pixels takes about 70 s of processor time, most of it in training steps. A check that the model does
    not let run has failed, for the reason it gives, and the others go on.

    Args:
        model: A compiled `keras.Model` before training, a classifier, a detector or any other.
        data: What `fit` takes: a data set of batches, or arrays `(x, y)`.
        steps: Of the range test; three times as many at most for learning one batch by heart.
        seed: Of directions and initial weights.
        verbose: 0 prints nothing, 1 a verdict each, 2 the progress of each check too.

    Returns:
        A `Preflight`.

    Raises:
        ValueError: on a model that is not compiled, data without targets, that are not finite or that can be read only
            once, labels that no output is for, and fewer than 20 steps.

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(4, "softmax")])
    >>> model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    >>> preflight(model, (x, np.abs(x[:, :4]).argmax(axis=1)), verbose=0).ok
    True
    """
    progress = int(verbose > 1)
    check_steps(steps)
    batch = first_batch(data, 32 if isinstance(data, tuple | list) else None)
    prepare(model, batch)
    is_task = isinstance(model, TaskModel)
    few = tuple(part for part in batch if part is not None)
    checks = {
        "initial loss": lambda: check_initial_loss(model, few),
        "initialisation": lambda: compare_initialisations(model, few, schemes=("xavier", "he"), seed=seed),
        "gradients": lambda: check_gradients(
            model, few, samples=2 if is_task else 4, coordinates=0, weights=24, seed=seed, verbose=progress
        ),
        "overfit": lambda: overfit_one_batch(
            model, few, samples=2 if is_task else 8, steps=3 * steps, verbose=progress
        ),
        "learning rate": lambda: find_learning_rate(model, data, steps=steps, verbose=progress),
    }
    verdicts = {}
    for name, check in checks.items():
        try:
            verdicts[name] = check()
        except ValueError as error:  # such as of a model without a trainable weight
            verdicts[name] = Verdict(False, " ".join(str(error).split()))
        if verbose:
            print_message(_line(name, verdicts[name]))
    return Preflight(verdicts)


def _line(name, verdict):
    return f"{name:16}{verdict}"
