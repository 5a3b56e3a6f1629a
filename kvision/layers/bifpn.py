"""BiFPN: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection" (2020), section 3."""

import itertools

import keras
from keras import ops

from kvision.errors import choose
from kvision.layers.conventions import conventions, kernel_initializer
from kvision.ops import resize_nearest
from kvision.ops.roi import pyramid_levels

FUSIONS = ("fast", "sum")
EPSILON = 1e-4  # section 3.3: of fast normalised fusion


@keras.saving.register_keras_serializable("kvision")
class BiFPN(keras.layers.Layer):
    """Levels of equal width, fused from coarse to fine and back again, several times, by learned weights.

    Tan et al. 2020, sections 3.2 and 3.3, figure 2(d). A node fuses its own level's map, the neighbour's brought to its
    size, and on the way back also the level's map as it came in: by `"fast"` normalised fusion, Σ relu(wᵢ)·xᵢ /
    (1e-4 + Σ relu(wᵢ)) with one weight an input, or by their plain sum (the authors' D6 and larger). Then come
    activation, 3x3 depthwise and 1x1 convolution, and norm. Maps shrink by 3x3 max pooling of stride 2 and grow by
    nearest neighbour. Every node that reads a map of other width brings it to `channels` by a 1x1 convolution and norm
    of its own. As in the authors' code, 1x1 convolutions have a bias, norm or not. Sub-layers have effdet's names.

    Args:
        channels: Of every level.
        repeats: Cells, one after the other, at least 1.
        num_levels: Levels in all; those above the coarsest map are pooled from the one below. None: as many as given.
        fusion: `"fast"` or `"sum"`.
        norm: As in `kvision.layers.conventions`.
        activation: Before the convolutions of a node, a name as in `kvision.layers.conventions`.
        initializer: Of all kernels.
        epsilon, momentum: Of the norm; the authors'.

    Call: `{"C3": [b, h, w, c], "C4": …}`, or the same with the letter P: consecutive levels of static size and any
    width, at least two in all → `{"P3": [b, h, w, channels], …}`, finest first.

    Raises:
        ValueError: on an unknown fusion or norm, fewer than one cell or two levels, levels that are not consecutive or
            whose sizes are not static.

    >>> maps = {f"C{k}": keras.ops.ones((1, 64 // 2**k, 64 // 2**k, 8)) for k in (3, 4, 5)}
    >>> {name: tuple(level.shape) for name, level in BiFPN(4, repeats=1, num_levels=4)(maps).items()}
    {'P3': (1, 8, 8, 4), 'P4': (1, 4, 4, 4), 'P5': (1, 2, 2, 4), 'P6': (1, 1, 1, 4)}
    """

    def __init__(
        self,
        channels=64,
        repeats=3,
        num_levels=None,
        fusion="fast",
        norm="batch",
        activation="silu",
        initializer="xavier",
        epsilon=1e-3,
        momentum=0.99,
        **options,
    ):
        super().__init__(**options)
        self.fusion = choose("fusion", {name: name for name in FUSIONS}, fusion)
        if repeats < 1 or not isinstance(channels, int) or channels < 1:
            raise ValueError(
                f"BiFPN needs at least one cell and one channel: got repeats={repeats!r} and channels={channels!r}."
            )
        self.channels = channels
        self.repeats = repeats
        self.num_levels = num_levels
        self.norm = norm
        self.activation = activation
        self.initializer = kernel_initializer(initializer)
        self.epsilon = epsilon
        self.momentum = momentum
        self._bound = conventions(norm, activation, self.initializer, epsilon=epsilon, momentum=momentum)
        self.coarser, self.nodes = [], []

    def _shapes(self, input_shape):
        """`{level: shape}` of all levels as they enter the first cell."""
        if not hasattr(input_shape, "items"):
            raise ValueError(
                'BiFPN takes a dict of levels such as {"C3": …, "C4": …}: got a '
                f"{type(input_shape).__name__}. Name the maps by their strides, 2^k."
            )
        letter = "C" if any(name.startswith("C") for name in input_shape) else "P"
        shapes = {number: tuple(input_shape[f"{letter}{number}"]) for number in pyramid_levels(input_shape, letter)}
        first, count = min(shapes), self.num_levels or len(shapes)
        if count < max(2, len(shapes)):
            raise ValueError(
                f"BiFPN fuses at least two levels, and all that are given: got {', '.join(input_shape)} and "
                f"num_levels={self.num_levels}. Leave num_levels out, or ask for more to be added."
            )
        for number, shape in shapes.items():
            if None in shape[1:]:
                raise ValueError(f"BiFPN needs static sizes, got {letter}{number} of shape {shape}.")
        for number in list(shapes)[1:]:
            pairs = list(zip(shapes[number - 1][1:3], shapes[number][1:3], strict=True))
            if any(coarse not in (fine // 2, -(-fine // 2)) for fine, coarse in pairs):
                raise ValueError(
                    f"BiFPN takes levels each half as large as the one before: got {letter}{number - 1} of shape "
                    f"{shapes[number - 1]} and {letter}{number} of shape {shapes[number]}."
                )
        for number in range(max(shapes) + 1, first + count):
            batch, height, width, _ = shapes[number - 1]
            shapes[number] = (batch, -(-height // 2), -(-width // 2), self.channels)
        return letter, shapes

    def build(self, input_shape):
        letter, shapes = self._shapes(input_shape)
        levels = list(shapes)
        below = input_shape[f"{letter}{levels[len(input_shape) - 1]}"]
        for index in range(len(input_shape), len(levels)):
            shape = shapes[levels[index]]
            self.coarser.append(_Resample(self, below, shape[1:3], f"resample.{index}"))
            below = shape
        maps = list(shapes.values())
        for cell in range(self.repeats):
            for number, (index, sources) in enumerate(_nodes_of(len(levels))):
                shape = (*maps[index][:3], self.channels)
                given = {source: maps[source] for source in sources}
                node = _Node(self, given, shape, f"cell.{cell}.fnode.{number}")
                self.nodes.append(node)
                maps.append(shape)
            maps = maps[-len(levels) :]
        for part in (*self.coarser, *self.nodes):
            part.build(None)

    def call(self, inputs, training=None):
        letter, shapes = self._shapes({name: x.shape for name, x in inputs.items()})
        levels = list(shapes)
        maps = [inputs[f"{letter}{number}"] for number in levels[: len(inputs)]]
        for resample in self.coarser:
            maps.append(resample(maps[-1], training=training))
        nodes = iter(self.nodes)
        for _ in range(self.repeats):
            for _, sources in _nodes_of(len(levels)):
                maps.append(next(nodes)([maps[source] for source in sources], training=training))
            maps = maps[-len(levels) :]
        return {f"P{number}": level for number, level in zip(levels, maps, strict=True)}

    def compute_output_shape(self, input_shape):
        _, shapes = self._shapes(input_shape)
        return {f"P{number}": (*shape[:3], self.channels) for number, shape in shapes.items()}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"initializer": keras.initializers.deserialize(config["initializer"])})

    def get_config(self):
        return super().get_config() | {
            "channels": self.channels,
            "repeats": self.repeats,
            "num_levels": self.num_levels,
            "fusion": self.fusion,
            "norm": self.norm,
            "activation": self.activation,
            "initializer": keras.initializers.serialize(self.initializer),
            "epsilon": self.epsilon,
            "momentum": self.momentum,
        }


def _nodes_of(num_levels):
    """Figure 2(d): (level, indices of the maps it fuses) of each node; inputs count first, finest first, then nodes."""
    maps_of = [[index] for index in range(num_levels)]
    nodes, number = [], itertools.count(num_levels)
    for level in reversed(range(num_levels - 1)):
        nodes.append((level, [maps_of[level][-1], maps_of[level + 1][-1]]))
        maps_of[level].append(next(number))
    for level in range(1, num_levels):
        nodes.append((level, [*maps_of[level], maps_of[level - 1][-1]]))
        maps_of[level].append(next(number))
    return nodes


class _Resample(keras.layers.Layer):
    """A map brought to a width by a 1x1 convolution and norm, unless it has it already, and to a size."""

    def __init__(self, parent, input_shape, size, name):
        super().__init__(dtype=parent.dtype_policy, name=name)
        self.size = size
        self.given_shape = tuple(input_shape)
        self.conv = self.norm = None
        if input_shape[-1] != parent.channels:
            self.conv = parent._bound.conv(parent.channels, 1, use_bias=True, dtype=self.dtype_policy, name="conv.conv")
            self.norm = _norm_of(parent, "conv.bn")

    def build(self, _):
        if self.conv is not None:
            self.conv.build(self.given_shape)
        if self.norm is not None:
            self.norm.build((*self.given_shape[:-1], self.conv.filters))
        self.built = True

    def call(self, x, training=None):
        if self.conv is not None:
            x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, training=training)
        strides = tuple(max(1, round(n / m)) for n, m in zip(x.shape[1:3], self.size, strict=True))
        if max(strides) > 1:
            x = ops.max_pool(x, tuple(stride + (stride > 1) for stride in strides), strides, "same")
            x = x[:, : self.size[0], : self.size[1]]  # a backbone may have rounded halves down
        return resize_nearest(x, self.size)


class _Node(keras.layers.Layer):
    """Maps brought to one width and size, fused, activated, convolved and normalised."""

    def __init__(self, parent, input_shapes, shape, name):
        super().__init__(dtype=parent.dtype_policy, name=name)
        self.resamples = [
            _Resample(parent, given, shape[1:3], f"combine.resample.{source}") for source, given in input_shapes.items()
        ]
        self.fused_shape = shape
        self.is_weighted = parent.fusion == "fast"
        self.activation = parent._bound.activation(name="act")
        self.activation.dtype_policy = parent.dtype_policy
        bound, dtype = parent._bound, parent.dtype_policy
        self.depthwise = bound.depthwise(3, use_bias=False, dtype=dtype, name="after_combine.conv.conv_dw")
        self.pointwise = bound.conv(parent.channels, 1, use_bias=True, dtype=dtype, name="after_combine.conv.conv_pw")
        self.norm = _norm_of(parent, "after_combine.conv.bn")

    def build(self, _):
        if self.is_weighted:
            shape = (len(self.resamples),)
            self.fusion_weights = self.add_weight(shape, "ones", autocast=False, name="combine.edge_weights")
        for resample in self.resamples:
            resample.build(None)
        for layer in (self.activation, self.depthwise, self.pointwise, self.norm):
            if layer is not None:
                layer.build(self.fused_shape)
        self.built = True

    def call(self, maps, training=None):
        maps = [resample(x, training=training) for resample, x in zip(self.resamples, maps, strict=True)]
        if self.is_weighted:
            weights = ops.relu(self.fusion_weights)
            weights = ops.cast(weights / (ops.sum(weights) + EPSILON), self.compute_dtype)
            maps = [weights[number] * x for number, x in enumerate(maps)]
        x = self.pointwise(self.depthwise(self.activation(sum(maps[1:], maps[0]))))
        return x if self.norm is None else self.norm(x, training=training)


def _norm_of(parent, name):
    return None if parent.norm is None else parent._bound.norm(dtype=parent.dtype_policy, name=name)
