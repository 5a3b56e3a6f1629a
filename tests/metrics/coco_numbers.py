"""COCO's numbers of batches, and what they are compared with."""

import numpy as np
import pytest

from kvision.metrics import COCOAveragePrecision
from tests.metrics.scenes import detections, targets

TWELVE = "AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100 AR_small AR_medium AR_large".split()
EXACT = 1e-9


def numbers(*batches, **options):
    metric = COCOAveragePrecision(**options)
    for truth, found in batches:
        metric.update_state(truth, found)
    return metric.result()


def assert_numbers(got, **want):
    assert {name: got[name] for name in want} == pytest.approx(want, abs=EXACT)


SMALL, MEDIUM, LARGE = [10, 10, 30, 30], [10, 10, 60, 60], [10, 10, 210, 210]


def block(top, left, bottom, right, size=(80, 120)):
    mask = np.zeros(size, "uint8")
    mask[top:bottom, left:right] = 1
    return mask


def with_masks(rows, *masks):
    return rows | {"masks": np.stack([*masks, block(0, 0, 80, 120)])[None]}


def many(objects):
    """Objects of one class side by side, each detected exactly."""
    x, y = np.meshgrid(np.arange(20), np.arange(-(-objects // 20)))
    corners = 20.0 * np.stack([x, y], axis=-1).reshape(-1, 2)[:objects]
    rows = [(0, [*corner, *(corner + 15)]) for corner in corners]
    return targets(rows), detections([(0, 1 - index / 1000, box) for index, (_, box) in enumerate(rows)])


def cut(arrays, rows):
    return {name: array[rows] for name, array in arrays.items()}
