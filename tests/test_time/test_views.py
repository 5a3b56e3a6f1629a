"""Each window at its place: against slow crops by pillow, the papers' numbers, and torchvision."""

import numpy as np
import pytest
from keras import ops
from PIL import Image

from kvision import test_time
from kvision.test_time.views import cut_views
from tests.support import TOLERANCES, assert_close

RULES = [
    (test_time.Flips(vertical=True), (10, 12), (8, 8)),
    (test_time.TenCrops(), (13, 10), (9, 8)),
    (test_time.MultiScale((1.0, 1.3), mirrored=True), (12, 9), (8, 10)),
    (test_time.GoogLeNetCrops((9, 11)), (20, 31), (8, 8)),
    (test_time.GoogLeNetCrops((9, 11)), (31, 20), (8, 8)),
]


def resized(image, size):
    """One image by pillow, a channel at a time."""
    channels = [Image.fromarray(channel).resize(size[::-1], Image.Resampling.BILINEAR) for channel in image]
    return np.stack(channels)


def slow_view(image, view, size):
    """One view, pixel by pixel."""
    whole = resized(image.transpose(2, 0, 1), view.image_size)
    top, left, height, width = view.window
    cut = np.zeros((len(whole), height, width), "float32")
    for row, column in np.ndindex(height, width):
        cut[:, row, column] = whole[:, top + row, left + column]
    cut = resized(cut, size)
    cut = [[line[::-1] if view.mirrored else line for line in channel] for channel in cut]
    return np.array([channel[::-1] if view.upside_down else channel for channel in cut]).transpose(1, 2, 0)


@pytest.mark.parametrize("rule, image_size, size", RULES, ids=lambda value: str(value))
def test_every_view_equals_a_slow_crop(rule, image_size, size):
    images = np.random.default_rng(0).uniform(0, 1, (2, *image_size, 3)).astype("float32")
    views = rule(image_size, size)
    want = [[slow_view(image, view, size) for view in views] for image in images]
    assert_close(cut_views(images, views, size), want)
    assert len(set(views)) == len(views)


def test_the_144_crops_are_those_of_the_paper():
    """Section 7: 4 scales x 3 squares x (4 corners, the centre, the square) x mirrored, in pixels."""
    squares = {256: (341, (0, 42, 85)), 288: (384, (0, 48, 96)), 320: (427, (0, 54, 107)), 352: (469, (0, 58, 117))}
    offsets = {256: (0, 16, 32), 288: (0, 32, 64), 320: (0, 48, 96), 352: (0, 64, 128)}
    want = set()
    for side, (longer, lefts) in squares.items():
        first, centre, last = offsets[side]
        for left in lefts:
            for mirrored in (False, True):
                want.add(((side, longer), (0, left, side, side), mirrored))
                for down, across in [(first, first), (first, last), (last, first), (last, last), (centre, centre)]:
                    want.add(((side, longer), (down, left + across, 224, 224), mirrored))
    views = test_time.GoogLeNetCrops()((300, 400), (224, 224))
    got = {(view.image_size, view.window, view.mirrored) for view in views}
    assert len(views) == len(got) == 144
    assert got == want
    upright = {
        (size[::-1], (left, top, *sides), mirrored) for size, (top, left, *sides), mirrored in want
    }  # a portrait: top, centre and bottom
    views = test_time.GoogLeNetCrops()((400, 300), (224, 224))
    assert {(view.image_size, view.window, view.mirrored) for view in views} == upright


def test_the_squares_of_a_square_image_count_once():
    assert len(test_time.GoogLeNetCrops()((256, 256), (224, 224))) == 48


def test_multiple_scales_cover_the_model():
    views = test_time.MultiScale((1.0, 1.5))((200, 400), (100, 100))
    assert [(view.image_size, view.window) for view in views] == [
        ((100, 200), (0, 50, 100, 100)),
        ((150, 300), (25, 100, 100, 100)),
    ]


@pytest.mark.parity
@pytest.mark.parametrize("image_size", [(256, 256), (31, 40), (40, 31), (29, 32)])
def test_ten_crops_equal_torchvision(image_size):
    import torch
    from torchvision.transforms import v2

    size = (224, 224) if image_size == (256, 256) else (28, 27)
    images = np.random.default_rng(0).uniform(0, 1, (1, *image_size, 3)).astype("float32")
    want = v2.functional.ten_crop(torch.tensor(images.transpose(0, 3, 1, 2)), list(size))
    got = ops.convert_to_numpy(cut_views(images, test_time.TenCrops()(image_size, size), size))
    assert_close(got[0], [crop[0].numpy().transpose(1, 2, 0) for crop in want], tolerance=(0, 0))


@pytest.mark.parity
def test_resized_windows_equal_torchvision():
    import torch
    from torchvision.transforms import v2

    images = np.random.default_rng(0).uniform(0, 1, (1, 60, 90, 3)).astype("float32")
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    views = test_time.GoogLeNetCrops((36, 44))((60, 90), (32, 32))
    want = []
    for view in views:
        whole = v2.functional.resize(pixels, list(view.image_size), antialias=True)
        window = v2.functional.resized_crop(whole, *view.window, [32, 32], antialias=True)
        want.append(v2.functional.hflip(window) if view.mirrored else window)
    got = ops.convert_to_numpy(cut_views(images, views, (32, 32)))[0]
    assert_close(got, np.concatenate(want).transpose(0, 2, 3, 1), tolerance=TOLERANCES["float32"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: test_time.TenCrops()((8, 8), (8, 8)), r"larger images: got 8 x 8.*9 x 9"),
        (lambda: test_time.TenCrops()((20, 7), (8, 8)), "larger images: got 20 x 7"),
        (lambda: test_time.MultiScale(()), "one or more"),
        (lambda: test_time.MultiScale((0.9,)), "at least 1"),
        (lambda: test_time.GoogLeNetCrops((8.5,)), "whole numbers"),
        (lambda: test_time.GoogLeNetCrops()((512, 512), (256, 260)), "square model"),
        (lambda: test_time.GoogLeNetCrops()((512, 512), (280, 280)), r"\(320, 360, 400, 440\)"),
        (lambda: test_time.View((8, 8), (1, 0, 8, 8)), "inside the resized image"),
        (lambda: test_time.View((8, 8), (0.0, 0, 8, 8)), "whole pixels"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
