"""The image whose features are those of a given one.

Mahendran & Vedaldi, "Understanding Deep Image Representations by Inverting Them" (2015), section 3: the squared
distance of the features over their squared norm, plus the α-norm (α = 6) and total variation (β = 2). Deviations: Adam
by default, where they take gradient descent with momentum; the priors are means over pixels, measured in half ranges
from mid grey, so that a strength holds for every size; pixels keep their range.
"""

import numpy as np
from keras import ops

from kvision.visualize.descent import OptimizedImages, checked_optimizer, checked_steps, checked_strengths, minimize
from kvision.visualize.image_priors import alpha_norm as norm
from kvision.visualize.image_priors import total_variation as variation
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.pixels import pixel_scale
from kvision.visualize.probe import Probe

NOISE = 16.0  # deviation in pixels of 0…255 of the start


def invert_features(
    model,
    images,
    layer,
    *,
    alpha_norm=0.1,
    total_variation=0.5,
    steps=400,
    optimizer="adam",
    learning_rate=None,
    bounds=None,
    preprocess=None,
    seed=None,
    verbose=0,
):
    """Images that give a layer the same outputs as given images, found from noise: what the layer still knows of them.

    What is made small for each image is ‖Φ(x) − Φ₀‖²/‖Φ₀‖² + `alpha_norm` · mean |x|⁶ + `total_variation` · the mean of
    the squared differences of neighbours, x in −1…1.

    Args:
        model: A built `keras.Model` of one input of images.
        images: [b, h, w, c], or one [h, w, c], in the units that `preprocess` or the model takes.
        layer: Its name at any depth.
        alpha_norm, total_variation: Strengths ≥ 0; 0 turns each off. Deep layers need more of them.
        steps: Updates, or iterations of L-BFGS.
        optimizer: A name, one of `keras.optimizers`, or `"l-bfgs"` (extra `classic`).
        learning_rate: Of an optimizer given by name, in pixels of 0…255; None: 4.
        bounds: (low, high) of the images, each a number or one per channel; None: those of what the model takes, where
            they are known, 0…255 with `preprocess`.
        preprocess: A function from images to what the model takes; None: images are that.
        seed: Of the noise.
        verbose: 1 shows a bar. Ctrl-C ends it with the images of that step.

    Returns:
        An `OptimizedImages`: images [b, h, w, c]; history `"features"`, the distance, and the weighted `"alpha_norm"`
        and `"total_variation"` where they are on.

    Raises:
        ValueError: on a layer that does not exist or is 0 for an image, images of another form or range, and arguments
            out of range.

    >>> inputs = keras.Input((4, 4, 1))
    >>> model = keras.Model(inputs, layers.Dense(3)(layers.Flatten(name="pixels")(inputs)))
    >>> invert_features(model, np.full((4, 4, 1), 0.5), "pixels", steps=2).image.shape
    (4, 4, 1)
    """
    check_differentiable(model)
    steps = checked_steps(steps)
    checked_strengths(alpha_norm=alpha_norm, total_variation=total_variation)
    optimizer = checked_optimizer(optimizer, learning_rate)
    images = checked_images(model, images, preprocess)
    scale = pixel_scale(model, preprocess, bounds, images)
    probe = Probe(model, (layer,), preprocess=scale.before(preprocess), logits=False)

    (name,) = probe.names
    features = ops.cast(probe(scale.to_pixels(images)).activations[name], "float32")
    energies = _sums(ops.square(features))
    if not np.all(ops.convert_to_numpy(energies) > 0):
        dead = int(np.argmin(ops.convert_to_numpy(energies)))
        raise ValueError(f"The layer {name!r} is 0 everywhere for image {dead}: there is nothing to invert.")
    strengths = {"alpha_norm": alpha_norm, "total_variation": total_variation}
    penalties = {"alpha_norm": norm, "total_variation": variation}
    names = [each for each, strength in strengths.items() if strength]

    def terms(look, features, energies):
        found = ops.cast(look.activations[name], "float32")
        columns = [_sums(ops.square(found - features)) / energies]
        columns += [strengths[each] * penalties[each](look.images) for each in names]
        return ops.stack(columns, axis=1)

    run = probe.with_gradients(terms)

    def loss(pixels, step):
        values, gradient, _ = run(pixels, features, energies)
        return ops.convert_to_numpy(values), ops.convert_to_numpy(gradient)

    noise = NOISE * np.random.default_rng(seed).standard_normal(images.shape)
    start = np.clip(127.5 + noise, 0, 255).astype("float32")
    pixels, rows = minimize(loss, start, steps, optimizer=optimizer, verbose=verbose)
    history = {each: rows[..., index] for index, each in enumerate(("features", *names))}
    return OptimizedImages(scale.from_pixels(pixels), history)


def _sums(values):
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))
