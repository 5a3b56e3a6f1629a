"""Weights of one's own in a network of another form: what fits is loaded, the top starts fresh, the rest is refused."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvision import weights
from kvision.applications import GoogLeNet, MobileNetV2, ResNet, Swin, cut
from tests.support import assert_close
from tests.weights.states import torch_state, unchanged, values

FORMATS = ("net.safetensors", "net.weights.h5", pytest.param("net.keras", marks=pytest.mark.slow))  # as the second


def build(**options):
    return ResNet("tiny", **{"input_shape": (32, 32, 3), "classes": 3, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network, and a folder with its weights in every format."""
    folder, model = tmp_path_factory.mktemp("trained"), build()
    state = torch_state(model)
    weights.load_torch(model, state)
    save_file(state, folder / "net.safetensors")
    model.save_weights(folder / "net.weights.h5")
    model.save(folder / "net.keras")
    return model, folder


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "fresh", "told"),
    [
        ({}, (), ""),
        ({"classes": 4}, ("fc",), "fc starts fresh: the file has another number of classes (3 outputs, here 4)."),
        ({"include_top": False}, (), ""),
        ({"input_shape": (32, 32, 1)}, (), "the kernel of conv1 is the sum over the file's input channels."),
        (
            {"input_shape": (48, 40, 1), "classes": 9},
            ("fc",),
            "fc starts fresh: the file has another number of classes (3 outputs, here 9); the kernel of conv1 is the ",
        ),
        ({"include_top": False, "features": ("C2", "C3")}, (), ""),
        ({"norm": "frozen_batch"}, (), ""),
    ],
    ids=["same", "classes", "no top", "grey", "classes and grey", "features", "frozen"],
)
def test_a_file_of_ones_own_loads_into_another_form(trained, name, options, fresh, told, capsys):
    source, folder = trained
    theirs = values(source)
    capsys.readouterr()
    built = build(**options)
    before = values(built)
    model = weights.load(built, folder / name)
    out = capsys.readouterr().out
    assert out.startswith(f"{model.name}: {told}") if told else "fresh" not in out
    assert out.count("\n") == bool(told)
    for path, got in values(model).items():
        if path.split("/")[0] in fresh:
            assert np.array_equal(got, before[path])
        elif path == "conv1/kernel" and got.shape[2] == 1:
            assert_close(got, theirs[path].sum(axis=2, keepdims=True))
        else:
            assert np.array_equal(got, theirs[path]), path


def test_the_sum_over_channels_sees_grey_as_colour_does(trained):
    colour, folder = trained
    grey = build(input_shape=(32, 32, 1), weights=folder / "net.weights.h5")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    assert_close(
        grey.predict(images, verbose=0), colour.predict(images.repeat(3, axis=-1), verbose=0), tolerance=(1e-4, 1e-5)
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_without_the_top_leaves_it_fresh(name, tmp_path, capsys):
    source, model = build(include_top=False), build()
    if name.endswith(".safetensors"):
        save_file(torch_state(source), tmp_path / name)
    else:
        source.save(tmp_path / name) if name.endswith(".keras") else source.save_weights(tmp_path / name)
    before = values(model)
    weights.load(model, tmp_path / name)
    assert "fc starts fresh: the file has none" in capsys.readouterr().out
    after = values(model)
    assert np.array_equal(before["fc/kernel"], after["fc/kernel"])
    assert not np.array_equal(before["layer4.0.conv3/kernel"], after["layer4.0.conv3/kernel"])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 16}, r"conv1/kernel: wants \(7, 7, 3, 16\), .* gives \(7, 7, 3, 8\)"),
        ({"depths": (1, 2, 1, 1)}, "layer2.1.conv1/kernel: wants .* is not there"),
        ({"depths": (1, 1, 1)}, "'layer4.0.*' of the file has no counterpart"),
        ({"input_shape": (32, 32, 4)}, r"conv1/kernel: wants \(7, 7, 4, 8\).*(\n.*)*another number of channels"),
        ({"norm": "group"}, "running_mean|moving_mean|'bn1/|batch_normalization"),
    ],
    ids=["width", "deeper", "shallower", "four channels", "norm"],
)
def test_what_differs_elsewhere_is_refused(trained, name, options, message):
    model = build(**options)
    with unchanged(model), pytest.raises(ValueError, match=f"nothing was changed(.|\n)*({message})"):
        weights.load(model, trained[1] / name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_load_that_fails_midway_leaves_every_weight(trained, name, monkeypatch):
    model = build()
    bias = model.get_layer("fc").bias
    assign, calls = bias.assign, []

    def without_memory(value):
        calls.append(value)
        if len(calls) == 1:
            raise MemoryError
        return assign(value)

    monkeypatch.setattr(bias, "assign", without_memory)
    with unchanged(model), pytest.raises(MemoryError):
        weights.load(model, trained[1] / name)
    assert calls


@pytest.mark.parametrize("name", ["net.safetensors", "net.weights.h5"])
@pytest.mark.parametrize("dtype", ["int8", "complex64", "S3"])
def test_another_type_of_numbers_is_refused(name, dtype, tmp_path):
    model = build()
    if name.endswith(".h5"):
        import h5py

        model.save_weights(tmp_path / name)
        with h5py.File(tmp_path / name, "r+") as file:
            group = file["layers/dense/vars"]
            del group["1"]
            group["1"] = np.zeros(3, dtype)
        with unchanged(model), pytest.raises(ValueError, match="fc/bias: wants float32, the file gives"):
            weights.load(model, tmp_path / name)
    else:
        state = torch_state(model) | {"fc.bias": np.zeros(3, dtype)}
        with unchanged(model), pytest.raises(ValueError, match="fc/bias: wants float32, 'fc.bias' gives"):
            weights.load_torch(model, state)


def test_a_network_of_maps_takes_a_whole_networks_file(tmp_path, capsys):
    """The last convolution belongs to the classifier: no backbone has it."""
    size = {"input_shape": (32, 32, 3)}
    whole = MobileNetV2("tiny", classes=3, **size)
    save_file(torch_state(whole), tmp_path / "net.safetensors")
    whole.save_weights(tmp_path / "net.weights.h5")
    for name in ("net.safetensors", "net.weights.h5"):
        maps = MobileNetV2("tiny", include_top=False, features=("C1", "C3"), weights=tmp_path / name, **size)
        assert len(maps.weights) < len(whole.weights)
        part = weights.load(cut(MobileNetV2("tiny", classes=3, **size), ("C2",)), tmp_path / name)
        assert np.array_equal(values(part)["features.0.0/kernel"], values(maps)["features.0.0/kernel"])


def test_each_level_of_swin_keeps_its_own_norm(tmp_path, capsys):
    size = {"input_shape": (64, 64, 3)}
    Swin("tiny", classes=3, **size).save_weights(tmp_path / "net.weights.h5")
    Swin("tiny", include_top=False, features=("C2", "C4"), weights=tmp_path / "net.weights.h5", **size)
    assert "norm0, norm2 start fresh: the file has none" in capsys.readouterr().out


def test_auxiliary_heads_come_and_go(tmp_path, capsys):
    size = {"input_shape": (32, 32, 3), "classes": 3}
    GoogLeNet("tiny", auxiliary=True, **size).save_weights(tmp_path / "with.weights.h5")
    plain = GoogLeNet("tiny", weights=tmp_path / "with.weights.h5", **size)
    assert "fresh" not in capsys.readouterr().out
    plain.save_weights(tmp_path / "without.weights.h5")
    GoogLeNet("tiny", auxiliary=True, weights=tmp_path / "without.weights.h5", **size)
    assert "start fresh: the file has none" in capsys.readouterr().out


def test_a_model_of_others_has_no_top():
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(2, name="fc")(image))
    state = {"fc.weight": np.zeros((5, 4)), "fc.bias": np.zeros(5)}
    with unchanged(model), pytest.raises(ValueError, match="Likely cause: another number of classes: build the model"):
        weights.load_torch(model, state)
    built_with_the_files = keras.Model(image, keras.layers.Dense(5, name="fc")(image))
    weights.load_torch(built_with_the_files, state)  # the advice
