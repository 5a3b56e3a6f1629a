import functools

import keras
import numpy as np
import pytest

from kvision import ops
from tests.ops.differentiation import JIT_IS_SLOW, SLOW
from tests.ops.execution import execute, iou_twin, random_boxes


def nms_twin(boxes, scores, threshold, max_outputs, labels=None):
    """One image: the definition, box by box."""
    labels = np.zeros(len(scores)) if labels is None else labels
    kept = []
    for row in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[row]]
        if scores[row] > -np.inf and all(
            np.float32(iou_twin(boxes[other], boxes[row])) <= threshold for other in rivals
        ):
            kept.append(row)
    return kept[:max_outputs]


def padded(rows, size):
    return [row + [-1] * (size - len(row)) for row in rows]


def example(count=300):
    """Four images: clusters of boxes; a grid of pixels with equal scores; few boxes; none. Spans several chunks."""
    rng = np.random.default_rng(0)
    boxes = np.zeros((4, count, 4), "float32")
    centres = rng.uniform(20, 80, (12, 2))[rng.integers(0, 12, count)] + rng.normal(0, 3, (count, 2))
    sides = rng.uniform(15, 25, (count, 2))
    boxes[0] = np.concatenate([centres - sides, centres + sides], axis=-1)
    boxes[1] = random_boxes(rng, count, size=5, whole=True)
    boxes[2:] = random_boxes(rng, 2, count)
    scores = rng.uniform(size=(4, count)).astype("float32")
    scores[1] = np.round(scores[1] * 4)
    scores[2, rng.permutation(count)[:-5]] = -np.inf
    scores[3] = -np.inf
    return boxes, scores, rng.integers(0, 3, (4, count)).astype("int32")


@functools.cache
def twin_of_the_example(threshold, max_outputs, with_labels=False):
    rows = zip(*example(), strict=True)
    return [
        nms_twin(boxes, scores, threshold, max_outputs, labels if with_labels else None)
        for boxes, scores, labels in rows
    ]


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_nms_equals_twin(mode):
    boxes, scores, _ = example()
    indices, count = execute(lambda boxes, scores: ops.nms(boxes, scores, 0.5, 80), boxes, scores, mode=mode)
    want = twin_of_the_example(0.5, 80)
    assert indices.dtype == count.dtype == "int32"
    np.testing.assert_array_equal(indices, padded(want, 80))
    np.testing.assert_array_equal(count, [len(row) for row in want])
    assert len(want[0]) < 80 == len(want[1]), "the example must end both ways"


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
def test_batched_nms_equals_twin(mode):
    boxes, scores, labels = example()
    indices, count = execute(
        lambda boxes, scores, labels: ops.batched_nms(boxes, scores, labels, 0.4, 400),
        *(boxes, scores, labels),
        mode=mode,
    )
    want = twin_of_the_example(0.4, 400, with_labels=True)
    np.testing.assert_array_equal(indices, padded(want, 400))
    np.testing.assert_array_equal(count, [len(row) for row in want])


@pytest.mark.parametrize(
    "threshold, max_outputs", [(0.7, 3), *(pytest.param(*row, marks=SLOW) for row in [(0.0, 80), (1.0, 150)])]
)
def test_settings_equal_twin(threshold, max_outputs):
    boxes, scores, _ = example(150)  # more than one chunk
    indices, count = ops.nms(boxes, scores, threshold, max_outputs)
    want = [nms_twin(*image, threshold, max_outputs) for image in zip(boxes, scores, strict=True)]
    np.testing.assert_array_equal(indices, padded(want, max_outputs))
    np.testing.assert_array_equal(count, [len(row) for row in want])


def chosen(boxes, scores, **options):
    indices, count = ops.nms(boxes, scores, 0.5, 80, **options)
    return keras.ops.convert_to_numpy(indices), keras.ops.convert_to_numpy(count)


def test_invariances():
    boxes, scores, _ = example()
    indices, count = chosen(boxes, scores)
    np.testing.assert_array_equal(chosen(boxes * 4, scores)[0], indices)
    np.testing.assert_array_equal(chosen(boxes, scores * 8 - 5)[0], indices)
    order = np.random.default_rng(0).permutation(300)
    shuffled, _ = chosen(boxes[:, order], scores[:, order])
    for image in (0, 2):  # the others have equal scores
        np.testing.assert_array_equal(np.where(shuffled < 0, -1, order[shuffled])[image], indices[image])
    again, again_count = chosen(boxes, np.where(kept_mask(indices), scores, -np.inf))
    np.testing.assert_array_equal(again, indices)
    np.testing.assert_array_equal(again_count, count)


def kept_mask(indices):
    mask = np.zeros((len(indices), 301), bool)
    np.put_along_axis(mask, indices, True, axis=1)  # -1 falls into the last column
    return mask[:, :300]


def test_padding_changes_nothing():
    boxes, scores, _ = example()
    indices, _ = chosen(boxes, scores)
    wild = np.where(np.isfinite(scores)[..., None], boxes, np.nan)
    np.testing.assert_array_equal(chosen(wild, np.where(np.isfinite(scores), scores, np.nan))[0], indices)


def test_many_labels_are_as_many_separate_calls():
    boxes, scores, labels = example()
    together, _ = ops.batched_nms(boxes, scores, labels, 0.4, 400)
    alone = [np.where(labels == label, scores, -np.inf) for label in range(3)]
    apart = [ops.batched_nms(boxes, scores, np.zeros_like(labels), 0.4, 400)[0] for scores in alone]
    apart = np.concatenate([keras.ops.convert_to_numpy(indices) for indices in apart], axis=1)
    for row_together, row_apart in zip(keras.ops.convert_to_numpy(together), apart, strict=True):
        assert set(row_together) - {-1} == set(row_apart) - {-1}


def test_any_number_of_leading_dimensions():
    boxes, scores, _ = example()
    indices, count = chosen(boxes, scores)
    nested = chosen(boxes.reshape(2, 2, 300, 4), scores.reshape(2, 2, 300))
    np.testing.assert_array_equal(nested[0], indices.reshape(2, 2, 80))
    np.testing.assert_array_equal(nested[1], count.reshape(2, 2))
    single = chosen(boxes[0], scores[0])
    np.testing.assert_array_equal(single[0], indices[0])
    assert single[1] == count[0] and single[1].shape == ()


@pytest.mark.parametrize("shape, mode", [((0,), "eager"), ((2, 0), "eager"), ((2, 0), "jit"), ((0, 5), "jit")])
def test_zero_boxes(shape, mode):
    boxes, scores = np.zeros((*shape, 4), "float32"), np.zeros(shape, "float32")
    indices, count = execute(lambda boxes, scores: ops.nms(boxes, scores, 0.5, 3), boxes, scores, mode=mode)
    np.testing.assert_array_equal(indices, np.full((*scores.shape[:-1], 3), -1))
    np.testing.assert_array_equal(count, np.zeros(scores.shape[:-1]))


def test_16_bit_inputs_are_computed_in_float32():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    boxes, scores, _ = example()
    narrow = keras.ops.cast(boxes, "float16"), keras.ops.cast(scores, "float16")
    wide = [keras.ops.cast(values, "float32") for values in narrow]
    np.testing.assert_array_equal(chosen(*narrow)[0], chosen(*wide)[0])


@pytest.mark.parametrize(
    "boxes, scores, threshold, max_outputs, message",
    [
        ((3, 4), (3,), 1.5, 2, "0 <= iou_threshold <= 1"),
        ((3, 4), (3,), 0.5, 0, "max_outputs >= 1"),
        ((3, 4), (3, 1), 0.5, 2, r"got boxes \(3, 4\) and scores \(3, 1\)"),
        ((3, 5), (3,), 0.5, 2, r"got boxes \(3, 5\)"),
    ],
)
def test_errors(boxes, scores, threshold, max_outputs, message):
    with pytest.raises(ValueError, match=message):
        ops.nms(np.zeros(boxes), np.zeros(scores), threshold, max_outputs)


@pytest.mark.parity
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_equals_torchvision(threshold):
    import torch
    import torchvision.ops

    threshold = float(np.float32(threshold))  # it compares in double: an overlap of 3 / 10 exceeds 0.3 there
    boxes, scores, labels = example(1500)
    single, _ = ops.nms(boxes, scores, threshold, 1500)
    grouped, _ = ops.batched_nms(boxes, scores, labels, threshold, 1500)
    single, grouped = keras.ops.convert_to_numpy(single), keras.ops.convert_to_numpy(grouped)
    for image in range(4):
        real = np.flatnonzero(scores[image] > -np.inf)
        tensors = [torch.from_numpy(values[image][real]) for values in (boxes, scores, labels)]
        want = real[torchvision.ops.nms(*tensors[:2], threshold).numpy()]
        np.testing.assert_array_equal(single[image], padded([list(want)], 1500)[0])
        want = real[torchvision.ops.batched_nms(*tensors, threshold).numpy()]
        got = grouped[image][grouped[image] >= 0]
        assert set(got) == set(want)  # its order among equal scores is any
        np.testing.assert_array_equal(scores[image][got], scores[image][want])
