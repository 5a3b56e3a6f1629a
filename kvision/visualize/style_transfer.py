"""An image with the content of one and the style of another.

Gatys, Ecker & Bethge, "A Neural Algorithm of Artistic Style" (2015) and "Image Style Transfer Using Convolutional
Neural Networks" (2016): the loss of content (equation 1), Gram matrices (3), the loss of style (4, 5), their weighted
sum (7), average pooling instead of max pooling, L-BFGS. The start from the content image, and conv4_2 and conv1_1 to
conv5_1 after their ReLU, are those of the code they published. Deviations: both losses are means where the paper sums,
which for style is the same (a Gram matrix is divided by its positions) and for content divides by the number of values,
so that weights hold at any size; with `normalize` the outputs of each layer are divided by their mean over the two
images, where the paper scales each filter by its mean over ImageNet; pixels out of their range are clipped at the end.
"""

import keras
import numpy as np
from keras import ops

from kvision.relus import relu_attribute
from kvision.visualize.descent import (
    LBFGS,
    OptimizedImages,
    checked_optimizer,
    checked_steps,
    checked_strengths,
    layer_weights,
    minimize,
)
from kvision.visualize.image_priors import total_variation as variation
from kvision.visualize.images import check_differentiable, checked_images
from kvision.visualize.pixels import pixel_scale
from kvision.visualize.places import find_place, places
from kvision.visualize.probe import Probe

MEAN = 1e-8  # least mean of a layer's outputs that normalises them


def style_transfer(
    model,
    content,
    style,
    *,
    content_layers=None,
    style_layers=None,
    content_weight=1.0,
    style_weight=100.0,
    total_variation=0.0,
    start="content",
    normalize=True,
    pooling=None,
    steps=200,
    optimizer=LBFGS,
    learning_rate=None,
    bounds=None,
    preprocess=None,
    seed=None,
    verbose=0,
):
    """The image whose outputs of content layers are those of one image, and whose Gram matrices those of another.

    What is made small is `content_weight` · Σ w ½ mean (F − P)² + `style_weight` · Σ w ¼ mean (G − A)², with outputs F
    and P of the image and the content image, and Gram matrices G and A of the image and the style image.

    Args:
        model: A built `keras.Model` of one input of images, such as a VGG-19 with ImageNet weights, of this library or
            of `keras.applications`, without its top; on `keras.Input((None, None, 3))` it takes any size.
        content: Image [h, w, c], in the units that `preprocess` or the model takes.
        style: Image [h, w, c]; of another size where the model takes any.
        content_layers, style_layers: Names at any depth, which weigh the same and add up to 1, or `{name: weight}`;
            None: of a VGG the second ReLU of the fourth stage, and the first of each of the five.
        content_weight, style_weight: ≥ 0; their ratio decides.
        total_variation: Strength ≥ 0 of the penalty on differences of neighbours, x in −1…1; 0 turns it off.
        start: `"content"`, `"noise"`, with which the style has more say, or an image as large as the content, such as
            that of a run before.
        normalize: Whether the outputs of each layer are divided by their mean over both images, so that weights hold
            for any network.
        pooling: `"average"` instead of max pooling while this runs, `"max"` as it is; None: average where there is any.
        steps: Iterations of L-BFGS, each of about one gradient, or updates.
        optimizer: `"l-bfgs"` (extra `classic`), the name of an optimizer, or one of `keras.optimizers`.
        learning_rate: Of an optimizer given by name, in pixels of 0…255; None: 4.
        bounds: (low, high) of the images, each a number or one per channel; None: those of what the model takes, where
            they are known, 0…255 with `preprocess`.
        preprocess: A function from images to what the model takes; None: images are that.
        seed: Of the noise.
        verbose: 1 shows a bar. Ctrl-C ends it with the image of that step.

    Returns:
        An `OptimizedImages`: `image` [h, w, c]; history with the weighted loss of each layer, `"content/<layer>"` and
        `"style/<layer>"`, and `"total_variation"` where it is on.

    Raises:
        ValueError: on a layer that does not exist, a model without known layers where none are given, images of another
            form or range, and arguments out of range or without effect.
        ImportError: on L-BFGS without SciPy.

    >>> inputs = keras.Input((None, None, 3))
    >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs))
    >>> content, style = np.full((8, 8, 3), 0.5), np.full((6, 9, 3), 0.9)
    >>> style_transfer(model, content, style, content_layers="conv", style_layers="conv", steps=1).image.shape
    (8, 8, 3)
    """
    check_differentiable(model)
    steps = checked_steps(steps)
    checked_strengths(content_weight=content_weight, style_weight=style_weight, total_variation=total_variation)
    if not content_weight and not style_weight:
        raise ValueError("content_weight and style_weight are both 0: expected one above.")
    optimizer = checked_optimizer(optimizer, learning_rate)
    content, style = (_one_image(model, image, preprocess) for image in (content, style))
    scale = pixel_scale(model, preprocess, bounds, content)
    pixel_scale(model, preprocess, (scale.low, scale.high), style)  # raises where it lies outside
    first = _first(model, content, start, scale, preprocess, seed)
    weights = _weights(model, content_layers, style_layers, content_weight, style_weight)
    changes = pooling_changes(model, pooling)

    layers = tuple(dict.fromkeys(layer for _, layer in weights))
    probe = Probe(model, layers, preprocess=scale.before(preprocess), logits=False, changes=changes)
    names = dict(zip(layers, probe.names, strict=True))
    weights = {(kind, names[layer]): weight for (kind, layer), weight in weights.items()}
    contents, styles = (probe(scale.to_pixels(image)).activations for image in (content, style))
    factors = {name: _factor(name, contents[name], styles[name], normalize) for name in probe.names}
    targets = {}
    for kind, name in weights:
        found = (contents if kind == "content" else styles)[name]
        targets[f"{kind}/{name}"] = _target(kind, found, factors[name])

    def terms(look, targets, factors):
        columns = []
        for (kind, name), weight in weights.items():
            measured = _half_content if kind == "content" else _quarter_style
            columns.append(weight * measured(look.activations[name], targets[f"{kind}/{name}"], factors[name]))
        if total_variation:
            columns.append(total_variation * variation(look.images))
        return ops.stack(columns, axis=1)

    run = probe.with_gradients(terms)

    def loss(pixels, step):
        values, gradient, _ = run(pixels, targets, factors)
        return ops.convert_to_numpy(values), ops.convert_to_numpy(gradient)

    pixels, rows = minimize(loss, first, steps, optimizer=optimizer, bounded=False, verbose=verbose)
    history = {name: rows[..., index] for index, name in enumerate(targets)}
    if total_variation:
        history["total_variation"] = rows[..., -1]
    return OptimizedImages(scale.from_pixels(pixels), history)


def gram_matrix(activations, others=None):
    """The mean over positions of the products of every two channels: [b, channels, channels].

    Args:
        activations: [b, …, channels].
        others: What they are multiplied by, of the same shape; None: themselves.

    >>> [float(value) for value in gram_matrix(np.reshape([1.0, 2.0, 3.0, 4.0], (1, 2, 2)))[0].numpy().ravel()]
    [5.0, 7.0, 7.0, 10.0]
    """
    first, second = (
        ops.reshape(ops.cast(each, "float32"), (each.shape[0], -1, each.shape[-1]))
        for each in (activations if others is None else others, activations)
    )
    return ops.matmul(ops.transpose(first, (0, 2, 1)), second) / first.shape[1]


def vgg_layers(model):
    """`(content layer, style layers)` of a VGG by the places of its ReLUs among its max poolings, as the paper has it.

    Raises:
        ValueError: on a model of another form.
    """
    stages = [[]]
    for path, layer in places(model).items():
        if _is_max_pooling(layer):
            stages.append([])
        elif relu_attribute(layer) if isinstance(layer, keras.Layer) else type(layer).__name__ == "Relu":
            stages[-1].append(path)
    if len(stages) < 5 or not all(stages[:5]) or len(stages[3]) < 2:
        raise ValueError(
            f"{model.name} is no VGG, of which the layers are known: give content_layers=, such as one of the fourth "
            "stride, and style_layers=, one or more of each stride."
        )
    return stages[3][1], [stage[0] for stage in stages[:5]]


def pooling_changes(model, pooling=None):
    """What turns the max pooling of a model into average pooling: `(object, attribute, value)`, to be replaced.

    Args:
        model: A built `keras.Model`.
        pooling: `"average"`, `"max"` for no changes, or None: as many as there are.

    Raises:
        ValueError: on another name, and on `"average"` where there is no max pooling.
    """
    if pooling not in (None, "average", "max"):
        raise ValueError(f"pooling is 'average', 'max' or None: got {pooling!r}.")
    pools = {id(layer): layer for layer in places(model).values() if _is_max_pooling(layer)}
    if pooling == "average" and not pools:
        raise ValueError(f"{model.name} has no max pooling, which pooling='average' would replace: give None.")
    return [] if pooling == "max" else [(pool, "call", _average(pool)) for pool in pools.values()]


def _average(pool):
    def call(inputs):
        strides = pool.pool_size if pool.strides is None else pool.strides  # Keras on JAX converts None twice
        return ops.average_pool(inputs, pool.pool_size, strides, pool.padding, pool.data_format)

    return call


def _is_max_pooling(layer):
    is_bare = not isinstance(layer, keras.Layer) and type(layer).__name__ == "MaxPool"
    return is_bare or isinstance(layer, keras.layers.MaxPooling2D)


def _one_image(model, image, preprocess):
    images = checked_images(model, image, preprocess)
    if len(images) != 1:
        raise ValueError(f"style_transfer takes one content and one style image: got {len(images)}.")
    return images


def _first(model, content, start, scale, preprocess, seed):
    """The pixels to begin with."""
    if isinstance(start, str):
        if start not in ("content", "noise"):
            raise ValueError(f"start is 'content', 'noise' or an image: got {start!r}.")
        is_noise = start == "noise"
        noise = np.random.default_rng(seed).uniform(0, 255, content.shape).astype("float32")
        return noise if is_noise else scale.to_pixels(content)
    start = _one_image(model, start, preprocess)
    if start.shape != content.shape:
        raise ValueError(f"start is {list(start.shape[1:])}: expected the shape of content, {list(content.shape[1:])}.")
    pixel_scale(model, preprocess, (scale.low, scale.high), start)
    return scale.to_pixels(start)


def _weights(model, content_layers, style_layers, content_weight, style_weight):
    """`{("content" | "style", layer): weight}` of what counts."""
    if content_layers is None or style_layers is None:
        known = vgg_layers(model)
        content_layers = known[0] if content_layers is None else content_layers
        style_layers = known[1] if style_layers is None else style_layers
    weights = {}
    for kind, layers, weight in (("content", content_layers, content_weight), ("style", style_layers, style_weight)):
        for layer, each in layer_weights(f"{kind}_layers", layers).items():
            path, _ = find_place(model, layer[0] if isinstance(layer, tuple) else layer)
            if weight:
                weights[kind, layer if isinstance(layer, str | tuple) else path] = weight * each
    return weights


def _factor(name, of_content, of_style, normalize):
    """What the outputs of a layer are multiplied by."""
    if not normalize:
        return ops.ones(())
    sizes = [np.abs(ops.convert_to_numpy(ops.cast(each, "float32"))) for each in (of_content, of_style)]
    mean = sum(each.sum() for each in sizes) / sum(each.size for each in sizes)
    if not mean > MEAN:
        raise ValueError(f"The layer {name!r} is 0 everywhere in both images: choose another.")
    return ops.convert_to_tensor(np.float32(1 / mean))


def _target(kind, activations, factor):
    """What a loss compares: the outputs of a layer, or their Gram matrix."""
    scaled = ops.cast(activations, "float32") * factor
    return scaled if kind == "content" else gram_matrix(scaled)


def _half_content(activations, target, factor):
    return 0.5 * _means(ops.square(ops.cast(activations, "float32") * factor - target))


def _quarter_style(activations, target, factor):
    """¼ mean (G − A)². Its gradient goes through one side of the product of G, doubled: half the work, as G − A is
    symmetric."""
    values = ops.cast(activations, "float32")
    squares = _means(ops.square(gram_matrix(values, ops.stop_gradient(values)) * ops.square(factor) - target))
    return 0.25 * (2.0 * squares - ops.stop_gradient(squares))


def _means(values):
    return ops.mean(values, axis=tuple(range(1, len(values.shape))))
