"""The cost of a network, layer by layer: parameters, multiply-adds, receptive field, memory of its activations."""

import dataclasses
import math

import keras

from kvision._keras import graph_of, inbound_nodes, layers_of, producer
from kvision.layers import BilinearUpsampling
from kvision.multiply_adds import multiply_adds


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
    fields = {}
    rows = []
    for operation in graph.operations:
        if isinstance(operation, keras.layers.InputLayer):
            fields[operation] = ((1, 1), (1, 1))
            continue
        parents = [fields[parent] for parent in _parents(operation) if parent in fields]
        fields[operation] = _widen(operation, parents)
        outputs = keras.tree.flatten(operation.output)
        inner = layers_of(operation, include_self=True) if isinstance(operation, keras.Layer) else ()
        rows.append(
            LayerCost(
                name=operation.name,
                kind=type(operation).__name__,
                output_shape=tuple(outputs[0].shape[1:]),
                parameters=sum(math.prod(w.shape) for w in getattr(operation, "weights", ()) if w.dtype != "uint32"),
                multiply_adds=sum(products.get(id(layer), 0) for layer in inner),
                receptive_field=fields[operation] and fields[operation][0],
                activation_bytes=sum(math.prod(t.shape[1:]) * _item_bytes(t.dtype) for t in outputs),
            )
        )
    return Description(model.name, tuple(rows))


def _parents(operation):
    return [producer(tensor) for node in inbound_nodes(operation) for tensor in node.input_tensors]


def _widen(operation, parents):
    """Receptive field and stride behind `operation`, each (rows, columns); None when it sees the whole input."""
    if any(parent is None for parent in parents) or not parents:
        return None
    if isinstance(operation, BilinearUpsampling):  # an output lies between two cells
        ((field, stride),) = parents
        return tuple(map(sum, zip(field, stride, strict=True))), tuple(max(1, s // operation.factor) for s in stride)
    if hasattr(operation, "multiply_adds"):
        return None
    if isinstance(operation, keras.layers.Dense | keras.layers.Flatten) or "Global" in type(operation).__name__:
        return None
    field = tuple(max(sizes) for sizes in zip(*(parent[0] for parent in parents), strict=True))
    stride = tuple(max(sizes) for sizes in zip(*(parent[1] for parent in parents), strict=True))
    window = getattr(operation, "kernel_size", None) or getattr(operation, "pool_size", None)
    if not window:
        return field, stride
    window, dilation, step = map(
        _pair, (window, getattr(operation, "dilation_rate", 1), getattr(operation, "strides", 1))
    )
    return (
        tuple(f + (w - 1) * d * s for f, w, d, s in zip(field, window, dilation, stride, strict=True)),
        tuple(s * t for s, t in zip(stride, step, strict=True)),
    )


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _item_bytes(dtype):
    return {"float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "uint8": 1, "bool": 1}.get(dtype, 4)


def _bytes(count):
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
