"""Transfer learning: which layers to freeze, by the size of the data set and its similarity to the first task's.

CS231n, "Transfer Learning" (Stanford); Yosinski et al. 2014, "How transferable are features in deep neural networks?".
"""

import dataclasses

import keras

from kvision._keras import graph_of, inbound_nodes, print_message, producer
from kvision.errors import choose


def freeze(model, up_to):
    """Freeze a layer and everything it depends on; the layers behind it keep training.

    A frozen batch normalisation keeps its moving statistics too. Compile afterwards: a compiled model goes on with the
    weights it was compiled with.

    Args:
        model: A functional or sequential `keras.Model`, or a `TaskModel` such as a detector, whose trunk is meant.
        up_to: Name of the last layer to freeze, in models inside the model too, such as the backbone of a detector; or
            the name of such a model, all of which is frozen. Its ancestors in the graph are frozen with it, branches
            beside it are not.

    Returns:
        The model.

    Raises:
        ValueError: if there is no such layer (lists the nearest), two models inside have one, or the model is not
            functional.

    >>> freeze(kvision.applications.ResNet18(), up_to="layer2.1.relu2").get_layer("conv1").trainable
    False
    """
    graph = graph_of(getattr(model, "trunk", None) or model)
    if not hasattr(graph, "operations"):
        raise ValueError(f"freeze needs a functional or sequential model, got {type(model).__name__}.")
    ways = {}
    for way in _ways(graph):
        ways.setdefault(way[-1].name, []).append(way)
    found = choose(f"layer of {model.name}", ways, up_to)
    found = [way for way in found if len(way) == min(map(len, found))]  # the outermost
    if len(found) > 1:
        around = " and ".join(repr(way[-2].name) if len(way) > 1 else repr(model.name) for way in found)
        raise ValueError(
            f"freeze: {up_to!r} is the name of {len(found)} layers of {model.name}, in {around}. Freeze the model "
            "inside that you mean: freeze(model.get_layer(...), up_to=...)."
        )
    (*models, last) = found[0]
    if isinstance(last, keras.Layer):
        last.trainable = False
    for outer, operation in zip((graph, *map(graph_of, models)), found[0], strict=True):
        _freeze_ancestors(outer, operation)
    if model.compiled:
        print_message(
            f"{model.name}: frozen up to {up_to!r}; compile the model again so that the optimizer leaves it alone."
        )
    return model


def _ways(graph):
    """Every operation of a graph and of the models inside it, with those models around it, outermost first."""
    for operation in graph.operations:
        yield (operation,)
        inside = graph_of(operation)
        if hasattr(inside, "operations"):
            yield from ((operation, *way) for way in _ways(inside))


def _freeze_ancestors(graph, operation):
    """Freeze what an operation of a graph depends on there, but not itself."""
    inside, seen, pending = set(graph.operations), {operation}, [operation]
    while pending:
        tensors = [tensor for node in inbound_nodes(pending.pop()) for tensor in node.input_tensors]
        for ancestor in map(producer, tensors):
            if ancestor in inside and ancestor not in seen:
                seen.add(ancestor)
                pending.append(ancestor)
                if isinstance(ancestor, keras.Layer):
                    ancestor.trainable = False


@dataclasses.dataclass(frozen=True)
class TransferRecipe:
    """What to do with a pretrained network on a new task.

    Args:
        train: `"classifier"`, `"classifier on earlier features"`, `"last stages"` or `"all"`.
        learning_rate_factor: Against the rate of the first training.
        reason: One sentence.
    """

    train: str
    learning_rate_factor: float
    reason: str


def transfer_recipe(images_per_class, similar):
    """The recipe of the lecture, by data size and similarity.

    Args:
        images_per_class: Labelled images per class of the new task.
        similar: Whether the new images resemble those of the first task (photographs against photographs).

    Returns:
        A `TransferRecipe`.

    Raises:
        ValueError: if `images_per_class` is less than 1.

    >>> transfer_recipe(20, similar=True).train
    'classifier'
    """
    if images_per_class < 1:
        raise ValueError(f"images_per_class must be at least 1, got {images_per_class}.")
    if images_per_class < 100:
        if similar:
            return TransferRecipe(
                "classifier",
                1.0,
                "Little data overfits a whole network; its last features fit a similar task as they are.",
            )
        return TransferRecipe(
            "classifier on earlier features",
            1.0,
            "Little data, another kind of image: the last features are too specialised; take them one stage earlier.",
        )
    if images_per_class < 1000 and similar:
        return TransferRecipe(
            "last stages",
            0.1,
            "Enough data to train the last stages, at a tenth of the first rate; the earlier ones fit.",
        )
    return TransferRecipe(
        "all",
        0.1 if similar else 0.3,
        "Much data: fine-tune everything; the pretrained weights are a good start even for other kinds of images.",
    )
