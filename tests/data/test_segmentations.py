"""Polygons and run lengths enclose what other tools say they do."""

import matplotlib.path
import numpy as np
import pytest

from kvision.data.segmentations import fill_polygon, parse_segmentation, rasterize
from tests.data.files import SEGMENTATIONS, compressed, run_lengths

pytestmark = pytest.mark.tensorflow_only


def blobs(seed, size=(23, 31)):
    """A random mask of a few blobs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, bool)
    for _ in range(3):
        cy, cx, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(2, 8)
        mask ^= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return mask.astype("uint8")


@pytest.mark.parametrize("seed", range(6))
def test_polygons_hold_the_pixels_that_matplotlib_finds_inside(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(4, 16, 9)
    points = np.stack([15 + radii * np.cos(angles), 12 + radii * np.sin(angles)], axis=1)  # reaches over the border
    y, x = np.mgrid[:24, :30] + 0.5
    want = matplotlib.path.Path(points, closed=False).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(24, 30)
    assert want.any()
    np.testing.assert_array_equal(fill_polygon(points, (24, 30)), want)


def test_a_star_is_filled_by_the_even_odd_rule():
    angles = np.pi / 2 + 4 * np.pi / 5 * np.arange(5)
    mask = fill_polygon(20 + 18 * np.stack([np.cos(angles), np.sin(angles)], axis=1), (40, 40))
    assert not mask[18:22, 18:22].any()
    assert mask[33, 20]


@pytest.mark.parametrize("kind", SEGMENTATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_every_kind_gives_the_mask_back(kind, seed):
    mask = blobs(seed)
    segmentation = parse_segmentation(SEGMENTATIONS[kind](mask), mask.shape)
    np.testing.assert_array_equal(rasterize(segmentation, mask.shape, (0, 0, 31, 23), (23, 31)), mask)


@pytest.mark.parametrize("kind", SEGMENTATIONS)
@pytest.mark.parametrize(
    ("window", "grid"), [((4, 3, 20, 19), (32, 32)), ((-3.3, 5.1, 40.2, 30.7), (17, 29)), ((2, 2, 25, 20), (7, 5))]
)
def test_a_window_asks_for_the_points_at_the_centres_of_its_grid(kind, window, grid):
    mask = blobs(1)
    want = np.zeros(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            x = window[0] + (column + 0.5) * (window[2] - window[0]) / grid[1]
            y = window[1] + (row + 0.5) * (window[3] - window[1]) / grid[0]
            if 0 <= x < 31 and 0 <= y < 23:
                want[row, column] = mask[int(y), int(x)]
    assert want.any()
    np.testing.assert_array_equal(
        rasterize(parse_segmentation(SEGMENTATIONS[kind](mask), (23, 31)), (23, 31), window, grid), want
    )


GOOD = run_lengths(blobs(0))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "has no segmentation: got None"),
        ([], "has no segmentation"),
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, np.nan]], "at least three points"),
        ([[1, 2, 3, 4, 5, "six"]], "at least three points"),
        ([7], "at least three points"),
        ([[1, 2, 3, 4, 5, 10**400]], "at least three points"),
        (GOOD | {"size": 713}, r"size of 713, but the image has \[23, 31\]"),
        (GOOD | {"counts": [10**30]}, "cannot be read"),
        (GOOD | {"size": [31, 23]}, r"size of \[31, 23\], but the image has \[23, 31\]"),
        (GOOD | {"counts": GOOD["counts"][:-1]}, "do not add up to the image's 713 pixels"),
        (GOOD | {"counts": [-1, *GOOD["counts"], 1]}, "do not add up"),
        (GOOD | {"counts": None}, "cannot be read"),
        (GOOD | {"counts": compressed(GOOD)["counts"][:-1]}, "cannot be read|do not add up"),
        (GOOD | {"counts": "no text of COCO"}, "cannot be read"),
        (GOOD | {"counts": ""}, "cannot be read"),
        (GOOD | {"counts": "ü"}, "cannot be read"),
    ],
)
def test_segmentations_that_cannot_be_read_say_why(segmentation, message):
    with pytest.raises(ValueError, match=message):
        parse_segmentation(segmentation, (23, 31))


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(20))
def test_compressed_text_is_that_of_pycocotools(seed):
    from pycocotools import mask as pycocotools

    mask = blobs(seed, (61, 83)) if seed else np.zeros((61, 83), "uint8")
    theirs = pycocotools.encode(np.asfortranarray(mask))
    np.testing.assert_array_equal(
        rasterize(parse_segmentation(theirs, (61, 83)), (61, 83), (0, 0, 83, 61), (61, 83)), mask
    )
    np.testing.assert_array_equal(pycocotools.decode(compressed(run_lengths(mask))), mask)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(5))
def test_polygons_differ_from_pycocotools_at_the_rim_only(seed):
    from pycocotools import mask as pycocotools

    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    points = 50 + rng.uniform(25, 45, 12)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    theirs = pycocotools.decode(pycocotools.frPyObjects([points.ravel().tolist()], 100, 100))[..., 0]
    ours = fill_polygon(points, (100, 100))
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97
