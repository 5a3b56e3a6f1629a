"""Loading others' weights: the leaf rules, both ways of the key check, and nothing changed on a mismatch."""

import contextlib
import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvision import weights
from kvision.applications import VGG, ResNet, imagenet
from kvision.network import Preprocessing
from tests.support import assert_close


def torch_state(model):
    """What torch would hold for a model of ours: names by the rules of torch, arrays channels first."""
    state = {}
    for variable in model.weights:
        module, leaf = variable.path.replace("/", ".").rsplit(".", 1)
        array = np.random.default_rng(len(state)).normal(size=variable.shape).astype("float32")
        if leaf == "kernel":
            state[f"{module}.weight"] = np.ascontiguousarray(
                array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            )
        else:
            names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
            state[f"{module}.{names.get(leaf, leaf)}"] = array
        if leaf == "moving_mean":
            state[f"{module}.num_batches_tracked"] = np.array(7)
    return state


@contextlib.contextmanager
def unchanged(model):
    before = model.get_weights()
    yield
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.fixture
def model():
    return ResNet("tiny", input_shape=(32, 32, 3), classes=3)


def test_every_weight_arrives_in_its_layout(model):
    state = torch_state(model)
    weights.load_torch(model, state)
    kernel = model.get_layer("layer1.0.conv2").kernel
    assert_close(kernel, state["layer1.0.conv2.weight"].transpose(2, 3, 1, 0))
    assert_close(model.get_layer("fc").kernel, state["fc.weight"].T)
    assert_close(model.get_layer("layer1.0.bn2").moving_variance, state["layer1.0.bn2.running_var"])


def test_a_dense_layer_behind_a_flattened_map_is_reordered():
    model = VGG("tiny", input_shape=(224, 224, 3), classes=3)
    state = torch_state(model)
    weights.load_torch(model, state)
    got = keras.ops.convert_to_numpy(model.get_layer("classifier.0").kernel).reshape(7, 7, 16, 32)
    want = state["classifier.0.weight"].reshape(32, 16, 7, 7)
    assert_close(got[2, 5, 11, 3], want[3, 11, 2, 5])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda state: state.pop("conv1.weight"), r"conv1/kernel: wants \(7, 7, 3, 8\) from 'conv1.weight'.*not there"),
        (lambda state: state.update(surplus=np.zeros(3)), "'surplus' of the file has no counterpart"),
        (lambda state: state.update({"fc.bias": np.zeros(5)}), r"fc/bias: wants \(3,\), 'fc.bias' gives \(5,\)"),
    ],
    ids=["missing", "surplus", "another shape"],
)
def test_on_a_mismatch_nothing_changes(model, fault, message):
    state = torch_state(model)
    fault(state)
    with unchanged(model), pytest.raises(ValueError, match=message):
        weights.load_torch(model, state)


def test_renames_apply_to_our_keys(model):
    state = {key.replace("layer1.", "stage_one."): value for key, value in torch_state(model).items()}
    weights.remember(model, {"timm": [(r"^layer1\.", "stage_one.")]})
    weights.load_torch(model, state, source="timm")
    assert_close(model.get_layer("layer1.0.bn1").gamma, state["stage_one.0.bn1.weight"])


def test_older_names_of_a_file_are_brought_to_todays(model):
    state = torch_state(model)
    older = {key.replace("layer1.0.", "layer1.block1."): value for key, value in state.items()}
    rules = [(r"^layer1\.block(\d)\.", lambda found: f"layer1.{int(found[1]) - 1}.")]
    with unchanged(model), pytest.raises(ValueError, match="from 'layer1.0.conv1.weight', which is not there"):
        weights.load_torch(model, older)
    weights.remember(model, older_names={"torchvision": rules})
    for spelling in (state, older):
        model.get_layer("layer1.0.conv1").kernel.assign(0 * model.get_layer("layer1.0.conv1").kernel)
        weights.load_torch(model, spelling)
        assert_close(model.get_layer("layer1.0.conv1").kernel, state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    with (
        unchanged(model),
        pytest.raises(ValueError, match="'layer1.block1.conv1.weight' of the file has no counterpart"),
    ):
        weights.load_torch(model, state | {"layer1.block1.conv1.weight": state["layer1.0.conv1.weight"]})


def test_an_epsilon_reaches_every_batch_normalisation_and_is_saved(model, tmp_path):
    nested = keras.Sequential([keras.Input((32, 32, 3)), model])
    assert weights.set_epsilon(nested, 0.0) is nested
    nested.save(tmp_path / "net.keras")
    for net in (model, keras.saving.load_model(tmp_path / "net.keras")):
        epsilons = [layer.epsilon for layer in net._flatten_layers() if hasattr(layer, "moving_variance")]
        assert len(epsilons) == 17
        assert set(epsilons) == {0.0}


def test_names_of_foreign_weights_outlive_save_and_load(tmp_path):
    model = VGG("tiny", input_shape=(32, 32, 3), classes=3)
    model.save(tmp_path / "net.keras")
    state = torch_state(model)
    renamed = {
        key.replace("classifier.0.", "pre_logits.fc1.")
        .replace("classifier.3.", "pre_logits.fc2.")
        .replace("classifier.6.", "head.fc."): value
        for key, value in state.items()
    }
    for copy in (keras.saving.load_model(tmp_path / "net.keras"), keras.models.clone_model(model)):
        weights.load_torch(copy, renamed, source="timm")
        assert_close(copy.get_layer("classifier.6").kernel, state["classifier.6.weight"].T)


def test_unknown_sources_are_refused(model):
    with pytest.raises(ValueError, match="Unknown source: got 'tim'.*'timm'"):
        weights.load_torch(model, {}, source="tim")


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda state: (state.pop("fc.weight"), state.pop("fc.bias")), "file lacks layers.*include_top=False"),
        (lambda state: state.update(extra=np.zeros(2)), "model lacks layers"),
        (lambda state: state.update({"fc.weight": np.zeros((9, 256)), "fc.bias": np.zeros(9)}), "number of classes"),
        (lambda state: state.update({k: np.zeros(1) for k in list(state)[:9]}), "another variant"),
    ],
)
def test_the_likely_cause_is_told(model, fault, cause):
    state = torch_state(model)
    fault(state)
    with pytest.raises(ValueError, match=f"(?s)it has [0-9]+ weights, the file .*Likely cause: .*{cause}") as caught:
        weights.load_torch(model, state)
    assert str(caught.value).count("\n  ") <= 6  # five faults, and how many more


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


@pytest.mark.parametrize("name", ["net.weights.h5", "net.keras"])
def test_keras_files_load_and_those_of_another_network_are_refused(model, tmp_path, name):
    same = ResNet("tiny", input_shape=(32, 32, 3), classes=3)
    other = ResNet("tiny", input_shape=(32, 32, 3), classes=4)
    for net, path in ((same, tmp_path / "same"), (other, tmp_path / "other")):
        path.mkdir()
        net.save(path / name) if name.endswith(".keras") else net.save_weights(path / name)
    with unchanged(model), pytest.raises(ValueError, match=r"\(4,\).*nothing|nothing.*\(4,\)|gives \(256, 4\)"):
        weights.load(model, tmp_path / "other" / name)
    weights.load(model, tmp_path / "same" / name)
    assert all(np.array_equal(a, b) for a, b in zip(same.get_weights(), model.get_weights(), strict=True))


def test_a_keras_file_with_a_lambda_is_refused(model, tmp_path):
    image = keras.Input((32, 32, 3))
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)).save(tmp_path / "code.keras")
    with unchanged(model), pytest.raises(ValueError, match="holds a Lambda layer"):
        weights.load(model, tmp_path / "code.keras")


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


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder of files, and a list of what was asked for."""

    asked = []

    def do_GET(self):
        Files.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def row_at(address, file, **more):
    return weights.Published(address, file, "torchvision", "MIT", 50.0, "none", head=("fc",), **more)


def test_files_of_an_address_are_fetched_once_and_compared_with_their_digits(model, tmp_path, downloads):
    state = torch_state(model)
    save_file(state, tmp_path / "net")
    name = f"net-{hashlib.sha256((tmp_path / 'net').read_bytes()).hexdigest()[:8]}.safetensors"
    (tmp_path / "net").rename(tmp_path / name)
    Files.asked = []
    with serving(functools.partial(Files, directory=tmp_path)) as address:
        for epsilon in (None, 0.0):
            weights.load_published(model, row_at(address, name, epsilon=epsilon))
            assert_close(model.get_layer("fc").kernel, state["fc.weight"].T)
            assert model.get_layer("bn1").epsilon == (1e-5 if epsilon is None else epsilon)
            assert model.preprocessing == imagenet.preprocess_input
        own = Preprocessing(value_range=(-1.0, 1.0))
        weights.load_published(model, row_at(address, name, preprocessing=own))
        assert model.preprocessing == own  # that of the weights beats that of the family
        assert Files.asked == [f"/{name}"]

        for path in (downloads / name, tmp_path / name):  # one broken here, then one broken there
            whole = path.read_bytes()
            path.write_bytes(whole[:-8] + bytes(8))
            with unchanged(model), pytest.raises(ValueError, match=f"(?s){name} is not the file .* was deleted"):
                weights.load_published(model, row_at(address, name))
            assert not (downloads / name).exists()
        path.write_bytes(whole)
        weights.load_published(model, row_at(address, name))
    weights.load_published(model, row_at(address, name))  # the server is gone
    (downloads / name).unlink()
    with unchanged(model), pytest.raises(ValueError, match="are not downloaded yet and could not be fetched"):
        weights.load_published(model, row_at(address, name))


@pytest.mark.parametrize("head", [{"classes": 7}, {"include_top": False}], ids=str)
def test_a_published_head_of_other_size_stays_fresh(model, head, tmp_path, downloads, capsys):
    state = torch_state(model)
    save_file(state, tmp_path / "net")
    name = f"net-{hashlib.sha256((tmp_path / 'net').read_bytes()).hexdigest()[:8]}.safetensors"
    (tmp_path / "net").rename(tmp_path / name)
    other = ResNet("tiny", input_shape=(32, 32, 3), **head)
    before = {weight.path: keras.ops.convert_to_numpy(weight) for weight in other.weights}
    with serving(functools.partial(Files, directory=tmp_path)) as address:
        weights.load_published(other, row_at(address, name))
    assert_close(other.get_layer("conv1").kernel, state["conv1.weight"].transpose(2, 3, 1, 0))
    fresh = {w.path for w in other.weights if np.array_equal(before[w.path], keras.ops.convert_to_numpy(w))}
    assert fresh == ({"fc/kernel", "fc/bias"} if "classes" in head else set())
    assert capsys.readouterr().out.count("fc starts fresh") == ("classes" in head)


def test_without_torch_no_torch_file_is_fetched(model, tmp_path, downloads, monkeypatch):
    (tmp_path / "net-00000000.pth").write_bytes(b"whatever")
    monkeypatch.setitem(sys.modules, "torch", None)
    with unchanged(model), pytest.raises(ImportError, match=r"Reading net-00000000.pth needs torch: pip install torch"):
        weights.load_published(model, row_at(tmp_path.as_uri(), "net-00000000.pth"))
    assert not downloads.exists()


SCRIPT = """
import sys, kvision
from kvision.weights import Published, load_published
row = Published("someone/tiny", "model.safetensors", "timm", "MIT", 50.0, "none", head=("fc",))
build = lambda **options: kvision.applications.ResNet("tiny", input_shape=(32, 32, 3), **options)
same = load_published(build(classes=3), row)
fresh = load_published(build(classes=7), row)
headless = load_published(build(include_top=False), row)
for model in (same, fresh, headless):
    print(float(abs(model.get_layer("conv1").kernel.numpy()).sum()))
print(float(abs(same.get_layer("fc").kernel.numpy()).sum()))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as a download of one file asks for."""

    content = b""
    asked = []

    def do_HEAD(self):
        self.reply(body=False)

    def do_GET(self):
        self.reply(body=True)

    def reply(self, body):
        Hub.asked.append(self.path)
        if not self.path.endswith("/resolve/main/model.safetensors"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(Hub.content)))
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(Hub.content)

    def log_message(self, *arguments):
        pass


@pytest.mark.slow
def test_published_weights_are_fetched_once_and_a_head_of_other_size_stays_fresh(model, tmp_path):
    state = torch_state(model)
    save_file(state, tmp_path / "net.safetensors")
    Hub.content, Hub.asked = (tmp_path / "net.safetensors").read_bytes(), []
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def run(**more):
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    with serving(Hub) as address:
        first = run(HF_ENDPOINT=address)
    assert first.returncode == 0, first.stderr[-3000:]
    numbers = [float(line) for line in first.stdout.splitlines() if line[0].isdigit()]
    assert_close(numbers[:3], np.full(3, np.abs(state["conv1.weight"]).sum()), tolerance=(1e-4, 0))
    assert_close(numbers[3], np.abs(state["fc.weight"]).sum(), tolerance=(1e-4, 0))
    assert first.stdout.count("fc starts fresh") == 1

    offline = run(HF_HUB_OFFLINE="1")  # now from the cache
    assert offline.returncode == 0, offline.stderr[-3000:]
    missing = run(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert "are not downloaded yet" in missing.stderr
