"""What a detector finds in the first images reaches the report as grids, and W&B as boxes and masks of its own."""

import json
import os

import keras
import numpy as np
import pytest
import wandb
from PIL import Image

from kvision.callbacks import DetectionImages, Report, WandbLogger
from kvision.trackers.events import Images, Overlay
from kvision.trackers.tracker import Tracker
from kvision.trackers.wandb_overlay import wandb_image
from tests.trackers.report_page import page_data
from tests.trackers.wandb_file import column, read_run

SIZE = 40, 48
NAMES = ("disc", "square")


def data(num_images=6, masks=None):
    """Images, and targets of two boxes, the second of which is padding in odd images."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (num_images, *SIZE, 3)).astype("float32")
    labels = np.array([[0, 1 if row % 2 == 0 else -1, -1] for row in range(num_images)], "int32")
    targets = {
        "boxes": np.tile(np.array([[4, 5, 20, 25], [22, 8, 40, 30], [0, 0, 0, 0]], "float32"), (num_images, 1, 1)),
        "labels": labels,
        "image_size": np.tile(np.array([30, 48], "int32"), (num_images, 1)),
        "image_id": 100 + np.arange(num_images),
    }
    if masks == "whole":
        targets["masks"] = np.zeros((num_images, 3, *SIZE), "uint8")
        targets["masks"][:, 0, 5:25, 4:20] = 1
    if masks == "box":
        targets["box_masks"] = np.ones((num_images, 3, 14, 14), "uint8")
    return images, targets


class Detections(keras.layers.Layer):
    """Three boxes in every image: a sure one, one below the threshold, and padding."""

    def __init__(self, masks=False):
        super().__init__()
        self.masks = masks

    def call(self, x):
        def given(values):
            values = keras.ops.convert_to_tensor(np.array(values, "float32"))
            return keras.ops.broadcast_to(values, (keras.ops.shape(x)[0], *values.shape))

        mask = np.zeros((3, *SIZE))
        mask[0, 6:24, 5:19] = 0.5  # from which on a pixel belongs to the mask
        return {
            "boxes": given([[5, 6, 19, 24], [20, 8, 40, 30], [0, 0, 0, 0]]),
            "scores": given([0.9, 0.3, 0.0]),
            "labels": keras.ops.cast(given([1, 0, -1]), "int32"),
        } | ({"masks": given(mask)} if self.masks else {})


class Fixed(keras.Model):
    """A model that trains a number and predicts what `Detections` says."""

    def __init__(self, masks=False):
        super().__init__()
        self.scale = keras.layers.Dense(1)
        self.detections = Detections(masks)

    def call(self, x):
        return self.detections(x) | {"unused": self.scale(x)}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred["unused"] ** 2)


class Recorder(Tracker):
    def __init__(self):
        super().__init__()
        self.events = []

    def record(self, event):
        self.events.append(event)


def fit(*callbacks, masks=False, epochs=1):
    model = Fixed(masks)
    model.compile("sgd")
    images, targets = data(4)
    model.fit(images, targets, batch_size=2, epochs=epochs, verbose=0, callbacks=list(callbacks))


def recorded(images, masks=False, epochs=1):
    recorder = Recorder()
    fit(images, recorder, masks=masks, epochs=epochs)
    return [event for event in recorder.events if isinstance(event, Images)]


def batches(num_images, size):
    images, targets = data(num_images)
    return [
        (images[start : start + size], {name: values[start : start + size] for name, values in targets.items()})
        for start in range(0, num_images, size)
    ]


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, place):
        return batches(6, 2)[place]


@pytest.mark.parametrize(
    "source", [data(), batches(6, 2), batches(6, 5), Dataset()], ids=["arrays", "2", "5", "dataset"]
)
def test_the_first_pictures_are_drawn_each_epoch(source):
    events = recorded(DetectionImages(source, num_images=5, classes=NAMES), epochs=2)
    assert [event.step for event in events] == [2, 4]
    for event in events:
        (overlays,) = event.overlays.values()
        assert len(overlays) == 5
        for row, overlay in enumerate(overlays):
            np.testing.assert_array_equal(overlay.image, data()[0][row].astype("uint8"))
            found, true = overlay.layers["detections"], overlay.layers["truth"]
            assert found["boxes"].tolist() == [[5, 6, 19, 24]]
            assert found["labels"].tolist() == [1]
            assert found["scores"] == pytest.approx([0.9])
            assert len(true["boxes"]) == (2 if row % 2 == 0 else 1)
            assert overlay.caption == f"image {100 + row}: 1 found, {len(true['boxes'])} true"
        assert list(event.images) == ["detections 1-2", "detections 3-4", "detections 5-5"]
        assert all(image.dtype == "uint8" for image in event.images.values())


def test_every_so_many_epochs_above_a_score():
    events = recorded(DetectionImages(data(), num_images=1, every=2, score_threshold=0.2), epochs=4)
    assert [event.step for event in events] == [4, 8]
    (overlay,) = events[0].overlays["detections"]
    assert overlay.layers["detections"]["labels"].tolist() == [1, 0]


def test_grids_show_the_valid_part_of_the_images():
    (event,) = recorded(DetectionImages(data(), num_images=1))
    (sheet,) = event.images.values()
    _, columns = np.nonzero((sheet < 250).any(axis=-1))
    assert columns.max() - columns.min() + 1 == 312
    assert sheet.shape[0] < 312 * 30 / 48 + 40  # and a line for the caption


def test_there_are_four_grids_at_most():
    (event,) = recorded(DetectionImages(data(23), num_images=23))
    assert list(event.images) == ["detections 1-6", "detections 7-12", "detections 13-18", "detections 19-23"]


def test_the_report_shows_the_grids(tmp_path):
    fit(DetectionImages(data(16), classes=NAMES), Report(tmp_path))
    images = page_data(tmp_path / "report.html")["images"]
    assert [image["name"] for image in images] == [f"detections {k}-{k + 3}" for k in (1, 5, 9, 13)]
    assert all(image["width"] == 639 for image in images)  # not scaled down: letters stay sharp
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    wandb.teardown()


def test_boxes_reach_wandb(home):
    fit(DetectionImages(data(), num_images=3, classes=NAMES), WandbLogger())
    run = read_run(home)
    ((step, logged),) = column(run, "images/detections")
    assert step == 2
    assert (logged["count"], logged["width"], logged["height"]) == (3, 48, 40)
    assert logged["captions"] == [f"image {100 + row}: 1 found, {2 - row % 2} true" for row in range(3)]
    for name in logged["filenames"]:
        with Image.open(run["path"] / "files" / name) as image:
            assert image.size == (48, 40)
    assert "all_masks" not in logged
    for row, layers in enumerate(logged["all_boxes"]):
        read = {name: boxes(run, layer) for name, layer in layers.items()}
        (found,) = read["detections"]
        assert found["position"] == pytest.approx({"minX": 5 / 48, "minY": 6 / 40, "maxX": 19 / 48, "maxY": 24 / 40})
        assert (found["class_id"], found["box_caption"]) == (1, "square 0.90")
        assert found["scores"] == {"score": pytest.approx(0.9)}
        assert [box["class_id"] for box in read["truth"]] == [0, 1][: 2 - row % 2]
        assert read["truth"][0]["position"]["maxX"] == pytest.approx(20 / 48)
        assert "scores" not in read["truth"][0]
    assert not [name for name in run["history"][-1] if name.startswith("images/detections ")]


def boxes(run, layer):
    return json.loads((run["path"] / "files" / layer["path"]).read_text())["box_data"]


@pytest.mark.parametrize("masks", ["whole", "box"])
def test_masks_reach_wandb(home, masks):
    fit(DetectionImages(data(masks=masks), num_images=1, classes=NAMES), WandbLogger(), masks=True)
    run = read_run(home)
    ((_, logged),) = column(run, "images/detections")
    (layers,) = logged["all_masks"]
    found, true = (
        np.array(Image.open(run["path"] / "files" / layers[name]["path"])) for name in ("detections", "truth")
    )
    want = np.zeros(SIZE)
    want[6:24, 5:19] = 2  # the square; 0 is the background
    np.testing.assert_array_equal(found, want)
    assert (true[5:25, 4:20] == 1).all()
    assert (true == 2).any() == (masks == "box")
    (box,) = boxes(run, logged["all_boxes"][0]["detections"])
    assert box["class_id"] == 2


def test_masks_are_drawn_where_the_model_predicts_them():
    (event,) = recorded(DetectionImages(data(masks="whole"), num_images=1))
    assert not any("masks" in layer for layer in event.overlays["detections"][0].layers.values())
    (event,) = recorded(DetectionImages(data(masks="whole"), num_images=1), masks=True)
    assert all("masks" in layer for layer in event.overlays["detections"][0].layers.values())


def test_classes_that_no_one_named_are_numbers():
    layer = {"boxes": np.array([[0, 0, 2, 2.0]]), "labels": np.array([3])}
    image = wandb_image(Overlay(np.zeros((4, 4, 3), "uint8"), {"truth": layer}, ("a",)))
    assert image._boxes["truth"]._val[0]["box_caption"] == "3"
    assert image._boxes["truth"]._class_labels == {0: "a", 3: "3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_images": 0}, "num_images must be at least 1, got 0"), ({"every": 0}, "every must be at least 1, got 0")],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionImages(data(), **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the data are empty"),
        ([data()[0]], r"Batches of detection data are pairs \(images, targets\): got ndarray"),
        ([(data()[0], np.zeros(6))], "Targets of a detector are a dict"),
        ((data()[0], data()[1] | {"boxes": np.full((6, 3, 4), np.nan)}), "not finite"),
    ],
)
def test_bad_data_are_refused_before_the_first_batch(source, message):
    with pytest.raises(ValueError, match=message):
        fit(DetectionImages(source))


def test_a_model_that_predicts_no_detections_is_named():
    model = keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(1)], name="plain")
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match="plain must predict a dict with boxes, scores and labels, as a detector does: got ndarray"
    ):
        model.fit(data(2)[0], np.zeros((2, 1)), verbose=0, callbacks=[DetectionImages(data(2))])


def test_a_score_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="score_threshold lies in 0 to 1, got 50"):
        DetectionImages(data(), score_threshold=50)


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        (data(2), "plain", "plain must predict a dict with boxes"),
        (
            (np.zeros((2, *SIZE, 4), "float32"), data(2)[1]),
            "fixed",
            r"draws images of 1 or 3 channels: got \(2, 40, 48, 4",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_first_step(source, model, message):
    if model == "plain":
        model = keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(1)], name="plain")
    else:
        model = Fixed()
    model.compile("sgd", None if isinstance(model, Fixed) else "mse")
    images, _ = data(2)
    with pytest.raises(ValueError, match=message):
        model.fit(images, np.zeros((2, 1)), verbose=0, callbacks=[DetectionImages(source, every=9)])
    assert int(model.optimizer.iterations) == 0


def test_scores_of_masks_relative_to_boxes_are_pasted():
    model = Fixed()
    found = model.detections(np.zeros((1, *SIZE, 3), "float32"))
    found["box_masks"] = np.ones((1, 3, 28, 28), "float32")
    model.predict_on_batch = lambda _: keras.tree.map_structure(keras.ops.convert_to_numpy, found)
    images = DetectionImages(data(1, masks="box"), num_images=1)
    recorder = Recorder()
    model.compile("sgd")
    model.fit(*data(1), verbose=0, callbacks=[images, recorder])
    (event,) = (event for event in recorder.events if isinstance(event, Images))
    masks = event.overlays["detections"][0].layers["detections"]["masks"]
    assert masks.shape == (1, *SIZE)
    assert masks[0, 7:23, 6:18].all() and not masks[0, :4].any() and not masks[0, 26:].any()


def test_the_names_are_those_of_the_model_where_none_are_given():
    model = Fixed()
    model.compile("sgd")
    model.class_names = NAMES
    for given, want in ((None, NAMES), (("x", "y"), ("x", "y"))):
        recorder = Recorder()
        model.fit(*data(1), verbose=0, callbacks=[DetectionImages(data(1), classes=given), recorder])
        (event,) = (event for event in recorder.events if isinstance(event, Images))
        assert event.overlays["detections"][0].classes == want
