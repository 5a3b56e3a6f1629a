"""JPEG files for the benchmarks of input pipelines: made once, alike for every peer, in `.cache/photos`.

Noise whose amplitude falls with the frequency, as that of photos does, so that the files are about as large. Two
folders, one a class, and for detectors a file in COCO's format with six polygons an image.
"""

import json

import folders
import numpy as np
import PIL.Image

COUNT, LABELLED, OBJECTS = 256, 64, 6  # images, those of them with objects, objects each
EPOCHS = 3  # a step


def folder():
    """The folder of the classes, made where it is missing."""
    return folders.made_once("photos", _write)


def files():
    """Their paths, in order."""
    return sorted(map(str, folder().glob("*/*.jpg")))


def _write(home):
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(COUNT):
        height, width = int(rng.integers(350, 450)), int(rng.integers(440, 560))
        name = f"{'ab'[index % 2]}/{index:05d}.jpg"
        (home / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(photo(rng, height, width)).save(home / name, quality=90)
        if index >= LABELLED:
            continue
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for _ in range(OBJECTS):
            annotations.append(_object(rng, len(annotations), index, height, width))
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, 9)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (home / "annotations.json").write_text(json.dumps(content))


def photo(rng, height, width):
    """[height, width, 3] uint8."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.exp(2j * np.pi * rng.random((3, *frequency.shape))) / np.maximum(frequency, 1 / width) ** 1.1
    grey, *colours = np.fft.irfft2(spectrum, (height, width))
    pixels = np.stack([grey + 0.4 * colour for colour in (colours[0], colours[1], -colours[0])], axis=-1)
    return np.clip(127 + 60 * (pixels - pixels.mean()) / pixels.std(), 0, 255).astype("uint8")


def _object(rng, number, image, height, width):
    """An octagon."""
    sides = rng.uniform(40, 160, 2)
    centre = rng.uniform(sides / 2, np.array([width, height]) - sides / 2)
    angles = np.arange(8) * np.pi / 4
    points = centre + np.stack([np.cos(angles), np.sin(angles)], axis=-1) * sides / 2
    return {
        "id": number,
        "image_id": image,
        "category_id": int(rng.integers(1, 9)),
        "bbox": [*(centre - sides / 2).tolist(), *sides.tolist()],
        "area": float(sides.prod() * 0.7),
        "iscrowd": 0,
        "segmentation": [points.ravel().tolist()],
    }
