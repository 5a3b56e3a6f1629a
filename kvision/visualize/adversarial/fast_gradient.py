"""Fast gradient sign method (Goodfellow 2015, "Explaining and harnessing adversarial examples", section 4).

x + ε·sign(∇J(x, y)), clipped to the bounds; equal to foolbox's LinfFastGradientAttack and L2FastGradientAttack. The
targeted form is Kurakin's 2017 (one step down the loss of the target).
"""

from kvision.visualize.adversarial.attack import checked_bounds, prepare
from kvision.visualize.adversarial.gradient_steps import attack_by_steps, chosen_norm


def fast_gradient(
    model,
    images,
    epsilon,
    *,
    labels=None,
    target=None,
    norm="linf",
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    verbose=0,
):
    """Attack images by one step of size epsilon up the cross-entropy of their labels.

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or a `Classifier` of one.
        images: [b, h, w, c] in any units, within `bounds`: what the model takes, or with `preprocess`, what that takes.
        epsilon: Norm of the step, in the units of the images: 8 of 0…255 is 8/255 of 0…1.
        labels: The true class of each image; None: the predicted one.
        target: A class to be taken for, or one for each image: the step then goes down its cross-entropy; or
            `"least_likely"`.
        norm: `"linf"`: each value changes by epsilon, by the sign of its gradient; `"l2"`: along the gradient.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images attacked at a time.
        verbose: 1 shows a bar.

    Returns:
        An `Attack`. Ctrl-C ends it with the images not reached as they were given.

    Raises:
        ValueError: on images outside the bounds, an epsilon that is negative or larger than the bounds allow, classes
            that the model does not have, a target that is the label, and a model that is no classifier.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> attack = kvision.visualize.adversarial.fast_gradient(model, np.full((2, 4, 4, 1), 100.0), epsilon=8)
    >>> attack.images.shape, attack.linf_distance.tolist()
    ((2, 4, 4, 1), [8.0, 8.0])
    """
    bounds = checked_bounds(bounds)
    chosen = chosen_norm(norm, epsilon, images, bounds)
    case = prepare(
        model, images, labels=labels, target=target, bounds=bounds, preprocess=preprocess, batch_size=batch_size
    )
    return attack_by_steps(case, chosen, epsilon, 1, epsilon, verbose=verbose)
