"""Which pixels of the input each position of a map sees.

The arithmetic is that of Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks",
sections 2 and 3: size and stride by recurrence. Beside it the pixels of each position are followed through the graph
exactly, with the padding of each layer and the border of the image.
"""

import dataclasses
import functools
import typing

import keras
import numpy as np

from kvision._keras import calls_of, graph_of, layers_of
from kvision.layers import BilinearUpsampling, LocalContrastNormalization, LocallyConnected2D

FAR = 2**30  # begins and ends, turned round, the span of a position that sees padding alone


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """What the positions of a map see of the image.

    Args:
        size: (rows, columns) of pixels that one position sees in an image that is large enough.
        stride: (rows, columns) of pixels from one position to the next.
        rows: [height of the map, 2]: the first row of pixels that a row of the map sees, and the one behind the last,
            cut at the border of the image; None where it cannot be told: behind a layer that moves pixels in a way of
            its own, and in an image of unknown size.
        columns: [width of the map, 2], likewise.
    """

    size: tuple
    stride: tuple
    rows: np.ndarray | None
    columns: np.ndarray | None

    def boxes_xyxy(self, rows, columns):
        """The pixels that positions see: [n, 4] left, top, right, bottom, the last two exclusive; cut at the border.

        Args:
            rows, columns: [n] positions in the map.

        Raises:
            ValueError: where they cannot be told.
        """
        if self.rows is None or self.columns is None:
            raise ValueError("The pixels of these positions cannot be told: expected a field with rows and columns.")
        (tops, bottoms), (lefts, rights) = self.rows[np.asarray(rows)].T, self.columns[np.asarray(columns)].T
        return np.stack([lefts, tops, rights, bottoms], axis=-1)


def receptive_fields(model, image_size=None):
    """What each layer of a model sees, at any depth.

    A global pooling, a dense layer behind maps and attention see the whole input. What has statistics of a whole map
    inside (group norm, gates by a global average) is not counted as widening.

    Args:
        model: A functional or sequential `keras.Model` with one input of images; nested ones are followed.
        image_size: (height, width) where the input leaves it open; None: that of the input.

    Returns:
        `{path: [field of each call]}`; a path is the names from the outside inwards joined by `/`, a field a
        `ReceptiveField`, or None for the whole input. Layers inside a composite layer are not there. Empty for a model
        that is not functional.

    >>> model = keras.Sequential([keras.Input((9, 9, 1)), keras.layers.Conv2D(2, 3, strides=2, name="conv")])
    >>> (field,) = receptive_fields(model)["conv"]
    >>> field.size, field.boxes_xyxy([0, 1], [0, 3]).tolist()
    ((3, 3), [[0, 0, 3, 3], [6, 2, 9, 5]])
    """
    graph = graph_of(model)
    inputs = getattr(graph, "inputs", None) or ()
    if not hasattr(graph, "operations") or len(inputs) != 1:
        return {}
    static = tuple(inputs[0].shape[1:3])
    sizes = static if image_size is None else tuple(image_size)
    sizes = sizes if len(inputs[0].shape) == 4 and None not in sizes else (None, None)
    pixels = [None if n is None else np.stack([np.arange(n), np.arange(1, n + 1)], axis=1) for n in sizes]
    found = {}
    _walk(graph, [tuple(_Axis(1, 1, spans) for spans in pixels)], "", found, sizes == static)
    return {
        path: [field and _public(field) for field in fields]
        for path, fields in found.items()  # in the order in which they are run
    }


class _Axis(typing.NamedTuple):
    """What a map sees along one axis: pixels of one position, pixels between two, and the span of each or None."""

    size: int
    stride: int
    spans: np.ndarray | None


def _public(field):
    rows, columns = (
        None if axis.spans is None else np.where(axis.spans[:, :1] < axis.spans[:, 1:], axis.spans, 0) for axis in field
    )
    return ReceptiveField(tuple(a.size for a in field), tuple(a.stride for a in field), rows, columns)


def _walk(graph, fields, prefix, found, static):
    """The fields of the outputs of a graph, given those of its inputs; what is on the way goes into `found`."""
    known = dict(zip(map(id, graph.inputs), fields, strict=True))
    for operation, inputs, outputs in calls_of(graph):
        given = [known[id(tensor)] for tensor in inputs if id(tensor) in known]
        inner = graph_of(operation)
        if isinstance(operation, keras.Model) and hasattr(inner, "operations") and len(inner.inputs) == len(given):
            results = _walk(inner, given, f"{prefix}{operation.name}/", found, static)
        else:
            results = [_after(operation, given, tuple(outputs[0].shape), static)] * len(outputs)
        found.setdefault(f"{prefix}{operation.name}", []).append(results[0])
        known.update(zip(map(id, outputs), results, strict=True))
    return [known[id(tensor)] for tensor in graph.outputs]


# Layers


def _after(operation, fields, shape, static):
    """The field behind `operation`, a pair of axes; None where it sees the whole input.

    Args:
        operation: It.
        fields: Of its inputs.
        shape: Of its output, the batch included.
        static: Whether images have the size that the shapes were made for.
    """
    if type(operation).__name__ == "Multiply":  # a gate by a global average
        fields = [field for field in fields if field is not None]
    if not fields or any(field is None for field in fields) or _sees_all(operation, shape):
        return None
    sizes = shape[1:3] if static and len(shape) > 3 else (None, None)
    merged = [functools.reduce(_merged, axes) for axes in zip(*fields, strict=True)]
    axes = tuple(_moved(axis, rule, size) for axis, rule, size in zip(merged, _rules(operation), sizes, strict=True))
    return axes if len(shape) > 3 else tuple(axis._replace(spans=None) for axis in axes)  # of tokens, in one row


def _sees_all(operation, shape):
    if isinstance(operation, keras.layers.Dense):
        return len(shape) < 4  # on a map it sees one position
    if isinstance(operation, BilinearUpsampling):
        return False
    kind = type(operation).__name__
    is_global = isinstance(operation, keras.layers.Flatten) or "Global" in kind or "Attention" in kind
    return is_global or hasattr(operation, "multiply_adds")


def _merged(one, other):
    """Of a sum or concatenation: what either sees."""
    spans = None
    if one.spans is not None and other.spans is not None and (len(one.spans) == len(other.spans)):
        starts, ends = np.minimum(one.spans, other.spans)[:, 0], np.maximum(one.spans, other.spans)[:, 1]
        spans = np.stack([starts, ends], axis=1)
    return _Axis(max(one.size, other.size), max(one.stride, other.stride), spans)


class _Rule(typing.NamedTuple):
    """How an operation moves along one axis.

    Args:
        more: Positions of its input that one of its outputs sees beyond the first.
        step: Positions of its input from one output to the next.
        parts: Outputs that one position of its input becomes.
        taps: `function(positions of the input)` → [outputs, taps], the positions that each output sees, some of them
            outside; None where it cannot be told.
    """

    more: int = 0
    step: int = 1
    parts: int = 1
    taps: typing.Callable | None = lambda n: np.arange(n)[:, None]


def _moved(axis, rule, size):
    spans = axis.spans if rule.taps is not None else None
    if spans is not None:
        taps = rule.taps(len(spans))
        is_inside = (taps >= 0) & (taps < len(spans))
        seen = spans[np.clip(taps, 0, len(spans) - 1)]
        starts = np.where(is_inside, seen[..., 0], FAR).min(axis=1)
        ends = np.where(is_inside, seen[..., 1], -FAR).max(axis=1)
        spans = np.stack([starts, ends], axis=1) if size in (None, len(starts)) else None
    stride = max(1, axis.stride * rule.step // rule.parts)
    return _Axis(axis.size + rule.more * axis.stride, stride, spans)


# What keeps the size of a map and yet moves pixels, or looks around each.
OTHERS = ("Flip", "Roll", "Rot90", "Permute", "Transpose", "SpatialTransformer", "Conv")


def _rules(operation):
    """A rule for the rows and one for the columns."""
    if isinstance(operation, BilinearUpsampling):
        factor, size = operation.factor, operation.kernel_size
        taps = _transposed(size, 1, factor, "valid") if operation.padding == "valid" else _bilinear(factor)
        return [_Rule(1, 1, factor, taps)] * 2
    if isinstance(operation, keras.layers.UpSampling2D):
        is_nearest = operation.interpolation == "nearest"
        kinds = {"nearest": _nearest, "bilinear": _bilinear}
        taps = kinds.get(operation.interpolation, lambda factor: None)
        return [_Rule(0 if is_nearest else 1, 1, factor, taps(factor)) for factor in operation.size]
    if isinstance(operation, keras.layers.ZeroPadding2D):
        return [
            _Rule(taps=lambda n, b=before, a=after: np.arange(-b, n + a)[:, None])
            for before, after in operation.padding
        ]
    if isinstance(operation, keras.layers.Cropping2D):
        return [
            _Rule(taps=lambda n, b=before, a=after: np.arange(b, n - a)[:, None])
            for before, after in operation.cropping
        ]
    window = getattr(operation, "kernel_size", None) or getattr(operation, "pool_size", None)
    if not window:
        return [_Rule(taps=None) if _is_unknown(operation) else _Rule()] * 2
    if not isinstance(window, int) and len(window) != 2:
        return [_Rule(taps=None)] * 2
    window, dilation, step = map(
        _pair, (window, getattr(operation, "dilation_rate", 1), getattr(operation, "strides", 1) or window)
    )
    axes = zip(window, dilation, step, _paddings(operation), strict=True)
    if "Transpose" in type(operation).__name__:
        has_more = getattr(operation, "output_padding", None) is not None
        return [
            _Rule((1 + (k - 1) * d - 1) // s, 1, s, None if has_more else _transposed(k, d, s, padding))
            for k, d, s, padding in axes
        ]
    return [_Rule((k - 1) * d, s, 1, _windowed(k, d, s, padding)) for k, d, s, padding in axes]


def _is_unknown(operation):
    """Whether an operation without a window of its own looks around, or moves pixels, in a way not known here."""
    if isinstance(operation, LocalContrastNormalization) or type(operation).__name__.startswith(OTHERS):
        return True
    inner = layers_of(operation) if isinstance(operation, keras.Layer) else ()
    windows = [getattr(each, "kernel_size", None) or getattr(each, "pool_size", None) or 1 for each in inner]
    return any(max(_pair(window)) > 1 for window in windows)


def _paddings(operation):
    """`"valid"`, `"same"`, `"end"` or the pixels before and after, along each axis."""
    if isinstance(operation, LocallyConnected2D):
        return ("same", "same")
    padding = getattr(operation, "pixels", None) or getattr(operation, "padding", "valid")
    return (padding, padding) if isinstance(padding, str) else _pair(padding)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


# Positions that each output sees along an axis of n


def _windowed(size, dilation, stride, padding):
    """A convolution or pooling."""
    reach = (size - 1) * dilation

    def taps(n):
        if padding == "same":
            outputs = -(-n // stride)
            before = max((outputs - 1) * stride + reach + 1 - n, 0) // 2
        elif padding == "end":
            before, outputs = 0, n
        else:
            before = 0 if padding == "valid" else padding
            outputs = (n + 2 * before - reach - 1) // stride + 1
        return np.arange(outputs)[:, None] * stride - before + np.arange(size) * dilation

    return taps


def _transposed(size, dilation, stride, padding):
    """A transposed convolution: position i reaches the outputs i·stride … i·stride + reach, less what is cut off."""
    reach = (size - 1) * dilation
    cut = max(reach + 1 - stride, 0) // 2 if padding == "same" else 0

    def taps(n):
        outputs = n * stride + (0 if padding == "same" else max(reach + 1 - stride, 0))
        inputs = (np.arange(outputs)[:, None] + cut) // stride - np.arange(reach // stride + 1)
        offset = np.arange(outputs)[:, None] + cut - inputs * stride
        return np.where((offset <= reach) & (offset % dilation == 0), inputs, -1)

    return taps


def _nearest(factor):
    return lambda n: np.arange(n * factor)[:, None] // factor


def _bilinear(factor):
    """Half-pixel centres; beyond the edge the last position counts again."""

    def taps(n):
        centers = (2 * np.arange(n * factor) + 1 - factor) / (2 * factor)
        return np.clip(np.stack([np.floor(centers), np.ceil(centers)], axis=1).astype(int), 0, n - 1)

    return taps
