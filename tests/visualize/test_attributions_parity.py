"""Attributions against Captum's on torchvision's networks with the same weights.

Captum replaces the gradient of `nn.ReLU` alone, so guided backpropagation and deconvnet are compared on SqueezeNet,
whose ReLUs are such modules, and not on MobileNetV2, which has ReLU6. There random weights give scores so large that
what a window takes away is lost in their rounding, so occlusion is compared on SqueezeNet, too.
"""

import functools

import numpy as np
import pytest

from kvision import applications as A
from kvision import visualize, weights
from tests.applications.classification.test_parity import randomise
from tests.support import assert_close

pytestmark = pytest.mark.parity

SIZE = (67, 64)
NETS = {
    "squeezenet1_1": (functools.partial(A.SqueezeNet, "1.1"), "features.12.expand3x3_activation"),
    "mobilenet_v2": (A.MobileNetV2, "features.18.2"),
}


EVERYWHERE = ("gradient", "input times gradient", "integrated_gradients", "grad_cam")
ROWS = [
    *(("squeezenet1_1", name) for name in (*EVERYWHERE, "guided_backprop", "deconvnet", "occlusion")),
    *(("mobilenet_v2", name) for name in EVERYWHERE),
]


@functools.cache
def pair(net):
    """`(our network, their module, images, classes, the layer of the last maps)`."""
    import torch
    import torchvision

    torch.manual_seed(0)
    theirs = randomise(getattr(torchvision.models, net)(weights=None)).eval()
    for module in theirs.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    build, layer = NETS[net]
    ours = build(input_shape=(*SIZE, 3), classifier_activation=None)
    weights.load_torch(ours, theirs.state_dict(), source="torchvision")
    images = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype("float32")
    with torch.no_grad():
        classes = theirs(batch(images)).argmax(dim=1)
    return ours, theirs, images, classes, layer


def batch(images):
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()


def both(name, ours, theirs, images, classes, layer):
    """Our maps and theirs."""
    from captum import attr

    x, target = batch(images), classes.numpy()
    if name == "gradient":
        return visualize.gradient(ours, images, target), attr.Saliency(theirs).attribute(x, classes, abs=False)
    if name == "input times gradient":
        got = visualize.gradient(ours, images, target, times_input=True)
        return got, attr.InputXGradient(theirs).attribute(x, classes)
    if name == "guided_backprop":
        return visualize.guided_backprop(ours, images, target), attr.GuidedBackprop(theirs).attribute(x, classes)
    if name == "deconvnet":
        return visualize.deconvnet(ours, images, target), attr.Deconvolution(theirs).attribute(x, classes)
    if name == "integrated_gradients":
        got = visualize.integrated_gradients(ours, images, target, baseline=0.25, steps=12)
        want = attr.IntegratedGradients(theirs).attribute(x, 0.25, classes, n_steps=12, method="riemann_middle")
        return got, want
    if name == "occlusion":
        got = visualize.occlusion(ours, images, target, window=(19, 16), stride=(12, 8), fill=0.5)
        return got, attr.Occlusion(theirs).attribute(x, (3, 19, 16), (3, 12, 8), 0.5, classes)[:, 0]
    got = visualize.grad_cam(ours, images, target, layer=layer, resize=False)
    module = dict(theirs.named_modules())[layer]
    return got, attr.LayerGradCam(theirs, module).attribute(x, classes, relu_attributions=True)[:, 0]


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
@pytest.mark.parametrize(("net", "name"), ROWS)
def test_equals_captum(net, name):
    got, want = both(name, *pair(net))
    want = want.detach().numpy()
    want = want.transpose(0, 2, 3, 1) if want.ndim == 4 else want
    scale = np.abs(want).max()
    assert scale > 0
    if name == "occlusion":  # a difference of scores, which is as exact as these
        scale = np.abs(pair(net)[0](pair(net)[2])).max()
    assert_close(got / scale, want / scale, tolerance=(0, 1e-5))
