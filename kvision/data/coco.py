"""COCO's files: one JSON with the images, the objects and the categories of a data set."""

import json
import math
import pathlib

from kvision.data.annotations import AnnotatedImage, Annotation, Problem, readable_sizes
from kvision.data.detection import detection_data, reader
from kvision.data.geometry import xywh_to_xyxy

PARTS = ("images", "annotations", "categories")


@reader
def coco(annotations, images, *, classes=None, check="full", **options):
    """Read a data set in COCO's format; what cannot be used is left out and reported, never fatal.

    An image that is left out takes its objects with it; one that has none left is an image without objects.

    Lin et al. 2014 (https://arxiv.org/abs/1405.0312); the format is documented at https://cocodataset.org/#format-data.
    Categories, whatever their ids, become labels from 0 in the order of their ids. Boxes are left, top, width, height
    in pixels. Segmentations may be polygons and run lengths, plain or compressed. `area` is the file's, or that of the
    box where the file has none; `crowd` is `iscrowd`. Images are taken as they are stored: an orientation in their EXIF
    data is ignored, as COCO's own tools do.

    Args:
        annotations: Path of the JSON.
        images: Folder of the images.
        classes: Names of the classes, in the order of the labels, such as `detector.class_names` or those of the
            training data: objects of others are reported. None takes the file's, in the order of their ids.
        check: `"full"` decodes every image once beforehand, by the decoder that training uses, and reports those
            that fail. `"header"` reads their first bytes only: quicker where hundreds of thousands are known to be
            whole; one that fails during training is dropped then, with a warning by TensorFlow.
        **options: Of the batches: `image_size`, `batch_size`, `shuffle`, `seed`, `masks`, `mask_size`, `max_boxes`,
            `drop_remainder`, as in `kvision.data.detection.detection_data`.

    Returns:
        A `DetectionData`.

    Raises:
        ValueError: if the JSON cannot be read or lacks a part, two categories share an id, or no image can be used.

    ```python
    train = kvision.data.coco("annotations/train.json", "train", image_size=(512, 512), batch_size=8, shuffle=True)
    model.fit(train.dataset, epochs=12)
    ```
    """
    path, images = pathlib.Path(annotations), pathlib.Path(images)
    content = _load(path)
    names, label_of = _categories(path, content["categories"], classes)
    problems = []
    listed = _listed(path, content["images"], problems)
    sizes = readable_sizes([images / entry["file_name"] for _, entry in listed], check, problems)
    whole = all(isinstance(entry["id"], int) for _, entry in listed)
    records = {}
    for row, entry in listed:
        file = images / entry["file_name"]
        stated = (entry.get("height"), entry.get("width"))
        if file not in sizes:
            continue
        if None not in stated and stated != sizes[file]:
            reason = f"{file} has {sizes[file]} pixels (height, width), the entry says {stated}"
            problems.append(Problem(str(path), f"images[{row}]", reason))
        else:
            records[entry["id"]] = AnnotatedImage(file, entry["id"] if whole else row, sizes[file], str(path), [])
    known = {entry["id"] for _, entry in listed}
    for row, entry in enumerate(content["annotations"]):
        found = _annotation(f"annotations[{row}]", entry, records, known, label_of)
        if isinstance(found, str):
            problems.append(Problem(str(path), f"annotations[{row}]", found))
        elif found is not None:
            records[entry["image_id"]].annotations.append(found)
    return detection_data("coco", list(records.values()), names, problems, skip_broken=check == "header", **options)


def _load(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"coco: {str(path)!r} cannot be read as JSON: {error}") from None
    missing = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise ValueError(
            f"coco: {str(path)!r} has no list {', '.join(missing)}; expected {', '.join(PARTS)}, as in COCO's "
            "instances_val2017.json."
        )
    return content


def _categories(path, categories, classes):
    """Names in the order of the labels, and the label of each id."""
    try:
        by_id = {category["id"]: str(category.get("name", category["id"])) for category in categories}
        ids = sorted(by_id)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"coco: the categories of {str(path)!r} need an id, a number, each: {error!r}.") from None
    if len(ids) < len(categories):
        raise ValueError(f"coco: in {str(path)!r} two categories share an id; give each its own.")
    if classes is None:
        return tuple(by_id[key] for key in ids), {key: label for label, key in enumerate(ids)}
    names = tuple(map(str, classes))
    return names, {key: names.index(name) for key, name in by_id.items() if name in names}


def _listed(path, entries, problems):
    """The rows and entries of `images` that name a file and an id of their own."""
    seen, listed = set(), []
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or _key(entry) is None:
            reason = "expected an id and a file_name"
        elif entry["id"] in seen:
            reason = f"the id {entry['id']!r} occurs twice"
        else:
            seen.add(entry["id"])
            listed.append((row, entry))
            continue
        problems.append(Problem(str(path), f"images[{row}]", reason))
    return listed


def _key(entry):
    return entry["id"] if isinstance(entry.get("id"), int | str) else None


def _annotation(row, entry, records, known, label_of):
    """An `Annotation`, or what is wrong with the entry, or None if its image is left out."""
    if not isinstance(entry, dict):
        return f"expected an object with image_id, category_id and bbox, got {entry!r}"
    image_id, category, box = entry.get("image_id"), entry.get("category_id"), _numbers(entry.get("bbox"))
    if not isinstance(image_id, int | str) or image_id not in known:
        return f"no image has the id {image_id!r}"
    if image_id not in records:
        return None
    name = records[image_id].path.name
    if not isinstance(category, int | str) or category not in label_of:
        return f"{name}: no category has the id {category!r}; known are {_few(label_of)}"
    if box is None:
        return f"{name}: the bbox {entry.get('bbox')!r} is not four numbers"
    area = _numbers([entry.get("area")] * 4)
    return Annotation(
        row=f"{row} ({name})",
        box_xyxy=tuple(xywh_to_xyxy(box).tolist()),
        label=label_of[category],
        segmentation=entry.get("segmentation"),
        area=area[0] if area is not None and math.isfinite(area[0]) and area[0] > 0 else None,
        crowd=bool(entry.get("iscrowd")),
    )


def _numbers(values):
    """Four floats, or None."""
    try:
        left, top, width, height = values
        return float(left), float(top), float(width), float(height)
    except (TypeError, ValueError):
        return None


def _few(label_of):
    ids = [repr(key) for key in label_of]
    return ", ".join(ids if len(ids) <= 6 else [*ids[:6], "..."])
