"""The range test: rates that rise, losses as they were, a suggestion; a run at too high a rate is named."""

import keras
import numpy as np
import pytest

from kvision.training import find_learning_rate
from tests.training.models import batch, compiled, convnet


def sgd(rate=0.01, **options):
    return keras.optimizers.SGD(rate, **options)


def quadratic():
    """A weight w with loss (w - 1)²: gradient descent diverges above the rate 1."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    return compiled(model, sgd(), "mse"), (np.ones((4, 1), "float32"), np.ones((4, 1), "float32"))


def test_losses_are_those_of_each_step_by_hand():
    model, data = quadratic()
    found = find_learning_rate(model, data, low=1e-3, high=0.5, steps=20)
    w, losses = 0.0, []
    for rate in np.geomspace(1e-3, 0.5, 20):
        losses.append((w - 1) ** 2)
        w -= rate * 2 * (w - 1)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-3, 0.5, 20), rtol=1e-6)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-4, atol=1e-9)


def test_it_stops_where_the_loss_diverges():
    model, data = quadratic()
    found = find_learning_rate(model, data, low=1e-3, high=100.0, steps=60)
    assert 1 < found.diverged < 30
    assert len(found.rates) == len(found.losses) < 60
    assert found.suggestion < 1


@pytest.mark.parametrize(
    "policy",
    [
        "float32",
        pytest.param("mixed_float16", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_healthy_model_gets_a_rate(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    found = find_learning_rate(compiled(convnet(), sgd()), batch(64), batch_size=16, steps=60)
    assert found.ok, found
    assert 1e-3 < found.suggestion < 1
    assert found.compiled == pytest.approx(0.01)
    labels = [text.get_text() for text in found.plot().axes[0].get_legend().get_texts()]
    assert labels[2:] == [f"suggestion: {found.suggestion:.2g}", "compiled: 0.01"]


def test_a_rate_far_too_high_is_named():
    found = find_learning_rate(compiled(convnet(), sgd(50.0)), batch(64), batch_size=16, steps=60)
    assert not found.ok
    assert "too high" in found.sentence


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_loss_that_never_falls():
    model = convnet()
    model.trainable = False
    found = find_learning_rate(compiled(model), batch(), steps=20)
    assert not found.ok
    assert found.suggestion is None
    assert "did not fall" in found.sentence


def test_a_schedule_makes_room_for_the_test():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    model = compiled(convnet(), sgd(schedule))
    found = find_learning_rate(model, batch(64), batch_size=16, steps=40)
    assert found.ok
    assert found.compiled is None
    assert "schedule" in found.sentence


def test_data_sets_may_be_read_again():
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return batch(16, seed=index)

    one, two = (find_learning_rate(compiled(convnet(), sgd()), Data(), steps=20) for _ in range(2))
    assert one.ok and two.ok


@pytest.mark.tensorflow_only
def test_a_data_set_of_kvision_begins_where_it_would_have():
    from kvision.data.source import Order, Source

    order = Order(8, batch_size=4, shuffle=True, seed=3)
    images, labels = batch(8)

    def example(index):
        import tensorflow as tf

        return tf.gather(tf.constant(images), index), tf.gather(tf.constant(labels), index)

    data = Source(example, order).dataset()
    next(iter(data))
    order.start(4, 1)
    find_learning_rate(compiled(convnet(), sgd()), data, steps=20)
    assert order.position == (4, 1)
    (got,) = [labels.numpy() for _, labels in data]
    assert got.tolist() == (order.indices(4)[4:] % 4).tolist()


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 2.0, "high": 1.0}, {"steps": 1}, {"divergence": 1.0}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(ValueError, match="range test needs"):
        find_learning_rate(compiled(convnet()), batch(), **wrong)
