"""All checks in one call, a verdict each, on classifiers and detectors, healthy and not."""

import keras
import pytest

from kvision.training import preflight
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
