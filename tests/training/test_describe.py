"""`describe` against published figures and the sums of the lectures."""

import keras
import pytest

from kvision import applications as A
from kvision.layers import Conv2D
from kvision.training import describe


def without_memory(builder):
    with keras.StatelessScope(initialize_variables=False):
        return describe(builder())


# Multiply-adds of one image (224x224; EfficientNet-B1 240x240) in 1e9, as torchvision publishes them ("GFLOPS").
@pytest.mark.parametrize(
    ("builder", "published"),
    [
        (A.VGG16, 15.47),
        (A.ResNet50, 4.089),
        (A.MobileNetV2, 0.301),
        (lambda: A.SqueezeNet("1.1"), 0.349),
        (A.ViTB16, 17.564),
        *(
            pytest.param(*row, marks=pytest.mark.slow)  # the others count nothing else
            for row in [
                (A.VGG11, 7.609),
                (A.VGG19, 19.632),
                (A.ResNet18, 1.814),
                (A.ResNet101, 7.801),
                (A.EfficientNetB0, 0.386),
                (A.EfficientNetB1, 0.687),
                (lambda: A.GoogLeNet(norm="batch"), 1.498),
                (A.SwinT, 4.491),
                (lambda: A.SqueezeNet("1.0"), 0.819),
                (A.ViTB32, 4.409),
            ]
        ),
    ],
)
def test_multiply_adds_are_the_published_ones(builder, published):
    assert without_memory(builder).multiply_adds / 1e9 == pytest.approx(published, abs=6e-4)


def stack(*windows, channels=16):
    image = x = keras.Input((32, 32, channels))
    for window in windows:
        x = keras.layers.Conv2D(channels, window, padding="same", use_bias=False)(x)
    return describe(keras.Model(image, x))


@pytest.mark.parametrize(
    ("windows", "kernel_products", "field"),
    [
        ([7], 49, (7, 7)),
        ([3, 3, 3], 27, (7, 7)),  # three 3x3 see what one 7x7 sees, for 27C² instead of 49C² weights
        ([(1, 7), (7, 1)], 14, (7, 7)),  # 1xn + nx1
        ([5], 25, (5, 5)),
        ([3, 3], 18, (5, 5)),
    ],
)
def test_sums_of_the_lecture(windows, kernel_products, field):
    cost = stack(*windows)
    assert cost.parameters == kernel_products * 16**2
    assert cost.multiply_adds == kernel_products * 16**2 * 32 * 32
    assert cost.layers[-1].receptive_field == field


def test_bottleneck_of_the_lecture():
    """1x1, 3x3, 1x1 over half the channels: 3.25 C² weights instead of 9 C² for a 3x3."""
    image = x = keras.Input((8, 8, 16))
    for channels, window in ((8, 1), (8, 3), (16, 1)):
        x = keras.layers.Conv2D(channels, window, padding="same", use_bias=False)(x)
    assert describe(keras.Model(image, x)).parameters == 3.25 * 16**2


def test_receptive_field_through_strides_pools_and_branches():
    image = keras.Input((64, 64, 3))
    x = Conv2D(4, 7, strides=2, padding=3, name="stem")(image)
    x = keras.layers.MaxPooling2D(3, strides=2, padding="same", name="pool")(x)
    y = Conv2D(4, 3, padding=1, name="branch")(x)
    y = keras.layers.Add(name="sum")([x, y])
    y = Conv2D(4, 3, padding=1, dilation_rate=2, name="dilated")(y)
    z = keras.layers.GlobalAveragePooling2D(name="average")(y)
    fields = {layer.name: layer.receptive_field for layer in describe(keras.Model(image, z)).layers}
    assert fields == {
        "stem": (7, 7),
        "pool": (11, 11),
        "branch": (19, 19),
        "sum": (19, 19),
        "dilated": (35, 35),
        "average": None,
    }


def test_depthwise_transposed_and_dense_layers():
    image = keras.Input((8, 8, 6))
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(image)
    x = keras.layers.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    x = keras.layers.Dense(5, name="pixels")(x)
    products = {layer.name: layer.multiply_adds for layer in describe(keras.Model(image, x)).layers}
    assert products == {"depthwise": 64 * 9 * 6, "up": 64 * 4 * 6 * 4, "pixels": 256 * 4 * 5}


def test_memory_follows_the_policy():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    image = keras.Input((8, 8, 6))
    cost = describe(keras.Model(image, keras.layers.Conv2D(4, 1)(image)))
    assert cost.activation_bytes == 8 * 8 * 4 * 2


def test_nothing_stays_watched():
    model = A.ResNet("tiny", input_shape=(32, 32, 3))
    describe(model)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_table_ends_with_the_sums():
    cost = describe(A.LeNet5("modern"))
    assert str(cost).splitlines()[-1].split()[:3] == ["lenet5_modern", "61,706", "416,520"]


def test_models_without_static_shapes_are_refused():
    image = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="static size"):
        describe(keras.Model(image, keras.layers.Conv2D(4, 1)(image)))
