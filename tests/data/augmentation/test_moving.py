"""Boxes around what is visible of moved ones, and the scale that the targets tell of."""

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.data.augmentation.moving import visible_boxes
from tests.data.augmentation.samples import detection

LIMIT = (40, 60)  # height, width


def twin(polygon, steps=400):
    """Box and fraction of a convex polygon in an image, by points on a fine grid."""
    low, high = polygon.min(0), polygon.max(0)
    x, y = (low[axis] + (np.arange(steps) + 0.5) / steps * (high - low)[axis] for axis in (0, 1))
    points = np.stack(np.meshgrid(x, y), axis=-1)
    edges = np.roll(polygon, -1, axis=0) - polygon
    offset = points[..., None, :] - polygon
    side = edges[:, 0] * offset[..., 1] - edges[:, 1] * offset[..., 0]
    within = (side >= 0).all(-1)
    seen = within & (points >= 0).all(-1) & (points <= LIMIT[::-1]).all(-1)
    if not seen.any():
        return np.zeros(4), 0.0
    return np.concatenate([points[seen].min(0), points[seen].max(0)]), seen.sum() / within.sum()


def test_visible_boxes_equal_a_fine_grid():
    """Boxes turned and sheared: inside, over a border, around the whole image, outside."""
    rng = np.random.default_rng(0)
    polygons = []
    for scale in (5, 15, 40, 120):
        for _ in range(8):
            turn = rng.uniform(0, 2 * np.pi)
            linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scale
            square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(0.4, 1, 2)
            polygons.append(square @ linear.T + rng.uniform([-10, -10], [70, 50]))
    boxes, fractions = visible_boxes(tf.constant(np.array(polygons), tf.float32), LIMIT)
    for polygon, box, fraction in zip(polygons, boxes.numpy(), fractions.numpy(), strict=True):
        want, want_fraction = twin(polygon)
        cell = np.ptp(polygon, axis=0).max() / 400
        np.testing.assert_allclose(box, want, atol=6 * cell)  # a tip may fall between the points
        assert fraction == pytest.approx(want_fraction, abs=0.02)


@pytest.mark.parametrize(
    "transform, scale",
    [
        (data.ScaleJitter((32, 40), scale=(1.0, 1.0)), 0.5),
        (data.ZoomOut(ratio=(4.0, 4.0)), 0.25),
        (data.Rotation(30), 1.0),
        (data.HorizontalFlip(rate=1.0), 1.0),
    ],
)
def test_the_scale_of_the_targets_follows(transform, scale):
    _, targets = transform(detection(), (0, 1))
    assert float(targets["scale"]) == pytest.approx(scale, rel=1e-3)
