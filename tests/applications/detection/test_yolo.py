"""YOLO: the layer tables of the paper and of the authors' files, what is refused, weights that pass on."""

import re

import keras
import numpy as np
import pytest

from kvision import applications as A
from tests.applications.detection.rows import tiny_backbone
from tests.weights.states import values

# Figure 3, one line a stage: window x filters of each convolution, "/2" where its stride is 2, the map's side after it.
FIGURE_3 = """
7x64/2                                                                              224
pool 3x192                                                                          112
pool 1x128 3x256 1x256 3x512                                                         56
pool 1x256 3x512 1x256 3x512 1x256 3x512 1x256 3x512 1x512 3x1024                    28
pool 1x512 3x1024 1x512 3x1024                                                       14
3x1024                                                                               14
3x1024/2                                                                              7
3x1024 3x1024                                                                         7
"""
FAST = """
3x16   448
pool 3x32  224
pool 3x64  112
pool 3x128  56
pool 3x256  28
pool 3x512  14
pool 3x1024 3x1024 3x1024  7
"""
TABLES = {  # convolutions, locally connected filters, dense layers, boxes a cell, parameters without norms
    "24": (FIGURE_3, None, (4096,), 2, 271_703_550),
    "fast": (FAST, None, (256, 4096), 2, 45_089_374),
    "darknet": (FIGURE_3, 256, (), 3, 197_301_875 - 13_184),  # theirs has a scale for each of 13,184 filters
}


def layers_of(model):
    for layer in model.layers:
        yield from layers_of(layer) if isinstance(layer, keras.Model) else [layer]


def rows_of(table):
    """(window, filters, stride, side of the map after it, whether a pooling comes before) of each convolution."""
    rows = []
    for line in table.strip().splitlines():
        *steps, side = line.split()
        pooled = steps[0] == "pool"
        for step in steps[pooled:]:
            window, filters, stride = re.fullmatch(r"(\d+)x(\d+)(?:/(\d))?", step).groups()
            rows.append((int(window), int(filters), int(stride or 1), int(side), pooled))
            pooled = False
    return rows


@pytest.mark.parametrize("variant", TABLES)
def test_the_layers_are_those_of_the_table(variant):
    table, local, units, per_cell, parameters = TABLES[variant]
    with keras.StatelessScope(initialize_variables=False):
        model = A.YOLO(variant, backbone_norm=None, norm=None)
    layers, pooled, got = list(layers_of(model.trunk)), False, []
    for layer in layers:
        if type(layer).__name__ == "MaxPooling2D":
            pooled = True
        elif type(layer).__name__ == "Conv2D":
            window, filters = layer.kernel.shape[0], layer.kernel.shape[-1]
            got.append((window, filters, layer.strides[0], layer.output.shape[1], pooled))
            pooled = False
    want = rows_of(table)
    assert got == want
    assert len(got) == {"24": 24, "fast": 9, "darknet": 24}[variant]

    count, channels = 0, 3
    for window, filters, *_ in want:
        count += (window**2 * channels + 1) * filters
        channels = filters
    inputs = 7 * 7 * channels
    if local is not None:
        count += 49 * (9 * channels + 1) * local
        inputs = 49 * local
    for width in (*units, 7 * 7 * (20 + 5 * per_cell)):
        count += (inputs + 1) * width
        inputs = width
    assert count == parameters == sum(np.prod(weight.shape, dtype="int64") for weight in model.trainable_weights)
    dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [*units, 7 * 7 * (20 + 5 * per_cell)]
    assert dense[-1].activation is keras.activations.linear
    leaky = [layer.negative_slope for layer in layers if isinstance(layer, keras.layers.LeakyReLU)]
    assert np.allclose(leaky, 0.1)
    assert len(leaky) == len(want) + (local is not None) + len(units)
    (dropout,) = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
    assert dropout.rate == 0.5
    assert dropout.output is dense[-1].input
    shapes = {"class_scores": (20,), "confidences": (per_cell,), "cell_boxes": (per_cell, 4)}
    assert {name: value.shape[1:] for name, value in model.trunk.output.items()} == {
        name: (7, 7, *shape) for name, shape in shapes.items()
    }


def small(**options):
    return A.YOLO("tiny", **({"input_shape": (64, 64, 3), "classes": 3, "grid_size": 4} | options))


def test_outputs_are_laid_out_by_kind():
    """All class scores, then all confidences, then all boxes, as the authors' files have them."""
    model = small()
    inner = keras.Model(model.trunk.inputs[0], {"flat": model.trunk.get_layer("output").output} | model.trunk.output)
    found = inner(np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)))
    flat, scores, confidences, boxes = (
        keras.ops.convert_to_numpy(found[name]) for name in ("flat", "class_scores", "confidences", "cell_boxes")
    )
    assert flat.shape == (2, 16 * (3 + 2 + 8))
    parts = [part.reshape(2, -1) for part in (scores, confidences, boxes)]
    assert np.array_equal(flat, np.concatenate(parts, axis=1))


def test_outputs_are_float32_in_16_bits():
    keras.config.set_dtype_policy("mixed_float16")
    with keras.StatelessScope(initialize_variables=False):
        model = small()
    assert {tensor.dtype for tensor in model.trunk.output.values()} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_size": 7}, "A grid of 7x7 cells does not divide an image of 64x64 pixels.*63x63, or another grid_size"),
        ({"boxes_per_cell": 0}, "boxes_per_cell is a whole number of at least 1: got 0"),
        ({"dropout_rate": 1.0}, r"YOLO: dropout_rate lies in \[0, 1\): got 1.0"),
        ({"norm": "frozen_batch"}, "YOLO: norm=.frozen_batch. would freeze"),
        ({"input_shape": (8, 8, 3)}, "its last map has stride 16"),
        ({"classes": 0}, "classes must be a whole number of at least 1"),
        ({"nms_threshold": 2}, "nms_threshold lies in 0 to 1"),
        ({"units": 32}, r"units are those of the dense layers, such as \(4096,\): got 32"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_unknown_variants_list_the_nearest():
    with pytest.raises(ValueError, match="Unknown YOLO variant: got 'v8'.*'24', 'fast', 'darknet', 'tiny'"):
        A.YOLO("v8")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lambda: tiny_backbone("C3"), r"YOLO needs a backbone that returns C4: got \['C3'\]"),
        (lambda: A.cut(tiny_backbone("C3"), {"C4": "layer2.0.relu3"}), "YOLO: level C4 has stride 16"),
    ],
    ids=["level", "stride"],
)
def test_a_backbone_that_does_not_fit_is_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        small(backbone=backbone())


def test_any_backbone_with_the_level():
    model = small(backbone=tiny_backbone("C4"), units=(8,), boxes_per_cell=3)
    found = model.predict(np.zeros((1, 64, 64, 3), "float32"), verbose=0)
    assert found["boxes"].shape == (1, 100, 4)
    assert model.trunk.output["confidences"].shape == (None, 4, 4, 3)


def test_a_pre_trained_classifier_becomes_the_backbone(tmp_path):
    classifier = A.Extraction("tiny", input_shape=(32, 32, 3), classes=10, norm="group")
    classifier.save_weights(tmp_path / "classifier.weights.h5")
    backbone = A.Extraction(
        "tiny",
        include_top=False,
        features=("C4",),
        input_shape=(64, 64, 3),
        norm="group",
        weights=tmp_path / "classifier.weights.h5",
    )
    theirs, ours = values(classifier), values(small(backbone=backbone))
    shared = [path for path in theirs if path.startswith(("conv", "bn")) and not path.startswith(("conv5", "bn5"))]
    assert len(shared) == 12
    for path in shared:
        (same,) = [value for name, value in ours.items() if f"/{name}".endswith(f"/{path}")]
        assert np.array_equal(same, theirs[path])


@pytest.mark.parametrize("norm", ["group", "batch", None])
def test_a_file_of_ones_own_says_which_norms_it_has(norm, tmp_path, capsys):
    trained = small(backbone_norm=norm, norm=norm)
    trained.save_weights(tmp_path / "own.weights.h5")
    theirs = values(trained)
    same = values(small(weights=tmp_path / "own.weights.h5"))
    assert same.keys() == theirs.keys()
    assert all(np.array_equal(theirs[path], value) for path, value in same.items())
    assert not capsys.readouterr().out
    other = values(small(weights=tmp_path / "own.weights.h5", classes=5))
    fresh = {path.split("/")[-2] for path, value in other.items() if value.shape != theirs[path].shape}
    assert fresh == {"output"}
    assert "fresh" in capsys.readouterr().out
