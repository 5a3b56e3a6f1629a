"""COCO's average precision of boxes: TOOL:IMAGES, with 100 detections an image and 80 classes.

Timed is what follows an epoch's predictions: from arrays of objects and detections to the twelve numbers. pycocotools
is given its ground truth ready indexed.
"""

import contextlib
import io

import harness
import numpy as np

FOUND, CLASSES, MOST, BATCH = 100, 80, 14, 16


def scene(images):
    """Arrays of the data contract: 1 to 14 objects a image of 640x640, and detections, a third of them near one."""
    rng = np.random.default_rng(0)

    def corners_and_sides(*shape):
        return rng.uniform(0, 400, (*shape, 2)), np.exp(rng.uniform(2.5, 5.3, (*shape, 2)))

    corners, sides = corners_and_sides(images, MOST)
    counts = rng.integers(1, MOST + 1, images)
    labels = np.where(np.arange(MOST) < counts[:, None], rng.integers(0, CLASSES, (images, MOST)), -1)
    near = rng.integers(0, counts[:, None], (images, FOUND))
    hit = rng.random((images, FOUND)) < 0.3
    found_corners, found_sides = corners_and_sides(images, FOUND)
    beside = np.take_along_axis(corners, near[..., None], 1) + 6 * rng.normal(size=(images, FOUND, 2))
    resized = np.take_along_axis(sides, near[..., None], 1) * np.exp(0.1 * rng.normal(size=(images, FOUND, 2)))
    found_corners = np.where(hit[..., None], beside, found_corners)
    found_sides = np.where(hit[..., None], resized, found_sides)
    guesses = rng.integers(0, CLASSES, (images, FOUND))
    targets = {"boxes": np.concatenate([corners, corners + sides], -1).astype("float32"), "labels": labels}
    detections = {
        "boxes": np.concatenate([found_corners, found_corners + found_sides], -1).astype("float32"),
        "scores": (0.5 * rng.random((images, FOUND)) + 0.3 * hit).astype("float32"),
        "labels": np.where(hit, np.take_along_axis(labels, near, 1), guesses),
    }
    return targets, detections


def by_kvision(images):
    def factory():
        from kvision.metrics import COCOAveragePrecision

        targets, detections = scene(images)

        def step():
            metric = COCOAveragePrecision(classes=CLASSES)
            for start in range(0, images, BATCH):
                rows = slice(start, start + BATCH)
                metric.update_state(
                    *({name: array[rows] for name, array in side.items()} for side in (targets, detections))
                )
            return metric.result()["AP"]

        return step, {"images": images}

    return factory


def by_pycocotools(images):
    def factory():
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        targets, detections = scene(images)
        boxes = targets["boxes"].astype("float64")
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(images)],
            "categories": [{"id": label} for label in range(CLASSES)],
            "annotations": [
                {
                    "id": number,
                    "image_id": int(image),
                    "category_id": int(targets["labels"][image, row]),
                    "bbox": [*boxes[image, row, :2], *(boxes[image, row, 2:] - boxes[image, row, :2])],
                    "area": float(np.prod(boxes[image, row, 2:] - boxes[image, row, :2])),
                    "iscrowd": 0,
                }
                for number, (image, row) in enumerate(np.argwhere(targets["labels"] >= 0), 1)
            ],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex()

        def step():
            corners, ends = np.split(detections["boxes"].astype("float64"), 2, axis=-1)
            image = np.broadcast_to(np.arange(images)[:, None], detections["labels"].shape)
            parts = (image[..., None], corners, ends - corners, detections["scores"][..., None])
            table = np.concatenate([*parts, detections["labels"][..., None]], -1).reshape(-1, 7)
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation = COCOeval(truth, truth.loadRes(table), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            return float(evaluation.stats[0])

        return step, {"images": images}

    return factory


CASES = {
    f"{tool}:{images}": build(images)
    for tool, build in (("kvision", by_kvision), ("pycocotools", by_pycocotools))
    for images in (5000, 100)
}

if __name__ == "__main__":
    harness.serve(CASES)
