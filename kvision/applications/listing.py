"""What networks there are."""

import dataclasses
import fnmatch
import inspect
import math
import sys

from kvision._keras import shapes_only
from kvision.errors import choose
from kvision.weights import published_names


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """One network: `kvision.applications.<name>()` builds it.

    Args:
        name: Of the builder.
        task: `"classification"`, `"detection"` or `"segmentation"`.
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


def list_models(pattern="*", task=None):
    """The networks whose name matches a pattern, with task, parameters and the source of their proof.

    Each is built without memory, which takes up to a second for the deepest ones.

    Args:
        pattern: As in a shell, in capitals or not: `"resnet*"`, `"*50*"`.
        task: `"classification"`, `"detection"` or `"segmentation"`; None lists all.

    Returns:
        A list of `ModelRow`, by name.

    Raises:
        ValueError: on an unknown task; lists the nearest.

    >>> [row.name for row in list_models("vgg1?", task="classification")]
    ['VGG11', 'VGG13', 'VGG16', 'VGG19']
    """
    applications = sys.modules[__package__]
    public = [getattr(applications, name) for name in sorted(vars(applications))]
    builders = [builder for builder in public if _is_network(builder)]
    if task is not None:
        by_task = {}
        for builder in builders:
            by_task.setdefault(_task(builder), []).append(builder)
        builders = choose("task", by_task, task)
    return [_row(builder) for builder in builders if fnmatch.fnmatch(builder.__name__.lower(), pattern.lower())]


def _task(builder):
    """The subpackage a builder's file stands in."""
    return builder.__module__.removeprefix(f"{__package__}.").split(".")[0]


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
    with shapes_only():
        model = builder()
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return ModelRow(
        name=builder.__name__,
        task=_task(builder),
        parameters=parameters,
        paper=module.__doc__.split("\n", 1)[0].rstrip(),
        proof=module.PROOF,
        weights=published_names(model),
    )
