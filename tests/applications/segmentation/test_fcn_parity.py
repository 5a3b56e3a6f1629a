"""FCN against the authors' nets, written out in torch: Caffe's padding, pooling, crops and layer names."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from tests.support import PARITY, assert_close

pytestmark = pytest.mark.parity

SMALL = {"depths": (2, 2, 3, 3, 3), "widths": (8, 8, 16, 16, 16), "units": 32, "classes": 5}


def state_of(model):
    """Random weights in torch's layout, by the names of our layers."""
    rng = np.random.default_rng(0)
    state = {}
    for weight in model.weights:
        name, leaf = weight.path.split("/")
        array = rng.normal(scale=np.prod(weight.shape[:-1]) ** -0.5, size=weight.shape).astype("float32")
        if leaf == "kernel":
            state[f"{name}.weight"] = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        else:
            state[f"{name}.bias"] = 0.1 * array
    return state


def vgg_key(key):
    """The name of a weight of VGG in torchvision."""
    for ours, theirs in (("fc6.", "classifier.0."), ("fc7.", "classifier.3."), ("score_fr.", "classifier.6.")):
        key = key.replace(ours, theirs)
    return key


def reference(state, images, variant):
    """voc-fcn32s, 16s, 8s and 8s-atonce of the authors, layer by layer."""
    import torch
    from torch.nn import functional as F

    state = {name: torch.from_numpy(array) for name, array in state.items()}

    def conv(x, name, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def deconv(x, name, stride):
        return F.conv_transpose2d(x, state[f"{name}.weight"], stride=stride)

    def crop(x, offset, like):
        return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]

    x, pools, index = images, [], 0
    for depth in SMALL["depths"]:
        for _ in range(depth):
            x = F.relu(conv(x, f"features.{index}", padding=1 if index else 100))
            index += 2
        x = F.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)
        index += 1
    x = conv(F.relu(conv(F.relu(conv(x, "fc6")), "fc7")), "score_fr")
    at_once = variant == "8s-at-once"
    if variant == "32s":
        return crop(deconv(x, "upscore", 32), 19, images)
    x = deconv(x, "upscore2", 2)
    x = x + crop(conv(pools[3] * (0.01 if at_once else 1), "score_pool4"), 5, x)
    if variant == "16s":
        return crop(deconv(x, "upscore16", 16), 27, images)
    x = deconv(x, "upscore_pool4", 2)
    x = x + crop(conv(pools[2] * (0.0001 if at_once else 1), "score_pool3"), 9, x)
    return crop(deconv(x, "upscore8", 8), 31, images)


@pytest.mark.parametrize("variant", ["32s", "16s", "8s", "8s-at-once"])
def test_equals_the_authors_nets(variant):
    import torch

    size = (75, 98)
    ours = A.FCN(variant, input_shape=(*size, 3), padding=100, **SMALL)
    state = state_of(ours)
    if variant == "8s-at-once":  # what is scaled down must show
        state["score_pool4.weight"] *= 100
        state["score_pool3.weight"] *= 10000
    assert len(state) == len(ours.weights)
    weights.load_torch(ours, {vgg_key(key): array for key, array in state.items()}, source="torchvision")
    images = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    with torch.no_grad():
        want = reference(state, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), variant).numpy()
    got = keras.ops.convert_to_numpy(ours(images)).transpose(0, 3, 1, 2)
    assert_close(got / np.abs(want).max(), want / np.abs(want).max(), tolerance=PARITY)


def test_torchvisions_vgg_becomes_convolutional():
    """Equal scores at 224 pixels for the whole VGG-16, dense layers from torch's own file."""
    import torch
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None, init_weights=False).eval()
    model = A.FCN32s(input_shape=(224, 224, 3), classes=1000, upsampling="fixed")
    weights.load_torch(model, theirs.state_dict(), source="torchvision")
    images = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype("float32")
    with torch.no_grad():
        want = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    scores = keras.Model(model.input, model.get_layer("score_fr").output)
    got = keras.ops.convert_to_numpy(scores(images))[:, 3, 3]
    assert_close(got / np.abs(want).max(), want / np.abs(want).max(), tolerance=PARITY)


@pytest.mark.parametrize("factor", [2, 3, 8, 16, 32])
def test_upsampling_is_torchs_interpolation(factor):
    import torch
    from torch.nn import functional as F

    from kvision.layers import BilinearUpsampling

    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype("float32")
    want = F.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), scale_factor=factor, mode="bilinear")
    for learned in (True, False):
        assert_close(BilinearUpsampling(factor, learned=learned)(x), want.numpy().transpose(0, 2, 3, 1))
