"""Whatever a check does, the model goes on as if it had not been there."""

import keras
import numpy as np
import pytest

from kvision import training
from tests.training.models import batch, compiled, convnet, everything, restless

CHECKS = {
    "check_initial_loss": lambda model, data: training.check_initial_loss(model, data),
    "overfit_one_batch": lambda model, data: training.overfit_one_batch(model, data, steps=3),
    "check_gradients": lambda model, data: training.check_gradients(model, data, coordinates=0),
    "find_learning_rate": lambda model, data: training.find_learning_rate(model, data, steps=20, batch_size=16),
}


@pytest.fixture(scope="module")
def model():
    return restless()


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_leaves_the_model_as_it_was(name, model):
    before = everything(model)
    CHECKS[name](model, batch())
    assert everything(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_training_is_the_same_with_and_without_a_check(name):
    ends = []
    for check in (lambda model, data: None, CHECKS[name]):
        keras.utils.set_random_seed(1)
        model = restless()
        check(model, batch())
        history = model.fit(*batch(seed=2), batch_size=16, epochs=2, verbose=0).history
        ends.append(([w.tobytes() for w in model.get_weights()], history))
    assert ends[0] == ends[1]


def test_a_model_that_was_never_trained_stays_new():
    model = compiled(convnet())
    for check in CHECKS.values():
        check(model, batch())
    assert not model.optimizer.built
    assert model.train_function is None


@pytest.mark.parametrize("name", CHECKS)
def test_an_error_leaves_it_too(name, model, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("planted")

    before = everything(model)
    with monkeypatch.context() as patch:
        patch.setattr(model, "compute_loss", fails)
        with pytest.raises(RuntimeError, match="planted"):
            CHECKS[name](model, batch())
    assert everything(model) == before


@pytest.mark.slow
def test_jit_and_accumulation_and_averages():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, gradient_accumulation_steps=2)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=True)
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.arange(8) % 3
    model.fit(x, y, verbose=0)
    before = everything(model)
    training.find_learning_rate(model, (x, y), steps=20)
    assert everything(model) == before
