"""BiFPN: equal to a twin on odd sizes, effdet's names, its laws, both fusions, and arguments that do not fit."""

import keras
import numpy as np
import pytest

from kvision.layers import BiFPN
from tests.support import assert_close

WIDTHS = {3: 5, 4: 4, 5: 6}  # one of them has the width of the pyramid already, and gets no convolution
SIZES = {
    "even": [(8, 12), (4, 6), (2, 3)],
    "odd, halves rounded up": [(13, 25), (7, 13), (4, 7)],
    "odd, halves rounded down": [(15, 23), (7, 11), (3, 5)],
}


def maps_of(sizes="even", letter="C"):
    rng = np.random.default_rng(0)
    return {
        f"{letter}{level}": rng.normal(size=(2, *size, WIDTHS[level])).astype("float32")
        for level, size in zip(WIDTHS, SIZES[sizes], strict=True)
    }


def randomised(layer, maps):
    layer.build({name: x.shape for name, x in maps.items()})
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.path.endswith("edge_weights"):
            weight.assign(rng.uniform(-0.5, 2.0, weight.shape))  # the ReLU cuts some
        elif weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(rng.normal(0, 0.5, weight.shape))
    return layer


def normalised(x, weights, name):
    mean, variance = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
    return (x - mean) / np.sqrt(variance + 1e-3) * weights[f"{name}/gamma"] + weights[f"{name}/beta"]


def brought_to(x, size, weights, name):
    """1x1 convolution and norm where the layer has them; the largest of 3x3 around every second cell; nearest."""
    if f"{name}/conv.conv/kernel" in weights:
        x = x @ weights[f"{name}/conv.conv/kernel"][0, 0] + weights[f"{name}/conv.conv/bias"]
        x = normalised(x, weights, f"{name}/conv.bn")
    if x.shape[1] > size[0]:
        pooled = np.empty((len(x), *size, x.shape[-1]))
        for row, column in np.ndindex(*size):
            centres = (2 * row + 1 - x.shape[1] % 2, 2 * column + 1 - x.shape[2] % 2)
            windows = [slice(max(centre - 1, 0), centre + 2) for centre in centres]
            pooled[:, row, column] = x[:, windows[0], windows[1]].max(axis=(1, 2))
        return pooled
    rows, columns = (np.arange(m) * n // m for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, rows][:, :, columns]


def node(maps, size, weights, name, fusion):
    maps = [brought_to(x, size, weights, f"{name}/combine.resample.{source}") for source, x in maps.items()]
    if fusion == "fast":
        edges = np.maximum(weights[f"{name}/combine.edge_weights"], 0)
        maps = [edge / (edges.sum() + 1e-4) * x for edge, x in zip(edges, maps, strict=True)]
    x = sum(maps)
    x = x / (1 + np.exp(-x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = weights[f"{name}/after_combine.conv.conv_dw/kernel"][..., 0]
    height, width = size
    x = sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i, j in np.ndindex(3, 3))
    x = x @ weights[f"{name}/after_combine.conv.conv_pw/kernel"][0, 0]
    return normalised(x + weights[f"{name}/after_combine.conv.conv_pw/bias"], weights, f"{name}/after_combine.conv.bn")


def twin(maps, layer):
    """Figure 2(d) of the paper for P3 to P6, written out: two cells, each down to P3 and up again."""
    weights = {
        weight.path.split("/", 1)[1]: np.array(keras.ops.convert_to_numpy(weight), "float64")
        for weight in layer.weights
    }
    p3, p4, p5 = (np.array(x, "float64") for x in maps.values())
    sizes = [x.shape[1:3] for x in (p3, p4, p5)]
    sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    p6 = brought_to(p5, sizes[3], weights, "resample.3")
    for cell in range(layer.repeats):

        def fused(number, level, sources, cell=cell):
            return node(sources, sizes[level - 3], weights, f"cell.{cell}.fnode.{number}", layer.fusion)

        down5 = fused(0, 5, {2: p5, 3: p6})
        down4 = fused(1, 4, {1: p4, 4: down5})
        out3 = fused(2, 3, {0: p3, 5: down4})
        out4 = fused(3, 4, {1: p4, 5: down4, 6: out3})
        out5 = fused(4, 5, {2: p5, 4: down5, 7: out4})
        out6 = fused(5, 6, {3: p6, 8: out5})
        p3, p4, p5, p6 = out3, out4, out5, out6
    return {"P3": p3, "P4": p4, "P5": p5, "P6": p6}


@pytest.mark.parametrize(("sizes", "fusion"), [*((sizes, "fast") for sizes in SIZES), ("even", "sum")])
def test_equals_its_twin(sizes, fusion):
    maps = maps_of(sizes)
    layer = randomised(BiFPN(4, repeats=2, num_levels=4, fusion=fusion), maps)
    got, want = layer(maps), twin(maps, layer)
    assert list(got) == list(want)
    for name, level in got.items():
        assert_close(level, want[name], tolerance=(1e-4, 1e-4))  # 12 nodes deep
    shapes = layer.compute_output_shape({name: x.shape for name, x in maps.items()})
    assert shapes == {name: tuple(level.shape) for name, level in got.items()}


def test_fast_fusion_does_not_see_the_scale_of_its_weights():
    maps = maps_of()
    layer = randomised(BiFPN(4, repeats=1), maps)
    before = layer(maps)
    for weight in layer.weights:
        if weight.path.endswith("edge_weights"):
            weight.assign(1000 * weight)
    for name, level in layer(maps).items():
        assert_close(level, before[name], tolerance=(1e-2, 2e-2))  # but for the 1e-4 of the division


def test_levels_may_have_either_letter_and_any_order():
    maps = maps_of()
    layer = randomised(BiFPN(4, repeats=1), maps)
    want = layer(maps)
    for given in (dict(reversed(maps.items())), {f"P{name[1:]}": x for name, x in maps.items()}):
        got = layer(given)
        assert list(got) == ["P3", "P4", "P5"]
        for name in want:
            assert_close(got[name], want[name])


@pytest.mark.parametrize(("norm", "count"), [("batch", 6), ("group", 6), (None, 0)])
def test_weights_have_effdets_names_and_every_reader_its_own_convolution(norm, count):
    layer = BiFPN(4, repeats=1, num_levels=4, norm=norm, name="fpn")
    layer.build({f"C{level}": (None, 8 // 2**n, 8 // 2**n, width) for n, (level, width) in enumerate(WIDTHS.items())})
    paths = [weight.path for weight in layer.weights]
    assert len(set(paths)) == len(paths)
    convolutions = {path.removesuffix("/kernel") for path in paths if path.endswith("conv.conv/kernel")}
    assert convolutions == {  # C4 has the width already; C5 is read by P6, on the way down and on the way up
        "fpn/resample.3/conv.conv",
        "fpn/cell.0.fnode.0/combine.resample.2/conv.conv",
        "fpn/cell.0.fnode.2/combine.resample.0/conv.conv",
        "fpn/cell.0.fnode.4/combine.resample.2/conv.conv",
    }
    assert sum(path.endswith("after_combine.conv.bn/gamma") for path in paths) == count
    assert all(f"{name}/bias" in paths for name in convolutions)
    edges = {weight.path: weight.shape for weight in layer.weights if weight.path.endswith("combine.edge_weights")}
    assert [shape[0] for shape in edges.values()] == [2, 2, 2, 3, 3, 2]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_it_trains_and_is_saved(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    inputs = {f"C{level}": keras.Input((128 >> level, 128 >> level, 4), name=f"C{level}") for level in (3, 4, 5)}
    levels = BiFPN(6, repeats=1, num_levels=4, norm="group", name="fpn")(inputs)
    outputs = keras.ops.concatenate([keras.layers.Flatten()(level) for level in levels.values()], axis=1)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(2, *tensor.shape[1:])).astype("float32") for name, tensor in inputs.items()}
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    before = model.get_weights()
    model.fit(x, rng.normal(size=(2, *outputs.shape[1:])).astype("float32"), verbose=0)
    moved = [not np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)]
    still = [weight.path for weight, has in zip(model.weights, moved, strict=True) if not has]
    assert not still
    model.save(tmp_path / "model.keras")
    assert_close(keras.saving.load_model(tmp_path / "model.keras")(x), model(x), policy.removeprefix("mixed_"))


@pytest.mark.parametrize(
    ("options", "shapes", "message"),
    [
        ({"fusion": "fats"}, None, "Unknown fusion: got 'fats'.*'fast', 'sum'"),
        ({"repeats": 0}, None, "at least one cell .*: got repeats=0"),
        ({"norm": "bach"}, None, "Unknown norm"),
        ({"channels": "16"}, None, "one channel: got repeats=3 and channels='16'"),
        ({}, {"C3": (None, 8, 8, 4), "C4": (None, 8, 8, 4)}, "half as large as the one before: got C3 of shape"),
        ({}, [(None, 8, 8, 4), (None, 4, 4, 4)], "takes a dict of levels .*: got a list"),
        ({}, {"C3": (None, 8, 8, 4)}, "at least two levels.*got C3 and num_levels=None"),
        ({"num_levels": 2}, {f"C{k}": (None, 64 >> k, 64 >> k, 4) for k in (3, 4, 5)}, "all that are given"),
        ({}, {"C3": (None, 8, 8, 4), "C5": (None, 2, 2, 4)}, "consecutive levels"),
        ({}, {"C3": (None, 8, None, 4), "C4": (None, 4, 4, 4)}, "static sizes, got C3 of shape"),
    ],
)
def test_bad_arguments(options, shapes, message):
    with pytest.raises(ValueError, match=message):
        BiFPN(**{"channels": 4, **options}).build(shapes)
