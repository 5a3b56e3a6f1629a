"""A few samples are learned by heart by healthy models, and each planted fault is named."""

import keras
import numpy as np
import pytest

from kvision.training import overfit_one_batch
from tests.training.models import batch, compiled, convnet, everything, restless


@pytest.mark.parametrize(
    "policy",
    [
        "float32",
        pytest.param("mixed_float16", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_healthy_model_learns_by_heart(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    verdict = overfit_one_batch(compiled(convnet()), batch())
    assert verdict.ok, verdict
    assert verdict.losses[-1] <= verdict.target == pytest.approx(0.1 * verdict.losses[0])


def test_regularization_and_dropout_are_off():
    options = {"kernel_regularizer": keras.regularizers.L2(10.0), "activity_regularizer": keras.regularizers.L1(1.0)}
    verdict = overfit_one_batch(compiled(convnet(dropout=0.9, **options)), batch())
    assert verdict.ok, verdict
    assert verdict.losses[0] < 5  # the penalties are ten times as much


def test_the_optimizer_of_the_training_may_be_tried():
    model = compiled(convnet(), keras.optimizers.SGD(1e-9))
    assert overfit_one_batch(model, batch(), steps=30).losses[-1] < 1
    verdict = overfit_one_batch(model, batch(), steps=5, optimizer=model.optimizer)
    assert not verdict.ok


def frozen():
    model = convnet()
    model.trainable = False
    return model


@keras.saving.register_keras_serializable("kvision_tests")
class Severed(keras.layers.Layer):
    """Lets no gradient through."""

    def call(self, inputs):
        return keras.ops.stop_gradient(inputs)


FAULTS = {
    "frozen": (lambda: compiled(frozen()), {}, "no weight is trainable"),
    "severed": (
        lambda: compiled(keras.Sequential([convnet(None), Severed(), keras.layers.Activation("softmax")])),
        {},
        "does not move|No gradient reaches",
    ),
    "zero weights": (
        lambda: compiled(
            keras.Sequential([keras.layers.Rescaling(0.0), convnet(None, use_bias=False), keras.layers.Softmax()])
        ),
        {},
        "does not move|falls too little",
    ),
    "too high a rate": (
        lambda: compiled(convnet()),
        {"optimizer": keras.optimizers.SGD(1e4), "steps": 20},
        "rises|not finite|falls too little",
    ),
    "too few steps": (lambda: compiled(convnet()), {"steps": 2}, "raise `steps`|rises"),
}


@pytest.mark.filterwarnings("ignore:.*does not have any trainable weights", "ignore:Gradients do not exist")
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name):
    build, options, words = FAULTS[name]
    verdict = overfit_one_batch(build(), batch(), **{"steps": 5} | options)
    assert not verdict.ok
    assert any(word in verdict.sentence for word in words.split("|")), verdict


def test_labels_that_contradict_each_other():
    x, y = batch(8)
    x[5] = x[2]
    verdict = overfit_one_batch(compiled(convnet()), (x, y), steps=60, target=0.1)  # at best log(2) of two in eight
    assert not verdict.ok
    assert "rows 2 and 5" in verdict.sentence


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"samples": 0}, {"target": 0.0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        overfit_one_batch(compiled(convnet()), batch(), **wrong)


def test_a_plot_shows_the_target_and_progress_is_told(capsys):
    axes = overfit_one_batch(compiled(convnet()), batch(), steps=3, verbose=1).plot().axes[0]
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == 2
    assert "step 0 of 3, loss" in capsys.readouterr().out


def test_it_is_as_it_was_after_a_fault():
    model = restless()
    before = everything(model)
    overfit_one_batch(model, batch(), optimizer=keras.optimizers.SGD(np.inf), steps=3)
    assert everything(model) == before
