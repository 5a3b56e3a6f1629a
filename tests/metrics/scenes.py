"""Targets and detections for the tests of average precision: written by hand, or random with all that may occur."""

import numpy as np


def padded(images, columns):
    """A batch of lists of rows, one list per image; the content of padding rows must not matter."""
    longest = max(len(rows) for rows in images) + 1
    batch = {name: np.full((len(images), longest, *shape), 7.25, dtype) for name, (shape, dtype) in columns.items()}
    batch["labels"][:] = -1
    for image, rows in enumerate(images):
        for index, row in enumerate(rows):
            for name, value in zip(columns, row, strict=True):
                batch[name][image, index] = value
    return batch


def targets(*images, **entries):
    """Each image a list of `(label, box)`."""
    return padded(images, {"labels": ((), "int32"), "boxes": ((4,), "float32")}) | entries


def detections(*images):
    """Each image a list of `(label, score, box)`."""
    return padded(images, {"labels": ((), "int32"), "scores": ((), "float32"), "boxes": ((4,), "float32")})


def random_scene(seed, images=12, classes=4, most=6, found=20, size=(96, 128), small=3):
    """Boxes and masks, some images empty on one side or both, ties among scores, exact hits, every optional entry.

    Returns:
        Targets and detections; objects [images, most], detections [images, found].
    """
    rng = np.random.default_rng(seed)
    height, width = size

    def boxes(*shape):
        corners = rng.uniform(0, 1, (*shape, 2)) * (width - small, height - small)
        sides = small * (np.array([width, height]) / small) ** rng.uniform(0, 1, (*shape, 2))
        return np.concatenate([corners, np.minimum(corners + sides, (width, height))], -1).astype("float32")

    truth = {"boxes": boxes(images, most), "labels": rng.integers(0, classes, (images, most)).astype("int32")}
    truth["labels"][rng.random((images, most)) < 0.3] = -1
    truth["labels"][[0, 1]] = -1
    truth["crowd"] = (rng.random((images, most)) < 0.2).astype("int32")
    truth["difficult"] = (rng.random((images, most)) < 0.3).astype("int32")
    truth["area"] = rng.uniform(10, 12000, (images, most)).astype("float32")
    truth["scale"] = rng.uniform(0.3, 3, images).astype("float32")
    truth["image_id"] = np.zeros(images, "int32")

    near = rng.integers(0, most, (images, found))
    guess = np.take_along_axis(truth["boxes"], near[..., None], 1)
    guess = guess + rng.normal(0, 1, guess.shape) * rng.choice([0.0, 1.0, 6.0], guess.shape[:2])[..., None]
    guess = np.where(rng.random((images, found, 1)) < 0.7, guess, boxes(images, found)).astype("float32")
    guess[..., 2:] = np.maximum(guess[..., 2:], guess[..., :2] + 1)
    labels = np.take_along_axis(truth["labels"], near, 1)
    labels = np.where(rng.random((images, found)) < 0.8, labels, rng.integers(0, classes + 1, (images, found)))
    labels[[0, 2]] = -1
    scores = np.round(rng.random((images, found)), 1).astype("float32")
    finds = {"boxes": guess, "labels": labels.astype("int32"), "scores": scores}
    truth["masks"], finds["masks"] = (silhouettes(rng, side["boxes"], size) for side in (truth, finds))
    return truth, finds


def silhouettes(rng, boxes_xyxy, size):
    """A mask [h, w] in each box: an ellipse with holes."""
    y, x = (axis + 0.5 for axis in np.indices(size))
    left, top, right, bottom = (boxes_xyxy[..., edge, None, None] for edge in range(4))
    across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    return ((across**2 + down**2 <= 1) & (rng.random(across.shape) < 0.95)).astype("uint8")
