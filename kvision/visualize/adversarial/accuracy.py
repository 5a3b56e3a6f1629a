"""Accuracy under attack against the size of the change (Goodfellow 2015; as a curve, Carlini 2019, "On evaluating
adversarial robustness", section 4)."""

import dataclasses
import inspect

import numpy as np

from kvision.errors import unknown
from kvision.visualize.adversarial.attack import checked_bounds, prepare
from kvision.visualize.adversarial.classifier import Classifier
from kvision.visualize.adversarial.fast_gradient import fast_gradient
from kvision.visualize.adversarial.gradient_steps import chosen_norm
from kvision.visualize.adversarial.iterative_gradient import iterative_gradient
from kvision.visualize.adversarial.projected_gradient import projected_gradient

_TAKE_CLASSIFIERS = (fast_gradient, iterative_gradient, projected_gradient)


@dataclasses.dataclass(frozen=True, eq=False)
class AccuracyUnderAttack:
    """The accuracy of a classifier by the size of the change its images were attacked with.

    Args:
        epsilons: [e] float64, the budgets, in the units of the images.
        accuracy: [e] float64, the fraction of images that are taken for their label, and still are under attack.
        fooled: [e, b] bool, the images that are not.
    """

    epsilons: np.ndarray
    accuracy: np.ndarray
    fooled: np.ndarray

    def curve(self):
        """The curve as a `matplotlib.figure.Figure`; `kvision.drawing.lines` draws several into one."""
        from kvision.drawing import lines

        return lines({None: (self.epsilons, self.accuracy)}, "epsilon", "accuracy under attack")


def accuracy_under_attack(
    model,
    images,
    labels,
    epsilons,
    *,
    attack=projected_gradient,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    verbose=0,
    **options,
):
    """The accuracy of a classifier under an attack of each budget: what its robustness is at most.

    An image that is taken for another class as it is counts as fooled for every budget; only the others are attacked.
    Each budget is attacked by itself: a curve that rises tells that the attack fails, not that the network is robust.

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or a `Classifier` of one.
        images: [b, h, w, c] within `bounds`: what the model takes, or with `preprocess`, what that takes.
        labels: The true class of each image, int [b].
        epsilons: The budgets, in the units of the images; 0 is the plain accuracy.
        attack: `projected_gradient`, `fast_gradient` or `iterative_gradient`; `deep_fool`, which has no budget and is
            run once, and whose distances are compared with the budgets; or a function of yours of
            `(model, images, epsilon, labels=, bounds=, preprocess=, batch_size=, …)` → `Attack`. A weak attack flatters
            the network: the default is the strongest.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images attacked at a time.
        verbose: 1 shows a bar for each budget.
        **options: For the attack, such as `norm="l2"`, `steps=` or `restarts=`.

    Returns:
        An `AccuracyUnderAttack`. Ctrl-C gives that of the budgets before the present one.

    Raises:
        ValueError: as the attack, on epsilons that are none, and on an option that the attack does not take.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> images = np.random.default_rng(0).uniform(100, 150, (8, 4, 4, 1))
    >>> labels = model.predict(images, verbose=0).argmax(axis=1)
    >>> found = kvision.visualize.adversarial.accuracy_under_attack(model, images, labels, [0, 100], steps=5)
    >>> found.accuracy.tolist()
    [1.0, 0.0]
    """
    epsilons = _checked_epsilons(epsilons)
    _check_options(attack, options)
    bounds = checked_bounds(bounds)
    has_budget = "epsilon" in inspect.signature(attack).parameters
    if attack in _TAKE_CLASSIFIERS:
        chosen_norm(options.get("norm", "linf"), float(epsilons.max()), images, bounds)
    if labels is None:
        raise ValueError("Accuracy needs the true class of each image: got labels=None.")
    classifier = Classifier.of(model, preprocess)
    case = prepare(classifier, images, labels=labels, bounds=bounds, batch_size=batch_size)
    right = case.logits.argmax(axis=1) == case.labels
    shared = {"labels": case.labels[right], "bounds": bounds, "batch_size": batch_size, "verbose": verbose} | options
    if attack in _TAKE_CLASSIFIERS:  # one trace for all budgets
        victim = classifier
    else:
        victim, shared["preprocess"] = classifier.model, classifier.preprocess
    rows = []
    once = None if has_budget or not right.any() else attack(victim, case.images[right], **shared)
    for epsilon in epsilons:
        fooled = ~right
        if right.any() and has_budget and epsilon > 0:
            found = attack(victim, case.images[right], float(epsilon), **shared)
            if not getattr(found, "complete", True):  # Ctrl-C: what was not attacked yet would count as robust
                break
            fooled[right] = found.success
        elif once is not None:
            fooled[right] = once.success & (once.l2_distance <= epsilon)
        rows.append(fooled)
    if not getattr(once, "complete", True):
        rows = []
    fooled = np.stack(rows) if rows else np.zeros((0, len(right)), bool)
    return AccuracyUnderAttack(epsilons[: len(rows)], 1 - fooled.mean(axis=1), fooled)


def _checked_epsilons(epsilons):
    checked = np.atleast_1d(np.asarray(epsilons, "float64"))
    if checked.ndim != 1 or not checked.size or not np.isfinite(checked).all() or checked.min() < 0:
        raise ValueError(f"epsilons are the budgets, numbers of at least 0: got {epsilons!r}.")
    return checked


def _check_options(attack, options):
    """Raise on options that an attack does not take, before the work of the first budgets."""
    if "target" in options:
        raise ValueError("Accuracy counts images that lose their label: got target=. Leave it out.")
    parameters = inspect.signature(attack).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            raise unknown(f"option of {attack.__name__}", name, parameters)
