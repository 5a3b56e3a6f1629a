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
        model: A functional or sequential `keras.Model`.
        up_to: Name of the last layer to freeze. Its ancestors in the graph are frozen with it, branches beside it are
            not.

    Returns:
        The model.

    Raises:
        ValueError: if there is no such layer (lists the nearest) or the model is not functional.

    >>> freeze(kvision.applications.ResNet18(), up_to="layer2.1.relu2").get_layer("conv1").trainable
    False
    """
    graph = graph_of(model)
    if not hasattr(graph, "operations"):
        raise ValueError(f"freeze needs a functional or sequential model, got {type(model).__name__}.")
    layers = {operation.name: operation for operation in graph.operations}
    pending, frozen = [choose(f"layer of {model.name}", layers, up_to)], set()
    inside = set(graph.operations)
    while pending:
        operation = pending.pop()
        if operation in frozen or operation not in inside:
            continue
        frozen.add(operation)
        if isinstance(operation, keras.Layer):
            operation.trainable = False
        tensors = [tensor for node in inbound_nodes(operation) for tensor in node.input_tensors]
        pending += map(producer, tensors)
    if model.compiled:
        print_message(
            f"{model.name}: frozen up to {up_to!r}; compile the model again so that the optimizer leaves it alone."
        )
    return model


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
