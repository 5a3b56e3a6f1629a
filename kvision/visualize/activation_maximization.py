"""The image that excites a class or a unit most.

Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks" (2014), section 2: the score before the softmax with
an L2 penalty, from a grey image. Yosinski et al., "Understanding Neural Networks Through Deep Visualization" (2015),
section 4: blur every few steps. Mahendran & Vedaldi, "Visualizing Deep Convolutional Neural Networks Using Natural
Pre-images" (2016): total variation and jitter. Deviations: Adam by default, where they take gradient ascent; penalties
are means over pixels measured from mid grey; Yosinski's clipping of small pixels is left out.
"""

import logging

import numpy as np
from keras import ops

from kvision._keras import graph_of
from kvision.visualize.descent import (
    LBFGS,
    OptimizedImages,
    checked_optimizer,
    checked_steps,
    checked_strengths,
    minimize,
)
from kvision.visualize.image_priors import alpha_norm, blurred
from kvision.visualize.image_priors import total_variation as variation
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.pixels import pixel_scale
from kvision.visualize.places import check_built
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress
from kvision.visualize.targets import check_unit, class_indices

NOISE = (8.0, 32.0, 64.0, 128.0)  # deviations in pixels of 0…255 of a start; the next one while a unit is dead at it
MOST_JITTER = 8  # pixels, of images of 128 and more; of smaller ones a 16th: layers that see positions need the place


def activation_maximization(
    model,
    unit,
    layer=None,
    *,
    image_size=None,
    steps=256,
    l2=1.0,
    total_variation=30.0,
    blur=1.0,
    blur_every=8,
    jitter=None,
    optimizer="adam",
    learning_rate=None,
    bounds=None,
    preprocess=None,
    seed=None,
    verbose=0,
):
    """Images that excite classes or units of a layer most, from grey with a little noise.

    Where a unit is dead at its start, which ends all ways up, it gets a stronger noise, three times at most. The log
    `kvision` names units whose score has no gradient at the end.

    What is raised is the logit of a class, or the unit's output, a channel by its mean over positions, minus `l2` times
    the mean of x² and `total_variation` times that of the squared differences of neighbours, x in −1…1.

    Args:
        model: A built `keras.Model` of one input of images.
        unit: A class index; of a layer a channel, or the index of one value as a tuple (row, column, channel); a list,
            range or array of these, one image each, made in one batch; of the outputs also a function → a score of
            each image [b].
        layer: Its name at any depth; None: the outputs of the model.
        image_size: (height, width) where the model takes any, (height, width, channels) where it does not tell the
            channels, as a class of its own; None: its own.
        steps: Updates.
        l2, total_variation: Strengths ≥ 0, in units of the score; 0 turns each off.
        blur: Standard deviation in pixels of the Gaussian that the image goes through each `blur_every` steps, but not
            in the last of them; 0 turns it off.
        jitter: Pixels by which the image is shifted at most in each step, at random; 0 turns it off. None: a 16th of
            the shorter side, at most 8; 0 with `"l-bfgs"`.
        optimizer: A name, or one of `keras.optimizers`; `"l-bfgs"` with `jitter=0` and `blur=0` (extra `classic`).
        learning_rate: Of an optimizer given by name, in pixels of 0…255; None: 4.
        bounds: (low, high) that the images keep, each a number or one per channel; None: those of what the model takes,
            where they are known, 0…255 with `preprocess`.
        preprocess: A function from images to what the model takes; None: images are that.
        seed: Of noise and jitter.
        verbose: 1 shows a bar. Ctrl-C ends it with the images of that step.

    Returns:
        An `OptimizedImages`: images [units, h, w, c]; history `"score"`, and the weighted `"l2"` and
        `"total_variation"` where they are on.

    Raises:
        ValueError: on a unit or a layer that does not exist, a model that is not built or takes no images, and
            arguments out of range.

    >>> inputs = keras.Input((4, 4, 1))
    >>> model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    >>> found = activation_maximization(model, [0, 2], bounds=(0, 1), steps=2)
    >>> found.images.shape, found.history["score"].shape
    ((2, 4, 4, 1), (3, 2))
    """
    check_built(model)
    check_differentiable(model)
    steps = checked_steps(steps)
    size = _image_shape(model, image_size)
    if jitter is None:
        jitter = 0 if isinstance(optimizer, str) and optimizer == LBFGS else min(MOST_JITTER, min(size[:2]) // 16)
    checked_strengths(l2=l2, total_variation=total_variation, blur=blur, jitter=jitter)
    if not isinstance(jitter, int | np.integer) or not isinstance(blur_every, int | np.integer) or blur_every < 1:
        raise ValueError(
            f"jitter is a whole number of pixels, blur_every one of at least 1: got {jitter!r}, {blur_every!r}."
        )
    optimizer = checked_optimizer(optimizer, learning_rate, lbfgs=not jitter and not blur)
    scale = pixel_scale(model, preprocess, bounds)
    units = _as_list(unit)
    if layer is None and any(isinstance(each, tuple) for each in units):
        raise ValueError(
            f"A tuple is the index of one value of a layer: got {unit!r}. Give classes as a list, or layer=."
        )
    if not units:
        raise ValueError("activation_maximization: there is no unit, give at least one.")

    noise, shifts = np.random.default_rng(seed).spawn(2)  # of their own: an image is the same alone and among others
    shape = (len(units), *size)
    start = _grey(NOISE[0], noise, shape)
    checked_images(model, start, scale.before())  # the size alone
    probe = Probe(model, () if layer is None else (layer,), preprocess=scale.before(preprocess))
    score, arguments = _unit_score(probe, start, units, layer)
    strengths = {"l2": l2, "total_variation": total_variation}
    penalties = {"l2": lambda pixels: alpha_norm(pixels, 2), "total_variation": variation}
    names = [name for name, strength in strengths.items() if strength]

    def terms(look, scale, *arguments):
        columns = [-ops.cast(score(look, *arguments), "float32")]
        columns += [scale * strengths[name] * penalties[name](look.images) for name in names]
        return ops.stack(columns, axis=1)

    run = probe.with_gradients(terms)
    off, on = (ops.convert_to_tensor(np.float32(scale)) for scale in (0, 1))  # one trace of scores with and without

    def is_dead(pixels):
        return ~np.any(ops.convert_to_numpy(run(pixels, off, *arguments)[1]), axis=(1, 2, 3))

    def loss(pixels, step):
        shift = shifts.integers(-jitter, jitter + 1, 2) if jitter and step is not None else (0, 0)
        values, gradient, _ = run(np.roll(pixels, shift, (1, 2)), on, *arguments)
        gradient = ops.convert_to_numpy(gradient)
        return ops.convert_to_numpy(values), np.roll(gradient, np.negative(shift), (1, 2))

    def project(pixels, step):
        is_due = blur and (step + 1) % blur_every == 0 and step + blur_every < steps
        return blurred(pixels, blur) if is_due else pixels

    waking = progress(NOISE[1:])  # which traces: a Ctrl-C there gives the images as they begin
    for deviation in waking:
        if not (dead := is_dead(start)).any():
            break
        start[dead] = _grey(deviation, noise, shape)[dead]
    steps = 0 if waking.stopped else steps
    waking.close()
    pixels, rows = minimize(loss, start, steps, optimizer=optimizer, project=project, verbose=verbose)
    if (dead := is_dead(pixels)).any():
        logging.getLogger("kvision").warning(
            "activation_maximization: the score of unit %s has no gradient at the end, as where a ReLU is 0: its image "
            "says nothing. Try another seed, or look with maximally_activating_patches whether it is ever active.",
            ", ".join(str(each) for each, is_so in zip(units, dead, strict=True) if is_so),
        )
    history = {"score": -rows[..., 0]} | {name: rows[..., 1 + index] for index, name in enumerate(names)}
    return OptimizedImages(scale.from_pixels(pixels), history)


def _as_list(unit):
    """The units of a list, a range or an array; a number, a tuple or a function alone."""
    if isinstance(unit, tuple | str) or callable(unit) or not hasattr(unit, "__len__"):
        return [unit]
    if hasattr(unit, "shape"):
        unit = ops.convert_to_numpy(unit).tolist()
        return [
            tuple(each) if isinstance(each, list) else each for each in (unit if isinstance(unit, list) else [unit])
        ]
    return list(unit)


def _grey(deviation, noise, shape):
    return np.clip(127.5 + deviation * noise.standard_normal(shape), 0, 255).astype("float32")


def _image_shape(model, image_size):
    inputs = getattr(graph_of(model), "inputs", None) or ()
    known = tuple(inputs[0].shape[1:]) if len(inputs) else (None, None, None)
    if len(known) != 3:
        listed = ", ".join(map(str, known))
        raise ValueError(f"{model.name} takes [b, {listed}]: expected a model that takes images [b, h, w, c].")
    wanted = "(height, width)" if known[2] else "(height, width, channels)"
    given = (None,) * 3 if image_size is None else tuple(image_size)
    given = (*given, None) if len(given) == 2 else given
    size = [k if g is None else g for k, g in zip(known, given, strict=True)] if len(given) == 3 else [None]
    if any(not isinstance(side, int | np.integer) or side < 1 for side in size):
        takes = "takes images of any size" if known[2] else "does not tell the size and the channels of its images"
        raise ValueError(f"{model.name} {takes}: give image_size={wanted}, got {image_size!r}.")
    return tuple(int(side) for side in size)


def _unit_score(probe, start, units, layer):
    """`(score, arguments)` of one unit for each image."""
    if any(callable(unit) for unit in units):
        if layer is not None or len(units) > 1:
            raise ValueError("A function scores the outputs of the model, for one image: give no layer and one unit.")
        return (lambda look: units[0](look.outputs)), ()
    if layer is None:
        classes = class_indices(probe, start, np.asarray(units))
        return _by_index(lambda look: look.outputs), (ops.convert_to_tensor(classes),)
    (name,) = probe.names
    shape = tuple(probe(start).activations[name].shape)
    units = [check_unit(name, shape, unit) for unit in units]
    if len({len(unit) for unit in units}) > 1:
        raise ValueError(f"The units of {name!r} are channels or indices of one value, not both: got {units}.")
    if len(units[0]) == 1:
        index = [unit[0] for unit in units]
        read = _by_index(lambda look: _channel_means(look.activations[name]))
    else:
        index = [int(np.ravel_multi_index(unit, shape[1:])) for unit in units]
        read = _by_index(lambda look: ops.reshape(look.activations[name], (len(units), -1)))
    return read, (ops.convert_to_tensor(np.asarray(index, "int32")),)


def _channel_means(activations):
    axes = tuple(range(1, len(activations.shape) - 1))
    return ops.mean(ops.cast(activations, "float32"), axis=axes) if axes else activations


def _by_index(read):
    return lambda look, index: ops.take_along_axis(read(look), index[:, None], axis=1)[:, 0]
