"""FCN: sizes of its maps, weights of VGG in its convolutions, and the classifier that slides."""

import keras
import numpy as np
import pytest

from kvision import applications as A
from kvision import weights
from kvision.training import describe
from tests.support import assert_close
from tests.weights.states import torch_state

SMALL = {"depths": (1, 1, 1, 1, 1), "widths": (8, 8, 16, 16, 16), "units": 32, "classes": 3}
CENTER = 3  # of the 7x7 cells of an image of 224 pixels


def chain(model):
    """Height of every map that another size follows, and of the upsampled ones."""
    names = ("features.0", *POOLS, "fc7", "upscore2", "upscore_pool4", "upscore8")
    return [model.get_layer(name).output.shape[1] for name in names]


POOLS = ("features.4", "features.9", "features.16", "features.23", "features.30")


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (500, [698, 349, 175, 88, 44, 22, 16, 34, 70, 568]),
        (224, [422, 211, 106, 53, 27, 14, 8, 18, 38, 312]),
    ],
)
def test_chain_of_map_sizes_with_the_papers_border(size, sizes):
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCN8s(input_shape=(size, size, 3), padding=100)
    assert chain(model) == sizes
    assert model.output_shape == (None, size, size, 21)


@pytest.mark.parametrize("size", [500, 33, 64])
def test_chain_of_map_sizes_without_a_border(size):
    def halves(n):
        return -(-n // 2)

    with keras.StatelessScope(initialize_variables=False):
        model = A.FCN8s(input_shape=(size, size, 3))
    pooled = [size]
    for _ in range(5):
        pooled.append(halves(pooled[-1]))
    assert chain(model) == [*pooled, pooled[5], 2 * pooled[5], 2 * pooled[4], 8 * pooled[3]]
    assert model.output_shape == (None, size, size, 21)


@pytest.mark.parametrize(
    ("variant", "begins"),
    [
        ("32s", {"logits": 19}),
        ("16s", {"score_pool4.crop": 5, "logits": 27}),
        ("8s", {"score_pool4.crop": 5, "score_pool3.crop": 9, "logits": 31}),
        ("8s-at-once", {"score_pool4.crop": 5, "score_pool3.crop": 9, "logits": 31}),
    ],
)
def test_crops_of_the_reference(variant, begins):
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCN(variant, input_shape=(97, 65, 3), padding=100)
    crops = [layer for layer in model.layers if isinstance(layer, keras.layers.Cropping2D)]
    assert {layer.name: layer.cropping[0][0] for layer in crops} == begins
    assert all(layer.cropping[0][0] == layer.cropping[1][0] for layer in crops)


def test_the_cost_of_the_whole_network():
    """A score sees 404 pixels, an output between two cells 32 more; the kernel of the upsampling meets every cell."""
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCN32s(input_shape=(224, 224, 3), padding=100)
    costs = {layer.name: layer for layer in describe(model).layers}
    assert costs["score_fr"].receptive_field == (404, 404)
    assert costs["upscore"].receptive_field == (436, 436)
    assert costs["upscore"].multiply_adds == 8 * 8 * (64 * 21) ** 2
    assert costs["fc6"].multiply_adds == 8 * 8 * 7 * 7 * 512 * 4096


def test_skips_are_scaled_at_once_only():
    scales = {}
    for variant in ("8s", "8s-at-once"):
        with keras.StatelessScope(initialize_variables=False):
            model = A.FCN(variant, input_shape=(64, 64, 3), **SMALL)
        layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling)]
        scales[variant] = {layer.name: layer.scale for layer in layers}
    assert scales == {"8s": {}, "8s-at-once": {"scale_pool4": 0.01, "scale_pool3": 0.0001}}


def test_scores_start_at_zero_and_dropout_is_the_papers():
    model = A.FCN("tiny", input_shape=(64, 64, 3))
    scores = [model.get_layer(name) for name in ("score_fr", "score_pool4", "score_pool3")]
    assert not any(np.any(weight) for layer in scores for weight in layer.get_weights())
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert [(layer.name, layer.rate) for layer in dropouts] == [("drop6", 0.5), ("drop7", 0.5)]
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCN("tiny", input_shape=(64, 64, 3), dropout_rate=0.25)
    assert {layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)} == {0.25}


@pytest.mark.parametrize("padding", ["same", 100])
def test_scores_are_float32_in_16_bits(padding):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    with keras.StatelessScope(initialize_variables=False):
        model = A.FCN("8s-at-once", input_shape=(75, 50, 3), padding=padding, **SMALL)
    names = [layer.name for layer in model.layers]
    behind = [layer for layer in model.layers[names.index("score_fr") :] if layer.name not in ("features.30", "drop7")]
    assert {layer.compute_dtype for layer in behind} == {"float32"}
    assert model.get_layer("fc7").compute_dtype == "float16"


def scores_of(model):
    """The model up to the scores of the coarsest map."""
    return keras.Model(model.input, model.get_layer("score_fr").output)


@pytest.mark.parametrize("source", ["torchvision", "timm", "keras"])
def test_dense_layers_of_vgg_become_convolutions(source, tmp_path):
    """Equal scores at 224 pixels, where the window of fc6 is the whole map."""
    size = {"input_shape": (224, 224, 3), "classes": 3}
    vgg = A.VGG("tiny", classifier_activation=None, **size)
    state = torch_state(vgg)
    if source == "timm":
        windows = {"pre_logits.fc1.weight": (7, 7), "pre_logits.fc2.weight": (1, 1), "head.fc.weight": (1, 1)}
        names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
        for ours, theirs in names.items():
            state[f"{theirs}.bias"], dense = state.pop(f"{ours}.bias"), state.pop(f"{ours}.weight")
            state[f"{theirs}.weight"] = dense.reshape(len(dense), -1, *windows[f"{theirs}.weight"])
    weights.load_torch(vgg, state)
    fcn = A.FCN("tiny", upsampling="fixed", **size)
    if source == "keras":
        vgg.save_weights(tmp_path / "vgg.weights.h5")
        weights.load(fcn, tmp_path / "vgg.weights.h5")
    else:
        weights.load_torch(fcn, state)
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    want = keras.ops.convert_to_numpy(vgg(images))
    got = keras.ops.convert_to_numpy(scores_of(fcn)(images))[:, CENTER, CENTER]
    assert_close(got / np.abs(want).max(), want / np.abs(want).max())


@pytest.mark.parametrize("is_keras", [False, True], ids=["torch", "keras"])
def test_other_classes_and_skips_start_fresh(is_keras, capsys, tmp_path):
    vgg = A.VGG("tiny", input_shape=(224, 224, 3), classes=7, norm="batch")
    state = torch_state(vgg)
    model = A.FCN("tiny", input_shape=(64, 64, 3), classes=3, norm="batch")
    if is_keras:
        weights.load_torch(vgg, state)
        vgg.save(tmp_path / "vgg.keras")
        weights.load(model, tmp_path / "vgg.keras")
    else:
        weights.load_torch(model, state)
    told = capsys.readouterr().out
    assert "score_fr starts fresh: the file has another number of classes" in told
    assert "score_pool4" in told
    assert not np.any(model.get_layer("score_fr").kernel)
    assert_close(model.get_layer("fc7").bias, state["classifier.3.bias"])
    assert_close(model.get_layer("features.1").moving_mean, state["features.1.running_mean"])


def test_a_dense_layer_of_another_size_is_no_window(tmp_path):
    A.VGG("tiny", input_shape=(224, 224, 3), classes=3, units=16).save_weights(tmp_path / "vgg.weights.h5")
    with pytest.raises(ValueError, match=r"fc7/kernel: wants \(1, 1, 32, 32\), the file gives \(16, 16\)"):
        A.FCN("tiny", input_shape=(64, 64, 3), classes=3, weights=tmp_path / "vgg.weights.h5")


# Which layer of ours is what in the package torchfcn, whose files hold the authors' nets.
TORCHFCN = {
    "conv1_1": 0,
    "conv1_2": 2,
    "conv2_1": 5,
    "conv2_2": 7,
    "conv3_1": 10,
    "conv3_2": 12,
    "conv3_3": 14,
    "conv4_1": 17,
    "conv4_2": 19,
    "conv4_3": 21,
    "conv5_1": 24,
    "conv5_2": 26,
    "conv5_3": 28,
}


def torchfcn_state(variant):
    model = A.FCN(variant, input_shape=(64, 64, 3), **SMALL | {"depths": (2, 2, 3, 3, 3)})
    state = torch_state(model)
    for name, index in TORCHFCN.items():
        for leaf in ("weight", "bias"):
            state[f"{name}.{leaf}"] = state.pop(f"features.{index}.{leaf}")
    return model, state


def test_files_of_torchfcn_load_and_a_coarser_one_starts_a_finer(capsys):
    coarse, state = torchfcn_state("16s")
    assert not [key for key in state if "features" in key]
    weights.load_torch(coarse, state)  # whose names they are is found
    assert_close(coarse.get_layer("features.26").kernel, state["conv5_2.weight"].transpose(2, 3, 1, 0))
    assert_close(coarse.get_layer("upscore16").kernel, state["upscore16.weight"].transpose(2, 3, 1, 0))
    assert capsys.readouterr().out == ""
    fine, _ = torchfcn_state("8s")
    weights.load_torch(fine, {"model_state_dict": state, "epoch": 3}, source="torchfcn")
    assert "upscore_pool4, score_pool3, upscore8 start fresh" in capsys.readouterr().out
    assert_close(fine.get_layer("features.26").kernel, state["conv5_2.weight"].transpose(2, 3, 1, 0))
    assert_close(fine.get_layer("score_pool4").bias, state["score_pool4.bias"])


def test_the_input_of_the_authors_nets_is_saved_with_the_model(tmp_path):
    model = A.FCN("tiny", input_shape=(32, 32, 3))
    model.preprocessing = A.fcn.caffe_input
    model.save(tmp_path / "net.keras")
    prepared = keras.saving.load_model(tmp_path / "net.keras").preprocessing(np.array([[[255, 100, 0]]], "uint8"))
    assert_close(prepared, [[[0 - 104.00699, 100 - 116.66877, 255 - 122.67892]]])


def test_a_coarser_variant_starts_a_finer_one(tmp_path):
    """Section 4.2: each net is initialized with the weights of the one before."""
    coarse = A.FCN("32s", input_shape=(64, 64, 3), **SMALL)
    rng = np.random.default_rng(0)
    coarse.set_weights([rng.normal(size=w.shape).astype("float32") for w in coarse.get_weights()])
    coarse.save_weights(tmp_path / "coarse.weights.h5")
    fine = A.FCN("16s", input_shape=(64, 64, 3), weights=tmp_path / "coarse.weights.h5", **SMALL)
    theirs = {weight.path: keras.ops.convert_to_numpy(weight) for weight in coarse.weights}
    shared = [weight for weight in fine.weights if weight.path in theirs]
    assert len(shared) == len(coarse.weights) - 1  # all but the last upsampling
    assert all(np.array_equal(weight, theirs[weight.path]) for weight in shared)
    assert not np.any(fine.get_layer("score_pool4").kernel)


def test_the_forms_that_have_weights():
    with keras.StatelessScope(initialize_variables=False):
        assert weights.published_names(A.FCN8s()) == ("imagenet",)
        assert weights.published_names(A.FCN8s(norm="batch")) == ("imagenet",)
        for options in ({"norm": "group"}, {"units": 64}):
            with pytest.raises(ValueError, match="weights='imagenet' is neither a file nor .*none for this variant"):
                A.FCN8s(weights="imagenet", **options)


def test_the_network_is_the_classifier_slid_over_the_image():
    """Every cell of its map is what a window of the image gives, which holds all that the cell sees: 286 pixels."""
    window, stride, cells = 288, 32, 9
    image = np.random.default_rng(0).normal(size=(1, window + 2 * stride, window + stride, 3)).astype("float32")

    def net(height, width):
        model = A.FCN("32s", input_shape=(height, width, 3), upsampling="fixed", **SMALL)
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(scale=w[..., 0].size ** -0.5, size=w.shape) for w in model.get_weights()])
        return scores_of(model)

    whole = keras.ops.convert_to_numpy(net(*image.shape[1:3])(image))[0]
    windows = [
        image[0, row * stride :][:window, column * stride :][:, :window] for row in range(3) for column in range(2)
    ]
    slid = keras.ops.convert_to_numpy(net(window, window)(np.stack(windows)))[:, cells // 2, cells // 2]
    inner = whole[cells // 2 : cells // 2 + 3, cells // 2 : cells // 2 + 2]
    assert inner.std() > 1e-3
    assert_close(slid.reshape(inner.shape), inner, tolerance=(1e-4, 1e-4))  # sums in another order


@pytest.mark.parametrize("variant", ["32s", "8s"])
def test_a_wider_border_leaves_the_logits_where_they_are(variant):
    """A cell more of zeros on each side, where all biases are zero, changes nothing but what fades at the edge."""
    image = np.random.default_rng(0).normal(size=(1, 123, 98, 3)).astype("float32")
    logits = []
    for padding in (100, 132):
        model = A.FCN(variant, input_shape=(123, 98, 3), padding=padding, upsampling="fixed", **SMALL)
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(size=w.shape) if w.ndim == 4 else w for w in model.get_weights()])
        logits.append(keras.ops.convert_to_numpy(model(image))[:, 32:-32, 32:-32])
    assert_close(logits[1] / np.abs(logits[0]).max(), logits[0] / np.abs(logits[0]).max())
    assert logits[0].std() > 0


@pytest.mark.parametrize("padding", [0, 80, -1, "valid", True, 100.0, None])
def test_borders_without_room_are_refused(padding):
    with pytest.raises(ValueError, match='padding must be "same", or a border of at least 81 pixels'):
        A.FCN("tiny", input_shape=(64, 64, 3), padding=padding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsampling": "learnt"}, "Unknown upsampling: got 'learnt'.*'learned', 'fixed'"),
        ({"variant": "4s"}, "Unknown FCN variant: got '4s'"),
        ({"depths": (1, 1)}, "VGG has 5 stages, got depths=.1, 1."),
        ({"norm": "bach"}, "Unknown norm: got 'bach'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        A.FCN(**({"variant": "tiny", "input_shape": (64, 64, 3)} | options))
