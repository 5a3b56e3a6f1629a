"""RoIAlign and RoI pooling: equal to slow twins and to torchvision; degenerate boxes, 16-bit, zero boxes."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.ops import assign_levels, multilevel_roi_align, roi_align, roi_pool
from tests.ops.differentiation import JIT_IS_SLOW, MODES, SLOW, value_and_gradients
from tests.support import assert_close

SHAPE = (2, 27, 50, 3)  # two tiles by three of the hand-written gradient
SCALE = 0.25
HEIGHT, WIDTH = SHAPE[1] / SCALE, SHAPE[2] / SCALE
# A sample's position of up to 50 cells is known to 4e-6 cells, neighbouring cells differ by up to 6.
POSITION_TOLERANCE = (1e-5, 5e-5)

BOXES = {
    "inside": (20.3, 30.1, 90.7, 77.9),
    "on whole cells": (16.0, 32.0, 48.0, 64.0),
    "inside one cell": (33.1, 41.2, 34.0, 41.9),
    "point": (60.5, 50.5, 60.5, 50.5),
    "point at the origin": (0.0, 0.0, 0.0, 0.0),
    "line": (10.0, 20.0, 10.0, 90.0),
    "whole map": (0.0, 0.0, WIDTH, HEIGHT),
    "larger than the map": (-90.0, -70.0, WIDTH + 120.0, HEIGHT + 50.0),
    "over the corner": (-30.0, -20.0, 25.0, 35.0),
    "over the far corner": (WIDTH - 20.0, HEIGHT - 25.0, WIDTH + 30.0, HEIGHT + 20.0),
    "one cell outside": (-6.0, -6.0, -4.0, -4.0),
    "far outside": (1000.0, 1000.0, 1200.0, 1100.0),
    "31 cells": (40.0, 0.0, 160.0, 40.0),  # 31 / 7 * 7 is above 31 in float32
}


def some_boxes(images=2):
    rng = np.random.default_rng(1)
    boxes = np.array(list(BOXES.values()), "float32")
    return np.stack([boxes[rng.permutation(len(boxes))] for _ in range(images)])


def example(shape=SHAPE, boxes=None, size=3, seed=0):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(shape[0]) if boxes is None else boxes
    features = rng.normal(size=shape).astype("float32")
    return features, boxes, rng.normal(size=(*boxes.shape[:2], size, size, shape[-1])).astype("float32")


def alignment(box, shape, size, scale, ratio, aligned):
    """The matrix [size * size, h * w] of one box, one sample after the other."""
    height, width = shape
    x1, y1, x2, y2 = (float(side) * scale - (0.5 if aligned else 0.0) for side in box)
    box_width, box_height = x2 - x1, y2 - y1
    if not aligned:
        box_width, box_height = max(box_width, 1.0), max(box_height, 1.0)
    matrix = np.zeros((size, size, height, width))
    for i, j, down, across in np.ndindex(size, size, ratio, ratio):
        y = y1 + box_height / size * (i + (down + 0.5) / ratio)
        x = x1 + box_width / size * (j + (across + 0.5) / ratio)
        if y < -1 or y > height or x < -1 or x > width:
            continue
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = min(int(y), height - 1), min(int(x), width - 1)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        for row, row_weight in ((top, 1 - (y - top)), (bottom, y - top)):
            for column, column_weight in ((left, 1 - (x - left)), (right, x - left)):
                matrix[i, j, row, column] += row_weight * column_weight / ratio**2
    return matrix.reshape(size * size, height * width)


def align_twin(features, boxes, upstream, scale, ratio, aligned):
    """The regions, and the gradient to the features."""
    channels, size = features.shape[-1], upstream.shape[2]
    regions, gradient = np.zeros(upstream.shape), np.zeros(features.shape)
    for image, row in np.ndindex(boxes.shape[:2]):
        matrix = alignment(boxes[image, row], features.shape[1:3], size, scale, ratio, aligned)
        regions[image, row] = (matrix @ features[image].reshape(-1, channels)).reshape(size, size, channels)
        part = matrix.T @ upstream[image, row].reshape(-1, channels)
        gradient[image] += part.reshape(features.shape[1:])
    return regions, gradient


def pool_twin(features, boxes, upstream, scale):
    """The regions, and the gradient to the features, which goes to the largest cell."""
    size = upstream.shape[2]
    regions, gradient = np.zeros(upstream.shape), np.zeros(features.shape)

    def nearest(value):
        return int(np.sign(value) * np.floor(np.abs(value) + 0.5))

    def span(low, high, index, cells):
        low, high = nearest(np.float32(low * scale)), nearest(np.float32(high * scale))
        step = np.float32(max(high - low + 1, 1)) / np.float32(size)
        start, end = int(np.floor(index * step)), int(np.ceil((index + 1) * step))
        return slice(min(max(start + low, 0), cells), min(max(end + low, 0), cells))

    for image, row, i, j, channel in np.ndindex(*upstream.shape):
        x1, y1, x2, y2 = boxes[image, row]
        rows, columns = span(y1, y2, i, features.shape[1]), span(x1, x2, j, features.shape[2])
        cells = features[image, rows, columns, channel]
        if cells.size:
            index = np.unravel_index(np.argmax(cells), cells.shape)
            regions[image, row, i, j, channel] = cells[index]
            gradient[image, rows.start + index[0], columns.start + index[1], channel] += upstream[
                image, row, i, j, channel
            ]
    return regions, gradient


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "ratio", "aligned"), [(3, 2, True), (7, 2, False), (2, 3, True), (1, 1, True)])
def test_align_equals_its_twin(size, ratio, aligned, mode):
    features, boxes, upstream = example(size=size)
    regions, (gradient,) = value_and_gradients(
        lambda features: roi_align(features, boxes, size, SCALE, ratio, aligned), (features,), upstream, mode
    )
    want_regions, want_gradient = align_twin(features, boxes, upstream, SCALE, ratio, aligned)
    assert_close(regions, want_regions, tolerance=POSITION_TOLERANCE)
    assert_close(gradient, want_gradient, tolerance=POSITION_TOLERANCE)


@pytest.mark.parametrize(
    ("size", "mode"), [(7, "eager"), pytest.param(7, "graph", marks=SLOW), (7, "jit"), (2, "eager")]
)
def test_pool_equals_its_twin(size, mode):
    features, boxes, upstream = example(size=size)
    regions, (gradient,) = value_and_gradients(
        lambda features: roi_pool(features, boxes, size, SCALE), (features,), upstream, mode
    )
    want_regions, want_gradient = pool_twin(features, boxes, upstream, SCALE)
    assert_close(regions, want_regions)
    assert_close(gradient, want_gradient)


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize("cells", [5, 10, 21, 30])
def test_samples_exactly_one_cell_outside_the_map_take_the_edge(cells, mode):
    low = np.array([cells - 13, cells - 6.25, -0.5], "float32")  # samples at `cells`, in steps of 1 and 0.5, and at -1
    side = np.array([14, 7, 14], "float32")
    boxes = np.stack([low, low, low + side, low + side], axis=-1)[None]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, cells, cells, 2)).astype("float32")
    upstream = rng.normal(size=(1, 3, 7, 7, 2)).astype("float32")
    regions, (gradient,) = value_and_gradients(lambda x: roi_align(x, boxes, 7, 1.0), (features,), upstream, mode)
    want, want_gradient = align_twin(features, boxes, upstream, 1.0, 2, True)
    assert_close(regions, want, tolerance=POSITION_TOLERANCE)
    assert_close(gradient, want_gradient, tolerance=POSITION_TOLERANCE)


def test_a_map_of_one_cell():
    features, boxes = np.full((1, 1, 1, 2), 3.0, "float32"), np.array([[[0.0, 0.0, 1.0, 1.0]]], "float32")
    assert_close(roi_align(features, boxes, 2, 1.0), np.full((1, 1, 2, 2, 2), 3.0))


def test_pool_rounds_halves_away_from_zero():
    features = np.arange(36, dtype="float32").reshape(1, 6, 6, 1)
    boxes = [[[2.0, 2.0, 2.0, 2.0], [6.0, 6.0, 6.0, 6.0], [-2.0, -2.0, 2.0, 2.0]]]  # 0.5, 1.5 and -0.5 cells
    regions = roi_pool(features, np.array(boxes, "float32"), 1, 0.25)
    assert np.ravel(ops.convert_to_numpy(regions)).tolist() == [7.0, 14.0, 7.0]


PYRAMID = {f"P{level}": (2, 96 >> level, 64 >> level, 3) for level in (2, 3, 4)}


def pyramid_example():
    rng = np.random.default_rng(3)
    maps = {name: rng.normal(size=shape).astype("float32") for name, shape in PYRAMID.items()}
    corner, extent = rng.uniform(-10, 60, (2, 9, 2)), np.exp(rng.uniform(1, 5.2, (2, 9, 2)))
    boxes = np.concatenate([corner, corner + extent], axis=-1).astype("float32")
    return maps, boxes, rng.normal(size=(2, 9, 2, 2, 3)).astype("float32")


@pytest.mark.parametrize("mode", MODES)
def test_each_box_takes_the_features_of_its_level(mode):
    maps, boxes, upstream = pyramid_example()
    regions, gradients = value_and_gradients(
        lambda *maps: multilevel_roi_align(dict(zip(PYRAMID, maps, strict=True)), boxes, 2, canonical_size=56),
        tuple(maps.values()),
        upstream,
        mode,
    )
    extent = boxes[..., 2:] - boxes[..., :2]
    level = np.clip(np.floor(4 + np.log2(np.sqrt(extent.prod(-1)) / 56)), 2, 4)
    assert set(level.ravel()) == {2, 3, 4}
    total = np.zeros(upstream.shape)
    for number, (feature, gradient) in enumerate(zip(maps.values(), gradients, strict=True), start=2):
        chosen = (level == number)[..., None, None, None]
        part, want = align_twin(feature, boxes, upstream * chosen, 2.0**-number, 2, True)
        total += part * chosen
        assert_close(gradient, want, tolerance=POSITION_TOLERANCE)
    assert_close(regions, total, tolerance=POSITION_TOLERANCE)


def test_a_pyramid_of_one_level_is_a_map():
    features, boxes, _ = example()
    assert_close(multilevel_roi_align({"P2": features}, boxes, 3), roi_align(features, boxes, 3, SCALE))


@pytest.mark.parametrize("mode", JIT_IS_SLOW)
@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(224, 224, 4), (223.9, 224, 3), (448, 112, 4), (112, 112, 3), (111, 112, 2), (448, 448, 5), (9000, 9000, 5)]
    + [(1, 1, 2), (0, 50, 2), (-30, 40, 2), (0, 0, 2), (-300, -300, 2)],
)
def test_level_by_area(width, height, level, mode):
    box = np.array([[[7.0, 9.0, 7.0 + width, 9.0 + height]]], "float32")
    levels, _ = value_and_gradients(
        lambda boxes: ops.cast(assign_levels(boxes), "float32"), (box,), np.ones((1, 1), "float32"), mode
    )
    assert int(levels[0, 0]) == level


FUNCTIONS = {
    "align": lambda features, boxes: roi_align(features, boxes, 3, SCALE),
    "align, not aligned": lambda features, boxes: roi_align(features, boxes, 3, SCALE, aligned=False),
    "pool": lambda features, boxes: roi_pool(features, boxes, 3, SCALE),
    "levels": lambda features, boxes: multilevel_roi_align(
        {"P2": features, "P3": ops.stop_gradient(features[:, ::2, ::2])}, boxes, 3
    ),
}
# Pooling is compiled in a graph anyway, and slow to compile.
NAMES_AND_MODES = [(name, mode) for name in FUNCTIONS for mode in MODES if (name, mode) != ("pool", "graph")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_constant_map_gives_the_constant(name):
    boxes = some_boxes()[:, :, None].reshape(2, -1, 4).clip(0, min(HEIGHT, WIDTH) - 10)
    features = np.full(SHAPE, 2.5, "float32")
    assert_close(FUNCTIONS[name](features, boxes), np.full((*boxes.shape[:2], 3, 3, 3), 2.5))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_boxes_are_independent_and_in_order(name):
    many = np.concatenate([some_boxes() + shift for shift in range(6)], axis=1)  # more than one chunk
    features, boxes, _ = example(boxes=many)
    order = np.random.default_rng(4).permutation(boxes.shape[1])[:7]
    regions = ops.convert_to_numpy(FUNCTIONS[name](features, boxes))
    assert_close(FUNCTIONS[name](features, boxes[:, order]), regions[:, order])
    assert_close(FUNCTIONS[name](features[1:], boxes[1:]), regions[1:])


@pytest.mark.parametrize("name", ["align", "align, not aligned", "pool"])
def test_moving_map_and_boxes_together_changes_nothing(name):
    features, _, _ = example()
    boxes = np.array([[BOXES["inside"], BOXES["inside one cell"]]] * 2, "float32")
    shifted = np.roll(features, (3, 5), axis=(1, 2))
    shift = np.array([5, 3, 5, 3], "float32") / SCALE
    assert_close(
        FUNCTIONS[name](shifted, boxes + shift), FUNCTIONS[name](features, boxes), tolerance=POSITION_TOLERANCE
    )


@pytest.mark.parametrize(
    ("name", "mode"), [pytest.param(*row, marks=SLOW if row[1] == "jit" else []) for row in NAMES_AND_MODES]
)
def test_without_boxes(name, mode):
    features, boxes, upstream = example(boxes=np.zeros((2, 0, 4), "float32"))
    regions, (gradient,) = value_and_gradients(lambda x: FUNCTIONS[name](x, boxes), (features,), upstream, mode)
    assert tuple(regions.shape) == (2, 0, 3, 3, 3)
    assert_close(gradient, np.zeros(SHAPE))


@pytest.mark.parametrize(
    ("name", "mode", "dtype"),
    [
        pytest.param(name, mode, "bfloat16", marks=[] if mode == "eager" or (name, mode) == ("align", "jit") else SLOW)
        for name, mode in NAMES_AND_MODES
    ]
    + [(name, "eager", "float16") for name in FUNCTIONS],
)
def test_16_bit_features_keep_float32_positions_and_sums(name, mode, dtype):
    features, boxes, upstream = example()
    features, upstream = (
        ops.convert_to_numpy(ops.cast(ops.cast(array, dtype), "float32")) for array in (features, upstream)
    )
    want, (want_gradient,) = value_and_gradients(lambda x: FUNCTIONS[name](x, boxes), (features,), upstream)
    got, (gradient,) = value_and_gradients(
        lambda x: FUNCTIONS[name](ops.cast(x, dtype), boxes), (features,), ops.cast(upstream, dtype), mode
    )
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    epsilon = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    tolerance = (epsilon, 1e-4)  # one rounding at the end and none before
    assert_close(ops.cast(got, "float32"), want, tolerance=tolerance)
    assert_close(gradient, want_gradient, tolerance=tolerance)


@pytest.mark.tensorflow_only
def test_the_gradient_does_not_race():
    features, _, _ = example((1, 40, 40, 8))
    rng = np.random.default_rng(5)
    corner = rng.uniform(0, 100, (1, 400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 80, (1, 400, 2))], -1).astype("float32")
    upstream = rng.normal(size=(1, 400, 2, 2, 8)).astype("float32")
    _, want = align_twin(features, boxes, upstream, SCALE, 2, True)

    def gradient():
        return value_and_gradients(lambda x: roi_align(x, boxes, 2, SCALE), (features,), upstream)[1][0]

    first = ops.convert_to_numpy(gradient())
    assert_close(first / np.abs(want).max(), want / np.abs(want).max())
    assert all(np.array_equal(first, ops.convert_to_numpy(gradient())) for _ in range(10))


@pytest.mark.tensorflow_only
@pytest.mark.parametrize(
    ("name", "jit"),
    [("align", False), ("levels", False)]
    + [pytest.param(*row, marks=pytest.mark.slow) for row in (("align", True), ("levels", True), ("pool", False))],
)
def test_a_batch_of_unknown_size(name, jit):
    import tensorflow as tf

    features, boxes, upstream = example()
    want, (want_gradient,) = value_and_gradients(lambda x: FUNCTIONS[name](x, boxes), (features,), upstream)

    @tf.function(
        jit_compile=jit,
        input_signature=[
            tf.TensorSpec([None, *SHAPE[1:]]),
            tf.TensorSpec([None, *boxes.shape[1:]]),
            tf.TensorSpec([None, *upstream.shape[1:]]),
        ],
    )
    def run(features, boxes, upstream):
        with tf.GradientTape() as tape:
            tape.watch(features)
            regions = FUNCTIONS[name](features, boxes)
        return regions, tape.gradient(regions, features, upstream)

    for count in (2, 1):
        regions, gradient = run(features[:count], boxes[:count], upstream[:count])
        assert_close(regions, ops.convert_to_numpy(want)[:count], tolerance=POSITION_TOLERANCE)
        assert_close(gradient, ops.convert_to_numpy(want_gradient)[:count], tolerance=POSITION_TOLERANCE)


@pytest.mark.tensorflow_only
def test_the_levels_of_a_pyramid_are_traced_once():
    """A graph of three levels, forward and backward, holds the functions of two."""
    import tensorflow as tf

    maps, boxes, _ = pyramid_example()

    def functions(levels):
        @tf.function(autograph=False)
        def both(maps):
            with tf.GradientTape() as tape:
                tape.watch(maps)
                regions = multilevel_roi_align(maps, boxes, 2)
            return tape.gradient(regions, maps)

        chosen = {name: tf.constant(maps[name]) for name in levels}
        return len(both.get_concrete_function(chosen).graph.as_graph_def().library.function)

    assert functions(("P2", "P3", "P4")) == functions(("P2", "P3"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_boxes_receive_no_gradient(name):
    features, boxes, upstream = example()
    _, (gradient,) = value_and_gradients(
        lambda boxes: FUNCTIONS[name](features, boxes) + 0.0 * ops.sum(boxes), (boxes,), upstream
    )
    assert_close(gradient, np.zeros(boxes.shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, b: roi_align(x[0], b, 7, 1.0), r"\[b, h, w, c\].*\(27, 50, 3\)"),
        (lambda x, b: roi_align(x, b[0], 7, 1.0), r"\[b, n, 4\], got \(13, 4\)"),
        (lambda x, b: roi_align(x, b[..., :3], 7, 1.0), r"\[b, n, 4\], got \(2, 13, 3\)"),
        (lambda x, b: roi_align(x, b, 7, 1.0, sampling_ratio=0), "at least 1, got 0"),
        (lambda x, b: roi_pool(x[..., 0], b, 7, 1.0), r"\(2, 27, 50\)"),
        (lambda x, b: multilevel_roi_align({"P2": x, "P4": x}, b, 7), r"consecutive.*\['P2', 'P4'\]"),
        (lambda x, b: multilevel_roi_align({"C2": x}, b, 7), r"\['C2'\]"),
        (lambda x, b: multilevel_roi_align({}, b, 7), "consecutive"),
        (lambda x, b: assign_levels(b[..., :2]), r"4\], got \(2, 13, 2\)"),
    ],
)
def test_bad_arguments(call, message):
    features, boxes, _ = example()
    with pytest.raises(ValueError, match=message):
        call(features, boxes)


def parity_example(size, count=60):
    rng = np.random.default_rng(6)
    corner = rng.uniform(-40, 240, (2, count, 2))
    random = np.concatenate([corner, corner + np.exp(rng.uniform(-2, 5.5, (2, count, 2)))], axis=-1)
    return example(boxes=np.concatenate([some_boxes(), random], axis=1).astype("float32"), size=size)


def channels_first(array):
    import torch

    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


def per_image_boxes(boxes):
    import torch

    return [torch.from_numpy(rows.copy()) for rows in boxes]


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["graph", "jit"])
@pytest.mark.parametrize("name", ["aligned", "not aligned", "pool"])
@pytest.mark.parametrize("size", [7, 3])
def test_equal_to_torchvision(name, size, mode):
    from torchvision.ops import roi_align as their_align
    from torchvision.ops import roi_pool as their_pool

    features, boxes, upstream = parity_example(size)
    aligned = name == "aligned"
    function = {"pool": lambda x: roi_pool(x, boxes, size, SCALE)}.get(
        name, lambda x: roi_align(x, boxes, size, SCALE, 2, aligned)
    )
    regions, (gradient,) = value_and_gradients(function, (features,), upstream, mode)
    x = channels_first(features).requires_grad_()
    if name == "pool":
        want = their_pool(x, per_image_boxes(boxes), size, SCALE)
    else:
        want = their_align(x, per_image_boxes(boxes), size, SCALE, 2, aligned)
    want.backward(channels_first(upstream).flatten(0, 1))
    want = np.moveaxis(want.detach().numpy(), 1, -1).reshape(upstream.shape)
    assert_close(regions, want, tolerance=POSITION_TOLERANCE)
    assert_close(gradient, np.moveaxis(x.grad.numpy(), 1, -1), tolerance=POSITION_TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["graph", "jit"])
def test_levels_equal_to_torchvision(mode):
    from torchvision.ops import MultiScaleRoIAlign

    rng = np.random.default_rng(7)
    names = ["P2", "P3", "P4", "P5"]
    maps = [rng.normal(size=(2, 256 >> k, 320 >> k, 4)).astype("float32") for k in (2, 3, 4, 5)]
    corner = rng.uniform(-20, 200, (2, 50, 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(0, 6.5, (2, 50, 2)))], axis=-1)
    boxes = np.concatenate([some_boxes(), boxes], axis=1).astype("float32")
    upstream = rng.normal(size=(*boxes.shape[:2], 7, 7, 4)).astype("float32")
    regions, gradients = value_and_gradients(
        lambda *maps: multilevel_roi_align(dict(zip(names, maps, strict=True)), boxes, 7, aligned=False),
        maps,
        upstream,
        mode,
    )
    inputs = [channels_first(feature).requires_grad_() for feature in maps]
    pooler = MultiScaleRoIAlign(names, 7, 2)
    want = pooler(dict(zip(names, inputs, strict=True)), per_image_boxes(boxes), [(256, 320)] * 2)
    want.backward(channels_first(upstream).flatten(0, 1))
    assert_close(
        regions, np.moveaxis(want.detach().numpy(), 1, -1).reshape(upstream.shape), tolerance=POSITION_TOLERANCE
    )
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert_close(gradient, np.moveaxis(tensor.grad.numpy(), 1, -1), tolerance=POSITION_TOLERANCE)
