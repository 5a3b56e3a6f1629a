"""Receptive fields against what reaches a position, pixel by pixel, and against published numbers."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import layers as L
from kvision._keras import shapes_only
from kvision.receptive_field import receptive_fields
from kvision.training import describe

K = keras.layers


def chain(x, *stack):
    for layer in stack:
        x = layer(x)
    return x


def residual(x):
    y = K.Conv2D(2, 3, strides=2, padding="same")(x)
    y = K.Conv2D(2, 3, padding="same")(y)
    return K.Conv2D(2, 2, padding="same")(K.Add()([y, K.Conv2D(2, 1, strides=2, padding="same")(x)]))


def skip(x):
    low = K.AveragePooling2D(2, padding="same")(K.Conv2D(2, 3, padding="same")(x))
    up = K.UpSampling2D(2)(K.Conv2D(2, 3, padding="same")(low))
    up = K.Cropping2D(((0, up.shape[1] - x.shape[1]), (0, up.shape[2] - x.shape[2])))(up)
    return K.Conv2D(1, 3, padding="same")(K.Concatenate()([x, up]))


def nested(x):
    inner = keras.Sequential([keras.Input(x.shape[1:]), K.Conv2D(1, 3, strides=2), K.Conv2D(1, 2)], name="inner")
    return K.Conv2D(1, 3, padding="same")(inner(K.ZeroPadding2D(1)(K.Cropping2D(1)(x))))


NETS = {
    "strides and even windows": lambda x: chain(
        x,
        K.Conv2D(2, 3, strides=2, padding="same"),
        K.Conv2D(2, 4, padding="same"),
        K.AveragePooling2D(3, strides=2, padding="same"),
    ),
    "valid and dilated": lambda x: chain(x, K.Conv2D(2, (5, 3), strides=(2, 1)), K.Conv2D(2, 3, dilation_rate=(2, 3))),
    "dilated, same": lambda x: chain(
        x, K.Conv2D(2, 3, dilation_rate=2, padding="same"), K.DepthwiseConv2D(2, padding="same")
    ),
    "rows left over": lambda x: chain(x, K.Conv2D(2, 2, strides=3), K.SeparableConv2D(2, 3, padding="same")),
    "padded and cropped": lambda x: chain(
        x, K.ZeroPadding2D(((0, 3), (2, 1))), K.Conv2D(2, 3, strides=2), K.Cropping2D(((1, 0), (0, 2))), K.Conv2D(1, 2)
    ),
    "padding alone": lambda x: chain(x, K.ZeroPadding2D(3), K.Conv2D(1, 2)),
    "padding in pixels": lambda x: chain(
        x,
        L.Conv2D(2, 5, strides=2, padding=(3, 1)),
        L.DilatedPooling2D((2, 3), (2, 1), "average"),
        L.DepthwiseConv2D(3, strides=2, padding=1),
    ),
    "windows beyond the end": lambda x: chain(
        x, K.Conv2D(2, 2), L.DilatedPooling2D((2, 3), (2, 1), "max", padding="end"), K.AveragePooling2D(2)
    ),
    "transposed": lambda x: chain(
        x, K.Conv2D(2, 3, strides=2), K.Conv2DTranspose(2, (5, 3), strides=2, padding="same"), K.Conv2D(1, 2)
    ),
    "transposed, valid": lambda x: chain(x, K.Conv2D(2, 4, strides=3), K.Conv2DTranspose(1, (2, 5), strides=3)),
    "upsampled": lambda x: chain(
        x, K.AveragePooling2D(3), K.UpSampling2D((2, 3), interpolation="bilinear"), K.Conv2D(1, 2)
    ),
    "upsampled by a convolution": lambda x: chain(
        x, K.Conv2D(2, 3, strides=4), L.BilinearUpsampling(3), K.Conv2D(2, 2)
    ),
    "locally connected": lambda x: chain(x, L.LocallyConnected2D(2, 3), K.AveragePooling2D(2)),
    "residual": residual,
    "skip": skip,
    "nested": nested,
}


def with_positive_weights(image, outputs):
    """A linear network in which no two paths cancel."""
    model = keras.Model(image, outputs)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1, weight.shape) for weight in model.get_weights()])
    return model


def reached(model, size):
    """[rows of the map, columns, rows of the image, columns]: whether a pixel reaches a position."""
    pixels = np.eye(size[0] * size[1], dtype="float32").reshape(-1, *size, 1)
    black = np.zeros((len(pixels), *size, 1), "float32")
    changes = np.abs(model.predict(pixels, len(pixels), 0) - model.predict(black, len(pixels), 0)).max(axis=-1)
    return changes.transpose(1, 2, 0).reshape(*changes.shape[1:], *size) > 1e-6


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else None


@pytest.mark.parametrize("size", [(17, 14), (20, 23)], ids=str)
@pytest.mark.parametrize("net", NETS)
def test_boxes_hold_what_reaches_a_position(net, size):
    keras.utils.set_random_seed(0)
    image = keras.Input((*size, 1))
    model = with_positive_weights(image, NETS[net](image))
    found = receptive_fields(model)
    (field,) = found[list(found)[-1]]
    seen = reached(model, size)
    assert (len(field.rows), len(field.columns)) == seen.shape[:2]
    for row in range(seen.shape[0]):
        for column in range(seen.shape[1]):
            (box,) = field.boxes_xyxy([row], [column])
            want = box_of(seen[row, column])
            if want is None:
                assert (box[2] - box[0]) * (box[3] - box[1]) == 0
            else:
                assert box.tolist() == want


def test_sizes_of_the_input_may_be_open():
    image = keras.Input((None, None, 1))
    open_model = keras.Model(image, NETS["strides and even windows"](image))
    *_, (field,) = receptive_fields(open_model, (17, 14)).values()
    assert (len(field.rows), len(field.columns)) == (5, 4)
    *_, (unknown,) = receptive_fields(open_model).values()
    assert unknown.size == field.size
    with pytest.raises(ValueError, match="cannot be told"):
        unknown.boxes_xyxy([0], [0])


# Size and stride: Araujo 2019, table 1, for those of Keras; VGG's conv5_3 and
# AlexNet by the recurrence, as every lecture has them.
@pytest.mark.parametrize(
    ("builder", "layer", "size", "stride"),
    [
        (A.VGG16, "features.28", 196, 16),
        (A.VGG16, "features.30", 212, 32),
        (A.AlexNet, "conv5", 163, 16),
        (A.AlexNet, "pool5", 195, 32),
        (keras.applications.VGG16, "block5_pool", 212, 32),
        (keras.applications.MobileNet, "conv_pw_13_relu", 315, 32),
        (keras.applications.ResNet50, "conv5_block3_out", 483, 32),
        pytest.param(keras.applications.ResNet101, "conv5_block3_out", 1027, 32, marks=pytest.mark.slow),
        pytest.param(keras.applications.InceptionV3, "mixed10", 1311, 32, marks=pytest.mark.slow),
        pytest.param(keras.applications.InceptionResNetV2, "conv_7b_ac", 3039, 32, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(builder, layer, size, stride):
    with shapes_only():
        model = builder(weights=None)
    (field,) = receptive_fields(model)[layer]
    assert (field.size, field.stride) == ((size, size), (stride, stride))
    whole = model.input_shape[1:3]
    assert [field.rows.min(), field.rows.max()] == [0, whole[0]]  # the exact boxes reach the border and not beyond
    extent = int((field.rows[:, 1] - field.rows[:, 0]).max())
    assert extent == min(size, whole[0])


def test_what_sees_everything():
    image = keras.Input((8, 8, 4))
    x = K.Conv2D(4, 3, padding="same", name="conv")(image)
    gate = K.Dense(4, name="gate")(K.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x))
    gated = K.Multiply(name="gated")([x, gate])
    tokens = K.Reshape((64, 4), name="tokens")(gated)
    attended = K.MultiHeadAttention(1, 4, name="attention")(tokens, tokens)
    mixed = K.Dense(3, name="pixels")(gated)
    flat = K.Dense(2, name="dense")(K.Flatten(name="flat")(mixed))
    found = {path: each for path, (each,) in receptive_fields(keras.Model(image, [attended, flat])).items()}
    assert {path for path, field in found.items() if field is None} == {
        "squeeze",
        "gate",
        "attention",
        "flat",
        "dense",
    }
    assert all(found[name].size == (3, 3) for name in ("conv", "gated", "pixels", "tokens"))
    assert found["gated"].rows is not None
    assert found["tokens"].rows is None


def test_layers_of_nested_models_are_there_and_so_is_each_call():
    image = keras.Input((12, 12, 1))
    shared = keras.Sequential([keras.Input((None, None, 1)), K.Conv2D(1, 3, name="conv.1")], name="shared")
    model = keras.Model(image, shared(shared(image)))
    found = receptive_fields(model)
    assert [field.size for field in found["shared/conv.1"]] == [(3, 3), (5, 5)]
    assert [field.boxes_xyxy([0], [1]).tolist() for field in found["shared"]] == [[[1, 0, 4, 3]], [[1, 0, 6, 5]]]


def test_describe_opens_nested_models():
    inner = keras.Sequential([keras.Input((12, 12, 1)), K.Conv2D(1, 5), K.MaxPooling2D()], name="inner")
    model = keras.Sequential([keras.Input((12, 12, 1)), inner, K.Conv2D(1, 3)])
    assert [layer.receptive_field for layer in describe(model).layers] == [(6, 6), (10, 10)]


def test_moved_pixels_are_not_guessed():
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, K.Conv2D(1, 3, name="conv")(keras.ops.flip(image, axis=1)))
    (field,) = receptive_fields(model)["conv"]
    assert field.size == (3, 3)
    assert field.rows is None
