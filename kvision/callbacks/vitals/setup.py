"""What a model and its optimizer do already, and what the model expects: advice neither repeats nor contradicts it."""

import collections
import contextlib
import dataclasses

import keras
import numpy as np

from kvision._keras import inbound_nodes, layers_of, producer
from kvision.layers import PCA, MeanImage, ZCAWhitening
from kvision.relus import relu_attribute
from kvision.task_model import TaskModel
from kvision.trackers.clock import unwrapped_optimizer

CLIPPING = ("clipnorm", "global_clipnorm", "clipvalue")
NORMS = ("BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization")
PREPARING = (keras.layers.Rescaling, keras.layers.Normalization, MeanImage, PCA, ZCAWhitening)
RAW = 200.0  # images that reach it were not prepared, whatever the network: a mean of colours alone leaves less


@dataclasses.dataclass(frozen=True)
class Setup:
    """What needs no advice any more.

    Args:
        clips: Whether the optimizer clips gradients.
        normalizes: Whether layers normalize the activations.
        rectifies: Whether activations are ReLUs.
        skips: Whether there are skip connections.
        largest_input: The magnitude from which images were not prepared for the network; None where any are right.
        preparation: How they are prepared, in words.
        apart: Paths of the ReLUs that stand behind several layers, or share their path with another: each place has
            units of its own. The places of any other share the weights before it, as a detector's head does on all
            levels.
    """

    clips: bool = False
    normalizes: bool = False
    rectifies: bool = False
    skips: bool = False
    largest_input: float | None = None
    preparation: str = ""
    apart: frozenset = frozenset()


def setup_of(model):
    """The `Setup` of a compiled model."""
    optimizer = unwrapped_optimizer(model)
    layers = layers_of(model, include_self=True)
    bound, preparation = _expected(model, layers)
    relus = [layer for layer in layers if relu_attribute(layer)]
    paths = collections.Counter(layer.path or layer.name for layer in relus)
    return Setup(
        clips=any(
            getattr(part, name, None) for part in getattr(optimizer, "optimizers", [optimizer]) for name in CLIPPING
        ),
        normalizes=any(cls.__name__ in NORMS for layer in layers for cls in type(layer).__mro__),
        rectifies=bool(relus),
        skips=any(isinstance(layer, keras.layers.Add) for layer in layers),
        largest_input=bound,
        preparation=preparation,
        apart=frozenset(
            path for layer in relus if paths[path := layer.path or layer.name] > 1 or _is_behind_several(layer)
        ),
    )


def _is_behind_several(layer):
    sources = {id(producer(tensor)) for node in inbound_nodes(layer) for tensor in node.input_tensors}
    return not layer.weights and len(sources) > 1


def _expected(model, layers):
    if isinstance(model, TaskModel) or any(isinstance(layer, PREPARING) for layer in layers):
        return None, ""  # images of 0...255 are prepared inside
    for layer in layers:
        preprocessing = getattr(layer, "preprocessing", None)
        if callable(preprocessing):
            with contextlib.suppress(Exception):  # a function of the user's own, of images that we do not know
                ends = preprocessing(np.array([[[[0.0] * 3, [255.0] * 3]]], "float32"))
                largest = float(np.abs(keras.ops.convert_to_numpy(ends)).max())
                return 3 * largest, f"by {layer.name}.preprocessing, to at most {largest:.2g}"
            return RAW, f"by {layer.name}.preprocessing"
    return RAW, "to about -1...1, such as by keras.layers.Rescaling(1 / 127.5, -1)"
