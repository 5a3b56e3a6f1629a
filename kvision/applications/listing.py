"""What networks there are."""

import dataclasses
import fnmatch
import inspect
import math
import sys

import keras

from kvision.detection.detector import Detector
from kvision.weights import published_names


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """One network: `kvision.applications.<name>()` builds it.

    Args:
        name: Of the builder.
        task: `"classification"` or `"detection"`.
        parameters: Trainable ones, at the builder's own number of classes.
        paper: First line of its file: the paper.
        proof: What its outputs are compared with in the tests.
        weights: Names of published weights.
    """

    name: str
    task: str
    parameters: int
    paper: str
    proof: str
    weights: tuple


def list_models(pattern="*"):
    """The networks whose name matches a pattern, with task, parameters and the source of their proof.

    Each is built without memory, which takes up to a second for the deepest ones.

    Args:
        pattern: As in a shell, in capitals or not: `"resnet*"`, `"*50*"`.

    Returns:
        A list of `ModelRow`, by name.

    >>> [row.name for row in list_models("vgg1?")]
    ['VGG11', 'VGG13', 'VGG16', 'VGG19']
    """
    rooms = sys.modules[__package__]
    names = [name for name in sorted(vars(rooms)) if fnmatch.fnmatch(name.lower(), pattern.lower())]
    return [_row(builder) for name in names if _is_network(builder := getattr(rooms, name))]


def _is_network(builder):
    """A public function of an architecture's file that builds a network without being told more."""
    if not inspect.isfunction(builder) or not hasattr(sys.modules[builder.__module__], "PROOF"):
        return False
    if not builder.__name__[0].isupper():
        return False
    given = inspect.signature(builder).parameters.values()
    return all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in given)


def _row(builder):
    module = sys.modules[builder.__module__]
    with keras.StatelessScope(initialize_variables=False):
        model = builder()
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return ModelRow(
        name=builder.__name__,
        task="detection" if isinstance(model, Detector) else "classification",
        parameters=parameters,
        paper=module.__doc__.split("\n", 1)[0].rstrip(),
        proof=module.PROOF,
        weights=published_names(model),
    )
