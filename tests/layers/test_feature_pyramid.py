"""FeaturePyramid: equal to a twin and to torchvision on odd sizes, its names, its extra levels, models that train."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.layers import FeaturePyramid
from tests.support import SLOW, assert_close

WIDTHS = {"C3": 3, "C4": 5, "C5": 7}
SIZES = {
    "even": [(8, 12), (4, 6), (2, 3)],
    "odd, halves rounded up": [(13, 25), (7, 13), (4, 7)],
    "odd, halves rounded down": [(15, 23), (7, 11), (3, 5)],
    "any": [(9, 14), (7, 5), (1, 4)],
}


def maps_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=(2, *size, width)).astype("float32")
        for (name, width), size in zip(WIDTHS.items(), SIZES[sizes], strict=True)
    }


def with_random_biases(layer, maps):
    layer.build({name: x.shape for name, x in maps.items()})
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.path.endswith("bias"):
            weight.assign(rng.normal(size=weight.shape))
    return layer


def weights_of(layer):
    return {weight.path.split("/", 1)[1]: np.array(ops.convert_to_numpy(weight), "float64") for weight in layer.weights}


def convolve(x, weights, name, stride=1):
    kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
    margin = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = (1 + (n - kernel.shape[0]) // stride for n in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, kernel.shape[-1])) + bias
    for i, j in np.ndindex(*kernel.shape[:2]):
        part = x[:, i : i + 1 + (rows - 1) * stride : stride, j : j + 1 + (columns - 1) * stride : stride]
        y += part @ kernel[i, j]
    return y


def twin(maps, weights, extra=None):
    total, levels = None, {}
    for index, level in reversed(list(enumerate((3, 4, 5)))):
        lateral = convolve(maps[f"C{level}"], weights, f"inner_blocks.{index}.0")
        if total is not None:
            height, width = lateral.shape[1:3]
            for row, column in np.ndindex(height, width):
                source = total[:, row * total.shape[1] // height, column * total.shape[2] // width]
                lateral[:, row, column] += source
        total = lateral
        levels[f"P{level}"] = convolve(total, weights, f"layer_blocks.{index}.0")
    if extra == "pool":
        levels["P6"] = levels["P5"][:, ::2, ::2]
    elif extra is not None:
        source = maps["C5"] if extra == "conv_input" else levels["P5"]
        levels["P6"] = convolve(source, weights, "extra_blocks.p6", stride=2)
        levels["P7"] = convolve(np.maximum(levels["P6"], 0), weights, "extra_blocks.p7", stride=2)
    return levels


@pytest.mark.parametrize(
    ("sizes", "extra"),
    [(sizes, None) for sizes in SIZES]
    + [("even", "pool")]
    + [("odd, halves rounded up", extra) for extra in ("pool", "conv_input", "conv_output")],
)
def test_equals_its_twin(sizes, extra):
    maps = maps_of(sizes)
    layer = with_random_biases(FeaturePyramid(4, extra), maps)
    got, want = layer(maps), twin(maps, weights_of(layer), extra)
    assert list(got) == sorted(want)
    for name, level in got.items():
        assert_close(level, want[name])
    shapes = layer.compute_output_shape({name: x.shape for name, x in maps.items()})
    assert shapes == {name: tuple(level.shape) for name, level in got.items()}


# Counted on torchvision's FeaturePyramidNetwork: that of Faster R-CNN, of RetinaNet, of RetinaNet v2, on a ResNet-50.
@pytest.mark.parametrize(
    ("finest", "extra", "count"), [(2, "pool", 3_344_384), (3, "conv_output", 3_868_672), (3, "conv_input", 7_997_440)]
)
def test_number_of_parameters(finest, extra, count):
    layer = FeaturePyramid(256, extra)
    with keras.StatelessScope():
        layer.build({f"C{level}": (None, 8, 8, 64 * 2**level) for level in range(finest, 6)})
    assert layer.count_params() == count


def test_weight_paths_are_those_of_torchvision():
    layer = FeaturePyramid(4, "conv_input", norm="batch", name="fpn")
    layer.build({name: (None, 8, 8, width) for name, width in WIDTHS.items()})
    blocks = [f"{part}.{index}" for part in ("inner_blocks", "layer_blocks") for index in range(3)]
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    want = {f"fpn/{block}.0/kernel" for block in blocks}
    want |= {f"fpn/{block}.1/{leaf}" for block in blocks for leaf in norm}
    want |= {f"fpn/extra_blocks.p{level}/{name}" for level in (6, 7) for name in ("kernel", "bias")}
    assert {weight.path for weight in layer.weights} == want
    assert len(layer.weights) == len(want)


def test_order_of_the_input_does_not_matter():
    maps = maps_of("even")
    layer = FeaturePyramid(4)
    want = layer(maps)
    got = layer(dict(reversed(maps.items())))
    assert list(got) == ["P3", "P4", "P5"]
    for name in want:
        assert_close(got[name], want[name])


def test_kernels_start_apart():
    layer = FeaturePyramid(4)
    layer.build({name: (None, 8, 8, width) for name, width in WIDTHS.items()})
    first, second = (ops.convert_to_numpy(conv.kernel) for conv in layer.layer_convs[:2])
    assert not np.array_equal(first, second)


def model_of(maps, **options):
    inputs = {name: keras.Input(x.shape[1:], name=name) for name, x in maps.items()}
    levels = FeaturePyramid(4, **options)(inputs)
    return keras.Model(inputs, [keras.layers.GlobalMaxPooling2D()(level) for level in levels.values()])


@pytest.mark.parametrize(
    "options",
    [
        {"extra": "conv_output", "initializer": keras.initializers.RandomNormal(stddev=0.1)},
        {"extra": "pool", "norm": "group", "initializer": "he"},
        {"norm": "batch"},
    ],
)
def test_saves_and_loads(options, tmp_path):
    maps = maps_of("any")
    model = model_of(maps, **options)
    model.save(tmp_path / "model.keras")
    for got, want in zip(keras.saving.load_model(tmp_path / "model.keras")(maps), model(maps), strict=True):
        assert_close(got, want)


def test_norm_trains_and_infers():
    maps = maps_of("even")
    layer = FeaturePyramid(4, norm="batch")
    trained, inferred = layer(maps, training=True), layer(maps, training=False)
    assert abs(float(ops.mean(trained["P3"]))) < 1e-5  # normalised with the statistics of this batch
    assert abs(float(ops.mean(inferred["P3"]))) > 1e-3


@pytest.mark.parametrize("options", [{"extra": "conv_input"}, {"extra": "pool", "norm": "group"}])
@pytest.mark.parametrize(
    ("policy", "jit"),
    [
        pytest.param("float32", True, marks=SLOW),
        pytest.param("mixed_bfloat16", False, marks=SLOW),
        pytest.param("mixed_float16", False, marks=SLOW),
    ],
)
def test_trains(options, policy, jit):
    keras.mixed_precision.set_dtype_policy(policy)
    maps = maps_of("any")
    model = model_of(maps, **options)
    model.compile("sgd", "mse", jit_compile=jit)
    before = model.get_weights()
    epochs = 6 if policy == "mixed_float16" else 1  # the first steps only find the loss scale
    model.fit(maps, [np.ones((2, 4), "float32")] * len(model.outputs), epochs=epochs, verbose=0)
    for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert not np.array_equal(new, old), weight.path


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_16_bit_is_near_float32(policy):
    maps = maps_of("odd, halves rounded up")
    want = with_random_biases(FeaturePyramid(4), maps)
    layer = FeaturePyramid(4, dtype=policy)
    layer.build({name: x.shape for name, x in maps.items()})
    layer.set_weights(want.get_weights())
    for name, level in layer(maps).items():
        dtype = policy.removeprefix("mixed_")
        assert keras.backend.standardize_dtype(level.dtype) == dtype
        largest = float(ops.max(ops.abs(want(maps)[name])))
        assert_close(ops.cast(level, "float32") / largest, want(maps)[name] / largest, dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeaturePyramid(4, "maxpool"), "extra: got 'maxpool'.*'pool'"),
        (lambda: FeaturePyramid(4).build({"C3": (2, 8, 8, 3), "C5": (2, 2, 2, 3)}), r"\"C3\".*\['C3', 'C5'\]"),
        (lambda: FeaturePyramid(4).build({"res3": (2, 8, 8, 3)}), r"\['res3'\]"),
        (lambda: FeaturePyramid(4).build({"C3": (2, None, None, 3)}), "static sizes, got C3"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parity
@pytest.mark.parametrize("extra", ["pool", "conv_input", "conv_output"])
@pytest.mark.parametrize("sizes", SIZES)
def test_equal_to_torchvision(sizes, extra):
    import torch
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

    maps = maps_of(sizes)
    layer = with_random_biases(FeaturePyramid(4, extra), maps)
    above = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(7 if extra == "conv_input" else 4, 4)
    theirs = FeaturePyramidNetwork(list(WIDTHS.values()), 4, above)
    state = {}
    for name, value in weights_of(layer).items():
        block, leaf = name.split("/")
        value = value.transpose(3, 2, 0, 1) if leaf == "kernel" else value
        state[f"{block}.{ {'kernel': 'weight'}.get(leaf, leaf) }"] = torch.from_numpy(value.astype("float32"))
    theirs.load_state_dict(state)
    with torch.no_grad():
        want = theirs({name: torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for name, x in maps.items()})
    got = layer(maps)
    for level, tensor in zip(got.values(), want.values(), strict=True):
        assert_close(level, tensor.numpy().transpose(0, 2, 3, 1))
