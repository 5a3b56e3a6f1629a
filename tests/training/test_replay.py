"""A training that gives up names the layer, and its batch runs again."""

import keras
import numpy as np
import pytest

from kvision.callbacks import Diverged, Rollback
from kvision.callbacks.model_state import copy_state
from kvision.training import replay
from tests.callbacks.rollback_runs import GRADIENT, LOSS, Watch, data, differing, fit, reset, shared

FIRST = {
    "the loss": ([(9, LOSS)], None, "the loss is nan, all outputs of layers are finite"),
    "a gradient": ([(9, GRADIENT)], ("head", "gradient"), "the gradient of .*head is the first that is not finite"),
    "a sample": ([(9, "input")], ("hidden", "output"), r"the batch holds .* not finite \(sample 3 of the batch\)"),
}


@pytest.mark.parametrize(("faults", "first", "says"), list(FIRST.values()), ids=list(FIRST))
@pytest.mark.parametrize("in_memory", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_stops_with_the_layer_and_a_batch_that_runs_again(faults, first, says, in_memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, state = shared()
    reset(model, state)
    watch = Watch(Rollback(max_retries=0, every=4, directory=None if in_memory else tmp_path / "states"))
    with pytest.raises(Diverged, match=f"step 10, learning rate 0.05: {says}") as caught:
        fit(model, watch.callbacks, *data(faults=faults))
    error = caught.value
    assert (error.layer, error.where) == ((f"{model.name}/{first[0]}", first[1]) if first else (None, None))
    assert error.step == 10 and error.learning_rate == pytest.approx(0.05)
    assert differing(watch.states[watch.rollback.restored_step], copy_state(model), but=("metrics/",)) == []
    before = copy_state(model)
    found = replay(error.file, model)
    assert differing(before, copy_state(model), but=("nothing",)) == []
    assert found.first == ((error.layer, error.where) if first else None)
    assert found.samples == ((3,) if first and first[0] == "hidden" else found.samples)
    assert [layer.name.split("/")[-1] for layer in found.layers][:2] == ["hidden", "norm"]
    if not in_memory:
        left = [path.name for path in (tmp_path / "states").iterdir()]
        assert left == ["rollback-step-10.npz"]


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"There is no file '.*nope.npz': expected .* as Rollback names in its error"):
        replay(tmp_path / "nope.npz", shared()[0])


def test_a_file_that_is_no_batch_and_a_batch_of_another_model_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="Not a batch that Rollback saved"):
        replay(tmp_path / "other.npz", shared()[0])
    model, first = shared()
    reset(model, first)
    with pytest.raises(Diverged) as caught:
        fit(model, [Rollback(max_retries=0, directory=tmp_path)], *data(faults=[(1, LOSS)]))
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    other.compile("sgd", "mse")
    with pytest.raises(ValueError, match="The batch of another model"):
        replay(caught.value.file, other)
