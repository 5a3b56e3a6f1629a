"""Every test starts from the same place: float32, a fixed seed, no models of the test before."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not os.environ.get("KVISION_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")

import collections
import contextlib
import ctypes
import gc
import pathlib
import resource

os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parent.parent)  # other processes import this tree as well

with contextlib.suppress(ImportError):
    import torchvision  # noqa: F401  # before TensorFlow: loaded after it, torch's operators crash the process

import keras
import pytest

MOST_MEMORY = 3.0  # GiB that one worker may take


@pytest.fixture(autouse=True)
def fresh_session():
    keras.mixed_precision.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(autouse=True, scope="module")
def let_go():
    """What a module has compiled goes with it: TensorFlow keeps every graph that has a gradient of its own for ever."""
    yield
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.framework.ops import gradient_registry

        registered = gradient_registry._registry
        for name in [name for name in registered if name.startswith("CustomGradient-")]:
            del registered[name]
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back to the system


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The folder that published weights of an address are kept in, for this test alone; not there yet."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))
    (tmp_path / "keras").mkdir()
    return tmp_path / "keras" / "models"


def pytest_collection_finish():
    """What was imported stays; a garbage collector that looks at it again each time takes a tenth of the run."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    """Each worker tells how much memory it took."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def pytest_testnodedown(node, error):
    """Keep what each worker told."""
    node.config.stash.setdefault(MEMORY, []).append(getattr(node, "workeroutput", {}).get("memory", 0.0))


def pytest_terminal_summary(terminalreporter, config):
    """The seconds of each folder of tests, and the memory of the workers."""
    seconds = collections.Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if hasattr(report, "duration"):
            path = pathlib.PurePosixPath(report.nodeid.split("::")[0])
            seconds[str(path if path.parent.name == "tests" else path.parent).removeprefix("tests/")] += report.duration
    listed = ", ".join(f"{room} {spent:.0f}" for room, spent in seconds.most_common() if spent >= 1)
    terminalreporter.write_line(f"seconds: {listed or 'less than one'}; all {sum(seconds.values()):.0f}")
    if memory := config.stash.get(MEMORY, []):
        terminalreporter.write_line(f"memory of the workers: {', '.join(f'{most:.1f}' for most in memory)} GiB")
        if max(memory) > MOST_MEMORY:
            terminalreporter.write_line(f"a worker took more than {MOST_MEMORY} GiB", red=True)


MEMORY = pytest.StashKey()
