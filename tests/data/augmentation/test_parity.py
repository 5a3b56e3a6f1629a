"""The geometry equals torchvision's: image, boxes, masks and keypoints, for the same parameters."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kvision.data.augmentation.crops import window_warp
from kvision.data.augmentation.geometric import affine_matrix, matrix_of_corners
from kvision.data.augmentation.moving import move
from kvision.data.augmentation.warps import AxisAligned, Projective
from tests.data.augmentation.samples import SIZE, detection

pytestmark = pytest.mark.parity
HEIGHT, WIDTH = SIZE
REGION = {"source": (0, 0, HEIGHT, WIDTH), "size": SIZE, "valid": tf.constant(SIZE)}
CORNERS = [[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]]
MOVED = [[6, 9], [70, 2], [74, 60], [3, 50]]


def affine(angle=0.0, right=0.0, down=0.0, scale=1.0, shear=0.0):
    centre = (WIDTH / 2, HEIGHT / 2)
    # torchvision's shear of x has the other sign
    matrix = affine_matrix(centre, math.radians(angle), (right, down), (scale, scale), (-math.radians(shear), 0.0))
    options = {"angle": angle, "translate": [right, down], "scale": scale, "shear": [shear, 0.0]}
    return Projective(**REGION, matrix=matrix), lambda f: lambda x: f.affine(x, **options, **_bilinear(x))


def _bilinear(x):
    from torchvision.transforms import InterpolationMode
    from torchvision.tv_tensors import Image

    return {"interpolation": InterpolationMode.BILINEAR} if isinstance(x, Image) else {}


def flips(axis):
    scale, offset = [1.0, 1.0], [0.0, 0.0]
    scale[axis], offset[axis] = -1.0, float(SIZE[axis])
    warp = AxisAligned(**REGION, scale=tuple(scale), offset=tuple(offset), whole_pixels=True)
    return warp, lambda f: f.horizontal_flip if axis else f.vertical_flip


def cropped(top, left, height, width):
    warp = AxisAligned(
        source=(0, 0, HEIGHT, WIDTH),
        size=(height, width),
        valid=tf.constant([height, width]),
        offset=(-float(top), -float(left)),
        whole_pixels=True,
    )
    return warp, lambda f: lambda x: f.crop(x, top, left, height, width)


def resized_crop(window, size):
    warp = window_warp(tuple(tf.constant(number) for number in window), size)

    def theirs(f):
        import torch
        from torchvision.transforms import InterpolationMode
        from torchvision.tv_tensors import Mask

        def apply(x):
            if isinstance(x, Mask):  # "nearest", which it takes, is off by half a pixel
                x, options = x.as_subclass(torch.Tensor), {"interpolation": InterpolationMode.NEAREST_EXACT}
                return f.resized_crop_image(x, *window, list(size), **options)
            return f.resized_crop(x, *window, list(size), antialias=True)

        return apply

    return warp, theirs


def perspective():
    warp = Projective(
        **REGION, matrix=matrix_of_corners(tf.constant(CORNERS, tf.float32), tf.constant(MOVED, tf.float32))
    )

    def theirs(f):
        inverse = np.linalg.inv(warp.matrix.numpy().astype("float64"))
        coefficients = (inverse / inverse[2, 2]).reshape(-1)[:8].tolist()
        return lambda x: f.perspective(x, None, None, coefficients=coefficients, **_bilinear(x))

    return warp, theirs


CASES = {
    "horizontal flip": flips(1),
    "vertical flip": flips(0),
    "crop": cropped(5, 7, 40, 50),
    "rotation": affine(angle=25),
    "translation": affine(right=9, down=-6),
    "scale": affine(scale=0.7),
    "shear": affine(shear=12),
    "all": affine(angle=-15, right=5, down=4, scale=1.2, shear=8),
    "perspective": perspective(),
    "resized crop, smaller": resized_crop((4, 6, 56, 70), (24, 30)),
    "resized crop, larger": resized_crop((16, 14, 24, 40), (48, 56)),
}


@pytest.mark.parametrize("warp, theirs", CASES.values(), ids=CASES)
def test_geometry_equals_torchvision(warp, theirs):
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    pixels, targets = detection(num_rows=3)
    ours, moved = move(pixels, targets, warp, min_visibility=0.0)
    apply = theirs(functional)
    size = {"canvas_size": SIZE}
    boxes = tv_tensors.BoundingBoxes(torch.tensor(targets["boxes"].numpy()), format="XYXY", **size)
    masks = tv_tensors.Mask(torch.tensor(targets["masks"].numpy()))
    image = tv_tensors.Image(torch.tensor(pixels.numpy()).permute(2, 0, 1))
    want = apply(image).permute(1, 2, 0).numpy()
    inner = slice(2, -2), slice(2, -2)  # at the border torchvision blends with black over another half pixel
    differing = np.abs(ours.numpy() - want)[inner]
    assert np.median(differing) < 0.01
    assert (differing < 0.5).mean() > 0.97
    want_masks, want_boxes = apply(masks).numpy(), apply(boxes).numpy()
    far = np.tile(warp.size[::-1], 2)
    for row, label in enumerate(targets["labels"].numpy()):
        (position,) = np.flatnonzero(moved["labels"].numpy() == label)
        assert (want_masks[row] != moved["masks"].numpy()[position]).mean() < 0.003
        if (want_boxes[row] > 0.01).all() and (want_boxes[row] < far - 0.01).all():  # cut, it is the hull of less
            np.testing.assert_allclose(moved["boxes"].numpy()[position], want_boxes[row], atol=0.02)
