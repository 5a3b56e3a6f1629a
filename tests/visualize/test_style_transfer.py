"""Losses of content and style against NumPy and torch, their gradients against differences, and which layers count."""

import keras
import numpy as np
import pytest

from kvision import applications, visualize
from kvision._keras import shapes_only
from kvision.visualize.style_transfer import gram_matrix, pooling_changes, vgg_layers
from tests.support import PARITY, SLOW, assert_close

RNG = np.random.default_rng(0)
CONTENT, STYLE, START = (
    RNG.uniform(0, 255, size).astype("float32") for size in [(16, 20, 3), (14, 18, 3), (16, 20, 3)]
)
LAYERS = {"content_layers": {"conv.2": 2.0}, "style_layers": {"conv.1": 0.3, "conv.2": 0.7}}


def network(pooling="max", activation="relu"):
    pool = keras.layers.MaxPooling2D if pooling == "max" else keras.layers.AveragePooling2D
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 64, -2),
            keras.layers.Conv2D(16, 3, activation=activation, name="conv.1", kernel_initializer="he_normal"),
            pool(2, name="pool"),
            keras.layers.Conv2D(12, 3, activation=activation, name="conv.2", kernel_initializer="he_normal"),
        ]
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return network()


def outputs(model, image):
    """The outputs of both convolutions by Keras's own means, with average pooling."""
    twin = network("average", model.layers[1].activation)
    twin.set_weights(model.get_weights())
    reader = keras.Model(twin.inputs, {name: twin.get_layer(name).output for name in ("conv.1", "conv.2")})
    return {name: np.asarray(each[0], "float64") for name, each in reader.predict_on_batch(image[None]).items()}


def gram(features):
    flat = features.reshape(-1, features.shape[-1])
    return np.einsum("mi,mj->ij", flat, flat) / len(flat)


def twin_losses(image, content, style, normalize, weights=(1.0, 100.0)):
    """The losses of each layer, from outputs."""
    factor = {
        name: 1 / np.mean(np.concatenate([content[name].ravel(), style[name].ravel()])) if normalize else 1.0
        for name in content
    }
    scaled = [{name: each[name] * factor[name] for name in each} for each in (image, content, style)]
    image, content, style = scaled
    losses = {"content/conv.2": weights[0] * 2.0 * 0.5 * np.mean((image["conv.2"] - content["conv.2"]) ** 2)}
    for name, weight in (("conv.1", 0.3), ("conv.2", 0.7)):
        n = image[name].shape[-1]
        squares = np.sum((gram(image[name]) - gram(style[name])) ** 2)
        losses[f"style/{name}"] = weights[1] * weight * squares / (4 * n**2)
    return losses


def transfer(model, **options):
    return visualize.style_transfer(model, CONTENT, STYLE, **LAYERS | {"steps": 1} | options)


def test_gram_matrix_is_the_sum_over_positions():
    maps = RNG.standard_normal((2, 4, 5, 3)).astype("float32")
    assert_close(gram_matrix(keras.ops.convert_to_tensor(maps)), np.einsum("bhwi,bhwj->bij", maps, maps) / 20)


@pytest.mark.parametrize("normalize", [True, pytest.param(False, marks=SLOW)])
def test_losses_are_those_of_a_twin(model, normalize):
    found = transfer(model, start=START, normalize=normalize, total_variation=3.0)
    of = {name: outputs(model, image) for name, image in (("content", CONTENT), ("style", STYLE))}
    for row, image in ((0, START), (-1, found.image)):
        losses = twin_losses(outputs(model, image), **of, normalize=normalize)
        x = image / 127.5 - 1
        losses["total_variation"] = 3 * sum((np.diff(x, axis=axis) ** 2).sum() for axis in (0, 1)) / x.size
        assert list(found.history) == list(losses)
        for name, value in losses.items():
            assert_close(found.history[name][row], [value], tolerance=(2e-4, 1e-5))


def total(found):
    return sum(values[0, 0] for values in found.history.values())


class Recorder(keras.optimizers.SGD):
    """Keeps the gradient it is given; a copy of it works, as of any optimizer."""

    seen = []

    def apply(self, grads, trainable_variables=None):
        self.seen[:] = [np.array(keras.ops.convert_to_numpy(grads[0]))[0]]
        super().apply(grads, trainable_variables)


@SLOW
def test_the_gradient_is_that_of_centred_differences():
    keras.utils.set_random_seed(0)
    smooth = network(activation="softplus")
    start = 60 + START / 2
    transfer(smooth, start=start, optimizer=Recorder(), style_weight=1.0)
    (slope,) = Recorder.seen
    rng = np.random.default_rng(2)
    for _ in range(3):
        direction = np.sign(slope) * rng.integers(0, 2, START.shape)  # half of the pixels, all uphill
        up, down = (total(transfer(smooth, start=start + way * direction, style_weight=1.0)) for way in (1, -1))
        assert (up - down) / 2 == pytest.approx(float((slope * direction).sum()), rel=0.01)


@SLOW
@pytest.mark.parametrize("start", ["content", "noise"])
def test_lbfgs_lowers_the_loss(model, start):
    found = transfer(model, start=start, steps=15, seed=0)
    sums = sum(values[:, 0] for values in found.history.values())
    assert len(sums) == 16
    assert (np.diff(sums[:-1]) <= 0).all()  # the last row is that of the image with its pixels clipped
    assert sums[-1] < 0.5 * sums[0]
    if start == "content":
        assert found.history["content/conv.2"][0, 0] < 1e-10


@SLOW
def test_content_alone_recovers_nothing_new_and_style_alone_forgets_the_content(model):
    kept = transfer(model, style_weight=0)
    assert_close(kept.image, CONTENT, tolerance=(0, 1e-2))
    assert list(kept.history) == ["content/conv.2"]
    assert list(transfer(model, content_weight=0).history) == ["style/conv.1", "style/conv.2"]


@SLOW
def test_a_run_goes_on_from_its_image(model):
    first = transfer(model, steps=3)
    again = transfer(model, start=first.image)
    for name, values in first.history.items():
        assert_close(again.history[name][0], values[-1], tolerance=(1e-3, 1e-5))


def test_the_images_given_are_not_written_into(model):
    def rude(images):
        """As `keras.applications` prepares arrays: in place."""
        if isinstance(images, np.ndarray):
            images /= 2
        return images * 1.0

    given = CONTENT.copy(), STYLE.copy(), START.copy()
    found = visualize.style_transfer(model, *given[:2], start=given[2], preprocess=rude, steps=3, **LAYERS)
    for got, want in zip(given, (CONTENT, STYLE, START), strict=True):
        np.testing.assert_array_equal(got, want)
    sums = sum(values[:, 0] for values in found.history.values())
    assert (np.diff(sums) <= 0).all()


@SLOW
def test_max_pooling_stays_where_it_is_asked_for(model):
    maximum, average = (transfer(model, pooling=pooling, start=START) for pooling in ("max", "average"))
    assert_close(maximum.history["style/conv.1"][0], average.history["style/conv.1"][0])
    assert abs(maximum.history["style/conv.2"][0] / average.history["style/conv.2"][0] - 1).max() > 0.005


def test_bare_max_pooling_is_replaced_too():
    inputs = keras.Input((8, 8, 3))
    bare = keras.Model(inputs, keras.ops.max_pool(inputs, 2))
    ((pool, name, call),) = pooling_changes(bare)
    assert (type(pool).__name__, name) == ("MaxPool", "call")
    assert_close(call(keras.ops.ones((1, 8, 8, 3))), np.ones((1, 4, 4, 3)))


KERAS = ["block1_conv1", "block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1"]


@pytest.mark.parametrize(
    ("build", "content", "style"),
    [
        (keras.applications.VGG19, "block4_conv2", KERAS),
        (keras.applications.VGG16, "block4_conv2", KERAS),
        (applications.VGG19, "features.22", [f"features.{index}" for index in (1, 6, 11, 20, 29)]),
        (applications.VGG16, "features.20", [f"features.{index}" for index in (1, 6, 11, 18, 25)]),
    ],
    ids=["keras 19", "keras 16", "ours 19", "ours 16"],
)
def test_the_layers_of_the_paper(build, content, style):
    with shapes_only():
        assert vgg_layers(build(weights=None)) == (content, style)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content_layers": None}, "is no VGG, of which the layers are known"),
        ({"style_layers": "conv.3"}, "Unknown layer"),
        ({"style_layers": {"conv.1": -1}}, "weights above 0"),
        ({"content_weight": 0, "style_weight": 0}, "both 0"),
        ({"style_weight": -1}, "style_weight must be a number of at least 0"),
        ({"start": "blank"}, "start is 'content', 'noise' or an image"),
        ({"start": CONTENT[:-1]}, "expected the shape of content"),
        ({"start": 9 * CONTENT}, "Expected images from 0.0 to 255.0"),
        ({"pooling": "mean"}, "pooling is 'average', 'max' or None"),
        ({"learning_rate": 1.0}, "finds its own step length"),
    ],
)
def test_what_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        transfer(model, **options)


def test_images_that_are_refused(model):
    with pytest.raises(ValueError, match="one content and one style image: got 2"):
        visualize.style_transfer(model, np.stack([CONTENT] * 2), STYLE, **LAYERS)
    with pytest.raises(ValueError, match="Expected images from 0.0 to 255.0"):
        visualize.style_transfer(model, CONTENT, 9 * STYLE, **LAYERS)
    with pytest.raises(ValueError, match="has no max pooling"):
        transfer(network("average"), pooling="average")


@pytest.mark.parity
def test_loss_and_gradient_are_torchs_at_the_depth_of_vgg_16():
    import torch
    import torch.nn.functional as F

    keras.utils.set_random_seed(0)
    model = applications.VGG(
        "16", include_top=False, input_shape=(48, 64, 3), widths=(16, 24, 32, 32, 32), initializer="he"
    )
    content, style, start = (RNG.uniform(0, 255, (48, 64, 3)).astype("float32") for _ in range(3))
    found = visualize.style_transfer(
        model,
        content,
        style,
        preprocess=model.preprocessing,
        start=start,
        normalize=False,
        optimizer=Recorder(),
        steps=1,
    )
    (slope,) = Recorder.seen

    names = [f"features.{index}" for index in (1, 6, 11, 18, 25)]

    def forward(image):
        x = torch.as_tensor(image)[None].permute(0, 3, 1, 2) / 255
        mean, deviation = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        x, read = (x - mean) / deviation, {}
        for layer in model.layers[1:]:
            if isinstance(layer, keras.layers.MaxPooling2D):
                x = F.avg_pool2d(x, 2)
            elif layer.weights:
                kernel, bias = (torch.as_tensor(np.array(weight)) for weight in layer.weights)
                x = F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1)
            else:
                x = F.relu(x)
            read[layer.name] = x[0].flatten(1)
        return read

    image = torch.tensor(start, requires_grad=True)
    got, of_content, of_style = forward(image), forward(content), forward(style)
    loss = 0.5 * (got["features.20"] - of_content["features.20"]).square().mean()
    for name in names:
        mine, other = (each[name] @ each[name].T / each[name].shape[1] for each in (got, of_style))
        loss = loss + 100 / 5 / 4 * (mine - other).square().mean()
    loss.backward()
    assert total(found) == pytest.approx(loss.item(), rel=1e-4)
    largest = np.abs(image.grad.numpy()).max()
    assert_close(slope / largest, image.grad.numpy() / largest, tolerance=PARITY)
