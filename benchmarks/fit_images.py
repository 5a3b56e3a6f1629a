"""JPEG files of four classes for the rows of `fit`, made once, alike for every peer, in `.cache/fit-images`.

Generated photos of 256x256 pixels, tinted by their class; a quarter of them bear another class's label. So the loss
falls within a few epochs and then stays near what no network can know: 0.84, by which one sees that all peers train.
"""

import folders
import numpy as np
import photos
import PIL.Image
from harness import QUICK

COUNT, SIDE, CLASSES, WRONG = (64 if QUICK else 256), 256, 4, 0.25
RESIZED, CROP, BATCH, EPOCHS, RATE = 36, 32, 32, 2, 0.02
TAUGHT = 1 if QUICK else 6  # epochs until the losses are held against each other
TINTS = np.array([[40, 0, -40], [-40, 0, 40], [0, 40, 0], [0, -40, 0]])


def folder():
    """The folder of the classes, made where it is missing."""
    return folders.made_once(f"fit-images-{COUNT}", _write)


def _write(home):
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        label = index % CLASSES
        pixels = np.clip(photos.photo(rng, SIDE, SIDE) + TINTS[label], 0, 255).astype("uint8")
        if rng.random() < WRONG:
            label = (label + int(rng.integers(1, CLASSES))) % CLASSES
        path = home / "abcd"[label] / f"{index:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(path, quality=90)
