"""Weight files by their ending: whole ones are read, broken ones refused, and no code of any is run."""

import argparse
import json
import os
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvision import weights
from tests.support import assert_close
from tests.weights.states import torch_state, unchanged, values


def safetensors(path, arrays, types):
    """A file as the format's description has it, with whatever its header declares."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for key, array in arrays.items():
        begin, data = len(data), data + array.tobytes()
        header[key] = {"dtype": types[key], "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    return header, data


def write(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_safetensors_need_no_torch(model, tmp_path):
    state = torch_state(model)
    save_file(state, tmp_path / "net.safetensors")
    weights.load(model, tmp_path / "net.safetensors")
    assert_close(model.get_layer("fc").kernel, state["fc.weight"].T)


@pytest.mark.parametrize(("name", "dtype"), [("BF16", ml_dtypes.bfloat16), ("F16", np.float16), ("F64", np.float64)])
def test_safetensors_of_other_floats(model, tmp_path, name, dtype):
    state = {key: value.astype(dtype) for key, value in torch_state(model).items() if value.ndim}
    header, data = safetensors(tmp_path, state, dict.fromkeys(state, name))
    write(tmp_path / "net.safetensors", header, data)
    weights.load(model, tmp_path / "net.safetensors")
    for path, got in values(model).items():
        assert got.dtype == np.float32, path
    assert np.array_equal(values(model)["fc/kernel"], state["fc.weight"].T.astype("float32"))


HUGE = 2**40


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["fc.bias"].update(shape=[HUGE]),
        lambda header: header["fc.bias"].update(shape=[HUGE], data_offsets=[0, 4 * HUGE]),
        lambda header: header["fc.bias"].update(shape=[-1, -3]),
        lambda header: header["fc.bias"].update(data_offsets=[-12, 0]),
        lambda header: header["fc.bias"].update(dtype="F99"),
        lambda header: header.update({"fc.bias": 3}),
    ],
    ids=["shape", "shape and offsets", "negative shape", "negative offsets", "unknown type", "no entry"],
)
def test_a_header_is_not_believed(model, tmp_path, change):
    state = torch_state(model)
    types = {key: "I64" if value.dtype == np.int64 else "F32" for key, value in state.items()}
    header, data = safetensors(tmp_path, state, types)
    write(tmp_path / "net.safetensors", header, data)
    weights.load(model, tmp_path / "net.safetensors")  # as it is
    change(header)
    write(tmp_path / "net.safetensors", header, data)
    with unchanged(model), pytest.raises(ValueError, match="Cannot read .*it is cut short"):
        weights.load(model, tmp_path / "net.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x00", (2**62).to_bytes(8, "little"), b"\x02" + bytes(7) + b"[]"], ids=len)
def test_what_is_no_safetensors_file(model, tmp_path, content):
    (tmp_path / "net.safetensors").write_bytes(content)
    with unchanged(model), pytest.raises(ValueError, match="Cannot read"):
        weights.load(model, tmp_path / "net.safetensors")


def test_a_torch_file_is_not_believed(model, tmp_path):
    """A zip of zeros that grow a thousand times: refused before torch is asked for."""
    with zipfile.ZipFile(tmp_path / "net.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    with unchanged(model), pytest.raises(ValueError, match="declares 10,000,000 bytes, the file has"):
        weights.load(model, tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.safetensors", "net.weights.h5", "net.keras"])
def test_a_truncated_file_is_refused(model, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(torch_state(model), path)
    elif name.endswith(".keras"):
        model.save(path)
    else:
        model.save_weights(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with unchanged(model), pytest.raises(ValueError, match="cut short"):
        weights.load(model, path)


@pytest.fixture
def parts(model, tmp_path):
    """The weights of a network in two files, and the index of them."""
    state = torch_state(model)
    names = [f"net-0000{number}-of-00002.safetensors" for number in (1, 2)]
    place = {key: names[key.startswith("layer")] for key in state}
    for name in names:
        save_file({key: state[key] for key in state if place[key] == name}, tmp_path / name)
    index = tmp_path / "net.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return state, index, names


def test_a_network_in_parts(model, parts, tmp_path):
    state, index, names = parts
    weights.load(model, index)
    assert np.array_equal(values(model)["fc/kernel"], state["fc.weight"].T)
    assert np.array_equal(values(model)["layer1.0.bn1/gamma"], state["layer1.0.bn1.weight"])

    with (
        unchanged(model),
        pytest.raises(ValueError, match="one of 2 parts .*pass net.safetensors.index.json beside it"),
    ):
        weights.load(model, tmp_path / names[0])
    (tmp_path / names[1]).unlink()
    with unchanged(model), pytest.raises(ValueError, match=f"lists 2 parts, of which 1 are not in .*{names[1]}"):
        weights.load(model, index)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"fc.weight": "../net.safetensors"}}, "must lie in its own folder"),
        (
            {
                "weight_map": {
                    "fc.weight": "net-00001-of-00002.safetensors",
                    "fc.other": "net-00001-of-00002.safetensors",
                }
            },
            "lists 'fc.other' in",
        ),
        ({"weights": {}}, "cut short, or no file of its ending"),
        ([], "cut short, or no file of its ending"),
    ],
    ids=["outside", "not in the part", "no map", "a list"],
)
def test_a_wrong_index(model, parts, tmp_path, index, message):
    (tmp_path / "net.safetensors.index.json").write_text(json.dumps(index))
    with unchanged(model), pytest.raises(ValueError, match=message):
        weights.load(model, tmp_path / "net.safetensors.index.json")


@pytest.mark.parametrize(("name", "message"), [("net.onnx", "must end in"), ("missing.safetensors", "no weight file")])
def test_other_files_are_refused(model, tmp_path, name, message):
    if name == "net.onnx":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        weights.load(model, tmp_path / name)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["net.pth", "net.ckpt", "net.pth.tar", "net.bin"])
def test_torch_files_are_read(model, tmp_path, name):
    import torch

    state = {key: torch.from_numpy(np.array(value)) for key, value in torch_state(model).items()}
    for is_zip in (True, False):  # the form of today, and of old
        checkpoint = {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}
        torch.save(checkpoint, tmp_path / name, _use_new_zipfile_serialization=is_zip)
        weights.load_torch(model, {key: 0 * value for key, value in state.items()})
        weights.load(model, tmp_path / name)
        assert_close(model.get_layer("fc").kernel, state["fc.weight"].numpy().T)
    torch.save([state], tmp_path / name)
    with unchanged(model), pytest.raises(ValueError, match="holds a list, not tensors by their names"):
        weights.load(model, tmp_path / name)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_torch_floats_of_other_width(model, dtype):
    import torch

    state = {key: torch.from_numpy(np.array(value)) for key, value in torch_state(model).items()}
    narrow = {key: value.to(getattr(torch, dtype)) for key, value in state.items()}
    weights.load_torch(model, narrow)
    assert_close(model.get_layer("fc").kernel, narrow["fc.weight"].float().numpy().T)


@pytest.mark.parity
def test_torch_tensors_that_are_no_plain_floats(model, tmp_path):
    import torch

    state = {key: torch.from_numpy(np.array(value)) for key, value in torch_state(model).items()}
    with warnings.catch_warnings(action="ignore"):  # torch means to drop them; files of them stay
        quantised = state | {"fc.weight": torch.quantize_per_tensor(state["fc.weight"], 0.1, 0, torch.qint8)}
    with unchanged(model), pytest.raises(ValueError, match="fc/kernel: wants float32, 'fc.weight' gives int8"):
        weights.load_torch(model, quantised)
    torch.save(state | {"fc.bias": torch.zeros(1).expand(HUGE)}, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").stat().st_size < 10**6
    with unchanged(model), pytest.raises(ValueError, match="'fc.bias' declares the shape"):
        weights.load(model, tmp_path / "net.pth")


@pytest.mark.parity
def test_torch_files_are_read_without_running_their_code(model, tmp_path):
    import torch

    state = {key: torch.from_numpy(np.array(value)) for key, value in torch_state(model).items()}

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"state_dict": state, "trap": Trap()}, tmp_path / "trap.pth")
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"beside tensors it holds \w+.mkdir, .* No code of it was run. If you trust"),
    ):
        weights.load(model, tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
    checkpoint = torch.load(tmp_path / "trap.pth", weights_only=False)  # the advice
    torch.save(checkpoint["state_dict"], tmp_path / "weights.pth")
    weights.load(model, tmp_path / "weights.pth")
    assert_close(model.get_layer("fc").kernel, state["fc.weight"].numpy().T)
