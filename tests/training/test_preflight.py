"""All checks in one call, a verdict each, on classifiers and detectors, healthy and not."""

import keras
import numpy as np
import pytest

from kvision.training import (
    check_gradients,
    check_initial_loss,
    compare_initialisations,
    find_learning_rate,
    overfit_one_batch,
    preflight,
)
from tests.training.models import batch, compiled, convnet, everything, restless

CHECKS = ["initial loss", "initialisation", "gradients", "overfit", "learning rate"]


def test_a_healthy_classifier_passes(capsys):
    model = compiled(convnet(), keras.optimizers.SGD(0.05))
    found = preflight(model, batch(), steps=60)
    assert found.ok, str(found)
    assert list(found.verdicts) == CHECKS
    printed = capsys.readouterr().out.splitlines()
    assert printed == str(found).splitlines()
    assert [line[: len(name)] for line, name in zip(printed, CHECKS, strict=True)] == CHECKS


@pytest.mark.slow
def test_the_model_stays_as_it_was(capsys):
    model = restless()
    before = everything(model)
    preflight(model, batch(), steps=20, verbose=0)
    assert everything(model) == before
    assert not capsys.readouterr().out


def test_one_fault_fails_the_whole():
    model = compiled(convnet(), keras.optimizers.SGD(1e4))
    found = preflight(model, batch(scale=255.0), steps=20, verbose=0)
    assert not found
    assert not found.verdicts["initial loss"]
    assert not found.verdicts["learning rate"]


@pytest.mark.slow
def test_a_detector_passes():
    from tests.applications.detection import rows
    from tests.training.test_initial_loss import boxes

    (detector,) = (row.tiny() for row in rows.ROWS if row.name == "retinanet")
    detector.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    found = preflight(detector, boxes(), steps=40)
    assert found.ok, str(found)


@pytest.mark.filterwarnings("ignore:.*does not have any trainable weights")
def test_a_frozen_model_gets_the_whole_table():
    model = convnet()
    model.trainable = False
    found = preflight(compiled(model), batch(), steps=20, verbose=0)
    assert list(found.verdicts) == CHECKS and not found.verdicts["gradients"]
    assert "no trainable weights to check" in found.verdicts["gradients"].sentence
    assert "no weight is trainable" in found.verdicts["overfit"].sentence


def test_a_linear_model_has_no_activation_that_could_be_at_fault():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)])
    compiled(model, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = compare_initialisations(model, batch(), schemes=("he",))
    assert found.ok and "no layer with an activation" in found.sentence
    assert found.table().split() == ["as", "built", "he"] and len(found.plot().axes) == 2


def test_steps_that_no_check_can_use_are_refused_before_any():
    with pytest.raises(ValueError, match="steps of at least 20: got 10"):
        preflight(compiled(convnet()), batch(), steps=10)


@pytest.mark.parametrize(
    "check",
    [check_initial_loss, check_gradients, compare_initialisations, find_learning_rate, overfit_one_batch, preflight],
)
def test_numbers_of_the_batch_that_are_not_finite_are_named_first(check):
    x, y = batch()
    x[3, 1, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"^The batch holds .* not finite \(sample 3 of the batch\)"):
        check(compiled(convnet()), (x, y))


def test_targets_that_are_not_finite_are_named_unless_the_loss_masks_them():
    x, y = batch()
    y = np.eye(4, dtype="float32")[y]
    y[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite \(sample 2 of the batch\)"):
        check_initial_loss(compiled(convnet(None), loss="mse"), (x, y))

    def masked(targets, outputs):
        return keras.ops.mean(keras.ops.where(keras.ops.isfinite(targets), outputs, 0.0), axis=-1)

    assert check_initial_loss(compiled(convnet(None), loss=masked), (x, y))
