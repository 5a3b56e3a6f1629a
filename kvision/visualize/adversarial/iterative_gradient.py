"""Basic iterative method (Kurakin 2017, "Adversarial examples in the physical world", sections 2.2 and 2.3).

Small signed steps, clipped to the ball and the bounds after each; equal to foolbox's LinfBasicIterativeAttack. The
paper's iterative least-likely class method is `target="least_likely"`. Its steps are of one value of 255, and
min(ε + 4, 1.25 ε) of them, rounded up here.
"""

import math

from kvision.visualize.adversarial.attack import check_counts, check_positive, checked_bounds, prepare
from kvision.visualize.adversarial.gradient_steps import attack_by_steps, chosen_norm


def iterative_gradient(
    model,
    images,
    epsilon,
    *,
    labels=None,
    target=None,
    steps=None,
    step_size=None,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    verbose=0,
):
    """Attack images by small steps of the fast gradient sign method within epsilon (Kurakin 2017).

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or a `Classifier` of one.
        images: [b, h, w, c] within `bounds`: what the model takes, or with `preprocess`, what that takes.
        epsilon: The largest change of a value, in the units of the images.
        labels: The true class of each image; None: the predicted one.
        target: A class to be taken for, or one for each image; `"least_likely"`: the one with the smallest logit.
        steps: How many; None: the paper's, min(ε + 4, 1.25 ε) with ε in 255ths of the bounds.
        step_size: Change of each value by a step, in the units of the images; None: the paper's, 1/255 of the bounds.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images attacked at a time.
        verbose: 1 shows a bar.

    Returns:
        An `Attack`. Ctrl-C ends it after the present step, with the images not reached as they were given.

    Raises:
        ValueError: as `fast_gradient`, and on steps that are none.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> attack = kvision.visualize.adversarial.iterative_gradient(
    ...     model, np.full((2, 4, 4, 1), 100.0), epsilon=8, target="least_likely"
    ... )
    >>> attack.linf_distance.tolist()
    [8.0, 8.0]
    """
    check_counts(steps=steps)
    check_positive(step_size=step_size)
    bounds = checked_bounds(bounds)
    chosen = chosen_norm("linf", epsilon, images, bounds)
    case = prepare(
        model, images, labels=labels, target=target, bounds=bounds, preprocess=preprocess, batch_size=batch_size
    )
    unit = (bounds[1] - bounds[0]) / 255
    levels = round(epsilon / unit, 6)
    steps = steps or max(1, math.ceil(min(levels + 4, 1.25 * levels)))
    return attack_by_steps(case, chosen, epsilon, steps, step_size or unit, verbose=verbose)
