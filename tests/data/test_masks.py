"""Label maps go where their images go, and hold the numbers of the file."""

import numpy as np
import PIL.Image
import pytest

from kvision.data import masks

pytestmark = pytest.mark.tensorflow_only

NAMES = ("ground", "left", "right")
MAP = np.zeros((20, 30), "uint8")
MAP[5:15, 4:12], MAP[5:15, 20:28], MAP[:2] = 1, 2, 255


@pytest.fixture
def folders(tmp_path):
    """Images whose red is the class, and their maps, one of them with a palette."""
    for name in ("a", "b", "train/c"):
        for kind in ("images", "maps"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        red = np.stack([np.where(MAP == 255, 0, MAP) * 100, 0 * MAP, 0 * MAP], axis=-1)
        PIL.Image.fromarray(red).save(tmp_path / "images" / f"{name}.png")
        labels = PIL.Image.fromarray(MAP)
        if name == "b":
            labels.putpalette(list(range(255, -1, -1)) * 3)
        labels.save(tmp_path / "maps" / f"{name}.png")
    return tmp_path / "images", tmp_path / "maps"


@pytest.mark.parametrize("scale", [1, 2])
def test_maps_go_where_their_images_go(folders, scale):
    found = masks(*folders, NAMES, image_size=(24 * scale, 30 * scale))
    images, labels = next(iter(found))
    want = np.full((24, 30), 255)
    want[:20] = MAP
    np.testing.assert_array_equal(labels, [want.repeat(scale, 0).repeat(scale, 1)] * 3)
    assert labels.dtype == "int32" and (found.class_names, found.classes, found.problems) == (NAMES, 3, [])
    if scale == 1:
        np.testing.assert_allclose(images[0, :20, :, 0], np.where(MAP == 255, 0, MAP) * 100, atol=1e-3)
    assert len(masks(*folders, NAMES, split="train").files) == 1


def test_maps_that_cannot_be_are_named_and_left_out(folders):
    PIL.Image.fromarray(MAP[:10]).save(folders[1] / "a.png")
    PIL.Image.fromarray(MAP + 1).save(folders[1] / "b.png")
    PIL.Image.fromarray(MAP).save(folders[0] / "d.png")
    found = masks(*folders, NAMES)
    reasons = " ".join(problem.reason for problem in found.problems)
    assert len(found.files) == 1 and len(found.problems) == 3
    assert "it has (10, 30) pixels (height, width), its image (20, 30)" in reasons
    assert "it holds the class 3; there are 3, counted from 0" in reasons and "there is no map" in reasons
    with pytest.raises(ValueError, match="classes= cannot order"):
        masks(*folders, NAMES, classes=NAMES)
