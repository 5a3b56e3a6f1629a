"""Data sets with boxes as files of COCO, YOLO and VOC: from each of the readers to each of the formats."""

import json
import os
import pathlib
import shutil
from xml.sax.saxutils import escape

from kvision.data.images import read_header


def write_coco(dataset, file, images):
    """Write the objects of a data set as COCO's JSON, beside which the images stay where they are.

    Args:
        dataset: Of `kvision.data.coco`, `voc`, `yolo` or `csv`, in batches. Masks are not written.
        file: Path of the JSON, which must not exist yet.
        images: Folder of the images, above all of them: their names are relative to it.

    Raises:
        ValueError: if there is such a file, or an image lies outside the folder.

    ```python
    kvision.data.write_coco(kvision.data.voc("VOCdevkit/VOC2007"), "voc.json", "VOCdevkit/VOC2007/JPEGImages")
    ```
    """
    file = _new(file)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.class_names)]
    for image_id, path, (height, width), objects in _images(dataset):
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

    Args:
        dataset: Of `kvision.data.coco`, `voc`, `yolo` or `csv`, in batches. Boxes and classes are written.
        folder: Which must not exist yet.

    Raises:
        ValueError: if the folder exists.

    ```python
    kvision.data.write_yolo(kvision.data.coco("train.json", "train"), "yolo")
    ```
    """
    folder = _new(folder)
    for _, _, (height, width), objects, name in _copied(dataset, folder / "images"):
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

    Args:
        dataset: Of `kvision.data.coco`, `voc`, `yolo` or `csv`, in batches. Masks and crowds are not written.
        folder: Which must not exist yet.

    Raises:
        ValueError: if the folder exists.

    ```python
    kvision.data.write_voc(kvision.data.coco("train.json", "train"), "voc")
    ```
    """
    folder = _new(folder)
    for _, path, (height, width), objects, name in _copied(dataset, folder / "JPEGImages"):
        parts = [
            f"<filename>{escape(path.name)}</filename>\n<size><width>{width}</width><height>{height}</height></size>\n"
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


def _copied(dataset, folder):
    """The images, copied into a folder as they are laid out, and their names there."""
    paths = list(dataset.files.values())
    common = pathlib.Path(os.path.commonpath([pathlib.Path(path).parent for path in paths]))
    for image_id, path, size, objects in _images(dataset):
        name = path.relative_to(common)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / name)
        yield image_id, path, size, objects, name


def _images(dataset):
    """Id, path, size and objects (box, label, area, crowd, difficult) of each image, in pixels of the file."""
    for _, batch in dataset:
        batch = {name: values.numpy() for name, values in batch.items()}
        for row, image_id in enumerate(batch["image_id"].tolist()):
            path, scale = pathlib.Path(dataset.files[image_id]), float(batch["scale"][row])
            header = read_header(path, max_pixels=float("inf"))
            seen = batch["image_size"][row] / scale
            size = min((header.upright_size, header.size), key=lambda size: abs(size[0] - seen[0]))
            boxes = batch["boxes"][row].astype("float64") / scale
            columns = (boxes, batch["labels"][row], batch["area"][row], batch["crowd"][row], batch["difficult"][row])
            objects = [part for part in zip(*(column.tolist() for column in columns), strict=True) if part[1] >= 0]
            yield image_id, path, size, objects
