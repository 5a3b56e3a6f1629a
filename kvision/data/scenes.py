"""Generated images of objects on noisy backgrounds, with boxes and exact masks; scenes of one's own cut-outs."""

import colorsys

import numpy as np
import PIL.Image

from kvision.data.geometry import boxes_of_masks, check_size

VISIBLE = 0.5  # the fraction of an object that later ones leave visible, at least
EMPTY = 0.05  # the fraction of images without an object
CLUTTER = 0.4  # size of a piece of clutter, as a fraction of a cut-out's sides


def scenes(
    cutouts,
    labels,
    num_images,
    image_size=(128, 128),
    max_objects=4,
    sides=(0.2, 0.5),
    clutter=0,
    seed=0,
    masks=False,
):
    """Images with cut-outs pasted in at random positions, sizes and colours, as arrays in the data contract.

    Objects overlap: a mask is the visible part of an object, at least half of it, and the box encloses that part. One
    image in twenty is empty. An image depends on the cut-outs, `seed` and its index alone.

    Args:
        cutouts: [n, h, w] in 0…255: how much of each pixel is the object, such as MNIST's digits. Pixels that are at
            least half object belong to the mask.
        labels: [n] integers from 0, the class of each cut-out.
        num_images: Number of images.
        image_size: (height, width) in pixels, at least 16.
        max_objects: Objects per image, at most, and rows of the targets.
        sides: Smallest and largest height of a pasted cut-out, as fractions of the image's shorter side, in (0, 1].
        clutter: Pieces of cut-outs scattered under the objects of each image, which belong to no class.
        seed: Of everything.
        masks: Whether to give the masks.

    Returns:
        Images [num_images, height, width, 3] float32 of 0…255, and targets: a dict of `boxes`, `labels`, `crowd`,
        `area` (of what is visible), `image_size`, `scale`, `image_id` and, with `masks`, `masks`
        [num_images, max_objects, height, width] uint8. `tf.data.Dataset.from_tensor_slices((images, targets)).batch(8)`
        makes batches of them.

    Raises:
        ValueError: on cut-outs or labels of another form, and on sizes or numbers that are too small.

    >>> bars = np.full((1, 12, 4), 255)
    >>> images, targets = scenes(bars, [0], num_images=2, image_size=(64, 64))
    >>> images.shape, targets["boxes"].shape
    ((2, 64, 64, 3), (2, 4, 4))
    """
    cutouts, labels = np.asarray(cutouts), np.asarray(labels)
    if cutouts.ndim != 3 or labels.shape != cutouts.shape[:1] or not len(labels):
        raise ValueError(
            f"scenes: cutouts must be [n, h, w] with one label each, n at least 1; got cutouts {cutouts.shape} and "
            f"labels {labels.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(
            f"scenes: labels must be integers from 0; got {labels.dtype} from {labels.min():g}. Padding rows "
            "of the targets get the label -1 by themselves."
        )
    if not 0 < sides[0] <= sides[1] <= 1:
        raise ValueError(f"scenes: sides are fractions of the image, 0 < smallest <= largest <= 1; got {sides}.")
    blank = np.flatnonzero((cutouts < 128).all(axis=(1, 2)))
    if blank.size:
        raise ValueError(
            f"scenes: {blank.size} cut-outs show nothing, no pixel of theirs reaches 128 (first: {blank[0]}). Cut-outs "
            "are in 0…255; are these in 0…1?"
        )
    alphas = [PIL.Image.fromarray(cutout.astype("uint8")) for cutout in cutouts]

    def pasted(rng, index, piece=None):
        """The window of a cut-out, or of a piece of it, the pixels that are the object, and how to paint them."""
        alpha = alphas[index] if piece is None else alphas[index].crop(piece)
        height = max(6, round(float(rng.uniform(*sides)) * min(image_size) * (1 if piece is None else CLUTTER)))
        sides_of_paste = (height, _scaled_width(alpha, height))
        size = [min(side, limit) for side, limit in zip(sides_of_paste, image_size, strict=True)]
        alpha = np.asarray(alpha.resize(size[::-1], PIL.Image.Resampling.BILINEAR), "float32") / 255

        def paint(region):
            colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.6, 1.0)))
            region += alpha[..., None] * (colour - region)

        return random_window(rng, size, image_size), alpha >= 0.5, paint

    def make_image(rng):
        image = background(rng, image_size)
        num_objects = number_of_objects(rng, max_objects)
        for _ in range(clutter):
            index, (width, height) = rng.integers(len(labels)), alphas[0].size
            left, top = rng.integers(0, [max(1, round((1 - CLUTTER) * side)) for side in (width, height)])
            piece = left, top, left + round(CLUTTER * width), top + round(CLUTTER * height)
            window, _, paint = pasted(rng, index, piece)
            paint(image[window])

        def draw():
            index = rng.integers(len(labels))
            return int(labels[index]), *pasted(rng, index)

        return image, *compose(image, draw, num_objects)

    return generated("scenes", num_images, image_size, max_objects, seed, masks, make_image)


def _scaled_width(image, height):
    """The width of an image that is scaled to a height."""
    return max(1, round(image.size[0] * height / image.size[1]))


def generated(family, num_images, image_size, max_objects, seed, masks, make_image):
    """Arrays in the data contract; `make_image(rng)` gives an image, its labels and the masks of what is visible."""
    check_size(family, image_size)
    for name, value, least in (
        ("num_images", num_images, 0),
        ("image_size", min(image_size), 16),
        ("the largest number of objects", max_objects, 1),
    ):
        if value < least:
            raise ValueError(f"{family}: {name} must be at least {least}, got {value}.")
    images = np.empty((num_images, *image_size, 3), "float32")
    targets = {
        "boxes": np.zeros((num_images, max_objects, 4), "float32"),
        "labels": np.full((num_images, max_objects), -1, "int32"),
        "crowd": np.zeros((num_images, max_objects), "int32"),
        "area": np.zeros((num_images, max_objects), "float32"),
        "image_size": np.tile(np.array(image_size, "int32"), (num_images, 1)),
        "scale": np.ones(num_images, "float32"),
        "image_id": np.arange(num_images, dtype="int64"),
    }
    if masks:
        targets["masks"] = np.zeros((num_images, max_objects, *image_size), "uint8")
    for row in range(num_images):
        image, labels, visible = make_image(np.random.default_rng((seed, row)))
        n = len(labels)
        images[row] = np.clip(image, 0, 255)
        targets["labels"][row, :n] = labels
        targets["boxes"][row, :n] = boxes_of_masks(visible)
        targets["area"][row, :n] = visible.sum(axis=(1, 2))
        if masks:
            targets["masks"][row, :n] = visible
    return images, targets


def background(rng, image_size):
    """A dark, noisy background, lighter towards the bottom."""
    image = 8 * rng.standard_normal((*image_size, 3), "float32") + rng.uniform(0, 60, 3).astype("float32")
    return image + np.linspace(0, rng.uniform(0, 50), image_size[0], dtype="float32")[:, None, None]


def number_of_objects(rng, max_objects):
    return 0 if rng.random() < EMPTY else rng.integers(1, max_objects + 1)


def random_window(rng, size, image_size):
    """A random window of this size in an image, as slices."""
    corner = [int(rng.integers(0, whole - side + 1)) for whole, side in zip(image_size, size, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))


def compose(image, draw, num_objects):
    """Paint objects onto `image`; a draw that hides too much of an earlier object is rejected.

    `draw()` gives a label, a window, which of its pixels are the object, and `paint(region)`, which changes the window.

    Returns:
        The labels, and masks [n, height, width] of what is visible of each.
    """
    labels, visible, areas = [], np.zeros((0, *image.shape[:2]), bool), []
    for _ in range(4 * num_objects):  # some draws are rejected
        if len(labels) == num_objects:
            break
        label, window, inside, paint = draw()
        remaining = visible.copy()
        remaining[:, *window] &= ~inside
        if not inside.any() or (remaining.sum(axis=(1, 2)) < VISIBLE * np.array(areas)).any():
            continue
        mask = np.zeros(image.shape[:2], bool)
        mask[window] = inside
        visible = np.concatenate([remaining, mask[None]])
        areas.append(inside.sum())
        labels.append(label)
        paint(image[window])
    return labels, visible
