"""What stays of a fit: the tapped function, for the next one; and nothing that holds a model."""

import copy
import gc
import weakref

import keras
import numpy as np
import pytest

import kvision
from kvision.callbacks import DeadReLU, GradientNorm, UpdateRatio, Vitals
from kvision.callbacks.vitals import tapped_step
from tests.callbacks.vitals.vital_runs import Record, compiled, data, dense_model, fit


@pytest.fixture
def traces(monkeypatch):
    """The number of times that a step was traced with the measurements inside."""
    counted, measured = [], tapped_step.TappedStep._measures
    monkeypatch.setattr(
        tapped_step.TappedStep, "_measures", lambda self, variables: counted.append(1) or measured(self, variables)
    )
    return counted


def test_the_tapped_function_is_kept_between_fits(traces):
    model, record = compiled(dense_model(), {}), Record()
    x, y = data(16)
    fit(model, [UpdateRatio(every=4), record], x, y)
    assert traces == [1]
    fit(model, [GradientNorm(every=5), Vitals(every=7), record], x, y)
    assert traces == [1, 1]  # with statistics of the activations
    fit(model, [], x, y)
    fit(model, [UpdateRatio(every=10), record], x, y)
    assert traces == [1, 1]
    ratios, gradients = record.measurements("update_ratio"), record.measurements("gradient_norm")
    # the first step of each fit is measured, and what each fit asks for
    assert list(ratios) == [1, 4, 8, 12, 16, 17, 21, 28, 49, 50, 60]
    assert list(gradients) == [17, 20, 21, 25, 28, 30]
    compiled(model, {})
    fit(model, [UpdateRatio(every=4)], x, y)
    assert traces == [1, 1, 1]


def test_units_and_norms_of_an_interrupted_fit_do_not_reach_the_next():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    model, dead = compiled(dense_model(), {}), DeadReLU(every=4)
    x, y = data(64)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [Vitals(every=2), Stop()], x, y)
    read = []

    class Reads(DeadReLU):
        def on_activations(self, step, activations):
            read.extend(each.examples for each in activations.values())

    fit(model, [dead, Reads(every=4)], x, y)
    assert sum(read) == len(x)


def test_many_intervals_are_served():
    record = Record()
    fit(compiled(dense_model(), {}), [*(UpdateRatio(every) for every in range(2, 40, 2)), record])
    assert list(record.measurements("update_ratio")) == [1, *range(2, 17, 2)]


def test_no_model_is_kept_alive():
    model = compiled(dense_model(), {})
    fit(model, [Vitals(every=4)])
    gone = weakref.ref(model)
    del model
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    assert gone() is None


def make_all(tmp_path):
    images = np.zeros((2, 4, 4, 3)), {"boxes": np.zeros((2, 1, 4)), "labels": -np.ones((2, 1))}
    return {
        "Vitals": Vitals(every=4),
        "UpdateRatio": UpdateRatio(),
        "DeadReLU": DeadReLU(),
        "GradientNorm": GradientNorm(),
        "Report": kvision.callbacks.Report(tmp_path / "report"),
        "RunHistory": kvision.callbacks.RunHistory(tmp_path / "history"),
        "WandbLogger": kvision.callbacks.WandbLogger(mode="disabled"),
        "LearningRate": kvision.callbacks.LearningRate(0.1),
        "ReduceOnPlateau": kvision.callbacks.ReduceOnPlateau("loss"),
        "Progress": kvision.callbacks.Progress(),
        "DetectionImages": kvision.callbacks.DetectionImages(images),
    }


def test_a_callback_can_be_copied(tmp_path):
    model, callbacks = compiled(dense_model(), {}), make_all(tmp_path)
    for callback in callbacks.values():
        assert type(copy.deepcopy(callback)) is type(callback)
    used = {name: callback for name, callback in callbacks.items() if name != "DetectionImages"}
    fit(model, list(used.values()))
    copies = [copy.deepcopy(callback) for callback in used.values()]
    fit(model, copies)
    assert copies[0].update_ratio.ratios != used["Vitals"].update_ratio.ratios


def example_of(public):
    """The Python of a docstring's example."""
    return public.__doc__.partition("```python\n")[2].partition("```")[0].replace("\n    ", "\n").removeprefix("    ")


def test_the_examples_of_the_extension_points_run(capsys):
    model = compiled(dense_model(), {})
    images, labels = data()
    names = {"model": model, "images": images, "labels": labels}
    exec(example_of(kvision.callbacks.Vital), names)
    assert np.isfinite(names["history"]["largest_update"]).all()
    exec(example_of(kvision.trackers.Tracker), names)
    assert "1 {'loss': " in capsys.readouterr().out
