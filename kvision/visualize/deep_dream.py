"""DeepDream: an image changed until it shows more of what layers see in it.

Mordvintsev, Olah & Tyka, "Inceptionism: Going Deeper into Neural Networks" (2015), and the notebook they published with
it, whose octaves, jitter, step and objective these are. Deviations: images that become smaller are antialiased; several
layers are weighed by the means of their squares.
"""

import contextlib

import numpy as np
from keras import ops

from kvision._keras import graph_of
from kvision.ops import resize_bilinear
from kvision.visualize.descent import checked_steps, layer_weights
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.pixels import pixel_scale
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress

OCTAVES = 4  # where the model takes any size and the image allows it
SMALLEST = 64  # pixels of the shorter side, to which octaves go by themselves
JITTER_PART = 7  # the shift is at most a seventh of the shorter side: 32 pixels of 224


def deep_dream(
    model,
    images,
    layers,
    *,
    octaves=None,
    octave_scale=1.4,
    steps=10,
    step_size=1.5,
    jitter=32,
    bounds=None,
    preprocess=None,
    seed=None,
    verbose=0,
):
    """Images that were changed so that the squares of layers' outputs grow, from coarse to fine.

    In each octave the detail found so far is enlarged and added to the image at that size; then the image goes `steps`
    steps along the gradient of ½ · mean a², of `step_size` on average over its pixels.

    Args:
        model: A built `keras.Model` of one input of images; on `keras.Input((None, None, 3))` it takes any size.
        images: [b, h, w, c], or one [h, w, c], in the units that `preprocess` or the model takes.
        layers: The name of a layer at any depth, several, or `{name: weight}`.
        octaves: Sizes; None: 4 where the model takes any size and the smallest keeps 64 pixels, else less.
        octave_scale: From one size to the next, > 1.
        steps: In each octave.
        step_size: The mean change of a pixel in a step, in pixels of 0…255, > 0.
        jitter: Pixels by which the image is shifted at most in each step, at random, and at most a seventh of its
            shorter side; 0 turns it off.
        bounds: (low, high) that the images keep, each a number or one per channel; None: those of what the model takes,
            where they are known, 0…255 with `preprocess`.
        preprocess: A function from images to what the model takes; None: images are that.
        seed: Of the jitter.
        verbose: 1 shows a bar. Ctrl-C ends it with the detail found so far.

    Returns:
        Images of the shape given, float32, in their units.

    Raises:
        ValueError: on a layer that does not exist, octaves of a model of one size, images of another form or range, and
            arguments out of range.

    >>> inputs = keras.Input((None, None, 3))
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs))
    >>> deep_dream(model, np.full((16, 24, 3), 0.5), "conv", steps=1).shape
    (16, 24, 3)
    """
    check_differentiable(model)
    weights = layer_weights("layers", layers)
    steps = checked_steps(steps)
    if not step_size > 0 or not octave_scale > 1 or not isinstance(jitter, int | np.integer) or jitter < 0:
        raise ValueError(
            "step_size is above 0, octave_scale above 1, jitter a whole number of at least 0: got "
            f"{step_size!r}, {octave_scale!r} and {jitter!r}."
        )
    is_single = np.ndim(images) == 3
    images = checked_images(model, images, preprocess)
    scale = pixel_scale(model, preprocess, bounds, images)
    sizes = _sizes(model, images.shape[1:3], octaves, octave_scale)
    probe = Probe(model, tuple(weights), preprocess=scale.before(preprocess), logits=False)
    names = dict(zip(probe.names, weights.values(), strict=True))

    def score(look):
        means = [weight * _half_mean_square(look.activations[name]) for name, weight in names.items()]
        return sum(means[1:], means[0])

    run = probe.with_gradients(score)
    rng = np.random.default_rng(seed)
    whole = scale.to_pixels(images)
    base = pixels = _resized(whole, sizes[0])
    iterations = ((size, step) for size in sizes for step in range(steps))
    with contextlib.closing(progress(iterations, len(sizes) * steps, verbose)) as running:
        for size, step in running:
            if step == 0:
                detail = _resized(pixels - base, size)
                base = _resized(whole, size)
                pixels = np.clip(base + detail, 0, 255)
            limit = min(jitter, min(size) // JITTER_PART)
            shift = rng.integers(-limit, limit + 1, 2) if limit else (0, 0)
            _, gradient, _ = run(np.roll(pixels, shift, (1, 2)))
            gradient = np.roll(ops.convert_to_numpy(gradient), np.negative(shift), (1, 2))
            size_of_it = np.abs(gradient).mean(axis=(1, 2, 3), keepdims=True)
            if not np.all(np.isfinite(gradient)) or not np.all(size_of_it > 0):
                raise ValueError(
                    f"{model.name}: the gradient of {', '.join(names)} is 0 or not finite. The layers are not active "
                    "in these images: choose others."
                )
            pixels = np.clip(pixels + step_size * gradient / size_of_it, 0, 255).astype("float32")
    if base.shape != whole.shape:  # ended early
        pixels = np.clip(whole + _resized(pixels - base, sizes[-1]), 0, 255)
    dreamt = scale.from_pixels(pixels)
    return dreamt[0] if is_single else dreamt


def _sizes(model, size, octaves, octave_scale):
    """Heights and widths from the smallest to that of the image."""
    inputs = getattr(graph_of(model), "inputs", None) or ()
    is_static = bool(inputs) and None not in inputs[0].shape[1:3]
    if octaves is None:
        octaves = 1
        while not is_static and octaves < OCTAVES and min(size) / octave_scale**octaves >= SMALLEST:
            octaves += 1
    if not isinstance(octaves, int | np.integer) or octaves < 1:
        raise ValueError(f"octaves must be a whole number of at least 1, got {octaves!r}.")
    if is_static and octaves > 1:
        raise ValueError(
            f"{model.name} takes images of {size[0]}x{size[1]} alone: expected octaves=1, got {octaves}. For octaves "
            "build it on keras.Input((None, None, channels)): keras.models.clone_model(model, input_tensors=…) and "
            "set_weights."
        )
    sizes = [tuple(round(side / octave_scale**octave) for side in size) for octave in reversed(range(octaves))]
    if min(sizes[0]) < JITTER_PART:
        raise ValueError(
            f"The smallest of {octaves} octaves of {size[0]}x{size[1]} is {sizes[0][0]}x{sizes[0][1]}: give fewer."
        )
    return sizes


def _resized(pixels, size):
    if pixels.shape[1:3] == tuple(size):
        return pixels
    return np.array(ops.convert_to_numpy(resize_bilinear(ops.convert_to_tensor(pixels), size)))


def _half_mean_square(activations):
    values = ops.square(ops.cast(activations, "float32"))
    return 0.5 * ops.mean(values, axis=tuple(range(1, len(values.shape))))
