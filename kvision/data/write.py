"""Data sets with boxes as files of COCO, YOLO and VOC: from each of the readers to each of the formats."""

import json
import os
import pathlib
import shutil
from xml.sax.saxutils import escape

from kvision.data.images import is_image, read_header
from kvision.data.source import Order

PARTS = ("boxes", "labels", "area", "crowd", "difficult", "scale", "image_size", "image_id")


def write_coco(dataset, file, images):
    """Write the objects of a data set as COCO's JSON, beside which the images stay where they are.

    Args:
        dataset: Of `kvision.data.coco`, `voc`, `yolo` or `csv`, not augmented. Masks are not written.
        file: Path of the JSON, which must not exist yet.
        images: Folder of the images, above all of them: their names are relative to it.

    Raises:
        ValueError: if there is such a file, an image lies outside the folder, or the data set is another.

    ```python
    kvision.data.write_coco(kvision.data.voc("VOCdevkit/VOC2007"), "voc.json", "VOCdevkit/VOC2007/JPEGImages")
    ```
    """
    file = _new(file)
    source = _source("write_coco", dataset)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.class_names)]
    for image_id, path, (height, width), objects in _images(source):
        name = pathlib.Path(os.path.relpath(path, images)).as_posix()
        if name.startswith("../"):
            raise ValueError(f"write_coco: {str(path)!r} lies outside {str(images)!r}; pass a folder above all images.")
        content["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        for box, label, area, crowd, _ in objects:
            left, top, right, bottom = box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": area,
                    "iscrowd": crowd,
                }
            )
    file.write_text(json.dumps(content), encoding="utf-8")


def write_yolo(dataset, folder):
    """Write a data set as YOLO's folder: `images` (copied), `labels` and `data.yaml`.

    Of images whose names differ by their ending alone, all but the first get another name.

    Args:
        dataset: Of `kvision.data.coco`, `voc`, `yolo` or `csv`, not augmented. Boxes and classes are written.
        folder: Which must not exist yet.

    Raises:
        ValueError: if the folder exists, or the data set is another.

    ```python
    kvision.data.write_yolo(kvision.data.coco("train.json", "train"), "yolo")
    ```
    """
    folder = _new(folder)
    source = _source("write_yolo", dataset)
    for _, _, (height, width), objects, name in _copied(dataset, source, folder / "images"):
        lines = []
        for (left, top, right, bottom), label, *_ in objects:
            numbers = (left + right) / 2 / width, (top + bottom) / 2 / height
            lines.append(
                f"{label} {' '.join(map(repr, (*numbers, (right - left) / width, (bottom - top) / height)))}\n"
            )
        _write((folder / "labels" / name).with_suffix(".txt"), "".join(lines))
    names = "".join(f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(dataset.class_names))
    _write(folder / "data.yaml", f"train: images\nval: images\nnc: {dataset.classes}\nnames:\n{names}")


def write_voc(dataset, folder):
    """Write a data set as Pascal VOC's folder: `JPEGImages` (copied) and `Annotations`.

    Of images whose names differ by their ending alone, all but the first get another name.

    Args:
        dataset: Of `kvision.data.coco`, `voc`, `yolo` or `csv`, not augmented. Masks and crowds are not written.
        folder: Which must not exist yet.

    Raises:
        ValueError: if the folder exists, or the data set is another.

    ```python
    kvision.data.write_voc(kvision.data.coco("train.json", "train"), "voc")
    ```
    """
    folder = _new(folder)
    source = _source("write_voc", dataset)
    for _, _, (height, width), objects, name in _copied(dataset, source, folder / "JPEGImages"):
        parts = [
            f"<filename>{escape(name.name)}</filename>\n<size><width>{width}</width><height>{height}</height></size>\n"
        ]
        for (left, top, right, bottom), label, _, _, difficult in objects:
            sides = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
            box = "".join(f"<{side}>{value!r}</{side}>" for side, value in sides.items())
            parts.append(
                f"<object><name>{escape(dataset.class_names[label])}</name><difficult>{difficult}</difficult>"
                f"<bndbox>{box}</bndbox></object>\n"
            )
        xml = f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n{"".join(parts)}</annotation>\n'
        _write((folder / "Annotations" / name).with_suffix(".xml"), xml)


def _new(path):
    path = pathlib.Path(path)
    if path.exists():
        raise ValueError(f"{str(path)!r} exists; what is there is not written over. Pass another path.")
    return path


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _source(writer, dataset):
    """The source of a data set whose boxes are those of its files; the ValueError that says what it is otherwise."""
    source = getattr(dataset, "source", None)
    got = None
    if source is None:
        got = f"{type(dataset).__name__}: what `map`, `take` and other methods made of it knows its files no more"
    elif source.transforms:
        got = "an augmented one: the images are those of the files, where the boxes of augmented ones do not lie"
    elif not set(PARTS) <= _parts(dataset):
        got = f"one whose targets are {', '.join(sorted(_parts(dataset))) or 'no dict'}"
    elif source.annotated is None:
        got = "one that names no files"
    if got is not None:
        raise ValueError(
            f"{writer}: expected the data set of a reader of boxes (coco, voc, yolo, csv), got {got}. Pass the "
            "reader's own data set."
        )
    return source


def _parts(dataset):
    spec = dataset.element_spec
    return set(spec[1]) if isinstance(spec, tuple) and len(spec) > 1 and isinstance(spec[1], dict) else set()


def _copied(dataset, source, folder):
    """The images, copied into a folder as they are laid out, and their names there."""
    names = _names(dataset.files)
    for image_id, path, size, objects in _images(source):
        name = names[image_id]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / name)
        yield image_id, path, size, objects, name


def _names(files):
    """Relative names by the ids of images, laid out as the files are: no two alike but for their ending or case.

    A text file has the name of its image but for the ending. Folders named `images` are left out, for in YOLO's layout
    the last of them is the one beside `labels`; an image whose name says no kind gets the ending of its own.
    """
    common = os.path.commonpath([pathlib.Path(path).parent for path in files.values()])
    stems, suffixes = {}, {}
    for image_id, path in files.items():
        path = pathlib.Path(path)
        *parents, name = path.relative_to(common).parts
        known = is_image(path)
        stems[image_id] = pathlib.Path(
            *(part for part in parents if part.lower() != "images"), path.stem if known else name
        )
        suffixes[image_id] = path.suffix if known else f".{read_header(path, max_pixels=float('inf')).kind.lower()}"
    taken = {_folded(stem): image_id for image_id, stem in reversed(stems.items())}  # by the first
    names = {}
    for image_id, stem in stems.items():
        free, count = stem, 1
        while taken.setdefault(_folded(free), image_id) != image_id:
            count += 1
            free = stem.with_name(f"{stem.name}_{count}")
        names[image_id] = free.with_name(free.name + suffixes[image_id])
    return names


def _folded(stem):
    return stem.as_posix().casefold()


def _images(source):
    """Id, path, size and objects (box, label, area, crowd, difficult) of each image, in pixels of the file."""
    for index in Order(source.order.length, shard=source.order.shard).indices(0).tolist():
        image_id, path, size, rows = source.annotated[index]
        objects = [
            (box, int(label), area, int(crowd), int(difficult)) for *box, label, area, crowd, difficult in rows.tolist()
        ]
        yield image_id, path, size, objects
