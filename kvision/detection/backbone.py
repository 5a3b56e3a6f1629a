"""A detector's backbone, its named maps and the pyramid on them; and which norm is frozen, which trains."""

import dataclasses
import os
import re

import keras

from kvision.errors import choose
from kvision.layers import FeaturePyramid
from kvision.weights import saved_layers

TRAINABLE_NORMS = ("group", "batch", "sync_batch", None)

_TRUNK = "layers/functional/layers/"  # of a detector in a Keras file


@dataclasses.dataclass(frozen=True)
class Norms:
    """How the parts of a detector are normalised and initialised.

    Args:
        backbone: Of a backbone built here.
        inner: Of neck and heads.
        initializer: Of the neck.
    """

    backbone: str | None
    inner: str | None
    initializer: object


def choose_norms(family, *, backbone, weights, backbone_norm, norm, initializer="auto", batch_norms=False):
    """What `"auto"` means.

    A Keras file of a whole detector says it: what was saved with group norm is built with it, batch norm is frozen.
    Where other weights are loaded (`weights=`, a backbone of one's own, or a frozen one to load some into), batch norm
    is frozen, neck and heads have no norm, and the neck starts by Caffe2's and torchvision's initialization. From
    scratch, all of it trains: group norm everywhere and He initialization (He 2018, "Rethinking ImageNet
    Pre-training").

    Args:
        batch_norms: Whether neck and heads have batch norms in the published form. They are then frozen where weights
            of the whole detector are loaded, or the backbone is built to load some; beside a backbone of one's own they
            are fresh, and have group norm.

    Raises:
        ValueError: on an unknown name, a norm for a backbone that is already built, or frozen norms in fresh parts.
    """
    loaded = backbone is not None or weights is not None or backbone_norm == "frozen_batch"
    if backbone_norm != "auto" and backbone is not None:
        raise ValueError(
            f"{family}: backbone_norm={backbone_norm!r} is of a backbone built here, but backbone= is given, with "
            "norms of its own. Leave one of the two out."
        )
    if norm == "frozen_batch" and not batch_norms:
        raise ValueError(
            f'{family}: norm="frozen_batch" would freeze neck and heads at their initial statistics. Pass '
            'backbone_norm="frozen_batch" for the backbone; norm is "auto", "group", "batch", "sync_batch" or None.'
        )
    known = {kind: kind for kind in TRAINABLE_NORMS}
    frozen = {"frozen_batch": "frozen_batch"}
    auto = ("frozen_batch", None) if loaded else ("group", "group")
    if batch_norms and loaded:
        whole = weights is not None or backbone is None
        auto = ("frozen_batch", "frozen_batch" if whole else "group")
    auto = _saved_norms(weights) or auto
    if batch_norms and auto[1] == "batch":  # of a file: its statistics hold, in neck and heads as in the backbone
        auto = (auto[0], "frozen_batch")
    inner = choose(f"norm of {family}", {"auto": auto[1]} | known | (frozen if batch_norms else {}), norm)
    known |= {"auto": auto[0]} | frozen
    if isinstance(initializer, str) and initializer == "auto":
        initializer = "lecun_uniform" if loaded else "he"
    return Norms(choose(f"backbone_norm of {family}", known, backbone_norm), inner, initializer)


def _saved_norms(weights):
    """(norm of the backbone, norm of neck and heads) of the detector in a Keras file; None for other weights."""
    layers = saved_layers(weights) if isinstance(weights, str | os.PathLike) else ()
    if not any(place.startswith(_TRUNK) for place in layers):
        return None
    kinds = {"group_normalization": "group", "batch_normalization": "batch"}
    found = {True: set(), False: set()}
    for place in layers:
        in_backbone = place.startswith(_TRUNK) and place.count("/layers/") > 1  # a model inside the trunk
        found[in_backbone].add(kinds.get(re.sub(r"_\d+$", "", place.rsplit("/", 1)[-1])))
    backbone, inner = (next(iter(names - {None}), None) for names in (found[True], found[False]))
    return "frozen_batch" if backbone == "batch" else backbone, inner


def backbone_preprocessing(family, backbone, preprocess, default):
    """The function that prepares images for a backbone.

    Args:
        family: Name of the builder, for the message.
        backbone: The one the user gave; None where the builder makes it.
        preprocess: A function, None, or `"auto"`: what the backbone carries as `preprocessing`, or `default` for the
            builder's own.
        default: Of the builder's own backbone.
    """
    if preprocess is None or callable(preprocess):
        return preprocess
    if preprocess != "auto":
        raise ValueError(f"{family}: preprocess is a function of images in 0…255, None or 'auto': got {preprocess!r}.")
    if backbone is None:
        return default
    if not isinstance(backbone, keras.Model):
        raise ValueError(
            f"{family}: backbone is a keras.Model that returns a dict of named levels, or None for the paper's: got "
            f"{backbone!r}. Build one, such as kvision.applications.ResNet50(include_top=False, features=(...), …)."
        )
    if getattr(backbone, "preprocessing", None) is None:
        raise ValueError(
            f"{family}: {getattr(backbone, 'name', backbone)!r} does not say how its images are prepared. Pass "
            "preprocess=, a function of RGB images in 0…255 (kvision.applications.resnet.preprocess_input for ImageNet "
            "weights of torchvision), or None if it takes 0…255 as they are."
        )
    return backbone.preprocessing


def backbone_maps(family, backbone, levels, images, preprocess=None, any_stride=False):
    """The named maps of a detector's backbone.

    Args:
        family: Name of the builder, for the message.
        backbone: A `keras.Model` that returns a dict of named levels.
        levels: The names needed.
        images: The input tensor.
        preprocess: A function from RGB images of 0…255 to what the backbone expects, or None.
        any_stride: Whether a map may have another stride than its level's name says, as dilated ones do.

    Raises:
        ValueError: if the backbone does not return these levels, was built for images of another size, or returns a
            level of another stride than its name says.
    """
    returned = getattr(backbone, "output", None)
    if not isinstance(returned, dict) or not set(levels) <= set(returned):
        got = sorted(returned) if isinstance(returned, dict) else type(backbone).__name__
        raise ValueError(
            f"{family} needs a backbone that returns {', '.join(levels)}: got {got}. Build ours with "
            f"include_top=False, features={tuple(levels)!r}, or cut one: kvision.applications.cut(model, "
            "{level: layer name, …})."
        )
    size, built_for = tuple(images.shape[1:]), tuple(backbone.inputs[0].shape[1:])
    if any(theirs not in (None, ours) for ours, theirs in zip(size, built_for, strict=True)):
        raise ValueError(f"{family} has input_shape={size}, its backbone {built_for}: build both for one size.")
    maps = backbone(images if preprocess is None else preprocess(images))
    for level in () if any_stride else levels:
        _check_stride(family, level, tuple(maps[level].shape[1:3]), size[:2])
    return {level: maps[level] for level in levels}


def _check_stride(family, level, cells, pixels):
    expected = tuple(-(-side // 2 ** int(level[1:])) for side in pixels)
    if any(got is None or abs(got - want) > 1 for got, want in zip(cells, expected, strict=True)):
        raise ValueError(
            f"{family}: level {level} has stride {2 ** int(level[1:])}, so its map of an image of {pixels} has about "
            f"{expected} cells: the backbone's {level} has {cells}. Give each map the name of its stride."
        )


def feature_pyramid(maps, channels, extra, norms, name="backbone.fpn"):
    """The pyramid of a detector, `{"P3": …, …}`; see `kvision.layers.FeaturePyramid`."""
    return FeaturePyramid(channels, extra=extra, norm=norms.inner, initializer=norms.initializer, name=name)(maps)


def split_at_c4(family, backbone, bins):
    """A backbone up to C4, and a copy of what lies between C4 and C5, weights included, for `bins` x `bins` regions."""
    returned = getattr(backbone, "output", None)
    if not isinstance(returned, dict) or not {"C4", "C5"} <= set(returned):
        got = sorted(returned) if isinstance(returned, dict) else type(backbone).__name__
        raise ValueError(
            f"{family} needs a backbone that returns C4 and C5, of which the last stage becomes the head: got {got}. "
            'Build ours with include_top=False, features=("C4", "C5").'
        )
    lower = keras.Model(backbone.inputs[0], {"C4": returned["C4"]}, name=backbone.name)
    stage = keras.Model(returned["C4"], returned["C5"])
    copy = keras.models.clone_model(stage, input_tensors=keras.Input((bins, bins, returned["C4"].shape[-1])))
    for ours, theirs in zip(copy.weights, stage.weights, strict=True):
        ours.assign(theirs)
    return lower, copy


def sizes_of(levels):
    """(height, width) of each level."""
    return [tuple(level.shape[1:3]) for level in levels.values()]
