"""Images of shapes with boxes and exact masks: data to test and to try a detector on, without a download."""

import colorsys

import numpy as np

from kvision.data.scenes import background, compose, generated, number_of_objects, random_window

# Each form says which points (x, y) of −1…1 lie inside, each texture how light they are.
FORMS = {
    "disc": lambda x, y: x**2 + y**2 <= 1,
    "square": lambda x, y: np.full(np.broadcast_shapes(x.shape, y.shape), True),
    "triangle": lambda x, y: 2 * np.abs(x) <= 1 + y,
    "cross": lambda x, y: np.minimum(np.abs(x), np.abs(y)) <= 0.33,
    "ring": lambda x, y: np.abs(x**2 + y**2 - 0.65) <= 0.35,
    "diamond": lambda x, y: np.abs(x) + np.abs(y) <= 1,
    "half-moon": lambda x, y: (x**2 + y**2 <= 1) & ((x - 0.7) ** 2 + y**2 > 0.6),
    "hourglass": lambda x, y: np.abs(x) <= np.abs(y) + 0.1,
}
TEXTURES = {
    "": lambda x, y: np.ones(np.broadcast_shapes(x.shape, y.shape)),
    "striped": lambda x, y: np.where((3 * (y + 1)) % 2 < 1, 1.0, 0.4) + 0 * x,
    "chequered": lambda x, y: np.where((np.floor(2.5 * (x + 1)) + np.floor(2.5 * (y + 1))) % 2 < 1, 1.0, 0.4),
    "shaded": lambda x, y: 0.4 + 0.3 * (x + 1) + 0 * y,
}
LOOKS = len(FORMS) * len(TEXTURES)
SIDES = (0.16, 0.48)  # of a shape, as fractions of the image's shorter side


def shape_names(classes):
    """Names of the first classes of `shapes`: forms, then textures, then colours.

    >>> shape_names(3)
    ('disc', 'square', 'triangle')
    """
    names = []
    for label in range(classes):
        form, texture = list(FORMS)[label % len(FORMS)], list(TEXTURES)[label // len(FORMS) % len(TEXTURES)]
        hue = _hue(label, classes)
        colour = "" if hue is None else f"hue {round(360 * hue)}"
        names.append(" ".join(filter(None, (texture, form, colour))))
    return tuple(names)


def shapes(num_images, image_size=(128, 128), classes=3, max_shapes=4, seed=0, masks=False):
    """Bright shapes on dark, noisy backgrounds, as arrays in the data contract.

    Shapes overlap: a mask is the visible part of a shape, at least half of it, and the box encloses that part. One
    image in twenty is empty. Up to 8 classes differ in form, up to 32 in form and texture, more in colour as well;
    below that colours mean nothing. An image depends on `seed` and its index alone.

    Args:
        num_images: Number of images.
        image_size: (height, width) in pixels, at least 16.
        classes: Number of classes, at least 1; their names are `shape_names(classes)`.
        max_shapes: Shapes per image, at most, and rows of the targets.
        seed: Of everything.
        masks: Whether to give the masks.

    Returns:
        Images [num_images, height, width, 3] float32 of 0…255, and targets: a dict of `boxes`, `labels`, `crowd`,
        `area` (of what is visible), `image_size`, `scale`, `image_id` and, with `masks`, `masks`
        [num_images, max_shapes, height, width] uint8. `tf.data.Dataset.from_tensor_slices((images, targets)).batch(8)`
        makes batches of them.

    Raises:
        ValueError: on sizes or numbers that are too small.

    >>> images, targets = shapes(2, image_size=(64, 64))
    >>> images.shape, targets["boxes"].shape
    ((2, 64, 64, 3), (2, 4, 4))
    """
    if classes < 1:
        raise ValueError(f"shapes: classes must be at least 1, got {classes}.")

    def make_image(rng):
        image = background(rng, image_size)
        num_objects = number_of_objects(rng, max_shapes)

        def draw():
            label = int(rng.integers(classes))
            window, inside, light = _shape(rng, label, image_size)

            def paint(region):
                region[inside] = (light[..., None] * _colour(rng, label, classes) + rng.normal(0, 8, 3))[inside]

            return label, window, inside, paint

        return image, *compose(image, draw, num_objects)

    return generated("shapes", num_images, image_size, max_shapes, seed, masks, make_image)


def _shape(rng, label, image_size):
    """The window of a shape in the image, which of its pixels are inside, and their lightness."""
    form, texture = (
        list(FORMS.values())[label % len(FORMS)],
        list(TEXTURES.values())[label // len(FORMS) % len(TEXTURES)],
    )
    shorter = min(image_size)
    size = [max(6, round(float(side))) for side in rng.uniform(*SIDES, 2) * shorter]
    y, x = ((np.arange(length) * 2 + 1) / length - 1 for length in size)
    x, y = x[None], y[:, None]
    return random_window(rng, size, image_size), form(x, y), texture(x, y)


def _hue(label, classes):
    """The hue in [0, 1) of a class that has one of its own, else None."""
    hues = -(-classes // LOOKS)
    return None if hues == 1 else label // LOOKS / hues


def _colour(rng, label, classes):
    hue = _hue(label, classes)
    hue = rng.random() if hue is None else hue
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.4, 0.9), rng.uniform(0.75, 1.0)))
