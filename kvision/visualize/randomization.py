"""Cascading randomization: whether a technique's maps follow the weights of the network that they are to explain.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 4.1: layers are re-initialised one after another from
the top down, and the maps compared with those of the trained network.
Deviation: the verdict, a limit on the rank correlation when half of the layers are random; the paper shows the curves.
"""

import dataclasses
import functools
import inspect

import keras
import numpy as np
from keras import ops

from kvision._keras import own_variables
from kvision.visualize.images import checked_images
from kvision.visualize.places import find_place, places
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress
from kvision.visualize.targets import class_indices, in_chunks

MOST_SIMILAR = 0.5  # rank correlation with half of the layers random, from which on maps fail
WORDS = {True: "ok", False: "FAILED", None: "UNKNOWN"}


@dataclasses.dataclass(frozen=True)
class RandomizationTest:
    """The result of `randomization_test`. `str()` of it is one line; its truth is `ok`.

    Args:
        ok: Whether the maps follow the weights; None where there is nothing to compare, as the network is dead or gives
            what is not finite.
        sentence: The similarity that decided it, and what it means.
        layers: Paths of the layers in the order they were re-initialised, from the top down.
        similarities: Of the maps to those of the trained network, after each of them: [layers, b]; NaN where a map is
            not finite.
    """

    ok: bool | None
    sentence: str
    layers: tuple
    similarities: np.ndarray

    def __bool__(self):
        return bool(self.ok)

    def __str__(self):
        return f"{WORDS[self.ok]:8}{self.sentence}"


def randomization_test(technique, model, images, *, layers=None, similarity=None, seed=0, verbose=0, **options):
    """Re-initialise layers from the top down and compare the maps of a technique with those of the trained network.

    Adebayo 2018, section 4.1. A technique whose maps hardly change shows the image, whatever the network has learned,
    and is said to fail; of guided backpropagation that is known. The weights are put back, on errors and Ctrl-C too.

    Args:
        technique: `function(model, images, **options)` → an array with a map for each image, such as
            `kvision.visualize.gradient`. If it takes a `target` and none is given, it gets the classes that the trained
            network predicts.
        model: A built and trained `keras.Model`.
        images: As the technique takes them.
        layers: Names of the layers after which to compare; None: all with kernels, each time with a new trace of the
            network, so choose some of a deep one. Those between them are re-initialised, too.
        similarity: `function(maps, other maps)` → [b]; None: Spearman's rank correlation of absolute values.
        seed: Of the new weights. They come from the initializers of the layers; weights without one are drawn from a
            normal distribution of the mean and deviation that they had.
        verbose: 1 shows a progress bar.
        **options: For the technique, such as `preprocess=` or `target=`.

    Returns:
        A `RandomizationTest`. Ctrl-C gives that of the layers done, and raises where there is none yet.

    Raises:
        ValueError: on a model that is not built or has no kernels, a layer that does not exist, and a technique that
            gives no array with a row for each image; and what the technique raises.

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(8), layers.Dense(3)])
    >>> found = randomization_test(kvision.visualize.gradient, model, np.ones((2, 4, 4, 1)))
    >>> len(found.layers), found.similarities.shape
    (2, (2, 2))
    """
    probe = Probe(model, preprocess=_option(technique, options, "preprocess"))
    cascade = _cascade(model, layers)
    if not cascade:
        raise ValueError(f"{model.name} has no layer with a kernel, whose weights the test re-initialises.")
    is_free = all(_option(technique, options, name) is None for name in ("target", "unit"))
    if is_free and "target" in inspect.signature(technique).parameters:
        checked = checked_images(model, images, probe.preprocess)
        options["target"] = class_indices(probe, checked, None, _option(technique, options, "batch_size") or 32)
    compare = similarity or rank_correlation
    variables = list({id(v): v for _, group in cascade for _, v in group}.values())
    before = [ops.convert_to_numpy(variable.value) for variable in variables]
    done, similarities = [], []
    running = progress([(None, ()), *cascade], verbose=verbose)
    try:
        for number, (path, group) in enumerate(running):
            for index, (place, variable) in enumerate(group):
                variable.assign(_fresh(place, variable, _seed(seed, number - 1, index)))
            maps = technique(model, images, **options)
            if running.stopped:  # these may be a part of the maps
                break
            maps = _checked_maps(maps, images)
            if path is None:
                original = maps
            else:
                finite = _are_finite(original) & _are_finite(maps)
                similarities.append(np.where(finite, compare(original, maps), np.nan))
                done.append(path)
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    if not done:
        raise KeyboardInterrupt
    similarities = np.stack(similarities)
    function = technique.func if isinstance(technique, functools.partial) else technique
    name = getattr(function, "__name__", "The technique")
    nothing = _nothing_to_compare(name, original, probe, images)
    ok, sentence = _verdict(name, similarities) if nothing is None else (None, nothing)
    return RandomizationTest(ok, sentence, tuple(done), similarities)


def rank_correlation(maps, others):
    """Spearman's rank correlation of the absolute values of two maps of each image: [b], in [−1, 1].

    Equal values share their mean rank. With a constant map it is 0, or 1 where both are constant.

    Args:
        maps, others: Two arrays [b, …] of the same shape.

    >>> rank_correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[-1.0, 4.0, 9.0]])).round(6).tolist()
    [1.0]
    """
    return np.array([_correlation(_ranks(one), _ranks(two)) for one, two in zip(maps, others, strict=True)])


def _ranks(values):
    _, index, counts = np.unique(np.abs(np.ravel(values)), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[index.ravel()]


def _correlation(one, two):
    one, two = one - one.mean(), two - two.mean()
    norms = np.linalg.norm(one) * np.linalg.norm(two)
    return float(one @ two / norms) if norms else float(not one.any() and not two.any())


def _option(technique, options, name):
    """What a technique gets as the argument `name`: out of `options`, or its default."""
    parameter = inspect.signature(technique).parameters.get(name)
    default = None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
    return options.get(name, default)


def _checked_maps(maps, images):
    """The maps of a technique as an array; the ValueError unless there is one for each image."""
    count = 1 if np.ndim(images) == 3 else len(images)
    if isinstance(maps, tuple) or np.ndim(maps) < 2 or len(maps) != count:
        got = type(maps).__name__ if isinstance(maps, tuple) or np.ndim(maps) == 0 else list(np.shape(maps))
        raise ValueError(f"A technique gives an array with a map for each of the {count} images: got {got}.")
    return np.asarray(maps)


def _cascade(model, names):
    """`[(path, [(layer, variable)])]` from the top down: which weights to draw anew before each comparison."""
    known, seen = {}, set()
    for path, place in places(model).items():
        if isinstance(place, keras.Layer) and id(place) not in seen and (weights := _weights(place)):
            seen.add(id(place))
            known[path] = [(place, variable) for variable in weights]
    if names is None:
        chosen = {path for path, group in known.items() if any(len(variable.shape) > 1 for _, variable in group)}
    else:
        chosen = {find_place(model, name)[0] for name in names}
        for path in chosen - known.keys():
            raise ValueError(f"The layer {path!r} of {model.name} has no weights to re-initialise: choose another.")
    cascade, waiting = [], []
    for path, group in reversed(known.items()):
        waiting = waiting + group
        if path in chosen:
            cascade.append((path, waiting))
            waiting = []
    return cascade


def _weights(layer):
    """The weights of a layer that training or an initializer made, and no statistics of the data it was adapted to."""
    return [
        variable
        for variable in own_variables(layer)
        if keras.backend.is_float_dtype(variable.dtype)
        and (variable.trainable or _initializer(layer, variable.name) is not None)
    ]


def _initializer(layer, weight):
    """The initializer of a weight, which Keras keeps under the name of the weight or that of its kind."""
    for name in (weight, weight.removesuffix("_kernel"), "depthwise" if weight == "kernel" else weight):
        initializer = getattr(layer, f"{name}_initializer", None)
        if isinstance(initializer, keras.initializers.Initializer):
            return initializer
    return None


def _fresh(layer, variable, seed):
    """New values of a weight, drawn with a seed."""
    initializer = _initializer(layer, variable.name)
    if initializer is not None:
        config = initializer.get_config()
        if "seed" in config:
            initializer = type(initializer).from_config({**config, "seed": seed})
        values = ops.convert_to_numpy(ops.cast(initializer(variable.shape, dtype=variable.dtype), "float32"))
        if values.ndim < 2 or values.std() > 0:
            return values
    values = ops.convert_to_numpy(ops.cast(variable.value, "float32"))
    return np.random.default_rng(seed).normal(values.mean(), values.std(), values.shape).astype("float32")


def _seed(*numbers):
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _are_finite(maps):
    """Whether each of the maps is: [b]."""
    return np.isfinite(maps).reshape(len(maps), -1).all(axis=1)


def _nothing_to_compare(name, maps, probe, images):
    """What is wrong with the trained network where it gives nothing to explain; None where that is not it."""

    def outputs(images):
        found = keras.tree.flatten(in_chunks(lambda chunk: probe(chunk).outputs, 32, images))
        return np.concatenate([each.reshape(len(images), -1) for each in found], axis=1)

    images = checked_images(probe.model, images, probe.preprocess)
    given = outputs(images)
    if broken := len(given) - int(_are_finite(given).sum()):
        return (
            f"{name} has nothing to explain: for {broken} of {len(images)} images the network gives values that are "
            "not finite. Look at its weights, and at what the images go through first (preprocess=)."
        )
    if all((one == one.flat[0]).all() for one in maps):
        shuffled = np.random.default_rng(0).permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)
        if (given == given[0]).all() and (outputs(shuffled) == given[0]).all():
            return (
                f"{name} has nothing to explain: the network is dead, it gives the same for all images and for noise. "
                "Look at its activations by `kvision.callbacks.DeadReLU`, and train it anew."
            )
    return None


def _verdict(name, similarities):
    number = (len(similarities) + 1) // 2
    similarity = float(similarities[number - 1].mean())
    layers = f"{number} of {len(similarities)} layers re-initialised from the top"
    if np.isnan(similarity):
        count = int(np.isnan(similarities[number - 1]).sum())
        return (
            None,
            f"With {layers} {name} gives maps that are not finite for {count} of {similarities.shape[1]} images.",
        )
    if similarity < MOST_SIMILAR:
        return True, f"{name} follows the weights: with {layers} its maps have a similarity of {similarity:.2f}."
    return False, (
        f"{name} does not follow the weights: with {layers} its maps still have a similarity of {similarity:.2f}, "
        f"expected below {MOST_SIMILAR}. They show the image, not what the network has learned: use another technique."
    )
