"""The feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection", section 3)."""

import keras
from keras import ops

from kvision.errors import unknown
from kvision.layers.conventions import conventions, kernel_initializer
from kvision.ops import resize_nearest
from kvision.ops.roi import pyramid_levels

EXTRAS = ("pool", "conv_input", "conv_output", None)


@keras.saving.register_keras_serializable("kvision")
class FeaturePyramid(keras.layers.Layer):
    """Levels of equal width: each map of a trunk, plus the level above it enlarged to its size, then smoothed.

    Lin et al. 2017, section 3: 1x1 convolutions bring every map to `channels`, nearest-neighbour upsampling brings
    each sum down to the next map's own size, odd sizes included, and a 3x3 convolution gives the level. Sub-layers have
    torchvision's names: `inner_blocks.0.0`, `layer_blocks.0.0`, `extra_blocks.p6`, numbered from the finest level.

    Args:
        channels: Of every level.
        extra: Coarser levels above the top map. `"pool"`: one, every second cell of the top level (Faster R-CNN on
            FPN). `"conv_input"`: two, by 3x3 convolutions of stride 2, the first on the trunk's top map, the second
            after a ReLU ("Focal Loss for Dense Object Detection", Lin et al. 2017). `"conv_output"`: the same on the
            top level itself (torchvision's RetinaNet). None: none.
        norm: After every 1x1 and 3x3 convolution of the paper's pyramid; as in `kvision.layers.conventions`. None,
            the paper's, gives the convolutions a bias. The extra convolutions always have a bias and no norm.
        initializer: Of all kernels; the default is LeCun uniform initialization, Caffe2's and torchvision's.

    Call: `{"C3": [b, h, w, c], "C4": …, "C5": …}`, neighbouring levels of static size, gives `{"P3": …, …}`, finest
    first.

    Raises:
        ValueError: on an unknown `extra`, or levels that are not neighbours.

    >>> maps = {f"C{k}": keras.ops.ones((1, 64 // 2**k, 64 // 2**k, 8)) for k in (3, 4, 5)}
    >>> {name: tuple(level.shape) for name, level in FeaturePyramid(4, extra="pool")(maps).items()}
    {'P3': (1, 8, 8, 4), 'P4': (1, 4, 4, 4), 'P5': (1, 2, 2, 4), 'P6': (1, 1, 1, 4)}
    """

    def __init__(self, channels=256, extra=None, norm=None, initializer="lecun_uniform", **options):
        super().__init__(**options)
        if extra not in EXTRAS:
            raise unknown("extra", extra, EXTRAS)
        self.channels = channels
        self.extra = extra
        self.norm = norm
        self.initializer = kernel_initializer(initializer)
        self._bound = conventions(norm=norm, initializer=self.initializer)
        self._extra_conv = conventions(norm=None, initializer=self.initializer).conv
        self.inner_convs, self.inner_norms = [], []
        self.layer_convs, self.layer_norms = [], []
        self.extra_convs = []

    def build(self, input_shape):
        levels = pyramid_levels(input_shape, "C")
        for index, level in enumerate(levels):
            shape = input_shape[f"C{level}"]
            if None in shape[1:]:
                raise ValueError(f"FeaturePyramid needs static sizes, got C{level} of shape {tuple(shape)}.")
            self._add(self.inner_convs, self.inner_norms, f"inner_blocks.{index}", 1, shape)
            shape = (*shape[:-1], self.channels)
            self._add(self.layer_convs, self.layer_norms, f"layer_blocks.{index}", 3, shape)
        if self.extra in ("conv_input", "conv_output"):
            width = input_shape[f"C{levels[-1]}"][-1] if self.extra == "conv_input" else self.channels
            for level, channels in ((levels[-1] + 1, width), (levels[-1] + 2, self.channels)):
                name = f"extra_blocks.p{level}"
                conv = self._extra_conv(self.channels, 3, strides=2, dtype=self.dtype_policy, name=name)
                conv.build((None, None, None, channels))
                self.extra_convs.append(conv)

    def _add(self, convs, norms, name, kernel_size, shape):
        convs.append(self._bound.conv(self.channels, kernel_size, dtype=self.dtype_policy, name=f"{name}.0"))
        convs[-1].build(shape)
        if self.norm is not None:
            norms.append(self._bound.norm(dtype=self.dtype_policy, name=f"{name}.1"))
            norms[-1].build((*shape[:-1], self.channels))

    def call(self, inputs, training=None):
        numbers = pyramid_levels(inputs, "C")
        top = numbers[-1]
        total, levels = None, {}
        for index in reversed(range(len(numbers))):
            x = inputs[f"C{numbers[index]}"]
            lateral = _normalized(self.inner_convs, self.inner_norms, index, x, training)
            total = lateral if total is None else lateral + resize_nearest(total, x.shape[1:3])
            smooth = _normalized(self.layer_convs, self.layer_norms, index, total, training)
            levels[f"P{numbers[index]}"] = smooth
        levels = {f"P{number}": levels[f"P{number}"] for number in numbers}
        if self.extra == "pool":
            levels[f"P{top + 1}"] = levels[f"P{top}"][:, ::2, ::2]
        elif self.extra is not None:
            first, second = self.extra_convs
            levels[f"P{top + 1}"] = first(inputs[f"C{top}"] if self.extra == "conv_input" else levels[f"P{top}"])
            levels[f"P{top + 2}"] = second(ops.relu(levels[f"P{top + 1}"]))
        return levels

    def compute_output_shape(self, input_shape):
        numbers = pyramid_levels(input_shape, "C")
        shapes = {f"P{number}": (*input_shape[f"C{number}"][:-1], self.channels) for number in numbers}
        added = {None: 0, "pool": 1}.get(self.extra, 2)
        for number in range(numbers[-1] + 1, numbers[-1] + 1 + added):
            batch, height, width, channels = shapes[f"P{number - 1}"]
            shapes[f"P{number}"] = (batch, -(-height // 2), -(-width // 2), channels)
        return shapes

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"initializer": keras.initializers.deserialize(config["initializer"])})

    def get_config(self):
        return super().get_config() | {
            "channels": self.channels,
            "extra": self.extra,
            "norm": self.norm,
            "initializer": keras.initializers.serialize(self.initializer),
        }


def _normalized(convs, norms, index, x, training):
    x = convs[index](x)
    return norms[index](x, training=training) if norms else x
