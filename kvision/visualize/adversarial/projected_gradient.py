"""Projected gradient descent (Madry 2018, "Towards deep learning models resistant to adversarial attacks").

Section 2.1: steps from a random place in the ball, projected back into it after each; equal to foolbox's LinfPGD and
L2PGD, where both begin at the image. The default size of a step is the paper's 2.5·ε/steps (figure 6), which reaches
the rim from any place.
"""

from kvision.visualize.adversarial.attack import check_counts, check_positive, checked_bounds, prepare
from kvision.visualize.adversarial.gradient_steps import attack_by_steps, chosen_norm


def projected_gradient(
    model,
    images,
    epsilon,
    *,
    labels=None,
    target=None,
    norm="linf",
    steps=40,
    step_size=None,
    random_start=True,
    restarts=1,
    bounds=(0.0, 255.0),
    preprocess=None,
    batch_size=32,
    seed=0,
    verbose=0,
):
    """Attack images by projected gradient descent, the strongest of the first-order attacks here (Madry 2018).

    Args:
        model: A built `keras.Model` of images → logits or probabilities [b, classes], or a `Classifier` of one.
        images: [b, h, w, c] within `bounds`: what the model takes, or with `preprocess`, what that takes.
        epsilon: Radius of the ball around each image, in the units of the images.
        labels: The true class of each image; None: the predicted one.
        target: A class to be taken for, or one for each image, or `"least_likely"`.
        norm: Of the ball: `"linf"`, the largest change of a value, or `"l2"`, the Euclidean norm of all changes.
        steps: How many.
        step_size: Norm of a step, in the units of the images; None: 2.5·epsilon/steps.
        random_start: Whether to begin at a random place in the ball, or at the image.
        restarts: How many random places to begin at; of each image the best is kept, fooled ones first.
        bounds: The least and the largest value of a pixel, in the units of the images.
        preprocess: A function from images to what the model takes, such as `model.preprocessing`.
        batch_size: Images attacked at a time.
        seed: Of the random places, which don't depend on the size of the batch.
        verbose: 1 shows a bar.

    Returns:
        An `Attack`. Ctrl-C ends it after the present step, with the images not reached as they were given.

    Raises:
        ValueError: as `fast_gradient`, on steps that are none, and on restarts without a random start.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    >>> attack = kvision.visualize.adversarial.projected_gradient(
    ...     model, np.full((2, 4, 4, 1), 0.5), 0.1, norm="l2", bounds=(0, 1), steps=5
    ... )
    >>> bool((attack.l2_distance < 0.1001).all())
    True
    """
    check_counts(steps=steps, restarts=restarts)
    check_positive(step_size=step_size)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts={restarts} begin at random places: got random_start=False. Leave one of them out.")
    bounds = checked_bounds(bounds)
    chosen = chosen_norm(norm, epsilon, images, bounds)
    case = prepare(
        model, images, labels=labels, target=target, bounds=bounds, preprocess=preprocess, batch_size=batch_size
    )
    return attack_by_steps(
        case,
        chosen,
        epsilon,
        steps,
        step_size or 2.5 * epsilon / steps,
        starts=restarts,
        seed=seed if random_start else None,
        verbose=verbose,
    )
