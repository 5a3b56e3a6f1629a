"""Photos of any size in, boxes and masks in their own pixels out; boxes end where the image ends."""

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from kvision.callbacks import DetectionImages, DetectionMetrics
from kvision.detection.batches import predict_batch
from kvision.detection.detector import Detector
from kvision.ops import clip_xyxy
from kvision.part import Part
from tests.applications.detection.rows import ROWS
from tests.applications.detection.test_detectors import batch_of, compiled
from tests.support import assert_close

SIZE = (64, 96)


@keras.saving.register_keras_serializable("kvision_tests")
class BrightHead(Part):
    """Finds the bright rectangle of an image, and a box around everything; in between there is padding."""

    loss_names = ()
    classes = 2

    def __init__(self, masks=False, **options):
        super().__init__(**options)
        self.masks = masks
        self.complete()

    def check(self, x, y):
        """Nothing."""

    def losses(self, features, targets, training=None):
        return {}

    def decode(self, features):
        bright = features["brightness"] > 127
        sides = []
        for axis, length in ((1, SIZE[1]), (2, SIZE[0])):  # the columns are what is left of the rows
            along = ops.cast(ops.any(bright, axis=axis), "float32")
            index = ops.arange(length, dtype="float32")
            sides += [ops.min(ops.where(along > 0, index, 1e9), 1), ops.max(ops.where(along > 0, index + 1, 0), 1)]
        left, right, top, bottom = sides
        box = ops.stack([left, top, right, bottom], axis=-1)
        whole = ops.zeros_like(box) + ops.convert_to_tensor([-5.0, -5.0, SIZE[1] + 5.0, SIZE[0] + 5.0])
        boxes = ops.stack([box, 0 * box, whole], axis=1)
        boxes = clip_xyxy(boxes, features.get("image_size", SIZE))
        found = {"boxes": boxes, "scores": ops.zeros_like(boxes[..., 0]) + ops.convert_to_tensor([0.9, 0.0, 0.8])}
        found["labels"] = ops.cast(ops.zeros_like(boxes[..., 0]), "int32") + ops.convert_to_tensor([1, -1, 0])
        if self.masks:
            found["box_masks"] = ops.zeros_like(boxes[..., :1, None]) + ops.ones((28, 28))
        return found


@pytest.fixture(scope="module", params=[False, True], ids=["boxes", "masks"])
def detector(request):
    images = keras.Input((*SIZE, 3))
    trunk = keras.Model(images, {"brightness": keras.layers.Lambda(lambda x: ops.mean(x, axis=-1))(images)})
    return Detector(trunk, BrightHead(request.param))


def photo(size, box, kind="uint8"):
    left, top, right, bottom = box
    pixels = np.full((*size, 3), 20, kind)
    pixels[top:bottom, left:right] = 250
    return pixels


PHOTOS = [
    ((200, 150), (30, 50, 130, 150)),
    ((40, 160), (10, 8, 90, 36)),
    ((64, 96), (8, 8, 40, 60)),
    ((30, 20), (4, 6, 18, 28)),
    ((500, 900), (100, 120, 700, 480)),
]


def test_boxes_lie_in_the_pixels_of_each_photo(detector):
    found = detector.detect([photo(*each) for each in PHOTOS], batch_size=2)
    assert len(found) == 5
    for ((height, width), box), rows in zip(PHOTOS, found, strict=True):
        assert rows["labels"].tolist() == [1, 0]  # no padding
        assert_close(rows["scores"], [0.9, 0.8])
        one_cell = max(height / SIZE[0], width / SIZE[1])
        assert np.abs(rows["boxes"][0] - box).max() <= one_cell
        assert (rows["boxes"][1] <= [0, 0, width, height]).all()
        assert np.abs(rows["boxes"][1] - [0, 0, width, height]).max() <= one_cell / 2  # to the border of the photo
        assert rows["boxes"].dtype == "float32"


def test_one_photo_and_files(detector, tmp_path):
    pixels = photo(*PHOTOS[0])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (want,) = detector.detect([pixels])
    for source in (pixels, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels)):
        got = detector.detect(source)
        assert set(got) == set(want)
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)
    assert detector.detect([]) == []


def test_masks_are_pasted_into_the_photo_where_they_are_asked_for(detector):
    pixels = [photo(*each) for each in PHOTOS[:2]]
    if not detector.head.masks:
        with pytest.raises(ValueError, match="has no masks: call detect without masks=True"):
            detector.detect(pixels, masks=True)
        return
    assert all("masks" not in rows and rows["box_masks"].shape == (2, 28, 28) for rows in detector.detect(pixels))
    for ((height, width), (left, top, right, bottom)), rows in zip(
        PHOTOS[:2], detector.detect(pixels, masks=True), strict=True
    ):
        assert rows["masks"].shape == (2, height, width)
        assert rows["masks"].dtype == "uint8"
        assert rows["masks"][1].mean() > 0.99
        inside = np.zeros((height, width), bool)
        inside[top:bottom, left:right] = True
        union = (inside | (rows["masks"][0] > 0)).sum()
        assert (inside & (rows["masks"][0] > 0)).sum() / union > 0.9


def test_names_of_the_classes_go_with_the_detector(detector, tmp_path):
    with pytest.raises(ValueError, match="has 2 classes: class_names must be as many, got 3"):
        detector.class_names = ("a", "b", "c")
    assert "names" not in detector.detect(photo(*PHOTOS[0]))
    detector.class_names = ["sky", "lamp"]
    try:
        assert detector.detect(photo(*PHOTOS[0]))["names"] == ["lamp", "sky"]
        config = detector.get_config()
        assert tuple(config["class_names"]) == ("sky", "lamp")
    finally:
        detector.class_names = None


def test_a_saved_detector_has_its_class_names(tmp_path):
    model = ROWS[0].tiny()
    for names in (("a", "b", "c"), None):
        model.class_names = names
        model.save(tmp_path / "model.keras")
        assert keras.saving.load_model(tmp_path / "model.keras").class_names == names


@pytest.mark.tensorflow_only
def test_data_whose_labels_have_other_names_are_refused_before_training():
    import tensorflow as tf

    model = ROWS[0].tiny()
    model.compile("sgd")
    data = tf.data.Dataset.from_tensors(batch_of(ROWS[0]))
    model.class_names = ("cat", "dog", "hen")
    for names, message in {
        ("cat", "hen", "dog"): "label 1 is 'hen' in the data .3 classes. and 'dog' in the detector .3 classes.",
        ("cat", "dog"): "label 2 is None in the data .2 classes. and 'hen'.*classes=detector.class_names",
    }.items():
        data.class_names = names
        with pytest.raises(ValueError, match=message):
            model.fit(data)
        with pytest.raises(ValueError, match=message):
            model.fit(*batch_of(ROWS[0]), validation_data=data)
        with pytest.raises(ValueError, match=message):
            model.evaluate(data)
    data.class_names = model.class_names
    model._check(data, None, "data")
    model.class_names = None
    data.class_names = ("a", "b")
    model._check(data, None, "data")
    validation = data.take(1)
    validation.class_names = ("b", "a")
    with pytest.raises(ValueError, match="label 0 is 'b' in the validation data .* and 'a' in the training data"):
        model.fit(data, validation_data=validation)


@pytest.mark.filterwarnings("default:.*the images lie within")
def test_photos_and_images_of_0_to_1_are_told(detector):
    with pytest.warns(UserWarning, match="images lie within .* Multiply them by 255"):
        detector.detect(photo(*PHOTOS[0]) / 255)
    images = np.random.default_rng(0).uniform(0, 1, (2, *SIZE, 3)).astype("float32")
    with pytest.warns(UserWarning, match="images lie within"):
        detector.predict({"images": images, "image_size": np.array([SIZE] * 2)}, verbose=0)
    with pytest.warns(UserWarning, match="images lie within"):
        detector.check(images, {"boxes": np.array([[[1, 2, 30, 40]]] * 2), "labels": np.zeros((2, 1), int)})


def with_sizes(row, sizes):
    x, targets = batch_of(row)
    x = x if row.proposals else {"images": x}
    return x | {"image_size": np.array(sizes, "int32")}, targets


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, marks=[pytest.mark.xdist_group(f"{row.name} float32")] + [pytest.mark.slow] * row.slow, id=row.name
        )
        for row in ROWS
    ],
)
def test_detections_end_where_the_image_ends(row):
    """In every stage: what reaches into the padding is cut, what lies in it is no detection."""
    model = compiled(row.name, "float32")
    before, model.head.score_threshold = model.head.score_threshold, 0.0
    try:
        sizes = [(24, 40), (64, 64)]
        x, _ = with_sizes(row, sizes)
        features = model.features(x, training=False)
        if "cell_boxes" in features:  # a fresh grid predicts boxes of a few pixels, none of which reaches far
            features["cell_boxes"] = features["cell_boxes"] + 0.7
        found = {name: keras.ops.convert_to_numpy(value) for name, value in model.head.decode(features).items()}
    finally:
        model.head.score_threshold = before
    for image, (height, width) in enumerate(sizes):
        real = found["labels"][image] >= 0
        boxes = found["boxes"][image][real]
        assert len(boxes) > 3
        assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()
    furthest = found["boxes"][0].max(axis=0)[2:]
    if "cascade" in row.name:  # whose last stage may move back from where the first was cut
        assert (furthest > [36, 21]).all()
    elif row.name != "detr":  # whose boxes are fractions of the valid image
        assert (furthest == [40, 24]).all()  # some did reach further


def test_callbacks_cut_where_targets_say_the_image_ends(detector):
    images = np.stack([photo(SIZE, (8, 8, 40, 30), "float32")] * 2)
    targets = {"boxes": np.array([[[0, 0, 50, 32]]] * 2, "float32"), "labels": np.zeros((2, 1), "int32")}
    sizes = {"image_size": np.array([[32, 50]] * 2)}
    metrics = DetectionMetrics((images, targets | sizes))
    assert metrics.measure(detector)["AP"] == pytest.approx(1.0)
    assert DetectionMetrics((images, targets)).measure(detector)["AP"] < 0.1
    found = predict_batch(detector, images, targets | sizes)
    assert found["boxes"][:, 2].tolist() == [[0, 0, 50, 32]] * 2
    assert predict_batch(detector, {"images": images}, targets | sizes)["boxes"].tolist() == found["boxes"].tolist()
    drawn = DetectionImages((images, targets | sizes))
    drawn.set_model(detector)
    drawn.on_train_begin()


def test_what_takes_more_than_images_says_so():
    model = next(row for row in ROWS if row.proposals).tiny()
    with pytest.raises(ValueError, match="looks at given regions.*got no proposals"):
        model.detect(np.full((80, 90, 3), 30, "uint8"))
    head = Detector(None, BrightHead())
    with pytest.raises(ValueError, match="is fed with features, not with images"):
        head.detect(np.zeros((80, 90, 3)))
