"""Weighted box fusion against the paper's steps, box by box."""

import keras
import numpy as np
import pytest

from kvision import ops
from tests.ops.differentiation import JIT_IS_SLOW
from tests.ops.execution import execute, iou_twin, random_boxes
from tests.support import assert_close


def fuse_twin(boxes, scores, labels, threshold, num_views):
    """One image: section 3, steps 1 to 7; rows (box, score, label, best member) by falling score."""
    clusters = []
    for row in np.argsort(-scores, kind="stable"):
        if not scores[row] > 0:
            continue
        overlaps = [
            iou_twin(cluster["box"], boxes[row]) if labels[cluster["rows"][0]] == labels[row] else 0
            for cluster in clusters
        ]
        if overlaps and max(overlaps) > threshold:
            cluster = clusters[int(np.argmax(overlaps))]
        else:
            clusters.append(cluster := {"rows": []})
        rows = cluster["rows"] = [*cluster["rows"], row]
        cluster["box"] = np.average(boxes[rows], axis=0, weights=scores[rows])
    fused = [
        (
            cluster["box"],
            scores[cluster["rows"]].mean() * min(len(cluster["rows"]), num_views) / num_views,
            labels[cluster["rows"][0]],
            cluster["rows"][0],
        )
        for cluster in clusters
    ]
    return sorted(fused, key=lambda row: -row[1])


def example(count=60):
    """Clusters of boxes; boxes all over; few boxes; none."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((4, count, 4), "float32")
    centres = rng.uniform(20, 80, (6, 2))[rng.integers(0, 6, count)] + rng.normal(0, 2, (count, 2))
    sides = rng.uniform(15, 25, (count, 2))
    boxes[0] = np.concatenate([centres - sides, centres + sides], axis=-1)
    boxes[1:] = random_boxes(rng, 3, count)
    scores = rng.uniform(size=(4, count)).astype("float32")
    scores[2, 5:] = 0
    scores[3] = [0.0, -np.inf, np.nan] * (count // 3)
    return boxes, scores, rng.integers(0, 2, (4, count)).astype("int32")


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize("num_views, max_outputs", [(3, 60), (40, 4)])
def test_it_does_what_the_paper_says(mode, num_views, max_outputs):
    batch = example()
    got = execute(lambda *rows: ops.fuse_boxes(*rows, 0.55, num_views, max_outputs), *batch, mode=mode)
    for index, rows in enumerate(zip(*batch, strict=True)):
        want = fuse_twin(*rows, 0.55, num_views)[:max_outputs]
        boxes, scores, labels, best = ([row[part] for row in want] for part in range(4))
        count = len(want)
        assert_close(got["boxes"][index, :count], np.reshape(boxes, (-1, 4)), tolerance=(1e-4, 1e-4))  # sums of 100s
        assert_close(got["scores"][index, :count], scores)
        np.testing.assert_array_equal(got["labels"][index, :count], labels)
        np.testing.assert_array_equal(got["indices"][index, :count], best)
        assert not got["boxes"][index, count:].any() and not got["scores"][index, count:].any()
        assert (got["labels"][index, count:] == -1).all() and (got["indices"][index, count:] == -1).all()
    assert got["labels"].dtype == got["indices"].dtype == "int32"


def test_more_outputs_than_boxes_are_padded():
    fused = ops.fuse_boxes([[[0, 0, 4, 4]]], [[0.5]], [[3]], 0.5, num_views=1, max_outputs=3)
    fused = {name: keras.ops.convert_to_numpy(rows).tolist() for name, rows in fused.items()}
    assert fused["labels"] == [[3, -1, -1]] and fused["indices"] == [[0, -1, -1]]
    assert fused["scores"] == [[0.5, 0, 0]] and fused["boxes"] == [[[0, 0, 4, 4], [0] * 4, [0] * 4]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"iou_threshold": 1.5}, "got iou_threshold=1.5"),
        ({"num_views": 0}, "num_views=0"),
        ({"max_outputs": 0}, "max_outputs=0"),
        ({"boxes_xyxy": np.zeros((3, 4))}, r"got boxes \(3, 4\)"),
        ({"scores": np.zeros((1, 0))}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    fitting = {"boxes_xyxy": np.zeros((1, 3, 4)), "scores": np.zeros((1, 3)), "labels": np.zeros((1, 3))}
    with pytest.raises(ValueError, match=message):
        ops.fuse_boxes(**fitting | {"iou_threshold": 0.5, "num_views": 1, "max_outputs": 3} | options)
