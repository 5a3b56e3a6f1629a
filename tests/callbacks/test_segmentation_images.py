"""Predicted label maps of the first images reach the report as grids, and W&B as masks of its own."""

import keras
import numpy as np
import pytest
from PIL import Image

from kvision.callbacks import Report, SegmentationImages, WandbLogger
from kvision.trackers.events import Images
from tests.callbacks.test_detection_images import Recorder, home  # noqa: F401
from tests.trackers.report_page import page_data
from tests.trackers.wandb_file import column, read_run

SIZE = 24, 32
NAMES = ("ground", "tree", "boat")
LABELS = np.zeros((4, *SIZE), "int32")
LABELS[:, 4:12, 6:20], LABELS[:, 20:] = 1, 255
IMAGES = np.repeat(np.where(LABELS == 1, 200.0, 40.0)[..., None], 3, axis=-1).astype("float32")


class Scores(keras.layers.Layer):
    """Bright pixels are trees, but for two rows, which are boats."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        bright = keras.ops.cast(x[..., :1] > 100, "float32")
        boats = bright * keras.ops.cast(keras.ops.arange(SIZE[0]) < 6, "float32")[:, None, None]
        return self.scale * keras.ops.concatenate([1 - bright, bright - boats, boats], axis=-1)


def fit(*callbacks, several=False, **options):
    x = keras.Input((*SIZE, 3))
    scores = Scores()(x)
    model = keras.Model(x, {"out": scores, "aux": keras.layers.Identity(name="aux")(scores)} if several else scores)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile("sgd", {"out": loss, "aux": None} if several else loss)
    y = {"out": LABELS, "aux": LABELS} if several else LABELS
    model.fit(IMAGES, y, batch_size=2, verbose=0, callbacks=list(callbacks), **options)


def recorded(images, **options):
    recorder = Recorder()
    fit(images, recorder, **options)
    return [event for event in recorder.events if isinstance(event, Images)]


BATCHES = [(IMAGES[:3], LABELS[:3, ..., None]), (IMAGES[3:], LABELS[3:, ..., None])]


@pytest.mark.parametrize(
    "source", [pytest.param((IMAGES, LABELS), marks=pytest.mark.slow), BATCHES], ids=["arrays", "batches"]
)
def test_predictions_truth_and_errors_are_drawn_each_so_many_epochs(source):
    events = recorded(SegmentationImages(source, num_images=4, every=2, class_names=NAMES), epochs=4)
    assert [event.step for event in events] == [4, 8]
    (overlays,) = events[0].overlays.values()
    assert len(overlays) == 4
    for row, overlay in enumerate(overlays):
        np.testing.assert_array_equal(overlay.image, IMAGES[row].astype("uint8"))
        predicted, truth, errors = (layer["label_map"] for layer in overlay.layers.values())
        np.testing.assert_array_equal(truth, np.where(LABELS[row] == 255, -1, LABELS[row]))
        want = np.where(LABELS[row] == 1, 1, 0)
        want[4:6, 6:20] = 2
        np.testing.assert_array_equal(predicted, want)
        np.testing.assert_array_equal(errors, np.where(LABELS[row] == 255, -1, want != LABELS[row]))
        assert overlay.caption == f"image {row}: mean IoU {(1 + 6 / 8 + 0) / 3:.3f}"
    assert list(events[0].images) == [f"segmentation {k}-{k}" for k in (1, 2, 3, 4)]
    (sheet, *_) = events[0].images.values()
    assert sheet.dtype == "uint8" and 600 < sheet.shape[1] <= 640


def test_the_report_shows_the_grids(tmp_path):
    fit(SegmentationImages((IMAGES, LABELS), num_images=2, class_names=NAMES), Report(tmp_path))
    images = page_data(tmp_path / "report.html")["images"]
    assert [image["name"] for image in images] == ["segmentation 1-1", "segmentation 2-2"]
    assert all(image["width"] > 600 for image in images)  # not scaled down: letters stay sharp


def test_masks_reach_wandb(home):  # noqa: F811
    fit(SegmentationImages((IMAGES, LABELS), num_images=1, class_names=NAMES), WandbLogger())
    run = read_run(home)
    ((step, logged),) = column(run, "images/segmentation")
    assert step == 2 and not logged.get("all_boxes")
    (layers,) = logged["all_masks"]
    read = {name: np.array(Image.open(run["path"] / "files" / layer["path"])) for name, layer in layers.items()}
    np.testing.assert_array_equal(read["truth"], np.where(LABELS[0] == 255, 0, LABELS[0] + 1))
    assert read["predictions"][5, 8] == 3 and read["errors"][5, 8] == 2 and read["errors"][22, 8] == 0


def test_prepared_images_are_drawn_stretched_and_one_output_is_chosen():
    prepared = (IMAGES / 127.5 - 1, LABELS)
    (event,) = recorded(SegmentationImages(prepared, num_images=1, output="out"), several=True)
    (overlay,) = event.overlays["segmentation"]
    assert sorted(np.unique(overlay.image)) == [0, 255] and overlay.classes is None
    with pytest.raises(ValueError, match=r"has several outputs, \['aux', 'out'\]: got output=None"):
        recorded(SegmentationImages(prepared), several=True)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([], {}, "the data are empty"),
        ([IMAGES], {}, r"Batches of segmentation data are pairs \(images, targets\): got ndarray"),
        (
            (IMAGES, LABELS[:, :8]),
            {},
            r"maps are integers \[b, h, w\] of the size of the images .* got int32 \(4, 8, 32\)",
        ),
        ((IMAGES[..., :2], LABELS), {}, r"draws images \[b, h, w, 1 or 3\]: got \(4, 24, 32, 2\)"),
        ((IMAGES, LABELS + 2), {}, "label 2|has the label 3 at row 4, column 6; the model has 3 classes"),
        ((IMAGES, LABELS), {"output": "aux"}, "has one output: got output='aux'"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_first_step(source, options, message):
    with pytest.raises(ValueError, match=message):
        fit(SegmentationImages(source, every=9, **options))


def test_a_model_that_is_no_segmentation_network_is_named():
    model = keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(1)], name="plain")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"plain must predict scores \[b, h, w, classes\] .* got \(4, 1\)"):
        model.fit(IMAGES, np.zeros((4, 1)), verbose=0, callbacks=[SegmentationImages((IMAGES, LABELS))])


@pytest.mark.parametrize(("options", "message"), [({"num_images": 0}, "num_images"), ({"every": 0}, "every")])
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message} must be at least 1, got 0"):
        SegmentationImages((IMAGES, LABELS), **options)
