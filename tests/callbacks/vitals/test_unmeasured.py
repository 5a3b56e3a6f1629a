"""What vitals cannot measure they name, once; the training goes on as without them."""

import keras
import numpy as np
import pytest

from kvision.callbacks import DeadReLU, GradientNorm, Report, UpdateRatio, Vitals
from kvision.callbacks.vitals import tapped_step, watched_units
from kvision.trackers import Advice
from tests.callbacks.vitals.vital_runs import Record, compiled, data, dense_model, fit, to_numpy
from tests.trackers.report_page import page_data


def weights_of(model):
    return [to_numpy(weight) for weight in model.weights]


def same(one, other):
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True))


def multi(**options):
    """Two optimizers of another rate, one for kernels and one for biases."""
    kernels, biases = keras.optimizers.SGD(0.1, **options), keras.optimizers.SGD(0.01, **options)
    return keras.optimizers.MultiOptimizer(lambda weight: kernels if weight.path.endswith("kernel") else biases)


def with_multi(**options):
    model = dense_model()
    model.compile(multi(**options), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_multi_optimizer_is_measured_by_the_rates_of_its_parts():
    ratio, gradient = UpdateRatio(every=4), GradientNorm(every=4)
    plain, model = with_multi(), with_multi()
    fit(plain)
    fit(model, [ratio, gradient])
    assert same(weights_of(plain), weights_of(model))
    weights = gradient.norms
    kernel = next(path for path in weights if path.endswith("logits/kernel"))
    bias = next(path for path in weights if path.endswith("logits/bias"))
    before = {weight.path: np.linalg.norm(to_numpy(weight)) for weight in plain.trainable_weights}
    assert len(ratio.ratios) == 4
    # plain descent: an update is the rate times the gradient, of the weight as it was before the last step
    for path, rate in ((kernel, 0.1), (bias, 0.01)):
        end = next(norm for name, norm in before.items() if name.split("/")[1:] == path.split("/")[1:])
        assert ratio.ratios[path] == pytest.approx(rate * gradient.norms[path] / end, rel=0.1)


class Own(keras.Model):
    """A model whose `train_step` has an optimizer of its own, on TensorFlow."""

    def __init__(self):
        super().__init__()
        self.hidden, self.logits = keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)
        self.own = keras.optimizers.SGD(0.1)

    def call(self, inputs):
        return self.logits(self.hidden(inputs))

    def train_step(self, batch):
        import tensorflow as tf

        x, y = batch
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(y, self(x, training=True), from_logits=True)
            loss = keras.ops.mean(loss)
        self.own.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


def own(optimizer):
    keras.utils.set_random_seed(3)
    model = Own()
    model.compile(optimizer=optimizer, loss="mse")
    model(np.zeros((1, 4), "float32"))
    model.own.build(model.trainable_weights)
    return model


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("optimizer", [None, "sgd"])
def test_an_optimizer_of_the_train_step_is_named_and_batches_are_counted(optimizer, tmp_path, capsys):
    plain, model = own(optimizer), own(optimizer)
    x, y = data(32)
    fit(plain, x=x, y=y, epochs=2)
    capsys.readouterr()
    record, vitals, report = Record(), Vitals(every=16), Report(tmp_path)
    history = fit(model, [vitals, record, report], x, y, epochs=2).history
    assert same(weights_of(plain), weights_of(model))
    assert capsys.readouterr().out.count("Update ratios and gradient norms are not measured: ") == 1
    (advice,) = vitals.advice
    assert isinstance(advice, Advice) and advice.text in str(page_data(report.path)["advice"])
    assert record.advice == [advice]
    assert np.isfinite(history["dead_relu"]).all() and len(history["dead_relu"]) == 2
    assert np.isnan(history["update_ratio"] + history["gradient_norm"]).all()
    steps = [event.step for event in record.events if getattr(event, "name", None) == "dead_relu"]
    assert steps == [32, 48, 64]  # 256 examples, the fewest, are one epoch of 32 batches of 8


@pytest.mark.tensorflow_only
def test_who_asks_for_dead_units_alone_hears_nothing_of_norms(capsys):
    fit(own(None), [DeadReLU()])
    assert capsys.readouterr().out == ""


def test_a_multi_optimizer_that_accumulates_is_named(capsys):
    plain, model = with_multi(gradient_accumulation_steps=2), with_multi(gradient_accumulation_steps=2)
    fit(plain)
    fit(model, [UpdateRatio(every=4)])
    assert same(weights_of(plain), weights_of(model))
    assert "MultiOptimizer that accumulates" in capsys.readouterr().out


@pytest.mark.tensorflow_only
@pytest.mark.parametrize("trainable", [True, False])
def test_trainable_changed_without_compiling_is_named(trainable, capsys):
    def run(callbacks):
        model = dense_model()
        model.get_layer("hidden").trainable = not trainable
        fit(compiled(model, {}))
        model.get_layer("hidden").trainable = trainable
        fit(model, callbacks)
        return weights_of(model)

    plain, ratio = run([]), UpdateRatio(every=4)
    assert same(plain, run([ratio]))
    assert ratio.ratios == {}
    assert "`trainable` was changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "part"),
    [(tapped_step, "sum_of_squares"), (watched_units, "active_units"), (watched_units, "statistics_of")],
    ids=["norms", "units", "statistics"],
)
def test_a_measurement_that_fails_gives_way_to_the_plain_step(module, part, monkeypatch, capsys):
    def fail(*_):
        raise TypeError("planted")

    plain = compiled(dense_model(), {})
    fit(plain)
    monkeypatch.setattr(module, part, fail)
    model, vitals = compiled(dense_model(), {}), Vitals(every=4)
    fit(model, [vitals])
    assert same(weights_of(plain), weights_of(model))
    assert "not measured: TypeError: planted" in capsys.readouterr().out
    assert [advice.text.endswith("planted.") for advice in vitals.advice] == [True]


@pytest.mark.tensorflow_only
def test_one_optimizer_that_is_applied_twice_a_step_is_measured_at_the_first_weights():
    class Twice(Own):
        def train_step(self, batch):
            import tensorflow as tf

            x, y = batch
            with tf.GradientTape(persistent=True) as tape:
                loss = keras.ops.mean(
                    keras.losses.sparse_categorical_crossentropy(y, self(x, training=True), from_logits=True)
                )
            for layer in (self.hidden, self.logits):
                self.optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
            return {"loss": loss}

    model = Twice()
    model.compile("sgd")
    model(np.zeros((1, 4), "float32"))
    model.optimizer.build(model.trainable_weights)
    ratio = UpdateRatio(every=1)
    fit(model, [ratio])
    assert {path.split("/")[-2] for path in ratio.ratios} == {model.hidden.name}
