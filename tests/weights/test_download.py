"""Published files: fetched once, compared with their digits, kept."""

import concurrent.futures
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
from kvision.applications import ResNet, imagenet
from kvision.network import Preprocessing
from kvision.weights.download import download
from tests.support import assert_close
from tests.weights.states import torch_state, unchanged


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
    return weights.Published(address, file, "torchvision", "MIT", 50.0, "none", **more)


def test_files_of_an_address_are_fetched_once_and_compared_with_their_digits(own_model, tmp_path, downloads):
    state = torch_state(own_model)
    save_file(state, tmp_path / "net")
    name = f"net-{hashlib.sha256((tmp_path / 'net').read_bytes()).hexdigest()[:8]}.safetensors"
    (tmp_path / "net").rename(tmp_path / name)
    Files.asked = []
    with serving(functools.partial(Files, directory=tmp_path)) as address:
        for epsilon in (None, 0.0):
            weights.load_published(own_model, row_at(address, name, epsilon=epsilon))
            assert_close(own_model.get_layer("fc").kernel, state["fc.weight"].T)
            assert own_model.get_layer("bn1").epsilon == (1e-5 if epsilon is None else epsilon)
            assert own_model.preprocessing == imagenet.preprocess_input
        own = Preprocessing(value_range=(-1.0, 1.0))
        weights.load_published(own_model, row_at(address, name, preprocessing=own))
        assert own_model.preprocessing == own  # that of the weights beats that of the family
        assert Files.asked == [f"/{name}"]

        for path in (downloads / name, tmp_path / name):  # one broken here, then one broken there
            whole = path.read_bytes()
            path.write_bytes(whole[:-8] + bytes(8))
            with unchanged(own_model), pytest.raises(ValueError, match=f"(?s){name} is not the file .* was deleted"):
                weights.load_published(own_model, row_at(address, name))
            assert not (downloads / name).exists()
        path.write_bytes(whole)
        weights.load_published(own_model, row_at(address, name))
    weights.load_published(own_model, row_at(address, name))  # the server is gone
    (downloads / name).unlink()
    with unchanged(own_model), pytest.raises(ValueError, match="are not downloaded yet and could not be fetched"):
        weights.load_published(own_model, row_at(address, name))


class Slow(Files):
    """Gives the second half of a file only when two have asked for it."""

    both = threading.Barrier(2)

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2])
        outputfile.flush()
        Slow.both.wait(timeout=30)
        outputfile.write(content[len(content) // 2 :])


def test_two_that_fetch_one_file_do_not_collide(tmp_path, downloads):
    (tmp_path / "net").write_bytes(np.random.default_rng(0).bytes(2**20))
    name = f"net-{hashlib.sha256((tmp_path / 'net').read_bytes()).hexdigest()[:8]}.safetensors"
    (tmp_path / "net").rename(tmp_path / name)
    slow = functools.partial(Slow, directory=tmp_path)
    with serving(slow) as address, concurrent.futures.ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(download, [row_at(address, name)] * 2))
    assert paths == [downloads / name] * 2
    assert paths[0].read_bytes() == (tmp_path / name).read_bytes()
    assert [path.name for path in downloads.iterdir()] == [name]


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
row = Published("someone/tiny", "model.safetensors", "timm", "MIT", 50.0, "none")
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
