"""Weight files by their ending: whole ones are read, broken ones refused, and no code of any is run."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvision import weights
from tests.support import assert_close
from tests.weights.states import torch_state, unchanged


def test_safetensors_need_no_torch(model, tmp_path):
    state = torch_state(model)
    save_file(state, tmp_path / "net.safetensors")
    weights.load(model, tmp_path / "net.safetensors")
    assert_close(model.get_layer("fc").kernel, state["fc.weight"].T)


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


@pytest.mark.parametrize(("name", "message"), [("net.onnx", "must end in"), ("missing.safetensors", "no weight file")])
def test_other_files_are_refused(model, tmp_path, name, message):
    if name == "net.onnx":
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        weights.load(model, tmp_path / name)


@pytest.mark.parity
def test_torch_files_are_read_without_running_their_code(model, tmp_path):
    import torch

    state = {key: torch.from_numpy(np.array(value)) for key, value in torch_state(model).items()}
    torch.save(state, tmp_path / "net.pth")
    weights.load(model, tmp_path / "net.pth")
    assert_close(model.get_layer("fc").kernel, state["fc.weight"].numpy().T)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"conv1.weight": Trap()}, tmp_path / "trap.pth")
    with unchanged(model), pytest.raises(ValueError, match="No code of it was run"):
        weights.load(model, tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
