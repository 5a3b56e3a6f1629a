"""What reaches W&B, read back from the run's file or from a server of our own; no server changes a training."""

import ast
import functools
import os
import pathlib
import random
import time

import keras
import numpy as np
import pytest
import wandb

import kvision.trackers
from kvision.callbacks import LearningRate, WandbLogger
from kvision.trackers.events import Advice, Images, Measurement
from kvision.trackers.run_config import mask_secrets
from kvision.trackers.tracker import emit
from tests.callbacks.runs import STEPS, Late, fit_tiny, tiny_model
from tests.trackers.wandb_file import column, read_run
from tests.trackers.wandb_server import serve

KEY = "0123456789abcdef" * 2 + "planted0"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Everything W&B reads or writes lies in `tmp_path`, and each test starts it anew."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # what a test elsewhere began keeps its folder
    yield
    if wandb.run is not None:
        wandb.run.finish()
    wandb.teardown()


@pytest.fixture
def online(monkeypatch):
    """Online as far as `connect(url)` allows."""

    def connect(url):
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "4")

    return connect


def files_with(text, directory):
    return [path for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def same_weights(model, weights):
    return all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


def fit_once(*callbacks, model=None):
    """One epoch without validation, for what depends on neither."""
    return fit_tiny(model or tiny_model(), callbacks, epochs=1, validation_data=None).history


@functools.cache
def untracked(epochs=2):
    """The weights after a training without W&B."""
    model = tiny_model()
    fit_tiny(model, epochs=epochs)
    return model.get_weights()


def by_step(history):
    return dict(zip((STEPS, 2 * STEPS), history["loss"], strict=True))


class Vital(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        emit(self, Advice("loss", 0, 0, "Early."))

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:  # a step after the one that was measured
            emit(self, Measurement("ratio", 2, {"layer1.0.conv1/kernel": np.float32(0.5), "b": np.nan}, (1e-5, 2e-2)))
            emit(self, Advice("ratio", 2, 0, "conv1 moves too fast: 0.5; lower the rate."))
            emit(self, Images(2, {"filters": np.full((5, 7, 3), 9, "uint8")}))


def test_the_logs_of_every_epoch_equal_the_history_of_keras(tmp_path):
    history = fit_tiny(
        tiny_model(), [WandbLogger("digits"), LearningRate(lambda step: 0.1 / (1 + step)), Late()]
    ).history
    run = read_run(tmp_path)
    assert len(history) == 6
    assert all(speed > 0 for _, speed in column(run, "epoch/images_per_second"))
    for name, values in history.items():
        logged = dict(column(run, f"epoch/{name}"))  # the rate comes twice: the optimizer's, then that of the logs
        assert logged == {STEPS: values[0], 2 * STEPS: values[1]}, name
        assert run["summary"][f"epoch/{name}"] == values[-1]
    assert column(run, "epoch/epoch") == [(STEPS, 0), (2 * STEPS, 1)]


def test_the_waits_of_a_run_are_bounded(monkeypatch):
    logger, model = WandbLogger(), tiny_model()
    fit_once(logger, model=model)
    assert (logger.run.settings.init_timeout, logger.run.settings.finish_timeout) == (20, 60)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "7")
    wandb.teardown()
    fit_once(logger, model=model)
    assert (logger.run.settings.init_timeout, logger.run.settings.finish_timeout) == (20, 7)


def test_the_rate_is_logged_without_a_schedule(tmp_path):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    fit_tiny(tiny_model(keras.optimizers.SGD(decay)), [WandbLogger()])
    assert column(read_run(tmp_path), "epoch/learning_rate") == [
        (step, pytest.approx(0.1 * 0.5 ** ((step - 1) / 4)))
        for step in (4, 8)  # of the last step, not of the next
    ]


def test_a_resumed_run_goes_on_at_its_step(tmp_path):
    model = tiny_model()
    fit_tiny(model, epochs=1)
    fit_tiny(model, [WandbLogger()], epochs=3, initial_epoch=1, validation_data=None)
    assert column(read_run(tmp_path), "epoch/epoch") == [(2 * STEPS, 1), (3 * STEPS, 2)]


def test_optimizer_steps_are_the_step_of_every_metric(tmp_path):
    fit_once(WandbLogger())
    names = ("epoch", "batch", "vitals", "advice", "images", "media", "weights")
    groups = {f"{group}/*": "trainer/step" for group in names}
    assert read_run(tmp_path)["metrics"] == {"trainer/step": ""} | groups


@pytest.mark.parametrize("logger_first", [True, False])
def test_what_vitals_emit_is_logged(tmp_path, logger_first):
    callbacks = [WandbLogger(), Vital()] if logger_first else [Vital(), WandbLogger()]
    fit_tiny(tiny_model(), callbacks, epochs=1)
    run = read_run(tmp_path)
    assert column(run, "vitals/ratio/layer1.0.conv1/kernel") == [(2, 0.5)]
    ((step, value),) = column(run, "vitals/ratio/b")
    assert step == 2
    assert np.isnan(value)
    assert column(run, "advice/loss") == [(0, "Early.")]
    assert column(run, "advice/ratio") == [(2, "conv1 moves too fast: 0.5; lower the rate.")]
    ((step, image),) = column(run, "images/filters")
    assert (step, image["height"], image["width"]) == (2, 5, 7)
    assert (run["path"] / "files" / image["path"]).is_file()


def test_media_once_an_epoch(tmp_path):
    import matplotlib.pyplot as plt
    from PIL import Image

    def media(model):
        figure, axes = plt.subplots(figsize=(2, 1), dpi=50)
        axes.plot(model.get_weights()[1])
        return {"bias": figure, "grey": np.full((6, 4), 0.5), "colour": keras.ops.ones((3, 4, 3))}

    fit_tiny(tiny_model(), [WandbLogger(media=media)])
    run = read_run(tmp_path)
    sizes = {"bias": (100, 50), "grey": (4, 6), "colour": (4, 3)}
    for name, size in sizes.items():
        rows = column(run, f"media/{name}")
        assert [(step, image["width"], image["height"]) for step, image in rows] == [(4, *size), (8, *size)]
    grey = Image.open(run["path"] / "files" / column(run, "media/grey")[0][1]["path"])
    assert grey.getpixel((0, 0)) in (127, 128)
    assert plt.get_fignums() == []


def test_histograms_on_request(tmp_path):
    model = tiny_model()
    fit_tiny(model, [WandbLogger(histograms=True)])
    run = read_run(tmp_path)
    assert len(model.trainable_weights) == 4
    for weight in model.trainable_weights:
        rows = column(run, f"weights/{weight.path}")
        assert [step for step, _ in rows] == [4, 8]
        counts, edges = np.histogram(keras.ops.convert_to_numpy(weight).astype("float64"), bins=64)
        assert rows[-1][1]["values"] == counts.tolist()
        np.testing.assert_allclose(rows[-1][1]["bins"], edges, rtol=1e-6)


def test_histograms_of_weights_that_hardly_differ(tmp_path, capsys):
    model = tiny_model(keras.optimizers.SGD(0.0))
    near = np.float32(3) + np.spacing(np.float32(3)) * np.arange(2, dtype="float32")  # too narrow there for 64 bins
    kernel = model.layers[0].kernel
    kernel.assign(np.resize(near, kernel.shape))
    fit_tiny(model, [WandbLogger(histograms=True)])
    assert sum(column(read_run(tmp_path), f"weights/{kernel.path}")[-1][1]["values"]) == np.prod(kernel.shape)
    assert "failed" not in capsys.readouterr().out


def test_broken_weights_do_not_end_the_run(tmp_path, capsys):
    model = tiny_model()
    model.layers[-1].set_weights([np.full((8, 2), np.nan), np.r_[np.inf, 0]])
    history = fit_tiny(model, [WandbLogger(histograms=True)]).history
    run = read_run(tmp_path)
    assert np.isnan(history["loss"]).all()
    assert np.isnan([value for _, value in column(run, "epoch/loss")]).all()
    assert "failed" not in capsys.readouterr().out


def test_config(tmp_path):
    model = tiny_model()
    fit_once(WandbLogger(config={"augmentation": {"flip": True}, "optimizer": "mine"}), model=model)
    config = read_run(tmp_path)["config"]
    assert config["augmentation"] == {"flip": True}
    assert config["optimizer"] == "mine"
    assert config["compile"]["optimizer"]["config"]["momentum"] == 0.9
    assert config["compile"]["loss"]["class_name"] == "SparseCategoricalCrossentropy"
    assert config["parameters"] == config["trainable_parameters"] == 4 * 8 + 8 + 8 * 2 + 2
    assert config["versions"]["keras"] == keras.__version__
    assert config["versions"]["backend"].startswith(keras.backend.backend() + " ")
    assert set(config["versions"]) == {"kvision", "keras", "backend", "python"}
    fit_once(WandbLogger(directory=tmp_path / "second"), model=model)
    optimizer = read_run(tmp_path / "second")["config"]["optimizer"]
    assert (optimizer["class_name"], optimizer["learning_rate"]) == ("SGD", pytest.approx(0.1))


def some_slow(answers, quick):
    return [pytest.param(answer, marks=() if answer in quick else pytest.mark.slow) for answer in answers]


@pytest.mark.parametrize("answer", some_slow([200, 401, 429, 500, "hang", "down"], quick=("down",)))
def test_no_server_changes_the_training(tmp_path, online, capsys, answer):
    with serve(200 if answer == "down" else answer) as server:
        online(server.url)
        if answer == "down":
            server.shutdown()
            server.socket.close()
        model, start = tiny_model(), time.perf_counter()
        history = fit_tiny(model, [WandbLogger("digits", mode="online"), LearningRate(0.1)]).history
        assert time.perf_counter() - start < 30
        assert same_weights(model, untracked())
        out = capsys.readouterr().out
        if answer == 200:
            rows = [row for row in server.history() if "epoch/loss" in row]
            assert {row["trainer/step"]: row["epoch/loss"] for row in rows} == by_step(history)
            assert "recording offline" not in out
            assert len(list(tmp_path.glob("wandb/run-*"))) == 1
        else:
            assert dict(column(read_run(tmp_path), "epoch/loss")) == by_step(history)
            assert out.count("recording offline") == 1
            assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
            assert [with_key for _, with_key, _ in server.requests] == ([] if answer == "down" else [False])
        assert files_with(KEY, tmp_path) == []


@pytest.mark.parametrize("answer", some_slow([500, "hang"], quick=(500,)))
def test_a_server_that_fails_later_changes_nothing(tmp_path, online, answer):
    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            server.answer = answer

    with serve() as server:
        online(server.url)
        model, start = tiny_model(), time.perf_counter()
        history = fit_tiny(model, [WandbLogger(), Fail()]).history
        assert time.perf_counter() - start < 30
        assert same_weights(model, untracked())
        assert dict(column(read_run(tmp_path), "epoch/loss")) == by_step(history)


def test_a_server_that_refuses_the_key_gets_no_run(tmp_path, online, capsys):
    with serve(200, 401) as server:
        online(server.url)
        model = tiny_model()
        history = fit_tiny(model, [WandbLogger()]).history
        assert same_weights(model, untracked())
        assert dict(column(read_run(tmp_path, "offline-run-*"), "epoch/loss")) == by_step(history)
        assert capsys.readouterr().out.count("the server refused the run") == 1


@pytest.mark.parametrize(
    "variable, argument, mode", [("offline", "online", "offline"), ("disabled", "online", "disabled")]
)
def test_the_environment_wins(tmp_path, online, monkeypatch, variable, argument, mode):
    with serve() as server:
        online(server.url)
        monkeypatch.setenv("WANDB_MODE", variable)
        logger = WandbLogger(mode=argument)
        fit_once(logger, Vital())
        assert logger.run.settings.mode == mode
        assert server.requests == []


def test_the_environment_wins_over_offline(online, monkeypatch):
    with serve() as server:
        online(server.url)
        monkeypatch.setenv("WANDB_MODE", "online")
        logger = WandbLogger(mode="offline")
        fit_once(logger)
        assert logger.run.settings.mode == "online"
        assert server.history()


@pytest.mark.parametrize("argument", ["offline", "disabled"])
def test_the_argument_decides_where_the_environment_is_silent(online, argument):
    with serve() as server:
        online(server.url)
        logger = WandbLogger(mode=argument)
        fit_once(logger)
        assert logger.run.settings.mode == argument
        assert server.requests == []


def test_without_a_key_nothing_is_asked(online, monkeypatch, capsys):
    with serve() as server:
        online(server.url)
        monkeypatch.delenv("WANDB_API_KEY")
        logger = WandbLogger(mode="online")
        fit_once(logger)
        assert logger.run.settings.mode == "offline"
        assert capsys.readouterr().out.count("no API key") == 1
        assert server.requests == []


def test_the_key_that_wandb_login_stored_counts(tmp_path, online, monkeypatch):
    with serve() as server:
        online(server.url)
        monkeypatch.delenv("WANDB_API_KEY")
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine 127.0.0.1:{server.server_port}\n  login user\n  password {KEY}\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        logger = WandbLogger()
        fit_once(logger)
        assert logger.run.settings.mode == "online"
        assert files_with(KEY, tmp_path) == [netrc]


def test_random_state_is_left_alone():
    def states():
        keras_seed = keras.random.uniform((2,), seed=None)
        return random.getstate(), np.random.get_state()[1].tolist(), keras.ops.convert_to_numpy(keras_seed).tolist()

    fit_tiny(tiny_model())
    want = states()
    fit_tiny(tiny_model(), [WandbLogger(histograms=True, media=lambda model: {"grey": np.zeros((4, 4))})])
    assert states() == want


def test_an_active_run_is_used_and_not_finished(tmp_path):
    run = wandb.init(project="mine", config={"parameters": "as I say"})
    logger = WandbLogger("other", config={"depth": 3})
    history = fit_tiny(tiny_model(), [logger]).history
    assert logger.run is run is wandb.run
    run.log({"after": 1, "trainer/step": 9})
    run.finish()
    written = read_run(tmp_path)
    assert column(written, "after") == [(9, 1)]
    assert [value for _, value in column(written, "epoch/loss")] == history["loss"]
    assert (written["config"]["parameters"], written["config"]["depth"]) == ("as I say", 3)
    assert run.project == "mine"


def test_every_fit_is_a_run_and_a_run_is_finished(tmp_path):
    logger, model = WandbLogger(), tiny_model()
    fit_once(logger, model=model)
    first = logger.run
    assert wandb.run is None
    fit_once(logger, model=model)
    assert logger.run.id != first.id
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("same_logger", [True, False])
def test_a_run_left_open_by_a_broken_fit_is_finished_by_the_next_which_has_its_own(tmp_path, same_logger, error):
    class Broken(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise error

    first = WandbLogger(config={"cell": 1}, directory=tmp_path)
    with pytest.raises(error):
        fit_tiny(tiny_model(), [first, Broken()])
    broken = first.run
    assert wandb.run is broken
    second = first if same_logger else WandbLogger(config={"cell": 2}, directory=tmp_path)
    fit_once(second)
    assert wandb.run is None
    assert second.run.id != broken.id
    for run, cell in ((broken, 1), (second.run, 1 if same_logger else 2)):
        written = read_run(tmp_path, f"*run-*{run.id}")
        assert written["config"]["cell"] == cell
        assert [step for step, _ in column(written, "epoch/loss")] == [STEPS]


def test_two_loggers_of_one_fit_share_its_run(tmp_path):
    first, second = WandbLogger(), WandbLogger()
    fit_once(first, second)
    assert first.run is second.run
    assert wandb.run is None
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_run_is_named_without_wandb_init():
    logger = WandbLogger("digits", name="first try", id="abc123", group="tries", tags=["quick"], resume="allow")
    fit_once(logger)
    run = logger.run
    assert (run.name, run.id, run.group, run.tags) == ("first try", "abc123", "tries", ("quick",))
    assert run.settings.resume == "allow"


def test_a_name_for_a_run_that_is_active_is_an_error_before_training():
    wandb.init(project="mine")
    model = tiny_model()
    with pytest.raises(ValueError, match=r"a run is active, .*got name, tags. Give them to wandb.init"):
        fit_once(WandbLogger(name="other", tags=["quick"]), model=model)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


def test_the_summary_holds_the_best_values(tmp_path):
    class Scores(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs |= {"val_AP": [0.25, 0.5, 0.125][epoch], "val_loss": [3.0, 2.0, 4.0][epoch], "instances": epoch}

    fit_tiny(tiny_model(), [Scores(), WandbLogger()], epochs=3)
    summary = read_run(tmp_path)["summary"]
    assert (summary["best/val_AP"], summary["best/val_loss"]) == (0.5, 2.0)
    assert (summary["epoch/val_AP"], summary["epoch/val_loss"]) == (0.125, 4.0)
    assert "best/instances" not in summary


def test_the_loss_within_an_epoch_is_logged(tmp_path):
    history = fit_tiny(tiny_model(), [WandbLogger()], epochs=2, validation_data=None).history
    points = column(read_run(tmp_path), "batch/loss")
    assert [step for step, _ in points] == [1, 2, 3, 5, 6, 7]  # that of the last step is in the epoch's own
    assert history["loss"][0] == pytest.approx(np.mean([value for _, value in points[:3]]), rel=0.5)


@pytest.mark.parametrize(
    "media, told",
    [
        (lambda model: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda model: {"bad": "no image"}, "ValueError: could not convert"),
        pytest.param(lambda model: None, None, marks=pytest.mark.slow),
    ],
)
def test_media_that_fails_is_told_once_and_the_training_goes_on(tmp_path, capsys, media, told):
    model = tiny_model()
    fit_tiny(model, [WandbLogger(media=media)], epochs=3)
    out = capsys.readouterr().out
    assert out.count("media failed; the training goes on") == (told is not None)
    assert told is None or told in out
    assert len(column(read_run(tmp_path), "epoch/loss")) == 3
    assert same_weights(model, untracked(epochs=3))


def test_a_run_that_ends_under_our_hands_is_told_and_the_training_goes_on(capsys):
    class End(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if wandb.run is not None:
                wandb.run.finish()

    model = tiny_model()
    fit_tiny(model, [WandbLogger(), End(), Vital()])
    assert same_weights(model, untracked())
    assert capsys.readouterr().out.count("the logs of an epoch failed") == 1


@pytest.mark.parametrize(
    "name, value, masked",
    [
        ("api_key", "abc", True),
        ("wandb_api_key", "abc", True),
        ("apiKey", "abc", True),
        ("HF_TOKEN", "abc", True),
        ("aws-secret-access-key", "abc", True),
        ("db.password", "abc", True),
        ("credentials", {"user": "me"}, True),
        ("tokens", ["abc"], True),
        ("key", KEY, True),
        ("image_key", "jpg", False),
        ("num_tokens", 196, False),
        ("class_token", True, False),
        ("tokenizer", "bpe", False),
        ("keyboard", "qwerty", False),
        ("monkey", KEY, False),
        ("optimizer", "sgd", False),
    ],
)
def test_secrets_are_masked_at_any_depth(name, value, masked):
    config = {"first": 1, "nested": [{"deep": {name: value}}]}
    got, names = mask_secrets(config)
    assert got == {"first": 1, "nested": [{"deep": {name: "***" if masked else value}}]}
    assert names == ([f"nested.0.deep.{name}"] if masked else [])
    assert config["nested"][0]["deep"][name] == value


@pytest.mark.parametrize("answer", [200, 500])
def test_no_secret_reaches_a_file_or_the_server(tmp_path, online, capsys, answer):
    with serve(answer) as server:
        online(server.url)
        secret = "hunter2-planted"
        fit_once(WandbLogger(config={"data": {"password": secret}, "api_key": KEY}))
        assert files_with(secret, tmp_path) == []
        assert files_with(KEY, tmp_path) == []
        assert not [path for path, _, body in server.requests if secret.encode() in body or KEY.encode() in body]
    out = capsys.readouterr().out
    assert out.count("data.password, api_key read like secrets and are masked") == 1
    assert secret not in out
    assert KEY not in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mode": "onlin"}, r"Unknown W&B mode: got 'onlin'.*'online', 'offline', 'disabled'"),
        ({"config": ["lr"]}, r"config must be a dict: got list. Give vars"),
        ({"resume": "yes"}, r"Unknown resume: got 'yes'.*'allow', 'must', 'never', 'auto'"),
        ({"tags": "quick"}, r"tags are a list of strings: got 'quick'. Give \['quick'\]"),
        ({"media": {"a": 1}}, r"media must be a function: got dict, expected model -> "),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        WandbLogger(**arguments)


def test_a_directory_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"got .*expected a directory.*Choose another"):
        fit_tiny(tiny_model(), [WandbLogger(directory=tmp_path / "file")])


def test_importing_the_callbacks_imports_no_wandb():
    for path in pathlib.Path(kvision.trackers.__file__).parent.glob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            names = [name.name for name in getattr(statement, "names", [])] + [getattr(statement, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {"wandb", "requests", "matplotlib"}, path
