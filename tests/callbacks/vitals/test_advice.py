"""Every planted illness triggers its sentence, and healthy runs stay silent."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import layers

from kvision.callbacks import Vitals
from kvision.callbacks.vitals.advice import Adviser
from kvision.callbacks.vitals.readings import Norms
from kvision.callbacks.vitals.setup import RAW, Setup, setup_of
from tests.callbacks.vitals.vital_runs import Record

EXAMPLES, BATCH, EPOCHS, EVERY = 256, 16, 12, 30  # 16 steps an epoch: measured at 1, 30, 60, ..., 180


def images():
    """Four classes of noisy images."""
    numbers = np.random.default_rng(0)
    centres, y = numbers.normal(size=(4, 8, 8, 2)), numbers.integers(0, 4, EXAMPLES)
    return (0.5 * centres[y] + numbers.normal(size=(EXAMPLES, 8, 8, 2))).astype("float32"), y


def dense(depth=3, scale=1.0, head="glorot_uniform", **options):
    keras.utils.set_random_seed(0)
    options = {"activation": "relu"} | options
    inputs = keras.Input((8, 8, 2))
    x = layers.Flatten()(inputs)
    for index in range(depth):
        x = layers.Dense(32, name=f"dense{index}", **options)(x)
        if scale != 1:
            x = layers.Rescaling(scale)(x)
    return keras.Model(inputs, layers.Dense(4, kernel_initializer=head, name="head")(x))


def convolutional(norm=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = inputs
    for index in range(3):
        x = layers.Conv2D(8, 3, padding="same", kernel_initializer="he_normal", name=f"conv{index}")(x)
        if norm is not None:
            x = norm()(x)
        x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))


def sgd(rate, **options):
    return keras.optimizers.SGD(rate, momentum=0.9, **options)


def warm_up_and_cosine():
    return sgd(keras.optimizers.schedules.CosineDecay(1e-4, 100, warmup_target=0.05, warmup_steps=92))


def annealed():
    return sgd(keras.optimizers.schedules.CosineDecay(0.05, EPOCHS * EXAMPLES // BATCH - 20))


def normal(deviation):
    return keras.initializers.RandomNormal(stddev=deviation)


def advice_of(model, optimizer, callbacks=(), epochs=EPOCHS):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    record, vitals = Record(), Vitals(EVERY)
    callbacks = [record, vitals, *callbacks]
    x, y = images()
    history = model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks).history
    assert {"update_ratio", "gradient_norm"} <= set(history)
    assert record.advice == vitals.advice
    return vitals.advice


HEALTHY = {
    "dense, SGD": lambda: (dense(), sgd(0.02)),
    "dense, Adam": lambda: (dense(), keras.optimizers.Adam(1e-3)),
    "dense, zero head": lambda: (dense(head="zeros"), keras.optimizers.Adam(1e-3)),
    "convolutions, SGD": lambda: (convolutional(), sgd(0.02)),
    "convolutions, Adam": lambda: (convolutional(), keras.optimizers.Adam(2e-3)),
    "batch norm, SGD": lambda: (convolutional(layers.BatchNormalization), sgd(0.05)),
    "batch norm, Adam": lambda: (convolutional(layers.BatchNormalization), keras.optimizers.Adam(2e-3)),
    "batch norm, warm-up": lambda: (convolutional(layers.BatchNormalization), warm_up_and_cosine()),
    "batch norm, annealed": lambda: (convolutional(layers.BatchNormalization), annealed()),
    "batch norm, clipped": lambda: (convolutional(layers.BatchNormalization), sgd(0.05, global_clipnorm=1.0)),
    "group norm, SGD": lambda: (convolutional(lambda: layers.GroupNormalization(4)), sgd(0.02)),
    "group norm, warm-up": lambda: (convolutional(lambda: layers.GroupNormalization(4)), warm_up_and_cosine()),
}


# The rules are tried on made-up numbers below; of the real runs three are quick, the rest is slow.
QUICK = ("dense, Adam", "rate 100 times too high, SGD", "units dead from the start")


def rows(table):
    """The rows of a table of runs, as parameters."""
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)), id=name, marks=() if name in QUICK else pytest.mark.slow
        )
        for name, row in table.items()
    ]


@pytest.mark.parametrize("row", rows(HEALTHY))
def test_a_healthy_run_is_silent(row, capsys):
    assert advice_of(*row()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_run_that_has_converged_is_silent():
    assert advice_of(dense(), sgd(0.05), epochs=40) == []


PLANTED = {
    "rate 100 times too high": (
        lambda: (convolutional(layers.BatchNormalization), keras.optimizers.Adam(0.2)),
        "update_ratio",
        "(updates are .*, healthy is near 1e-3|its weights are .* at the start, healthy is under 5): lower the .* ten",
    ),
    "rate 100 times too high, SGD": (
        lambda: (convolutional(layers.BatchNormalization), sgd(5.0)),
        "update_ratio",
        "lower the learning rate",
    ),
    "rate 1000 times too low": (
        lambda: (convolutional(layers.BatchNormalization), sgd(2e-5)),
        "update_ratio",
        "updates are .* of the weights, healthy is near 1e-3: raise the learning rate about a (hundred|thousand) times",
    ),
    "units dead from the start": (
        lambda: (dense(bias_initializer=keras.initializers.Constant(-9.0)), sgd(0.02)),
        "dead_relu",
        "dense0: 32 of 32 units are dead, .* do not come back, so start again with biases at 0.01",
    ),
    "gradient that is not finite": (
        lambda: (dense(), sgd(1e3)),
        "gradient_norm",
        "its gradient is not finite, at step 30: lower the learning rate about ten times",
    ),
    "exploding gradient": (
        lambda: (dense(depth=8, scale=4.0), keras.optimizers.Adam(1e-3)),
        "gradient_norm",
        "times its weights, healthy is under 1: normalize the activations",
    ),
    "vanishing gradient": (
        lambda: (dense(depth=12, activation="sigmoid"), keras.optimizers.Adam(1e-3)),
        "gradient_norm",
        "dense[01]: its gradient is .* times its weights where that of head is .*: normalize the activations, use ReLU",
    ),
    "initial weights too large": (
        lambda: (dense(depth=5, kernel_initializer=normal(1.0)), sgd(0.02)),
        None,
        "use He initialization, .* root mean square .the weights of dense. started at (1|0.9.?)",
    ),
    "initial weights too small": (
        lambda: (dense(depth=5, kernel_initializer=normal(1e-4)), sgd(0.02)),
        "gradient_norm",
        "use He initialization, .* root mean square .the weights of dense. started at 1e-4",
    ),
}


@pytest.mark.parametrize(("row", "vital", "sentence"), rows(PLANTED))
def test_a_planted_illness_is_told(row, vital, sentence, capsys):
    advice = advice_of(*row())
    told = [item.text for item in advice if item.vital == vital or vital is None]
    assert any(re.search(sentence, text) for text in told), [item.text for item in advice]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [item.text for item in advice]
    assert len({(item.vital, item.epoch) for item in advice}) == len(advice), "more than one a vital an epoch"


@pytest.mark.slow
def test_relus_that_die_in_the_run_are_told():
    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 4:
                self.model.get_layer("dense1").bias.assign([-1e3] * 20 + [0.0] * 12)

    advice = advice_of(dense(), sgd(0.01), [Kill()])
    texts = [item.text for item in advice if item.vital == "dead_relu"]
    assert texts == [f"dense1: 20 of 32 units are dead, healthy is under 40 %: {RATE}"]


# What follows feeds numbers to the rules: the sentence of the issue, and the edges that runs reach only by chance.


def norms(step, ratio=1e-3, gradient=1.0, rate=0.1, layers=("conv1", "layer2.1.conv1", "head"), **one):
    paths = [f"{layer}/kernel" for layer in layers]
    shapes = dict.fromkeys(paths, (3, 3, 8, 8)) | {"head/bias": (8,)}
    weights = dict.fromkeys(paths, (2 / 72) ** 0.5 * 576**0.5) | {"head/bias": 1.0}  # He's
    updates = {path: ratio * weights[path] for path in weights}
    gradients = dict.fromkeys(weights, gradient)
    made = Norms(step, rate, shapes, gradients, weights, updates)
    for name, changes in one.items():
        getattr(made, name).update(changes)
    return made


def scaled(made, factor):
    """The same norms of a network whose weights are larger: every ratio stays."""
    tables = {name: getattr(made, name) for name in ("weights", "updates", "gradients")}
    tables = {name: {path: factor * norm for path, norm in table.items()} for name, table in tables.items()}
    return dataclasses.replace(made, **tables)


def grown(step, factor):
    """Weights `factor` times those of the start, one layer's twice as much."""
    made = scaled(norms(step), factor)
    made.weights["layer2.1.conv1/kernel"] *= 2
    return made


def said(*measured, **setup):
    adviser = Adviser(Setup(**setup))
    for found in measured:
        adviser.see_norms(found)
    return adviser.sentences()


def test_the_sentence_names_layer_number_range_and_cure():
    worst = {"updates": {"layer2.1.conv1/kernel": 8e-2 * norms(1).weights["conv1/kernel"]}}
    high = [norms(step, 5e-2, **worst) for step in (1, 100, 200)]
    assert said(*high) == {
        "update_ratio": "layer2.1.conv1: updates are 8e-2 of the weights, healthy is near 1e-3: "
        "lower the learning rate about ten times"
    }


@pytest.mark.parametrize(
    ("ratio", "cure"),
    [
        (2.1e-2, "lower the learning rate about ten times"),
        (0.5, "lower the learning rate about a hundred times"),
        (9e-6, "raise the learning rate about a hundred times"),
        (1e-7, "raise the learning rate about 10,000 times"),
    ],
)
def test_the_factor_is_rounded_down_to_a_power_of_ten(ratio, cure):
    text = said(*[norms(step, ratio) for step in (1, 100, 200)])["update_ratio"]
    assert text.endswith(cure)


@pytest.mark.parametrize(
    "measured",
    [
        [(1, 0.5), (100, 0.5)],  # the first step does not count
        [(1, 1e-3), (100, 0.5), (200, 1e-3), (300, 0.5)],  # two in a row
        [(1, 1e-3), (100, 1e-3), (200, 1e-7), (300, 1e-7)],  # low after it was healthy: converged
        [(1, 1e-5), (100, 2e-2), (200, 2e-2)],  # the edges are healthy
    ],
)
def test_what_is_not_told(measured):
    assert said(*[norms(step, ratio) for step, ratio in measured]) == {}


def thrice(**options):
    return [norms(step, **options) for step in (1, 100, 200)]


# Measurements made of one number, the number that is healthy still, the one that is not any more, and what is said.
EDGES = {
    "steps since the start": (
        lambda step: [norms(1), norms(step, 0.5), norms(step + 1, 0.5)],
        (50, 51),
        "conv1: updates are 0.5 of the weights, healthy is near 1e-3: lower the learning rate",
    ),
    "growth of the weights": (
        lambda factor: [norms(1), grown(100, factor), grown(200, factor)],
        (4.9, 5.1),
        "layer2.1.conv1: its weights are 10 times those at the start, healthy is under 5: lower the learning rate",
    ),
    "gradient beside its largest": (
        lambda times: [norms(1), norms(100), norms(200, gradient=times), norms(300, gradient=times)],
        (19.9, 20.1),
        "conv1: the gradient norm is 40, before it was at most 2: lower the learning rate",
    ),
    "gradient beside the weights": (
        lambda times: thrice(gradient=times * norms(1).weights["conv1/kernel"]),
        (9.9, 10.1),
        "conv1: its gradient is 10 times its weights, healthy is under 1: normalize the activations",
    ),
    "gradient that shrinks towards the input": (
        lambda times: thrice(gradients={"conv1/kernel": 1 / times}),
        (0.9e5, 1.1e5),
        "conv1: its gradient is 2e-6 times its weights where that of layer2.1.conv1 is 0.25, healthy is within 1e5 of "
        "each other: normalize the activations, use ReLU",
    ),
    "gradient that grows towards the input": (
        lambda times: thrice(gradients={"head/kernel": 1 / times}),
        (0.9e5, 1.1e5),
        "conv1: its gradient is 0.25 times its weights where that of head is 2e-6, healthy is within 1e5 of each "
        "other: normalize the activations, or clip by the global norm",
    ),
}


@pytest.mark.parametrize(("measured", "numbers", "sentence"), EDGES.values(), ids=EDGES)
def test_the_edge_of_each_rule(measured, numbers, sentence):
    healthy, ill = numbers
    assert said(*measured(healthy)) == {}
    (text,) = said(*measured(ill)).values()
    assert text.startswith(sentence)


@pytest.mark.parametrize(
    ("factor", "cure"),
    [(0.09, "He initialization"), (0.11, "learning rate"), (2.9, "learning rate"), (3.1, "He initialization")],
)
def test_the_edges_of_a_healthy_start(factor, cure):
    assert cure in said(*[scaled(made, factor) for made in thrice(ratio=0.5)])["update_ratio"]


def test_a_depthwise_kernel_starts_by_the_one_channel_it_sees():
    depthwise = {path: (3, 3, 64, 1) for path in norms(1).weights if path.endswith("kernel")}
    measured = [scaled(made, 2.0) for made in thrice(ratio=0.5, shapes=depthwise)]  # 0.7 of He's; by 576 inputs 5.7
    assert "learning rate" in said(*measured)["update_ratio"]


SPREAD_OUT = {
    "vanishing": thrice(gradients={"conv1/kernel": 1e-6}),
    "exploding": thrice(gradients={"head/kernel": 1e-6}),
    "not finite": [norms(1), norms(100, gradients={"conv1/kernel": float("nan")})],
    "exploded": thrice(gradient=100 * norms(1).weights["conv1/kernel"]),
}
LOWER, CLIP = "lower the learning rate about ten times", "clip by the global norm"
NORMALIZE, RELU, SKIP = "normalize the activations", "use ReLU", "add skip connections"


@pytest.mark.parametrize(
    ("illness", "setup", "cure"),
    [
        ("not finite", (), f"{LOWER}, or {CLIP}"),
        ("not finite", ("clips",), LOWER),
        ("exploding", (), f"{NORMALIZE}, or {CLIP}"),
        ("exploding", ("clips",), NORMALIZE),
        ("exploding", ("normalizes",), CLIP),
        ("exploding", ("normalizes", "clips"), LOWER),
        ("exploded", (), f"{NORMALIZE}, or scale inputs and loss down"),
        ("exploded", ("normalizes",), "scale inputs and loss down"),
        ("vanishing", (), f"{NORMALIZE}, {RELU}, or {SKIP}"),
        ("vanishing", ("rectifies",), f"{NORMALIZE}, or {SKIP}"),
        ("vanishing", ("normalizes", "skips"), RELU),
        ("vanishing", ("normalizes", "rectifies", "skips"), LOWER),
    ],
)
def test_what_is_done_already_is_not_advised(illness, setup, cure):
    (text,) = said(*SPREAD_OUT[illness], **dict.fromkeys(setup, True)).values()
    assert text.endswith(f": {cure}")


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm", "clipvalue"])
@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_is_found_in_the_optimizer(clipping, scaled):
    def setup(**options):
        optimizer = sgd(0.1, **options)
        model = dense()
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, "mse")
        return setup_of(model)

    assert setup(**{clipping: 1.0}).clips and not setup().clips


def test_layers_are_found_in_the_model():
    inner = convolutional(layers.BatchNormalization)
    plain, sigmoid = dense(), dense(activation="sigmoid")
    inputs = keras.Input((8, 8, 2))
    skipping = keras.Model(inputs, layers.Add()([inner(inputs), plain(inputs)]))
    found = []
    for model in (inner, plain, sigmoid, skipping):
        model.compile("sgd", "mse")
        setup = setup_of(model)
        found.append((setup.normalizes, setup.rectifies, setup.skips, setup.largest_input))
    assert found == [
        (True, True, False, RAW),
        (False, True, False, RAW),
        (False, False, False, RAW),
        (True, True, True, RAW),
    ]


# A detector in the order of its weights: a trunk, a pyramid, heads; the last levels may have no object on them.
TRUNK = [f"layer{index}.conv" for index in range(12)]
DETECTOR = [*TRUNK, "P3", "P4", "P5", "P6", "P7", "class.conv", "class.logits", "box.conv", "box.deltas"]


@pytest.mark.parametrize(
    "empty", [["P7"], ["P6", "P7"], ["P5", "P6", "P7"], ["box.deltas"], ["box.conv", "box.deltas"]]
)
def test_a_branch_with_nothing_to_learn_is_healthy(empty):
    small = {f"{layer}/kernel": 6e-8 for layer in empty}
    assert said(*thrice(layers=DETECTOR, gradients=small)) == {}


def test_a_trunk_that_gets_no_gradient_is_told():
    small = {f"{layer}/kernel": 1e-7 * 3.0**index for index, layer in enumerate(TRUNK)}
    text = said(*thrice(layers=DETECTOR, gradients=small))["gradient_norm"]
    assert text.startswith("layer0.conv: its gradient is") and NORMALIZE in text


@pytest.mark.parametrize(
    ("reached", "expected", "told"),
    [(255.0, 8.0, True), (8.0, 8.0, True), (7.9, 8.0, False), (255.0, None, False), (None, 8.0, False)],
)
def test_images_that_were_not_prepared_are_told_at_once(reached, expected, told):
    measured = dataclasses.replace(norms(1), largest_input=reached)
    text = f"The images reach {reached:.0f}, unprepared: prepare them by hand" if told else ""
    want = {"inputs": text} if told else {}
    assert said(measured, largest_input=expected, preparation="by hand") == want


def test_a_low_ratio_is_not_told_where_no_gradient_arrives():
    vanishing = {"gradients": {"conv1/kernel": 1e-6}}
    assert set(said(*thrice(ratio=1e-7, **vanishing))) == {"gradient_norm"}
    assert set(said(*thrice(ratio=0.5, **vanishing))) == {"gradient_norm", "update_ratio"}


@pytest.mark.parametrize("ratio", [1e-7, 0.5])
def test_nothing_is_told_of_the_ratio_while_the_rate_rises(ratio):
    rising = [norms(step, ratio, rate=step) for step in (1, 100, 200, 300)]
    assert said(*rising) == {}
    assert said(*rising, norms(400, ratio, rate=300), norms(500, ratio, rate=300))["update_ratio"]


def test_biases_and_vanishing_kernels_are_not_judged():
    biases = [f"bias{index}" for index in range(5)]
    small = {
        "shapes": dict.fromkeys(biases, (8,)),
        "weights": dict.fromkeys(biases, 1.0) | {"head/kernel": 1e-7},
        "updates": dict.fromkeys(biases, 10.0) | {"head/kernel": 1.0},
        "gradients": dict.fromkeys(biases, 100.0),
    }
    assert said(*[norms(step, **small) for step in (1, 100, 200)]) == {}


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize("measure", ["weights", "updates"])
def test_numbers_that_are_not_finite_break_nothing(measure, number):
    broken = {measure: {"conv1/kernel": number}}
    assert said(norms(1), norms(100), *[norms(step, **broken) for step in (200, 300)]) == {}
    text = said(norms(1), norms(100, gradients={"conv1/kernel": number}))["gradient_norm"]
    assert text.startswith("conv1: its gradient is not finite, at step 100")


def test_a_sentence_comes_again_only_after_the_vital_was_healthy():
    adviser = Adviser()

    def see(step, ratio):
        adviser.see_norms(norms(step, ratio))
        return adviser.sentences()

    ratios = [1e-3, 0.5, 0.5, 0.5, 1e-3, 0.5, 0.5]
    spoken = [bool(see(100 * index + 1, ratio)) for index, ratio in enumerate(ratios)]
    assert spoken == [False, False, True, False, False, False, True]


def test_overfitting_is_told_once_and_again_where_it_is_clearly_worse():
    adviser, told = Adviser(), []
    adviser.see_norms(norms(1))
    values = [0.9, 0.7, 0.78, 0.79, 0.8, 0.72, 0.78, 0.79, 0.9, 0.7, 0.8, 0.8, 0.8, 1.7, 1.5, 1.7, 1.8]
    for epoch, value in enumerate(values):
        adviser.see_epoch({"loss": 0.9**epoch, "val_loss": value})
        told += [(epoch, text) for vital, text in adviser.sentences().items() if vital == "val_loss"]
    assert [epoch for epoch, _ in told] == [4, 13]
    assert told[1][1].startswith("The validation loss rose from 0.7 in epoch 2 to 1.7 while the loss fell to 0.254")


def test_dead_units_are_not_told_where_the_loss_is_not_finite():
    adviser = Adviser()
    adviser.see_norms(norms(1))
    for _ in range(2):
        adviser.see_dead({"relu": 1.0}, {"relu": 32})
    adviser.see_epoch({"loss": float("nan")})
    assert adviser.sentences() == {}
    adviser.see_epoch({"loss": 1.0})
    assert "32 of 32" in adviser.sentences()["dead_relu"]


@pytest.mark.parametrize(
    ("losses", "fraction", "told"),
    [
        ([3.0], 0.6, False),  # the first epoch says nothing yet
        ([3.0, 2.0], 0.6, False),
        ([3.0, 3.5], 0.6, True),
        ([3.0, 2.0, 1.0, 0.9, 0.95], 0.6, False),  # noise beside a new minimum
        ([3.0, 1.0, 1.5, 1.2, 1.1], 0.6, True),  # up, and not back
        ([1.0, 1.0, 1.0, 1.0, 0.99], 0.6, True),
        ([-1.0, -2.0, -3.0, -4.0, -5.0], 0.6, False),
        ([3.0, 2.0, 1.0, 0.5], 0.9, True),  # nearly all are dead
        ([3.0, 2.0, 1.0, 0.5], 0.89, False),
    ],
)
def test_some_dead_units_are_not_told_of_while_the_loss_falls(losses, fraction, told):
    adviser = Adviser()
    adviser.see_norms(norms(1))
    for loss in losses:
        adviser.see_dead({"relu": fraction}, {"relu": 1000})
        adviser.see_dead({"relu": fraction}, {"relu": 1000})
        adviser.see_epoch({"loss": loss})
    assert ("dead_relu" in adviser.sentences()) is told


@pytest.mark.parametrize(("fractions", "told"), [([0.1, 0.45, 0.45], True), ([0.1, 0.35, 0.6, 0.6], False)])
def test_units_that_die_all_of_a_sudden_are_told_even_while_the_loss_falls(fractions, told):
    adviser = Adviser()
    for step in (1, 100):
        adviser.see_norms(norms(step))
    for loss, fraction in enumerate(fractions):
        adviser.see_dead({"relu": fraction}, {"relu": 100})
        adviser.see_epoch({"loss": -loss})
    assert ("dead_relu" in adviser.sentences()) is told


BIASES, RATE = (
    f"dead units do not come back, so start again with {how}"
    for how in ("biases at 0.01 and weights by He initialization", "a learning rate about ten times lower")
)


@pytest.mark.parametrize(
    ("fractions", "units", "sentence"),
    [
        ([1.0], 32, None),  # one window
        ([1.0, 1.0], 3, None),
        ([1.0, 1.0], 4, f"relu: 4 of 4 units are dead, healthy is under 40 %: {BIASES}"),
        ([0.39, 0.39], 100, None),
        ([0.4, 0.4], 10, f"relu: 4 of 10 units are dead, healthy is under 40 %: {BIASES}"),
        ([0.45, 0.5, 0.5], 20, f"relu: 10 of 20 units are dead, healthy is under 40 %: {BIASES}"),
        ([0.1, 0.5, 0.5], 20, f"relu: 10 of 20 units are dead, healthy is under 40 %: {RATE}"),
    ],
)
def test_dead_units_are_told_by_share_number_and_beginning(fractions, units, sentence):
    adviser = Adviser()
    adviser.see_norms(norms(1))
    for fraction in fractions:
        adviser.see_dead({"mild": 0.35, "relu": fraction}, {"mild": 40, "relu": units})
    assert adviser.sentences() == ({"dead_relu": sentence} if sentence else {})


@pytest.mark.parametrize(
    ("fractions", "apart", "told"),
    [
        ([0.5, 0.1], False, False),  # alive on another level
        ([0.5, 0.6], False, True),
        ([0.5, 0.1], True, True),  # behind another layer
    ],
)
def test_units_that_live_in_one_place_are_not_dead_in_another(fractions, apart, told):
    adviser = Adviser(Setup(apart=frozenset({"relu"} if apart else ())))
    adviser.see_norms(norms(1))
    for _ in range(2):
        adviser.see_dead(dict(zip(("relu", "relu (2)"), fractions, strict=True)), {"relu": 40, "relu (2)": 40})
    assert ("dead_relu" in adviser.sentences()) is told


def test_places_are_apart_behind_different_layers():
    inputs, relu, shared = keras.Input((4,)), layers.ReLU(name="apart"), layers.ReLU(name="shared")
    middle = layers.Dense(4, activation="relu", name="own")
    x = relu(layers.Dense(4)(relu(layers.Dense(4)(inputs))))
    within = keras.Input((4,))
    inner = keras.Model(within, layers.Dense(4, activation="relu", name="twice")(within))
    x = layers.Dense(4, activation="relu", name="twice")(inner(shared(middle(middle(x)))))
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    assert setup_of(model).apart == {"apart", "twice"}


def test_the_layer_with_most_dead_units_is_named():
    adviser = Adviser()
    adviser.see_norms(norms(1))
    for _ in range(2):
        adviser.see_dead({"one": 0.5, "worst": 0.9, "other": 0.4}, dict.fromkeys(("one", "worst", "other"), 40))
    assert adviser.sentences()["dead_relu"].startswith("worst: 36 of 40")


def test_trained_weights_far_from_an_initializer_are_no_bad_start():
    def small(*steps):
        return [scaled(norms(step, 0.5), 0.001) for step in steps]

    assert "He initialization" in said(*small(1, 100, 200))["update_ratio"]
    assert "lower the learning rate" in said(*small(5001, 5100, 5200))["update_ratio"]
