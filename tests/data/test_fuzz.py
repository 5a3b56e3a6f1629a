"""Mutated files: an error that is a ValueError, or problems; never another error, never slow, nothing executed.

`FUZZ=2000 python -m pytest -m slow tests/data/test_fuzz.py` tries fourteen thousand.
"""

import json
import os
import time

import numpy as np
import PIL.Image
import pytest

from kvision.data import coco, csv, csv_labels, instance_masks, shapes, voc, yolo
from tests.data import files

pytestmark = [pytest.mark.tensorflow_only, pytest.mark.slow]

IMAGES, TARGETS = shapes(2, image_size=(24, 32), seed=5, masks=True)
WORDS = (
    b"-1", b"1e999", b"nan", b"null", b"\0", b"\xff", b"..", b"/", b'"', b"{", b"[" * 3000, b"9" * 40, b"<", b"&x;",
    b"<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>", b",,", b"\n", b"true",
    b"!!python/object/apply:os.abort []",
)  # fmt: skip


def mutated(content, rng):
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(len(content))), int(rng.integers(0, 12))
        content = content[:at] + WORDS[rng.integers(len(WORDS))] + content[at + length :]
    return content


def folders(kind, folder):
    """The file to mutate, and how the folder is read."""
    if kind == "coco":
        content = files.write_coco(folder, IMAGES, TARGETS)
        (folder / "annotations.json").write_text(json.dumps(content))
        return folder / "annotations.json", lambda: coco(folder / "annotations.json", folder / "images", masks=True)
    if kind == "voc":
        files.write_voc(folder, IMAGES, TARGETS)
        return folder / "Annotations" / "000.xml", lambda: voc(folder)
    if kind == "csv":
        PIL.Image.new("RGB", (32, 24)).save(folder / "a.png")
        (folder / "a.csv").write_text("file,xmin,ymin,xmax,ymax,class\na.png,1,2,9,12,x\na.png,3,3,20,20,y\n")
        return folder / "a.csv", lambda: csv(folder / "a.csv", folder)
    if kind == "csv_labels":
        for name in "ab":
            PIL.Image.new("RGB", (32, 24)).save(folder / f"{name}.png")
        (folder / "a.csv").write_text('file,tags\na.png,x|y\nb.png,"y"\n')
        return folder / "a.csv", lambda: csv_labels(folder / "a.csv", folder, separator="|")
    if kind == "instance_masks":
        for name in ("images", "maps"):
            (folder / name).mkdir()
            PIL.Image.fromarray(np.repeat(np.arange(24, dtype="uint8")[:, None] // 8, 32, 1)).save(
                folder / name / "a.png"
            )
        (folder / "a.csv").write_text("file,id,class\na.png,1,x\na.png,2,y\n")
        maps = folder / "images", folder / "maps", ("x", "y")
        return folder / "a.csv", lambda: instance_masks(*maps, class_of=folder / "a.csv")
    files.write_yolo(folder, IMAGES, TARGETS)
    (folder / "data.yaml").write_text("train: images/train\nnc: 3\nnames: {0: a, 1: b, 2: c}\nkpt_shape: [3, 2]\n")
    return (folder / "data.yaml" if kind == "yaml" else folder / "labels" / "train" / "000.txt"), lambda: yolo(folder)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "yaml", "csv", "csv_labels", "instance_masks"])
def test_mutated_files_give_one_type_of_error(tmp_path, kind, monkeypatch):
    file, read = folders(kind, tmp_path)
    monkeypatch.setattr("kvision.data.source.Source.dataset", lambda self: self)  # the files matter, not the graph
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for number in range(int(os.environ.get("FUZZ", "400"))):
        file.write_bytes(mutated(whole, rng))
        start = time.process_time()  # which others on the machine do not lengthen
        try:
            found = read()
            assert all(problem.file and problem.reason for problem in found.facts["problems"])
        except ValueError as error:
            assert kind in ("yaml", str(error).partition(":")[0]) or "kvision.data" in str(error), number
            assert str(tmp_path) in str(error), number
        assert time.process_time() - start < 1, number
