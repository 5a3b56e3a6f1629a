"""COCO's files: one JSON with the images, the objects and the categories of a data set."""

import json
import pathlib

from kvision.data.annotations import AnnotatedImage, Annotation
from kvision.data.detection import detection_data
from kvision.data.files import inside, read_text
from kvision.data.geometry import xywh_to_xyxy
from kvision.data.reader import reader
from kvision.data.values import flag, floats, key, number, pixels

PARTS = ("images", "annotations", "categories")


@reader(detection_data)
def coco(reading, annotations, images, *, outside=False, **batch):
    """Read a data set in COCO's format; what cannot be used is left out and reported, never fatal.

    An image that is left out takes its objects with it; one that has none left is an image without objects.

    Lin et al. 2014 (https://arxiv.org/abs/1405.0312); the format is documented at https://cocodataset.org/#format-data.
    Categories, whatever their ids, become labels from 0 in the order of their ids; those of one name are one. Boxes are
    left, top, width, height in pixels. Segmentations may be polygons and run lengths, plain or compressed; of several
    polygons, those that are none are left out. `area` is the file's, or that of the box where the file has none;
    `crowd` is `iscrowd`.

    Args:
        annotations: Path of the JSON.
        images: Folder of the images.
        outside: Whether a `file_name` may lead out of the folder.
        **batch: Of the batches.

    Returns:
        A `tf.data.Dataset` of batches `(images, targets)`, see `kvision.data.detection.detection_data`, with the
        attributes `class_names`, `classes` (their number), `counts` (objects used of each), `files`
        (`{image_id: path}`), `problems` (what is left out, and why) and `source`.

    Raises:
        ValueError: if the JSON cannot be read or lacks a part, two categories share an id, or no image or object can
            be used.

    ```python
    train = kvision.data.coco("annotations/train.json", "train", image_size=(512, 512), batch_size=8, shuffle=True)
    model.fit(train, epochs=12)
    ```
    """
    path, folder = pathlib.Path(annotations), pathlib.Path(images)
    reading.refuse_named_split("Pass the JSON of that split, or a range such as split=(0, 0.8).")
    content = _load(path)
    names, label_of = _categories(reading, path, content["categories"])
    listed = _listed(reading, path, folder, content["images"], outside)
    chosen = set(reading.chosen([file for _, _, file, _ in listed], folder))
    headers = reading.headers([file for _, _, file, _ in listed if file in chosen])
    whole = all(isinstance(image_id, int) and abs(image_id) < 2**63 for _, image_id, *_ in listed)
    records = {}
    for row, image_id, file, stated in listed:
        if file not in headers:
            continue
        upright = reading.is_upright(headers[file], stated)
        if upright is None:
            reason = f"{file} has {headers[file].shown} pixels (height, width), the entry says {stated}"
            reading.problem(path, f"images[{row}]", reason)
        else:
            number_of = image_id if whole else row
            records[image_id] = AnnotatedImage(file, number_of, headers[file], upright, str(path), [])
    known = {image_id for _, image_id, *_ in listed}
    for row, entry in enumerate(content["annotations"]):
        found = _annotation(reading, path, f"annotations[{row}]", entry, records, known, label_of)
        if isinstance(found, str):
            reading.problem(path, f"annotations[{row}]", found)
        elif found is not None:
            records[key(entry["image_id"])].annotations.append(found)
    return detection_data(reading, list(records.values()), names, **batch)


def _load(path):
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"coco: {str(path)!r} cannot be read as JSON: {error}") from None
    missing = [part for part in PARTS if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if missing:
        raise ValueError(
            f"coco: {str(path)!r} has no list {', '.join(missing)}; expected {', '.join(PARTS)}, as in COCO's "
            "instances_val2017.json."
        )
    return content


def _categories(reading, path, categories):
    """Names in the order of the labels, and name and label of each id; the label is None where it is left out."""
    try:
        by_id = {key(category["id"]): str(category.get("name", category["id"])) for category in categories}
        ids = sorted(by_id)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"coco: the categories of {str(path)!r} need an id, a number, each: {error!r}.") from None
    if None in by_id:
        raise ValueError(f"coco: the categories of {str(path)!r} need an id, a number, each.")
    if len(ids) < len(categories):
        raise ValueError(f"coco: in {str(path)!r} two categories share an id; give each its own.")
    names = reading.class_names(reading.different((by_id[each] for each in ids), path))
    numbers = {name: label for label, name in enumerate(names)}
    return names, {each: (by_id[each], numbers.get(by_id[each])) for each in ids}


def _listed(reading, path, folder, entries, outside):
    """Row, id, file and stated size of the entries of `images` that name a file and an id of their own."""
    seen, listed = set(), []
    for row, entry in enumerate(entries):
        image_id = key(entry.get("id")) if isinstance(entry, dict) else None
        if image_id is None or not isinstance(entry.get("file_name"), str):
            reason = "expected an id and a file_name"
        elif image_id in seen:
            reason = f"the id {entry['id']!r} occurs twice"
        else:
            try:
                file = inside(folder, entry["file_name"], outside)
            except ValueError as error:
                reason = f"the file_name {error}"
            else:
                seen.add(image_id)
                listed.append((row, image_id, file, pixels(entry.get("height"), entry.get("width"))))
                continue
        reading.problem(path, f"images[{row}]", reason)
    return listed


def _annotation(reading, path, row, entry, records, known, label_of):
    """An `Annotation`, or what is wrong with the entry, or None if it is left out with its image or its class."""
    if not isinstance(entry, dict):
        return f"expected an object with image_id, category_id and bbox, got {_short(entry)}"
    image_id, category, box = key(entry.get("image_id")), key(entry.get("category_id")), floats(entry.get("bbox"), 4)
    if image_id is None or image_id not in known:
        return f"no image has the id {_short(entry.get('image_id'))}"
    if image_id not in records:
        return None
    name = records[image_id].path.name
    if category is None or category not in label_of:
        known = f"known are {_few(label_of)}" if label_of else "the file lists no categories"
        return f"{name}: no category has the id {_short(entry.get('category_id'))}; {known}"
    if box is None:
        return f"{name}: the bbox {_short(entry.get('bbox'))} is not four numbers"
    class_name, label = label_of[category]
    if label is None:
        reading.other_class(path, class_name)
        return None
    area = number(entry.get("area"))
    return Annotation(
        row=f"{row} ({name})",
        box_xyxy=tuple(xywh_to_xyxy(box).tolist()),
        label=label,
        segmentation=entry.get("segmentation"),
        area=area if area is not None and area > 0 else None,
        crowd=flag(entry.get("iscrowd")),
    )


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _few(label_of):
    ids = [repr(each) for each in label_of]
    return ", ".join(ids if len(ids) <= 6 else [*ids[:6], "..."])
