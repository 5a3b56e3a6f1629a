"""Generated pictures of objects on noisy grounds, with boxes and exact masks; scenes of one's own cut-outs."""

import colorsys

import numpy as np
import PIL.Image

from kvision.data.geometry import boxes_of_masks

VISIBLE = 0.5  # the share of an object that later ones leave uncovered, at least
EMPTY = 0.05  # the share of pictures without an object
CLUTTER = 0.4  # of a cut-out's sides: the size of the pieces that mean nothing


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
    """Pictures with cut-outs pasted in at random places, sizes and colours, as arrays in the data contract.

    Objects overlap: a mask is what is seen of an object, and the box lies around it; at least half of each is seen. One
    picture in twenty is empty. A picture depends on the cut-outs, `seed` and its number alone.

    Args:
        cutouts: [n, h, w] in 0…255: how much of each pixel is the object, such as MNIST's digits. What is at least half
            the object belongs to the mask.
        labels: [n] whole numbers from 0, the class of each cut-out.
        num_images: Number of pictures.
        image_size: (height, width) in pixels, at least 16.
        max_objects: Objects a picture, at most, and rows of the targets.
        sides: Smallest and largest height of a pasted cut-out, as shares of the picture's shorter side, in (0, 1].
        clutter: Pieces of cut-outs strewn under the objects of each picture, which belong to no class.
        seed: Of everything.
        masks: Whether to give the masks.

    Returns:
        Images [num_images, height, width, 3] float32 of 0…255, and targets: a dict of `boxes`, `labels`, `crowd`,
        `area` (of what is seen), `image_size`, `scale`, `image_id` and, with `masks`, `masks` [num_images, max_objects,
        height, width] uint8. `tf.data.Dataset.from_tensor_slices((images, targets)).batch(8)` makes batches of them.

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
            f"scenes: labels must be whole numbers from 0; got {labels.dtype} from {labels.min():g}. Rows of targets "
            "that hold nothing get the label -1 by themselves."
        )
    if not 0 < sides[0] <= sides[1] <= 1:
        raise ValueError(f"scenes: sides are shares of the picture, 0 < smallest <= largest <= 1; got {sides}.")
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
        size = [min(side, length) for side, length in zip((height, _across(alpha, height)), image_size, strict=True)]
        alpha = np.asarray(alpha.resize(size[::-1], PIL.Image.Resampling.BILINEAR), "float32") / 255

        def paint(ground):
            colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.6, 1.0)))
            ground += alpha[..., None] * (colour - ground)

        return window(rng, size, image_size), alpha >= 0.5, paint

    def picture(rng):
        image = ground(rng, image_size)
        wanted = number_of_objects(rng, max_objects)
        for _ in range(clutter):
            index, (width, height) = rng.integers(len(labels)), alphas[0].size
            left, top = rng.integers(0, [max(1, round((1 - CLUTTER) * side)) for side in (width, height)])
            piece = left, top, left + round(CLUTTER * width), top + round(CLUTTER * height)
            place, _, paint = pasted(rng, index, piece)
            paint(image[place])

        def draw():
            index = rng.integers(len(labels))
            return int(labels[index]), *pasted(rng, index)

        return image, *compose(image, draw, wanted)

    return generated("scenes", num_images, image_size, max_objects, seed, masks, picture)


def _across(picture, height):
    """The width of a picture enlarged to a height."""
    return max(1, round(picture.size[0] * height / picture.size[1]))


def generated(family, num_images, image_size, max_objects, seed, masks, picture):
    """Arrays in the data contract out of `picture(rng)`, which gives an image, its labels and what is seen of each."""
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
        image, labels, seen = picture(np.random.default_rng((seed, row)))
        n = len(labels)
        images[row] = np.clip(image, 0, 255)
        targets["labels"][row, :n] = labels
        targets["boxes"][row, :n] = boxes_of_masks(seen)
        targets["area"][row, :n] = seen.sum(axis=(1, 2))
        if masks:
            targets["masks"][row, :n] = seen
    return images, targets


def ground(rng, image_size):
    """A dark, noisy ground, lighter towards the bottom."""
    image = 8 * rng.standard_normal((*image_size, 3), "float32") + rng.uniform(0, 60, 3).astype("float32")
    return image + np.linspace(0, rng.uniform(0, 50), image_size[0], dtype="float32")[:, None, None]


def number_of_objects(rng, most):
    return 0 if rng.random() < EMPTY else rng.integers(1, most + 1)


def window(rng, size, image_size):
    """A random place for something of this size in a picture, as slices."""
    corner = [int(rng.integers(0, whole - side + 1)) for whole, side in zip(image_size, size, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(corner, size, strict=True))


def compose(image, draw, wanted):
    """Paint objects onto `image`, each where it leaves enough of those before.

    `draw()` gives a label, a window, which of its pixels are the object, and `paint(ground)`, which changes the window.

    Returns:
        The labels, and what is seen of each as masks [n, height, width].
    """
    labels, seen, whole = [], np.zeros((0, *image.shape[:2]), bool), []
    for _ in range(4 * wanted):  # some find no place
        if len(labels) == wanted:
            break
        label, place, inside, paint = draw()
        left = seen.copy()
        left[:, *place] &= ~inside
        if not inside.any() or (left.sum(axis=(1, 2)) < VISIBLE * np.array(whole)).any():
            continue
        mask = np.zeros(image.shape[:2], bool)
        mask[place] = inside
        seen = np.concatenate([left, mask[None]])
        whole.append(inside.sum())
        labels.append(label)
        paint(image[place])
    return labels, seen
