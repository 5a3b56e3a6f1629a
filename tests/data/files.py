"""Data sets on disk in the formats of COCO, VOC and YOLO, written from arrays in the data contract."""

import json

import numpy as np
import PIL.Image

NAMES = ("disc", "square", "triangle")


def save_images(images, folder):
    """PNG files of images [n, h, w, 3]; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{row:03}.png" for row in range(len(images))]
    for name, image in zip(names, images, strict=True):
        PIL.Image.fromarray(np.round(image).astype("uint8")).save(folder / name)
    return names


def runs_as_polygons(mask):
    """A polygon for every run of pixels in a row: together they are exactly the mask."""
    polygons = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]).astype(int)))
        for left, right in edges.reshape(-1, 2).tolist():
            polygons.append([left, y, right, y, right, y + 1, left, y + 1])
    return polygons


def staircase(mask):
    """One polygon around a mask whose rows are one run each, one below the other; None for another mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    spans = [np.flatnonzero(mask[y]) for y in rows]
    if len(rows) != np.ptp(rows) + 1 or any(len(span) != np.ptp(span) + 1 for span in spans):
        return None
    right = [(span[-1] + 1, y + step) for y, span in zip(rows, spans, strict=True) for step in (0, 1)]
    left = [(span[0], y + step) for y, span in zip(rows, spans, strict=True) for step in (0, 1)]
    return [float(number) for point in right + left[::-1] for number in point]


def run_lengths(mask):
    """COCO's uncompressed run lengths."""
    pixels = mask.T.ravel()
    counts, value, length = [], 0, 0
    for pixel in pixels.tolist():
        if pixel != value:
            counts.append(length)
            value, length = pixel, 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def compressed(runs):
    """COCO's compressed text of run lengths."""
    text = ""
    for index, count in enumerate(runs["counts"]):
        number = count - (runs["counts"][index - 2] if index > 2 else 0)
        while True:
            bits, number = number & 31, number >> 5
            more = not ((number == -1 and bits & 16) or (number == 0 and not bits & 16))
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return {"size": runs["size"], "counts": text}


SEGMENTATIONS = {
    "polygons": runs_as_polygons,
    "run lengths": run_lengths,
    "compressed run lengths": lambda mask: compressed(run_lengths(mask)),
}


def objects(targets, row):
    """The rows of an image that hold an object."""
    return np.flatnonzero(targets["labels"][row] >= 0).tolist()


def coco_content(targets, names, size, segmentation="polygons", ids=(7, 3, 90)):
    """The content of a COCO file; label k is the category of the k-th lowest id."""
    height, width = size
    annotations = []
    for row in range(len(names)):
        for index in objects(targets, row):
            left, top, right, bottom = targets["boxes"][row, index].tolist()
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": 500 + row,
                    "category_id": sorted(ids)[targets["labels"][row, index]],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(targets["area"][row, index]),
                    "iscrowd": int(index == 2),
                    "segmentation": SEGMENTATIONS[segmentation](targets["masks"][row, index]),
                }
            )
    by_id = dict(zip(sorted(ids), NAMES, strict=True))
    return {
        "images": [
            {"id": 500 + row, "file_name": name, "height": height, "width": width} for row, name in enumerate(names)
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": by_id[key]} for key in ids],
    }


def write_coco(folder, images, targets, segmentation="polygons"):
    """`annotations.json` and a folder `images`; the content of the JSON."""
    names = save_images(images, folder / "images")
    content = coco_content(targets, names, images.shape[1:3], segmentation)
    (folder / "annotations.json").write_text(json.dumps(content))
    return content


def write_voc(folder, images, targets, devkit=True):
    """XML files and images, in the folders of the VOC devkit or side by side."""
    xml, jpegs = (folder / name if devkit else folder for name in ("Annotations", "JPEGImages"))
    names = save_images(images, jpegs)
    xml.mkdir(exist_ok=True)
    height, width = images.shape[1:3]
    for row, name in enumerate(names):
        parts = [f"<filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>"]
        for index in objects(targets, row):
            left, top, right, bottom = targets["boxes"][row, index].astype(int)
            parts.append(
                f"<object><name>{NAMES[targets['labels'][row, index]]}</name><difficult>{int(index == 1)}</difficult>"
                f"<bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
                f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"
                "<part><name>corner</name><bndbox><xmin>1</xmin></bndbox></part></object>"
            )
        (xml / name.replace("png", "xml")).write_text(f"<annotation>{''.join(parts)}</annotation>")
    return names


def write_yolo(folder, images, targets, polygons=False):
    """Folders `images/train` and `labels/train`, and `classes.txt`."""
    names = save_images(images, folder / "images" / "train")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    height, width = images.shape[1:3]
    for row, name in enumerate(names):
        lines = []
        for index in objects(targets, row):
            left, top, right, bottom = targets["boxes"][row, index].astype("float64")
            numbers = [
                (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height
            ]  # fmt: skip
            if polygons:
                numbers = np.reshape(staircase(targets["masks"][row, index]), (-1, 2)) / (width, height)
            lines.append(f"{targets['labels'][row, index]} {' '.join(map(repr, np.ravel(numbers).tolist()))}\n")
        (labels / name.replace("png", "txt")).write_text("".join(lines))
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return names
