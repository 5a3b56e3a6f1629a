"""The examples and the README's scripts run as they are."""

import functools
import importlib.util
import pathlib
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.tensorflow_only
slow = pytest.mark.slow


def run(*arguments, cwd):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


@slow
def test_the_main_job(tmp_path):
    done = run(ROOT / "examples" / "train_digits.py", "--quick", "--run", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy = float(re.search(r"test accuracy +([\d.]+)%", done.stdout).group(1))
    assert accuracy > 50
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"curves.png", "report.html", "history.jsonl", "history.csv"} <= {path.name for path in folder.iterdir()}
    assert "wandb sync" in done.stdout
    assert (
        len([line for line in done.stdout.splitlines() if line.startswith("Epoch ")]) == 2
    )  # no progress bar in a pipe


@slow
def test_a_killed_training(tmp_path):
    done = run(ROOT / "examples" / "survive.py", "--quick", "--run", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed 1x, the weights are the same, bit for bit" in done.stdout
    assert (tmp_path / "runs" / "survive.png").exists()


def write_images(folder, classes=("cat", "dog"), count=6):
    rng = np.random.default_rng(0)
    for shade, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(100 * shade, 100 * shade + 100, (24 + k, 30, 3), dtype="uint8")
            PIL.Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


@slow
def test_a_folder_of_images(tmp_path):
    script, images = ROOT / "examples" / "train_folder.py", write_images(tmp_path / "images")
    (images / "cat" / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    done = run(script, images, "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: training data, the reader left out 1" in done.stdout
    assert "broken.jpg" in done.stdout
    assert {"check.html", "report.html", "model.keras"} <= {path.name for path in (tmp_path / "run").iterdir()}
    photo = images / "dog" / "1.png"
    named = run(script, "--predict", tmp_path / "run" / "model.keras", photo, cwd=tmp_path)
    assert named.returncode == 0, named.stderr[-3000:]
    assert re.search(rf"{re.escape(str(photo))}: (cat|dog) \d+%, (cat|dog) \d+%", named.stdout)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "no images"),
        (lambda folder: write_images(folder, classes=("cat",)), "one class only ('cat')"),
        (lambda folder: write_images(folder, count=1), "no image that can be used with split=(0.8, 1)"),
    ],
    ids=["missing", "empty", "one class", "one image per class"],
)
def test_bad_folders_are_reported_before_training(tmp_path, monkeypatch, prepare, message):
    prepare(tmp_path / "images")
    monkeypatch.setattr(sys, "argv", ["train_folder.py", str(tmp_path / "images")])
    with pytest.raises(SystemExit, match=re.escape(message)):
        training_on_a_folder().main()


@functools.cache
def training_on_a_folder():
    """`examples/train_folder.py` as a module."""
    spec = importlib.util.spec_from_file_location("train_folder", ROOT / "examples" / "train_folder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@slow
def test_a_bad_folder_is_one_sentence_and_no_traceback(tmp_path):
    done = run(ROOT / "examples" / "train_folder.py", tmp_path / "images", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_spatial_transformer(tmp_path):
    done = run(ROOT / "examples" / "rotated_digits.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(
        r"with    spatial transformer: [\d.]+%\n\nthe spatial transformer gains -?[\d.]+ points", done.stdout
    )


@slow
def test_views_at_test_time(tmp_path):
    done = run(ROOT / "examples" / "test_time_views.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(re.findall(r"^.+ [\d.]+%   \([\d.]+%\)$", done.stdout, re.M)) == 5


@slow
def test_looking_inside(tmp_path):
    done = run(ROOT / "examples" / "look_inside.py", "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (page,) = (tmp_path / "run").iterdir()
    text = page.read_text()
    assert done.stdout.count(" s\n") >= 14
    assert text.count('"shows":') == 14
    assert text.count("data:image") > 30
    assert len(text) < 8e6


@slow
def test_style_transfer(tmp_path):
    done = run(ROOT / "examples" / "style.py", "chelsea", "brick", tmp_path / "out.png", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = map(float, re.search(r"style +loss +([\d.]+) before, +([\d.]+) after", done.stdout).groups())
    assert last < first
    with PIL.Image.open(tmp_path / "out.png") as image:
        assert image.size == (64, 43)


SHORTER = {
    "x, y = mnist_data()": "x, y = (a[::40] for a in mnist_data())",
    "shapes(600": "shapes(16",
    "shapes(100": "shapes(8",
    "epochs=8": "epochs=1",
}


@slow
@pytest.mark.parametrize(("index", "name"), [(0, "digits"), (1, "shapes")])
def test_the_scripts_of_the_readme(tmp_path, index, name):
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[index]
    script = tmp_path / "script.py"
    for whole, short in SHORTER.items():
        block = block.replace(whole, short)
    script.write_text(block)
    done = run(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / name / "report.html").is_file()


@slow
def test_a_backbone_of_another_library(tmp_path):
    done = run(ROOT / "examples" / "any_backbone.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"C5: \(4, 4, 768\)\n28,421,215 parameters; box_loss \d", done.stdout)


@slow
@pytest.mark.parametrize(
    "example",
    [
        ("detect_shapes", "--detector", "retinanet"),
        ("detect_shapes", "--detector", "yolo"),
        ("detect_shapes", "--detector", "efficientdet"),
        ("detect_shapes", "--detector", "detr"),
        pytest.param(("detect_trees",), marks=pytest.mark.real),
    ],
    ids="-".join,
)
def test_the_detectors(tmp_path, example):
    name, *options = example
    done = run(ROOT / "examples" / f"{name}.py", *options, "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"AP50 +[\d.]+ ", done.stdout)
    assert (tmp_path / "run" / "report.html").is_file()


@slow
@pytest.mark.real
def test_the_cells(tmp_path):
    done = run(ROOT / "examples" / "segment_cells.py", "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("mean", "background", "interior", "border"):
        assert re.search(rf"^{name} +[\d.]+ before, [\d.]+ after", done.stdout, re.M)
    with PIL.Image.open(tmp_path / "run" / "cells.png") as picture:
        assert picture.width > 3 * 512
    assert (tmp_path / "run" / "report.html").is_file()


@slow
@pytest.mark.real
def test_the_nuclei(tmp_path):
    done = run(ROOT / "examples" / "segment_nuclei.py", "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("AP", "AP50", "mask_AP", "mask_AP50"):
        assert re.search(rf"^{name} +[\d.]+ before, [\d.]+ after", done.stdout, re.M)
    said = [re.search(rf"^{what} +(\S+)", done.stdout, re.M).group(1) for what in ("image", "report")]
    assert said == [str(tmp_path / "run" / name) for name in ("nuclei.png", "report.html")]
    with PIL.Image.open(said[0]) as image:
        assert image.width > image.height > 1000
    assert "data:image" in (tmp_path / "run" / "report.html").read_text()


@slow
def test_fooling_a_network(tmp_path):
    done = run(ROOT / "examples" / "fool_a_network.py", "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = r"((plain|adversarial training), (fast|projected) gradient( +\d\.\d{3}){7}\n)"
    assert len(re.findall(rows, done.stdout)) == 4
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"accuracy.png", "fooled.png"}
    with PIL.Image.open(tmp_path / "run" / "fooled.png") as image:
        assert image.width > image.height / 5


CLAIMS = {  # what each prints and draws
    "attend_to_objects": (
        r"as in the paper: trunk after .*\n(  AP50 0\.\d{3} after .*\n)+as in the paper +AP50 0\.\d{3} after",
        ("attention.png", "losses.png"),
    ),
    "cascade_quality": (
        r"AP +AP50 +AP75 +AP90 .*\nFaster R-CNN, 0\.5( +\d\.\d{3}){4} .*\nCascade R-CNN.*( +\d\.\d{3}){4} ",
        ("precision.png", "boxes.png"),
    ),
    "inside_the_box": (
        r"\nR-CNN, 8 external( +\d+\.\d+){5}\nFast R-CNN, .*(\nFaster R-CNN, .*){2}\nRetinaNet, .*\nYOLO, "
        r"(?s:.*)e[+-]\d\d  R-CNN and Fast",
        ("seconds.png",),
    ),
    "segment_instances": (
        r"AP\^r .*training s\nmask_rcnn( +\d\.\d{3}){3} .*\nhypercolumns .*\nmnc .*\nsds .*\nimage",
        ("instances.png",),
    ),
    "segment_scenes": (
        r"mean IoU +parameters .*\nfcn8s( +[\d.,]+){2} .*\nfcn_resnet .*\npatches .*\npatches, window by window .* ms\n"
        r"multiscale .*(\nmultiscale, .+ \d\.\d{3}){2}\nrecurrent ",
        ("mean_iou.png",),
    ),
    "rethinking_pretraining": (
        r"AP +AP50 +images .*\npre-trained, 1x, .* 208 +2\d\d .*\nfrom scratch, 1x, .* 16 +\d\d .*\n\nplot",
        ("rethinking.png",),
    ),
}


@slow
@pytest.mark.parametrize("example", CLAIMS)
def test_the_papers_claims(tmp_path, example):
    table, plots = CLAIMS[example]
    done = run(ROOT / "examples" / f"{example}.py", "--quick", "--run", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(table, done.stdout), done.stdout
    for plot in plots:
        with PIL.Image.open(tmp_path / "run" / plot) as image:
            assert image.width > 900
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
