"""Attacks against closed forms on linear models, a twin in NumPy, and laws that hold for every network."""

import functools
import itertools
import json
import zipfile

import keras
import numpy as np
import pytest
import scipy.optimize

from kvision.network import Preprocessing
from kvision.visualize import adversarial
from kvision.visualize.adversarial import (
    Classifier,
    accuracy_under_attack,
    deep_fool,
    fast_gradient,
    fool_from_noise,
    fool_linear_classifier,
    iterative_gradient,
    projected_gradient,
)
from kvision.visualize.adversarial.gradient_steps import NORMS
from tests.support import assert_close

layers = keras.layers
SHAPE, CLASSES = (3, 4, 2), 5
PIXELS = 24
BOUNDS = (0.0, 1.0)
BUDGET = 0.05


@functools.cache
def weights(classes=CLASSES, scale=1.0):
    rng = np.random.default_rng(classes)
    return rng.standard_normal((PIXELS, classes)).astype("float32") * scale, rng.standard_normal(classes) * 0.1


@functools.cache
def linear(classes=CLASSES, scale=1.0):
    """A `Classifier` of W·x + b behind a softmax, and W [classes, pixels], b."""
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(classes, activation="softmax")])
    model.set_weights(weights(classes, scale))
    return Classifier(model), weights(classes, scale)[0].T, weights(classes, scale)[1]


@functools.cache
def convolutional():
    """A nested network with a rescaling inside, of images of 0…255."""
    keras.utils.set_random_seed(1)
    trunk = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(32, 3, name="conv.2"),
            layers.BatchNormalization(),
            layers.ReLU(),
        ],
        name="trunk",
    )
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(trunk(layers.Rescaling(1 / 127.5, offset=-1)(image)))
    sure = keras.initializers.RandomNormal(stddev=3.0, seed=1)
    return keras.Model(image, layers.Dense(4, "softmax", kernel_initializer=sure)(x), name="convolutional")


@functools.cache
def victim():
    return Classifier(convolutional())


def pixels(count=6, shape=SHAPE, high=1.0, seed=0):
    return (np.random.default_rng(seed).uniform(0.2, 0.8, (count, *shape)) * high).astype("float32")


def flat(images):
    return images.reshape(len(images), -1).astype("float64")


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def loss_gradient(images, classes, matrix, biases):
    """Of the cross-entropy by the images, of a linear classifier: Wᵀ(p − y)."""
    logits = flat(images) @ matrix.T + biases
    return ((softmax(logits) - np.eye(len(biases))[classes]) @ matrix).reshape(images.shape)


# Gradient attacks


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("target", [None, 2])
def test_the_fast_gradient_is_one_step_along_the_gradient_of_the_loss(norm, target):
    classifier, matrix, biases = linear()
    images = pixels()
    labels = np.array([0, 1, 3, 4, 0, 1])
    attack = fast_gradient(classifier, images, BUDGET, labels=labels, target=target, norm=norm, bounds=BOUNDS)
    gradient = loss_gradient(images, labels if target is None else np.full(6, target), matrix, biases)
    gradient = gradient if target is None else -gradient
    lengths = np.linalg.norm(flat(gradient), axis=1)[:, None, None, None]
    step = np.sign(gradient) if norm == "linf" else gradient / lengths
    assert_close(attack.images, np.clip(images + BUDGET * step, *BOUNDS), tolerance=(0, 1e-6))
    change = flat(attack.images) - flat(images)
    assert_close(attack.linf_distance, np.abs(change).max(axis=1))
    assert_close(attack.l2_distance, np.linalg.norm(change, axis=1))
    logits = flat(attack.images) @ matrix.T + biases
    assert attack.predicted.tolist() == logits.argmax(axis=1).tolist()
    assert_close(attack.confidence, softmax(logits).max(axis=1), tolerance=(1e-4, 1e-5))
    expected = attack.predicted != labels if target is None else attack.predicted == target
    assert attack.success.tolist() == expected.tolist()
    assert attack.complete


def test_a_network_that_is_sure_is_attacked_as_well():
    """The cross-entropy itself is 0 in float32 there, and so is its gradient."""
    classifier, matrix, _ = linear(scale=1000.0)
    images = pixels()
    attack = fast_gradient(classifier, images, BUDGET, bounds=BOUNDS)
    logits = flat(images) @ matrix.T
    order = logits.argsort(axis=1)
    assert (softmax(logits.astype("float32")).max(axis=1) == 1).all()
    direction = matrix[order[:, -2]] - matrix[order[:, -1]]
    assert_close(attack.images, images + BUDGET * np.sign(direction).reshape(images.shape), tolerance=(0, 1e-6))


def test_budgets_are_in_the_units_of_the_images():
    """The same attack on images of 0…255 with a rescaling inside, with a preprocessing, and on those of −1…1."""
    images = pixels(4, (8, 8, 3), 255.0)
    inside = projected_gradient(victim(), images, 8, steps=3)
    image = keras.Input((8, 8, 3))
    _, _, trunk, pooling, dense = convolutional().layers
    bare = keras.Model(image, dense(pooling(trunk(image))))
    before = projected_gradient(bare, images, 8, steps=3, preprocess=Preprocessing(value_range=(-1.0, 1.0)))
    after = projected_gradient(bare, images / 127.5 - 1, 8 / 127.5, steps=3, bounds=(-1, 1))
    for other in (before.images, (after.images + 1) * 127.5):
        assert np.mean(np.abs(other - inside.images) < 1e-2) > 0.99  # where a gradient is about 0 its sign is by chance
    assert inside.linf_distance.max() <= 8 + 1e-4
    assert inside.linf_distance.min() > 7


@pytest.mark.parametrize("high", [1.0, 255.0])
@pytest.mark.parametrize(("levels", "steps"), [(8, 10), (40, 44), (0.5, 1)])
def test_the_iterative_gradient_takes_the_papers_steps(levels, steps, high):
    classifier, *_ = linear(scale=1 / high)
    unit = high / 255
    images = pixels(high=high)
    attack = iterative_gradient(classifier, images, levels * unit, step_size=0.01 * unit, bounds=(0, high))
    assert_close(attack.linf_distance, np.full(6, steps * 0.01 * unit), tolerance=(0, 1e-3 * unit))
    assert iterative_gradient(classifier, images, levels * unit, bounds=(0, high)).linf_distance.max() < 1.001 * (
        levels * unit
    )


def test_the_least_likely_class_is_reached():
    classifier, matrix, biases = linear()
    images = pixels()
    attack = iterative_gradient(classifier, images, 1.0, target="least_likely", steps=40, step_size=0.05, bounds=BOUNDS)
    assert attack.predicted.tolist() == (flat(images) @ matrix.T + biases).argmin(axis=1).tolist()
    assert attack.success.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projected_gradients_stay_in_ball_and_bounds_wherever_they_start(norm):
    images = pixels(5, (8, 8, 3), 255.0)
    images[0] = 0
    images[1] = 255
    epsilon = {"linf": 6.0, "l2": 40.0}[norm]
    found = [
        projected_gradient(victim(), images, epsilon, norm=norm, steps=3, seed=seed, batch_size=size)
        for seed, size in ((0, 5), (0, 2), (1, 5))
    ]
    for attack in found:
        sizes = getattr(attack, f"{norm}_distance")
        assert sizes.max() <= epsilon * (1 + 1e-5)
        assert sizes.min() > 0.2 * epsilon
        assert attack.images.min() >= 0
        assert attack.images.max() <= 255
    same, other = (np.abs(found[0].images - each.images) for each in found[1:])
    assert np.mean(same < 0.1) > 0.95  # the places don't depend on the size of the batch
    assert np.mean(other < 0.1) < 0.9


def test_places_are_drawn_evenly_from_the_ball():
    rng = np.random.default_rng(0)
    for norm, size in (("l2", np.linalg.norm), ("linf", lambda change: np.abs(change).max())):
        radii = np.array([size(NORMS[norm].draw(rng, (1, 3, 1), 2.0)) for _ in range(3000)]) / 2
        assert radii.max() <= 1
        assert abs(np.mean(radii**3) - 0.5) < 0.02


def test_restarts_keep_what_is_best():
    images = pixels(6, (8, 8, 3), 255.0)
    options = {"steps": 2, "step_size": 0.5}
    once, thrice = (projected_gradient(victim(), images, 30, restarts=count, **options) for count in (1, 4))
    margins = [np.asarray(victim().margins(attack.images, attack.labels)[0]) for attack in (once, thrice)]
    assert (margins[1] >= margins[0] - 1e-6).all()
    assert (margins[1] > margins[0] + 1e-6).any()
    assert (thrice.success >= once.success).all()


@pytest.mark.parametrize("attack", [fast_gradient, projected_gradient])
def test_a_budget_of_none_changes_nothing(attack):
    images = pixels()
    assert_close(attack(linear()[0], images, 0, bounds=BOUNDS).images, images, tolerance=(0, 0))


# Smallest changes


def margins_of(images, matrix, biases):
    """`{(row, other): (margin, w)}` of the predicted class and every other one."""
    logits = flat(images) @ matrix.T + biases
    found = {}
    for row, label in enumerate(logits.argmax(axis=1)):
        for other in range(len(biases)):
            if other != label:
                found[row, other] = logits[row, label] - logits[row, other], matrix[other] - matrix[label]
    return found


def closed_form(images, matrix, biases, order):
    """The smallest margin over the norm of w that belongs to it."""
    sizes = {key: margin / np.linalg.norm(w, order) for key, (margin, w) in margins_of(images, matrix, biases).items()}
    return [min(size for (row, _), size in sizes.items() if row == each) for each in range(len(images))]


def test_deep_fool_needs_one_step_for_a_linear_classifier():
    classifier, matrix, biases = linear()
    images = pixels()
    attack = deep_fool(classifier, images, steps=1, overshoot=0.02, bounds=(-5, 5))
    assert attack.success.all()
    assert_close(attack.l2_distance, np.multiply(closed_form(images, matrix, biases, 2), 1.02), tolerance=(1e-4, 0))
    few = deep_fool(classifier, images, candidates=1, bounds=(-5, 5))
    assert few.success.all()
    assert (few.l2_distance >= attack.l2_distance * 0.999).all()


def test_deep_fool_ends_with_success_and_passes_over_what_is_wrong_already():
    images = pixels(5, (8, 8, 3), 255.0)
    labels = victim().logits(images).argmax(axis=1)
    labels[1] = (labels[1] + 1) % 4
    attack = deep_fool(victim(), images, labels=labels, batch_size=5)
    assert attack.success.all()
    assert attack.l2_distance[1] == 0
    others = np.arange(5) != 1
    back = images + (attack.images - images) * 0.9
    still = victim().logits(back).argmax(axis=1)
    assert (attack.predicted[others] != labels[others]).all()
    assert (still[others] == labels[others]).mean() >= 0.75  # nine tenths of the change don't suffice: it is small


def test_deep_fool_leaves_a_boundary():
    model = keras.Sequential([keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2)])
    model.set_weights([np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros(2)])
    attack = deep_fool(model, np.full((1, 1, 2, 1), 0.5), bounds=BOUNDS)
    assert attack.success.all()
    assert attack.l2_distance[0] < 0.01


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", 1)])
def test_a_linear_classifier_is_fooled_in_closed_form(norm, order):
    classifier, matrix, biases = linear()
    images = pixels()
    attack = fool_linear_classifier(classifier, images, norm=norm, overshoot=1e-3, bounds=(-5, 5))
    assert attack.success.all()
    found = getattr(attack, f"{norm}_distance")
    assert_close(found, np.multiply(closed_form(images, matrix, biases, order), 1.001), tolerance=(1e-4, 0))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_within_bounds_it_is_the_smallest_change_that_scipy_finds(norm):
    classifier, matrix, biases = linear()
    images = np.round(pixels(2, seed=3))  # most pixels are on a bound
    attack = fool_linear_classifier(classifier, images, norm=norm, overshoot=1e-3, bounds=BOUNDS)
    best = {}
    for (row, _), (margin, w) in margins_of(images, matrix, biases).items():
        image = flat(images)[row]
        if norm == "linf":  # least t, of changes that are between −t and t
            eye, one = np.eye(PIXELS), np.ones((PIXELS, 1))
            found = scipy.optimize.linprog(
                [*np.zeros(PIXELS), 1],
                np.block([[-w[None], np.zeros((1, 1))], [eye, -one], [-eye, -one]]),
                [-1.001 * margin, *np.zeros(2 * PIXELS)],
                bounds=[*zip(-image, 1 - image, strict=True), (0, None)],
            )
            size = found.fun if found.success else np.inf
        else:
            found = scipy.optimize.minimize(
                lambda change: change @ change,
                np.clip(w, -image, 1 - image),
                jac=lambda change: 2 * change,
                bounds=list(zip(-image, 1 - image, strict=True)),
                constraints={"type": "ineq", "fun": lambda change, w=w, m=margin: w @ change - 1.001 * m},
                method="SLSQP",
            )
            size = np.sqrt(found.fun) if found.success else np.inf
        best[row] = min(best.get(row, np.inf), size)
    free = closed_form(images, matrix, biases, {"l2": 2, "linf": 1}[norm])
    found = getattr(attack, f"{norm}_distance")
    assert attack.success.all()
    assert (found > 1.01 * np.array(free)).any()
    assert_close(found, list(best.values()), tolerance=(2e-3, 0))


def test_a_linear_classifier_takes_it_for_the_target():
    classifier, *_ = linear()
    for target in range(CLASSES):
        rows = classifier.logits(pixels()).argmax(axis=1) != target
        attack = fool_linear_classifier(classifier, pixels()[rows], target=target, bounds=(-5, 5))
        assert attack.success.all()
        assert (attack.predicted == target).all()
    two, matrix, biases = linear(2)
    targets = 1 - two.logits(pixels()).argmax(axis=1)
    attack = fool_linear_classifier(two, pixels(), target=targets, bounds=(-5, 5))
    assert_close(attack.l2_distance, np.multiply(closed_form(pixels(), matrix, biases, 2), 1.001), tolerance=(1e-4, 0))


def test_a_network_that_is_not_linear_is_told():
    with pytest.raises(ValueError, match="convolutional is not linear.*deep_fool"):
        fool_linear_classifier(victim(), pixels(2, (8, 8, 3), 255.0))


# Noise


def test_noise_is_taken_for_every_class_with_confidence():
    attack = fool_from_noise(victim(), confidence=0.6, steps=60)
    assert attack.images.shape == (4, 8, 8, 3)
    assert attack.predicted.tolist() == [0, 1, 2, 3]
    assert attack.success.all()
    assert (attack.confidence >= 0.6).all()
    assert (attack.confidence < 0.9).all()  # an image ends when it is done
    assert attack.images.min() >= 0
    assert attack.images.max() <= 255
    start = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    assert_close(attack.linf_distance, np.abs(attack.images - start).max(axis=(1, 2, 3)), tolerance=(1e-3, 1e-3))
    short = fool_from_noise(victim(), [2, 2], confidence=0.999, steps=1)
    assert not short.success.any()
    assert short.linf_distance.max() <= 2.55 + 1e-4


def test_noise_of_any_size():
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 3, activation="relu")(image))
    model = keras.Model(image, layers.Dense(3)(x), name="any")
    attack = fool_from_noise(model, 1, image_size=(6, 7), bounds=(-1, 1), confidence=0.5, steps=3)
    assert attack.images.shape == (1, 6, 7, 3)
    with pytest.raises(ValueError, match=r"\[b, any, any, 3\].*image_size=\(height, width\)"):
        fool_from_noise(model, 1)
    with pytest.raises(ValueError, match="8x8.*Leave it out"):
        fool_from_noise(victim(), 1, image_size=(6, 7))


# Accuracy


@pytest.mark.parametrize("attack", [fast_gradient, iterative_gradient, projected_gradient])
def test_accuracy_under_attack_is_that_of_the_margins(attack):
    classifier, matrix, biases = linear(2)
    images = pixels(20, seed=4)
    labels = classifier.logits(images).argmax(axis=1)
    labels[:3] = 1 - labels[:3]
    sizes = np.array(closed_form(images, matrix, biases, 1))
    epsilons = [0, *np.quantile(sizes, [0.25, 0.5, 0.75]).tolist()]
    options = {"steps": 20} if attack is not fast_gradient else {}
    if attack is iterative_gradient:
        options["step_size"] = 0.05
    found = accuracy_under_attack(
        classifier, images, labels, epsilons, attack=attack, bounds=(-2, 3), batch_size=8, **options
    )
    expected = [(sizes[3:] > epsilon).sum() / 20 for epsilon in epsilons]
    assert_close(found.accuracy, expected)
    assert found.fooled.shape == (4, 20)
    assert found.fooled[:, :3].all()
    assert found.epsilons.tolist() == epsilons


def test_accuracy_of_an_attack_without_a_budget_is_by_its_distances():
    classifier, matrix, biases = linear()
    images = pixels(12, seed=5)
    labels = classifier.logits(images).argmax(axis=1)
    sizes = 1.02 * np.array(closed_form(images, matrix, biases, 2))
    epsilons = np.quantile(sizes, [0.1, 0.6])
    found = accuracy_under_attack(classifier, images, labels, epsilons, attack=deep_fool, bounds=(-5, 5))
    assert_close(found.accuracy, [(sizes > epsilon).mean() for epsilon in epsilons])


def test_an_attack_of_ones_own():
    def darker(model, images, epsilon, *, labels, bounds, preprocess, batch_size, verbose):
        assert isinstance(model, keras.Model)
        return fast_gradient(model, images, epsilon, labels=labels, bounds=bounds, batch_size=batch_size)

    images = pixels()
    model = linear()[0].model
    labels = model.predict(images, verbose=0).argmax(axis=1)
    found = accuracy_under_attack(model, images, labels, [0, 0.2], attack=darker, bounds=BOUNDS)
    plain = accuracy_under_attack(model, images, labels, [0, 0.2], attack=fast_gradient, bounds=BOUNDS)
    assert found.accuracy.tolist() == plain.accuracy.tolist()
    (line,) = found.curve().axes[0].lines
    assert line.get_ydata().tolist() == found.accuracy.tolist()


# Ends, errors, and what stays


def stopped_after(steps, monkeypatch):
    """Ctrl-C after a number of steps."""
    monkeypatch.setattr(
        adversarial.blocks, "progress", lambda schedule, total, verbose: itertools.islice(schedule, steps)
    )


def test_ctrl_c_gives_what_there_is(monkeypatch):
    classifier, *_ = linear()
    images = pixels(6)
    options = {"step_size": 0.01, "random_start": False, "batch_size": 2, "bounds": BOUNDS}
    stopped_after(7, monkeypatch)
    attack = projected_gradient(classifier, images, 0.2, steps=5, **options)
    assert not attack.complete
    assert_close(attack.linf_distance, [0.05, 0.05, 0.02, 0.02, 0, 0], tolerance=(0, 1e-6))
    assert attack.success.tolist() == (attack.predicted != attack.labels).tolist()
    labels = classifier.logits(images).argmax(axis=1)
    found = accuracy_under_attack(classifier, images, labels, [0, 0.2], steps=5, **options)
    assert found.epsilons.tolist() == [0]


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (fast_gradient, {"epsilon": -1}, "epsilon.*from 0 to 1"),
        (fast_gradient, {"epsilon": 1.1}, "epsilon.*from 0 to 1"),
        (fast_gradient, {"epsilon": float("nan")}, "epsilon.*nan"),
        (fast_gradient, {"epsilon": 5, "norm": "l2"}, "epsilon.*from 0 to 4.89898"),
        (fast_gradient, {"norm": "l1"}, "Unknown norm: got 'l1'"),
        (fast_gradient, {"bounds": (1, 0)}, "bounds are the least and the largest"),
        (fast_gradient, {"bounds": (0, 0.5)}, "bounds of the images are 0 to 0.5: got values from 0.2"),
        (fast_gradient, {"bounds": (0, 255)}, r"Give bounds=\(0, 1\)"),
        (fast_gradient, {"labels": [0, 1, 2, 3, 4, 5]}, "the classes 0 to 4: got labels 5"),
        (fast_gradient, {"labels": [0, -1, 2, 3, 4, 0]}, "the classes 0 to 4: got labels -1"),
        (fast_gradient, {"labels": [0, 1]}, "labels is a class index, one for each of the 6 images"),
        (fast_gradient, {"labels": [0.0] * 6}, "labels is a class index"),
        (fast_gradient, {"target": 7}, "the classes 0 to 4: got target 7"),
        (fast_gradient, {"target": "least"}, "target is a class index"),
        (fast_gradient, {"labels": [0, 1, 2, 3, 4, 0], "target": 3}, "Image 3 has the label 3 and the same target"),
        (fast_gradient, {"preprocess": abs}, "A Classifier has its preprocess already"),
        (fast_gradient, {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        (iterative_gradient, {"steps": 0}, "steps must be a whole number of at least 1"),
        (iterative_gradient, {"step_size": 0.0}, "step_size must be above 0"),
        (projected_gradient, {"restarts": 2, "random_start": False}, "restarts=2 begin at random places"),
        (deep_fool, {"overshoot": 0}, "overshoot must be above 0"),
        (deep_fool, {"candidates": 1.5}, "candidates must be a whole number"),
        (fool_linear_classifier, {"norm": "l1"}, "Unknown norm: got 'l1'"),
        (fool_from_noise, {"target": [0, 9]}, "the classes 0 to 4: got target 9"),
        (fool_from_noise, {"target": 0.5}, "target is a class index"),
        (fool_from_noise, {"confidence": 1}, "confidence is a probability"),
        (accuracy_under_attack, {"epsilons": [0.1, 2]}, "epsilon.*from 0 to 1"),
        (accuracy_under_attack, {"epsilons": [-0.1]}, "epsilons are the budgets"),
        (accuracy_under_attack, {"target": 1}, "images that lose their label"),
        (accuracy_under_attack, {"stepsize": 1}, "Unknown option of projected_gradient: got 'stepsize'.*'step_size'"),
        (accuracy_under_attack, {"labels": None}, "true class of each image"),
    ],
)
def test_errors_before_work(attack, options, message):
    given = {"bounds": BOUNDS} | options
    if attack is not fool_from_noise:
        given.setdefault("images", pixels())
    if attack in (fast_gradient, iterative_gradient, projected_gradient):
        given.setdefault("epsilon", BUDGET)
    if attack is accuracy_under_attack:
        given = {"labels": [0] * 6, "epsilons": [0.1]} | given
    with pytest.raises(ValueError, match=message):
        attack(linear()[0], **given)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: layers.Conv2D(3, 1)(x), r"gives \(.*\): expected a classifier"),
        (lambda x: layers.Flatten()(layers.Conv2D(3, 1)(x)) * np.inf, "not finite"),
        (lambda x: keras.ops.softmax(layers.Flatten()(x) * 9.0) ** 1.0, "gives probabilities"),
    ],
)
def test_models_that_are_no_classifiers(outputs, message):
    image = keras.Input(SHAPE)
    with pytest.raises(ValueError, match=message):
        fast_gradient(keras.Model(image, outputs(image)), pixels(2), BUDGET, bounds=BOUNDS)


def test_one_logit_is_two_classes():
    image = keras.Input(SHAPE)
    one = keras.Model(image, layers.Dense(1, activation="sigmoid")(layers.Flatten()(image)))
    two, (matrix, bias) = linear(2)[0].model, weights(2)
    one.set_weights([(matrix[:, 1:] - matrix[:, :1]), bias[1:] - bias[:1]])
    images = pixels()
    found, expected = (fast_gradient(model, images, 0.3, bounds=BOUNDS) for model in (one, two))
    assert_close(found.images, expected.images)
    assert found.predicted.tolist() == expected.predicted.tolist()
    assert found.success.any()


def test_a_classifier_sees_the_weights_of_the_moment():
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3)])
    classifier = Classifier(model)
    before = classifier.logits(pixels())
    model.set_weights([2 * weight for weight in model.get_weights()])
    assert_close(classifier.logits(pixels()), 2 * before)


def state(model, folder):
    """All that an attack must leave as it is."""
    everything = [model, *model._flatten_layers(include_self=False)]
    path = folder / "model.keras"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    return (
        [weight.tolist() for weight in model.get_weights()],
        [layer.trainable for layer in everything],
        [sorted(vars(layer)) for layer in everything],
        [vars(layer).get("activation") for layer in everything],
        config,
    )


@pytest.mark.parametrize(
    "attack",
    [
        lambda model, images: fast_gradient(model, images, 8),
        lambda model, images: deep_fool(model, images, steps=2),
        lambda model, images: fool_from_noise(model, steps=2),
        lambda model, images: fool_linear_classifier(model, images),
        lambda model, images: fast_gradient(model, images, 8, preprocess=lambda image: image[:, :1]),
    ],
)
def test_the_model_stays_as_it_was(attack, tmp_path):
    model = convolutional()
    before = state(model, tmp_path)
    try:
        attack(model, pixels(2, (8, 8, 3), 255.0))
    except Exception as error:  # the last two
        raised = error
    else:
        raised = None
    assert state(model, tmp_path) == before
    assert raised is None or isinstance(raised, ValueError)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_networks_of_16_bits(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    images = pixels(4, (8, 8, 3), 255.0)
    attack = fast_gradient(model, images, 8)
    assert np.isfinite(attack.images).all()
    assert attack.images.dtype == np.float32
    assert np.mean(np.abs(attack.images - images) > 7.9) > 0.9
    assert deep_fool(model, images).success.all()


@pytest.mark.slow
def test_a_network_of_real_depth_is_fooled():
    """Of random weights: the gradient through 20 layers is worth more than noise of the same size."""
    from kvision.applications import ResNet20

    model = ResNet20(input_shape=(32, 32, 3), classes=10, norm="group")
    images = pixels(4, (32, 32, 3), 255.0)
    classifier = Classifier(model, preprocess=model.preprocessing)
    labels = classifier.logits(images).argmax(axis=1)
    attack = projected_gradient(classifier, images, 8, steps=3, random_start=False)
    signs = np.random.default_rng(0).choice([-8.0, 8.0], images.shape)
    noise = np.clip(images + signs, 0, 255).astype("float32")
    margins = [np.asarray(classifier.margins(each, labels)[0]) for each in (images, noise, attack.images)]
    assert (margins[2] > np.maximum(margins[0], margins[1])).all()


@keras.saving.register_keras_serializable("tests")
class Hidden(keras.Model):
    """A sigmoid that no graph shows."""

    def __init__(self):
        super().__init__(name="hidden")
        self.flat, self.fc = layers.Flatten(), layers.Dense(1, activation="sigmoid")

    def call(self, x):
        return self.fc(self.flat(x))


def test_a_sigmoid_that_is_not_seen_is_refused():
    model = Hidden()
    images = np.full((2, *SHAPE), 0.5, "float32")
    model(images)
    with pytest.raises(ValueError, match="hidden gives probabilities.*softmax or sigmoid was not found"):
        fast_gradient(model, images, 0.1, bounds=BOUNDS)


def test_sigmoids_of_several_classes_are_refused():
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3, "sigmoid")], name="tags")
    with pytest.raises(ValueError, match="tags ends in a sigmoid for each of 3 classes"):
        fast_gradient(model, np.full((1, *SHAPE), 0.5), 0.1, bounds=BOUNDS)
