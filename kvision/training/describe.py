"""The cost of a network, layer by layer: parameters, multiply-adds, receptive field, memory of its activations."""

import dataclasses
import math

import keras

from kvision._keras import graph_of, layers_of
from kvision.multiply_adds import multiply_adds
from kvision.receptive_field import receptive_fields


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One row of a `Description`, for one image.

    Args:
        name, kind: Name and class of the layer.
        output_shape: Without the batch.
        parameters: Trainable and not.
        multiply_adds: Of convolutions, dense layers and attention; the rest (norms, activations, pooling) is not
            counted, as in published figures.
        receptive_field: (rows, columns) of input pixels that one output position sees, or None for all of them.
        activation_bytes: Of the output.
    """

    name: str
    kind: str
    output_shape: tuple
    parameters: int
    multiply_adds: int
    receptive_field: tuple | None
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class Description:
    """The layers of a network and their sums. `str()` of it is a table."""

    name: str
    layers: tuple

    @property
    def parameters(self):
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self):
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def activation_bytes(self):
        return sum(layer.activation_bytes for layer in self.layers)

    def __str__(self):
        head = ("layer", "kind", "output", "parameters", "multiply-adds", "receptive field", "memory")
        rows = [
            (
                layer.name,
                layer.kind,
                " × ".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.multiply_adds:,}",
                " × ".join(map(str, layer.receptive_field)) if layer.receptive_field else "all",
                _bytes(layer.activation_bytes),
            )
            for layer in self.layers
        ]
        total = (
            self.name,
            "",
            "",
            f"{self.parameters:,}",
            f"{self.multiply_adds:,}",
            "",
            _bytes(self.activation_bytes),
        )
        widths = [max(map(len, column)) for column in zip(head, *rows, total, strict=True)]

        def line(cells):
            return "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()

        return "\n".join([line(head), *map(line, rows), line(total)])


def describe(model):
    """The cost of each layer of a network for one image.

    A layer of several parts is one row. A layer that mixes positions by other means than a window (attention) counts
    its own products in a method `multiply_adds(input_shape)`, and sees the whole input. Gates by a global average
    (squeeze-excite) do not widen the receptive field here.

    Args:
        model: A functional or sequential `keras.Model` with one input of static size.

    Returns:
        A `Description`: `.layers`, `.parameters`, `.multiply_adds`, `.activation_bytes`, and a table by `print`.

    Raises:
        ValueError: if the model is not functional or its input has no static size.

    >>> describe(kvision.applications.ResNet50()).multiply_adds
    4089184256
    """
    graph = graph_of(model)
    shape = graph.inputs[0].shape if len(getattr(graph, "inputs", None) or ()) == 1 else (None, None)
    if not hasattr(graph, "operations") or None in shape[1:]:
        raise ValueError(
            f"describe needs a functional model with one input of static size; got {type(model).__name__} with input "
            f"{getattr(model, 'input_shape', None)}. Build it with keras.Input((height, width, channels))."
        )
    products = multiply_adds(graph)
    fields = receptive_fields(graph)
    rows = []
    for operation in graph.operations:
        if isinstance(operation, keras.layers.InputLayer):
            continue
        field = fields[operation.name][-1]  # of a shared layer, what its last call sees
        outputs = keras.tree.flatten(operation.output)
        inner = layers_of(operation, include_self=True) if isinstance(operation, keras.Layer) else ()
        rows.append(
            LayerCost(
                name=operation.name,
                kind=type(operation).__name__,
                output_shape=tuple(outputs[0].shape[1:]),
                parameters=sum(math.prod(w.shape) for w in getattr(operation, "weights", ()) if w.dtype != "uint32"),
                multiply_adds=sum(products.get(id(layer), 0) for layer in inner),
                receptive_field=field and field.size,
                activation_bytes=sum(math.prod(t.shape[1:]) * _item_bytes(t.dtype) for t in outputs),
            )
        )
    return Description(model.name, tuple(rows))


def _item_bytes(dtype):
    return {"float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "uint8": 1, "bool": 1}.get(dtype, 4)


def _bytes(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
