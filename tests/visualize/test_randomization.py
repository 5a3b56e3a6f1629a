"""Cascading randomization: what follows the weights passes, what shows the image fails, and weights come back."""

import functools
import signal

import keras
import numpy as np
import pytest
from keras import layers

from kvision.visualize import gradient, guided_backprop, randomization_test
from kvision.visualize.progress import progress
from kvision.visualize.randomization import rank_correlation
from tests.support import SLOW, assert_close
from tests.visualize import nets


@pytest.fixture(scope="module")
def deep():
    """Wide convolutions with norms, which guided backpropagation hardly tells apart."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(64, 3, name="conv1"),
            layers.BatchNormalization(name="norm1"),
            layers.ReLU(),
            layers.Conv2D(64, 3, activation="relu", name="conv2"),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="dense1"),
            layers.Dense(4, name="scores"),
        ]
    )
    model.get_layer("norm1").moving_mean.assign(np.full(64, 0.1))
    return model


def noise():
    return nets.images(2, (16, 16, 3))


@SLOW
def test_gradients_follow_the_weights_and_guided_backpropagation_does_not(deep):
    with nets.unchanged(deep):
        plain = randomization_test(gradient, deep, noise())
        guided = randomization_test(guided_backprop, deep, noise())
    assert plain.layers == ("scores", "dense1", "conv2", "conv1")
    assert plain.similarities.shape == (4, 2)
    assert plain and "gradient follows the weights: with 2 of 4 layers" in plain.sentence
    assert not guided and "guided_backprop does not follow the weights" in str(guided)
    assert str(guided).startswith("FAILED") and str(plain).startswith("ok")


def test_what_ignores_the_network_fails(deep):
    found = randomization_test(lambda model, images: images, deep, noise())
    assert not found
    assert_close(found.similarities, np.ones((4, 2)))


def broken(model, kind):
    """The network in the state of one that died, or went to NaN."""
    layer, bias = {"dead": ("dense1", np.full(64, -1e6)), "nan": ("scores", np.full(4, np.nan))}[kind]
    model.get_layer(layer).bias.assign(bias)


NETWORKS = {
    "dead": r"has nothing to explain: the network is dead, it gives the same for all images and for noise",
    "nan": r"has nothing to explain: for 2 of 2 images the network gives values that are not finite",
}


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_a_network_that_died_is_told_and_not_the_technique(deep, kind):
    before = deep.get_weights()
    try:
        broken(deep, kind)
        found = randomization_test(gradient, deep, noise(), layers=("scores", "dense1"))
    finally:
        deep.set_weights(before)
    assert found.ok is None and not found
    assert str(found).startswith("UNKNOWN gradient ") and NETWORKS[kind] in found.sentence


@pytest.mark.parametrize(
    ("maps", "ok", "sentence"),
    [
        (np.zeros((3, 2, 4)), False, "technique does not follow the weights"),
        (
            [np.ones((2, 4)), *np.full((2, 2, 4), np.nan)],
            None,
            "gives maps that are not finite for 2 of 2 images.",
        ),
    ],
    ids=["constant", "not finite"],
)
def test_a_technique_is_told_where_the_network_lives(deep, maps, ok, sentence):
    given = iter(maps)

    def technique(model, images):
        return next(given)

    found = randomization_test(technique, deep, noise(), layers=("scores", "dense1"))
    assert found.ok is ok and sentence in found.sentence


def test_the_class_stays_that_of_the_trained_network(deep):
    seen = []

    def technique(model, images, target=None, unit=None):
        seen.append(target)
        return images

    randomization_test(technique, deep, noise())
    want = keras.ops.convert_to_numpy(deep(noise())).argmax(axis=1)
    assert len(seen) == 5 and all((each == want).all() for each in seen)
    seen.clear()
    randomization_test(technique, deep, noise(), unit=3, layers=("scores",))
    assert seen == [None, None]
    seen.clear()
    randomization_test(functools.partial(technique, target=3), deep, noise(), layers=("conv1",))
    assert seen == [3, 3]


def test_the_cascade_runs_from_the_top_through_what_lies_between(deep):
    before = {weight.path: keras.ops.convert_to_numpy(weight.value) for weight in deep.weights}
    changed = []

    def technique(model, images):
        changed.append(
            {
                w.path.split("/")[-2]
                for w in model.weights
                if (keras.ops.convert_to_numpy(w.value) != before[w.path]).any()
            }
        )
        return images

    found = randomization_test(technique, deep, noise(), layers=("conv2", "conv1"))
    assert found.layers == ("conv2", "conv1")
    assert changed == [set(), {"scores", "dense1", "conv2"}, {"scores", "dense1", "conv2", "norm1", "conv1"}]


@SLOW
def test_new_weights_are_drawn_by_the_seed(deep):
    seeds = [randomization_test(gradient, deep, noise(), layers=("scores",), seed=s).similarities for s in (0, 0, 1)]
    assert_close(seeds[0], seeds[1])
    assert np.abs(seeds[0] - seeds[2]).max() > 1e-4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_on_errors(deep, error):
    calls = []

    def technique(model, images):
        calls.append(1)
        if len(calls) == 3:
            raise error("stop")
        return images

    with nets.unchanged(deep), pytest.raises(error):
        randomization_test(technique, deep, noise())


def test_weights_without_an_initializer_keep_their_scale():
    class Own(layers.Layer):
        def build(self, shape):
            self.weight = self.add_weight(name="weight", shape=(shape[-1], 50), initializer="ones")

        def call(self, x):
            return x @ self.weight

    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Flatten(), Own(name="own")])
    model.set_weights([np.random.default_rng(0).normal(3, 0.5, (32, 50))])
    seen = []

    def technique(model, images):
        seen.append(keras.ops.convert_to_numpy(model.weights[0].value))
        return images

    randomization_test(technique, model, np.zeros((1, 4, 4, 2)))
    assert (seen[0] != seen[1]).all()
    assert_close([seen[1].mean(), seen[1].std()], [3, 0.5], tolerance=(0.05, 0))


def test_rank_correlation_shares_ranks_of_equal_values():
    one, two = np.array([[1.0, -2.0, 2.0, 5.0]]), np.array([[0.0, 1.0, -3.0, 2.0]])
    ranks = np.array([0, 1.5, 1.5, 3]), np.array([0, 1, 3, 2])
    assert_close(rank_correlation(one, two), [np.corrcoef(*ranks)[0, 1]])
    assert_close(rank_correlation(one, np.zeros((1, 4))), [0])
    assert_close(rank_correlation(np.ones((1, 4)), np.zeros((1, 4))), [1])


@pytest.mark.parametrize(
    ("technique", "options", "message"),
    [
        (gradient, {"layers": ("conv3",)}, "conv1"),
        (gradient, {"layers": ("re_lu",)}, "has no weights to re-initialise"),
        (lambda model, images: (images, images), {}, "an array with a map for each of the 2 images: got tuple"),
        (lambda model, images: images[:1], {}, r"got \[1, 16, 16, 3\]"),
    ],
)
def test_what_cannot_be_is_refused(deep, technique, options, message):
    options = {k: (deep.layers[2].name,) if v == ("re_lu",) else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        randomization_test(technique, deep, noise(), **options)


def test_ctrl_c_within_a_technique_ends_the_test_after_the_layers_before(deep):
    calls = []

    def technique(model, images, target=None):
        calls.append(1)
        done = []
        for image in progress(images):
            if len(calls) == 3:
                signal.raise_signal(signal.SIGINT)
            done.append(image)
        return np.stack(done)

    before = [np.array(weight) for weight in deep.get_weights()]
    found = randomization_test(technique, deep, noise())
    assert found.layers == ("scores",)
    assert len(calls) == 3
    assert all(np.array_equal(one, other) for one, other in zip(before, deep.get_weights(), strict=True))
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):  # there is no layer yet
        randomization_test(technique, deep, noise())
