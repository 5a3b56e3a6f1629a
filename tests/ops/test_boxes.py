import keras
import numpy as np
import pytest

from kvision import ops
from tests.ops.differentiation import MODES, central_differences, value_and_gradients
from tests.ops.execution import area_twin, execute, iou_twin, random_boxes
from tests.support import assert_close

DEGENERATE = np.array(
    [[0, 0, 0, 0], [5, 5, 5, 5], [2, 3, 2, 9], [1, 4, 8, 4], [9, 9, 1, 1], [9, 0, 1, 5], [1e-7, 1e-7, 2e-7, 2e-7]],
    "float32",
)


def giou_twin(box1, box2):
    left, top = min(box1[0], box2[0]), min(box1[1], box2[1])
    right, bottom = max(box1[2], box2[2]), max(box1[3], box2[3])
    hull = max(right - left, 0) * max(bottom - top, 0)
    shared = area_twin([max(box1[0], box2[0]), max(box1[1], box2[1]), min(box1[2], box2[2]), min(box1[3], box2[3])])
    union = area_twin(box1) + area_twin(box2) - shared
    return (shared / union if union > 0 else 0.0) - ((hull - union) / hull if hull > 0 else 0.0)


OVERLAPS = [(ops.iou_xyxy, iou_twin), (ops.giou_xyxy, giou_twin)]


def encode_twin(boxes, anchors, weights):
    deltas = np.empty_like(boxes)
    for index in np.ndindex(boxes.shape[:-1]):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[index], anchors[index]
        deltas[index] = (
            weights[0] * ((x1 + x2) / 2 - (u1 + u2) / 2) / (u2 - u1),
            weights[1] * ((y1 + y2) / 2 - (v1 + v2) / 2) / (v2 - v1),
            weights[2] * np.log((x2 - x1) / (u2 - u1)),
            weights[3] * np.log((y2 - y1) / (v2 - v1)),
        )
    return deltas


def decode_twin(deltas, anchors, weights):
    boxes = np.empty_like(deltas)
    for index in np.ndindex(deltas.shape[:-1]):
        u1, v1, u2, v2 = anchors[index]
        dx, dy, dw, dh = deltas[index] / np.array(weights)
        x, y = (u1 + u2) / 2 + dx * (u2 - u1), (v1 + v2) / 2 + dy * (v2 - v1)
        width = (u2 - u1) * min(np.exp(dw), 1000 / 16)
        height = (v2 - v1) * min(np.exp(dh), 1000 / 16)
        boxes[index] = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return boxes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("overlap, twin", OVERLAPS)
def test_overlaps_equal_twin(overlap, twin, mode):
    rng = np.random.default_rng(0)
    boxes1, boxes2 = random_boxes(rng, 2, 5), random_boxes(rng, 2, 4, whole=True)
    boxes1[0, 1] = boxes2[0, 2]
    want = [[[twin(box1, box2) for box2 in row2] for box1 in row1] for row1, row2 in zip(boxes1, boxes2, strict=True)]
    assert_close(execute(overlap, boxes1, boxes2, mode=mode), want)


@pytest.mark.parametrize("overlap, twin", OVERLAPS)
def test_overlaps_of_degenerate_boxes_equal_twin(overlap, twin):
    boxes = np.concatenate([DEGENERATE[:-1], random_boxes(np.random.default_rng(0), 3, size=9)])
    assert_close(overlap(boxes, boxes), [[twin(box1, box2) for box2 in boxes] for box1 in boxes])


@pytest.mark.parametrize("overlap, twin", OVERLAPS)
def test_elementwise_is_the_diagonal_and_broadcasts(overlap, twin):
    rng = np.random.default_rng(0)
    boxes1, boxes2 = random_boxes(rng, 2, 6), random_boxes(rng, 2, 6)
    matrix = keras.ops.convert_to_numpy(overlap(boxes1, boxes2))
    assert_close(overlap(boxes1, boxes2, pairwise=False), np.diagonal(matrix, axis1=1, axis2=2))
    assert_close(overlap(boxes1, boxes2[:, 3:4], pairwise=False), matrix[:, :, 3])


@pytest.mark.parametrize("overlap", [ops.iou_xyxy, ops.giou_xyxy])
def test_overlap_laws(overlap):
    rng = np.random.default_rng(0)
    boxes1, boxes2 = random_boxes(rng, 6), random_boxes(rng, 5)
    matrix = keras.ops.convert_to_numpy(overlap(boxes1, boxes2))
    assert_close(overlap(boxes2, boxes1), matrix.T)
    assert_close(overlap(boxes1 + 37, boxes2 + 37), matrix)
    assert_close(overlap(boxes1 * 8, boxes2 * 8), matrix)
    assert_close(overlap(boxes1 / 128, boxes2 / 128), matrix)  # relative boxes, as DETR's
    assert_close(overlap(boxes1[..., [1, 0, 3, 2]], boxes2[..., [1, 0, 3, 2]]), matrix)
    assert_close(overlap(boxes1[::-1], boxes2), matrix[::-1])
    assert_close(overlap(boxes1, boxes1, pairwise=False), np.ones(6))
    assert matrix.min() >= -1 and matrix.max() <= 1


@pytest.mark.parametrize(
    "boxes1, boxes2, iou, giou",
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
        ([0, 0, 1, 1], [2, 0, 3, 1], 0, -1 / 3),
        ([0, 0, 4, 4], [1, 1, 2, 2], 1 / 16, 1 / 16),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0, 0),
    ],
)
def test_overlap_closed_form(boxes1, boxes2, iou, giou):
    assert_close(ops.iou_xyxy(boxes1, boxes2, pairwise=False), iou)
    assert_close(ops.giou_xyxy(boxes1, boxes2, pairwise=False), giou)


def test_area():
    assert_close(ops.area_xyxy([[1, 2, 4, 8], *DEGENERATE[:6]]), [18, 0, 0, 0, 0, 0, 0])


CONVERSIONS = [
    (ops.cxcywh_to_xyxy, [10, 20, 4, 6], [8, 17, 12, 23]),
    (ops.xyxy_to_cxcywh, [8, 17, 12, 23], [10, 20, 4, 6]),
    (ops.xywh_to_xyxy, [8, 17, 4, 6], [8, 17, 12, 23]),
    (ops.xyxy_to_xywh, [8, 17, 12, 23], [8, 17, 4, 6]),
]


@pytest.mark.parametrize("convert, boxes, want", CONVERSIONS)
def test_conversions(convert, boxes, want):
    assert_close(convert(boxes), want)
    assert_close(convert(np.tile(boxes, (2, 3, 1))), np.tile(want, (2, 3, 1)))


@pytest.mark.parametrize(
    "there, back", [(ops.cxcywh_to_xyxy, ops.xyxy_to_cxcywh), (ops.xywh_to_xyxy, ops.xyxy_to_xywh)]
)
def test_conversions_invert_each_other(there, back):
    boxes = random_boxes(np.random.default_rng(0), 3, 7)
    assert_close(there(back(boxes)), boxes, tolerance=(1e-5, 1e-4))  # hundreds of pixels, halved and joined again
    assert_close(back(there(boxes)), boxes, tolerance=(1e-5, 1e-4))


def test_relative_and_absolute():
    boxes = [[[0.5, 0.5, 1.0, 0.25]], [[0.1, 0.2, 0.3, 0.4]]]
    absolute = [[[100, 50, 200, 25]], [[4, 4, 12, 8]]]
    sizes = [[100, 200], [20, 40]]
    assert_close(ops.relative_to_absolute(boxes, sizes), absolute)
    assert_close(ops.absolute_to_relative(absolute, sizes), boxes)
    assert_close(ops.relative_to_absolute(boxes[0], (100, 200)), absolute[0])


def test_clip():
    boxes = [[[-5, -5, 300, 300], [10, 20, 30, 40], [210, 5, 250, 8]]] * 2
    want = [[[0, 0, 200, 100], [10, 20, 30, 40], [200, 5, 200, 8]], [[0, 0, 20, 25], [10, 20, 20, 25], [20, 5, 20, 8]]]
    assert_close(ops.clip_xyxy(boxes, [[100, 200], [25, 20]]), want)
    assert_close(ops.clip_xyxy(boxes, (100, 200)), [want[0], want[0]])


WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_deltas_equal_twin(weights, mode):
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 2, 6), random_boxes(rng, 2, 6)
    deltas = encode_twin(boxes.astype("float64"), anchors.astype("float64"), weights)
    assert_close(execute(lambda *b: ops.encode_deltas(*b, weights), boxes, anchors, mode=mode), deltas)
    wild = (deltas * 3).astype("float32")  # some beyond the limit of log(1000 / 16)
    wild[0, 0] = 40, -40, 40, 40
    want = decode_twin(wild.astype("float64"), anchors.astype("float64"), weights)
    got = execute(lambda *b: ops.decode_deltas(*b, weights), wild, anchors, mode=mode)
    assert_close(got / np.abs(want).max(), want / np.abs(want).max())


def test_decode_inverts_encode_and_broadcasts_over_classes():
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 6, 3), random_boxes(rng, 6)
    boxes[..., 2:] += 10
    anchors[..., 2:] += 10
    deltas = ops.encode_deltas(boxes, anchors[:, None], WEIGHTS[1])
    assert_close(ops.decode_deltas(deltas, anchors[:, None], WEIGHTS[1]), boxes, tolerance=(1e-5, 1e-3))  # pixels
    assert_close(ops.decode_deltas(np.zeros((6, 4)), anchors), anchors, tolerance=(1e-5, 1e-4))


def test_delta_laws():
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 6), random_boxes(rng, 6)
    deltas = ops.encode_deltas(boxes, anchors)
    assert_close(ops.encode_deltas(boxes * 4, anchors * 4), deltas)
    assert_close(ops.encode_deltas(boxes + 64, anchors + 64), deltas, tolerance=(1e-4, 1e-4))  # the shift costs digits


@pytest.mark.parametrize("function", [ops.iou_xyxy, ops.giou_xyxy, ops.encode_deltas, ops.decode_deltas])
def test_degenerate_boxes_give_finite_values_and_gradients(function):
    boxes = np.repeat(DEGENERATE, len(DEGENERATE), axis=0)
    others = np.tile(DEGENERATE, (len(DEGENERATE), 1))
    if function in (ops.iou_xyxy, ops.giou_xyxy):
        values, gradients = value_and_gradients(
            lambda a, b: function(a, b, pairwise=False), (boxes, others), np.ones(len(boxes), "float32")
        )
    else:
        values, gradients = value_and_gradients(function, (boxes, others), np.ones_like(boxes))
    for numbers in (values, *gradients):
        assert np.isfinite(keras.ops.convert_to_numpy(numbers)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "function, twin",
    [
        (ops.iou_xyxy, lambda a, b: np.array([[iou_twin(x, y) for y in b] for x in a])),
        (ops.giou_xyxy, lambda a, b: np.array([[giou_twin(x, y) for y in b] for x in a])),
        (lambda a, b: ops.encode_deltas(a, b, WEIGHTS[1]), lambda a, b: encode_twin(a, b, WEIGHTS[1])),
        (lambda a, b: ops.decode_deltas(a, b, WEIGHTS[1]), lambda a, b: decode_twin(a, b, WEIGHTS[1])),
    ],
    ids=["iou", "giou", "encode", "decode"],
)
def test_gradients_equal_central_differences(function, twin, mode):
    rng = np.random.default_rng(3)
    boxes1, boxes2 = random_boxes(rng, 4, size=3), random_boxes(rng, 4, size=3)
    boxes1[:, 2:] += 0.5
    boxes2[:, 2:] += 0.5
    upstream = rng.normal(size=(4, 4)).astype("float32")
    _, gradients = value_and_gradients(function, (boxes1, boxes2), upstream, mode)
    for got, want in zip(gradients, central_differences(twin, (boxes1, boxes2), upstream), strict=True):
        assert_close(got, want, tolerance=(1e-4, 1e-4))  # float32 against differences in float64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_are_computed_in_float32(dtype):
    keras.mixed_precision.set_dtype_policy(f"mixed_{dtype}")
    rng = np.random.default_rng(0)
    narrow = [keras.ops.cast(random_boxes(rng, 6) + 500, dtype) for _ in range(2)]
    wide = [keras.ops.cast(boxes, "float32") for boxes in narrow]
    for function in (ops.iou_xyxy, ops.giou_xyxy, ops.encode_deltas, ops.decode_deltas):
        got = function(*narrow)
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        assert_close(got, function(*wide))
    for function in (ops.area_xyxy, *(row[0] for row in CONVERSIONS), lambda b: ops.clip_xyxy(b, (550, 520))):
        assert keras.backend.standardize_dtype(function(narrow[0]).dtype) == "float32"
        assert_close(function(narrow[0]), function(wide[0]))


def test_no_boxes():
    none, some = np.zeros((2, 0, 4), "float32"), np.ones((2, 3, 4), "float32")
    assert ops.iou_xyxy(none, some).shape == (2, 0, 3)
    assert ops.giou_xyxy(some, none).shape == (2, 3, 0)
    assert ops.encode_deltas(none, none).shape == ops.decode_deltas(none, none).shape == (2, 0, 4)
    assert ops.clip_xyxy(none, (9, 9)).shape == ops.cxcywh_to_xyxy(none).shape == (2, 0, 4)


@pytest.mark.parity
def test_equals_torchvision():
    import torch
    import torchvision.ops
    from torchvision.models.detection._utils import BoxCoder

    rng = np.random.default_rng(0)
    boxes1 = np.concatenate([random_boxes(rng, 40), random_boxes(rng, 20, size=6, whole=True)])
    boxes2 = np.concatenate([random_boxes(rng, 40), random_boxes(rng, 20, size=6, whole=True)])
    torch1, torch2 = torch.from_numpy(boxes1), torch.from_numpy(boxes2)
    iou = np.nan_to_num(torchvision.ops.box_iou(torch1, torch2).numpy())  # it divides 0 by 0
    assert_close(ops.iou_xyxy(boxes1, boxes2), iou)
    area = (boxes1[:, 2:] > boxes1[:, :2]).all(1), (boxes2[:, 2:] > boxes2[:, :2]).all(1)
    giou = keras.ops.convert_to_numpy(ops.giou_xyxy(boxes1, boxes2))[area[0]][:, area[1]]
    assert_close(giou, torchvision.ops.generalized_box_iou(torch1[area[0]], torch2[area[1]]))
    assert_close(ops.area_xyxy(boxes1), torchvision.ops.box_area(torch1))
    assert_close(ops.clip_xyxy(boxes1, (60, 70)), torchvision.ops.clip_boxes_to_image(torch1, (60, 70)))
    for convert, before, after in [
        (ops.cxcywh_to_xyxy, "cxcywh", "xyxy"),
        (ops.xyxy_to_cxcywh, "xyxy", "cxcywh"),
        (ops.xywh_to_xyxy, "xywh", "xyxy"),
        (ops.xyxy_to_xywh, "xyxy", "xywh"),
    ]:
        assert_close(convert(boxes1), torchvision.ops.box_convert(torch1, before, after))
    for weights in WEIGHTS:
        coder = BoxCoder(weights)
        real = area[0] & area[1]
        deltas = coder.encode_single(torch1[real], torch2[real])
        assert_close(ops.encode_deltas(boxes1[real], boxes2[real], weights), deltas)
        wild = torch.from_numpy(rng.normal(0, 5 * weights[0], boxes2.shape).astype("float32"))
        want = coder.decode_single(wild, torch2).numpy()
        got = keras.ops.convert_to_numpy(ops.decode_deltas(wild.numpy(), boxes2, weights))
        assert_close(got / np.abs(want).max(), want / np.abs(want).max())
