"""Label maps are measured as slow loops over their pixels measure them, and as the field's own tools do."""

import keras
import numpy as np
import pytest
from keras import ops

from kvision.metrics import BoundaryIoU, MeanIoU, PixelAccuracy
from kvision.metrics.pixel_confusion import BASE
from tests.support import SLOW, assert_close

NAMES = ("ground", "tree", "house", "boat")


def scene(seed=0, batch=3, size=(12, 17), num_classes=4, ignored=255, missing=3):
    """Label maps of blocks, predictions that mostly agree, logits of these; the class `missing` occurs nowhere."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (batch, size[0] // 3 + 1, size[1] // 3 + 1))
    labels = coarse.repeat(3, 1).repeat(3, 2)[:, : size[0], : size[1]]
    labels = np.where(labels == missing, 0, labels)
    predictions = np.where(rng.random(labels.shape) < 0.7, labels, rng.integers(0, num_classes, labels.shape))
    predictions = np.where(predictions == missing, 1, predictions)
    labels = np.where(rng.random(labels.shape) < 0.1, ignored, labels)
    logits = rng.normal(size=(*labels.shape, num_classes)).astype("float32")
    np.put_along_axis(logits, predictions[..., None], 9.0, axis=-1)
    return labels.astype("int32"), predictions.astype("int32"), logits


def matrix_twin(labels, predictions, num_classes=4, ignored=255):
    matrix = np.zeros((num_classes, num_classes), "int64")
    for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if label != ignored:
            matrix[label, prediction] += 1
    return matrix


def ious_twin(labels, predictions, num_classes=4, ignored=255):
    """By sets of pixels, NaN where both are empty."""
    counted = labels != ignored
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                np.float64(((labels == c) & (predictions == c) & counted).sum())
                / (((labels == c) | (predictions == c)) & counted).sum()
                for c in range(num_classes)
            ]
        )


def measured(kind, *batches, **options):
    metric = kind(4, **{"ignore_class": 255} | options)
    for labels, predictions in batches:
        metric.update_state(labels, predictions)
    return metric


def test_equal_to_a_count_of_pixels_over_several_batches():
    scenes = [scene(seed)[:2] for seed in range(3)]
    metric = measured(MeanIoU, *scenes, class_names=NAMES)
    labels, predictions = (np.concatenate(parts) for parts in zip(*scenes, strict=True))
    matrix = matrix_twin(labels, predictions)
    np.testing.assert_array_equal(metric.confusion_matrix(), matrix)
    want = ious_twin(labels, predictions)
    by_class = metric.result_by_class()
    assert list(by_class) == list(NAMES) and np.isnan(by_class["boat"]) and np.isnan(want[3])
    assert_close(list(by_class.values())[:3], want[:3])
    assert_close(metric.result(), np.nanmean(want))
    hits, labelled = np.diag(matrix), matrix.sum(1)
    accuracy = measured(PixelAccuracy, *scenes)
    assert_close(accuracy.result(), hits.sum() / matrix.sum())
    assert_close(list(accuracy.result_by_class().values())[:3], (hits / np.maximum(labelled, 1))[:3])
    assert metric.summary() == pytest.approx(
        {
            "pixel_accuracy": hits.sum() / matrix.sum(),
            "mean_accuracy": (hits[:3] / labelled[:3]).mean(),
            "mean_iou": np.nanmean(want),
            "frequency_weighted_iou": (labelled[:3] * want[:3]).sum() / matrix.sum(),
        }
    )
    if keras.backend.backend() == "tensorflow":  # under JAX Keras's own asks for int64, which is a warning
        theirs = keras.metrics.MeanIoU(4, ignore_class=255)
        theirs.update_state(labels, predictions)
        assert_close(metric.result(), theirs.result())
    metric.reset_state()
    assert metric.result() == 0 and np.isnan(metric.summary()["mean_iou"])


@pytest.mark.parametrize("kind", [MeanIoU, PixelAccuracy, BoundaryIoU])
@pytest.mark.parametrize("column", [False, True])
def test_logits_maps_and_their_types_give_the_same(kind, column):
    labels, predictions, logits = scene()
    labels = labels[..., None] if column else labels
    want = measured(kind, (labels, predictions)).result()
    assert 0 < float(want) < 1
    for given in (logits, logits.astype("float16"), predictions[..., None], predictions.astype("uint8")):
        assert measured(kind, (labels.astype("uint8"), given)).result() == want
    assert measured(kind, (labels, predictions.astype("float32")), sparse_y_pred=True).result() == want
    assert measured(kind, (labels.astype("float32"), logits), sparse_y_pred=False).result() == want


def test_an_ignored_class_has_no_part_in_the_mean():
    labels, predictions, _ = scene(ignored=0)
    metric = measured(MeanIoU, (labels, predictions), ignore_class=0)
    want = ious_twin(labels, predictions, ignored=0)
    assert want[0] == 0  # it is predicted, but no label is counted
    assert_close(metric.result(), np.nanmean(want[1:]))
    assert metric.summary()["mean_iou"] == pytest.approx(np.nanmean(want[1:]))
    assert_close(
        measured(MeanIoU, scene(ignored=-1)[:2], ignore_class=-1).result(), np.nanmean(ious_twin(*scene()[:2]))
    )


def test_counts_stay_exact_beyond_an_int32():
    metric = MeanIoU(2)
    labels = np.array([0] * 5 + [1] * 3)
    metric._counts.assign(np.array([[3, 0, 0, 0, 0], [BASE - 2, 0, 0, 0, 0]]))
    metric.update_state(labels, np.zeros(8, "int32"))
    assert metric.confusion_matrix().tolist() == [[4 * BASE + 3, 0], [3, 0]]
    assert_close(metric.result(), 0.5)


# Boundaries


def eroded_twin(mask, distance):
    """The mask without the pixels that have one outside of it, or of the image, within a square around them."""
    height, width = mask.shape
    inner = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        rows, columns = (np.arange(at - distance, at + distance + 1) for at in (y, x))
        whole = rows[0] >= 0 and columns[0] >= 0 and rows[-1] < height and columns[-1] < width
        inner[y, x] = whole and mask[np.ix_(rows, columns)].all()
    return inner


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_boundary_iou_equals_masks_less_their_erosion(distance):
    labels, predictions, logits = scene(size=(15, 19))
    seen = np.where(labels == 255, 255, predictions)
    shared, either = np.zeros(4), np.zeros(4)
    for label_map, predicted in zip(labels, seen, strict=True):
        for c in range(4):
            one, two = ((m == c) & ~eroded_twin(m == c, distance) for m in (label_map, predicted))
            shared[c] += (one & two).sum()
            either[c] += (one | two).sum()
    metric = measured(BoundaryIoU, (labels, logits), distance=distance, class_names=NAMES)
    assert_close(list(metric.result_by_class().values())[:3], shared[:3] / either[:3])
    assert_close(metric.result(), (shared[:3] / either[:3]).mean())
    assert measured(BoundaryIoU, (labels, np.where(labels == 255, 1, labels)), distance=distance).result() == 1


def test_the_distance_is_a_fraction_of_the_diagonal_or_pixels():
    labels, predictions, _ = scene(size=(30, 40))
    want = measured(BoundaryIoU, (labels, predictions), distance=3).result()
    assert measured(BoundaryIoU, (labels, predictions), distance=0.06).result() == want
    assert measured(BoundaryIoU, (labels, predictions)).result() != want  # 0.02 of 50 is one pixel


@pytest.mark.parametrize("fraction", [0.02, 0.05])
def test_boundaries_are_those_of_a_tool_for_coco(fraction):
    from faster_coco_eval.core import mask as codes

    labels, predictions, _ = scene(size=(60, 80), ignored=0)
    shared, either = np.zeros(4), np.zeros(4)
    for pair in zip(labels, predictions, strict=True):
        for c in range(4):
            rles = [codes.encode(np.asfortranarray((each == c).astype("uint8"))) for each in pair]
            one, two = (codes.decode(codes.rleToBoundary(rle, fraction)) > 0 for rle in rles)
            shared[c], either[c] = shared[c] + (one & two).sum(), either[c] + (one | two).sum()
    metric = measured(BoundaryIoU, (labels, predictions), ignore_class=None, distance=fraction)
    assert_close(list(metric.result_by_class().values())[:3], shared[:3] / either[:3])


# In training


@pytest.mark.parametrize(
    ("jit", "policy"),
    [
        (False, "float32"),
        pytest.param(True, "mixed_float16", marks=SLOW),
        pytest.param(True, "mixed_bfloat16", marks=SLOW),
    ],
)
def test_in_compile_they_give_what_they_give_alone(jit, policy):
    keras.mixed_precision.set_dtype_policy(policy)
    labels, _, logits = scene(batch=4)
    x = keras.Input((12, 17, 4))
    model = keras.Model(x, keras.layers.Dense(4, kernel_initializer="identity")(x))
    kinds = (MeanIoU, PixelAccuracy, BoundaryIoU)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    metrics = [kind(4, ignore_class=255) for kind in kinds]
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=metrics, jit_compile=jit)
    got = model.evaluate(logits, labels, batch_size=2, verbose=0, return_dict=True)
    for kind in kinds:
        metric = measured(kind, (labels, logits))
        assert_close(got[metric.name], metric.result())
    stop = keras.callbacks.EarlyStopping(monitor="val_mean_iou")
    history = model.fit(logits, labels, batch_size=2, validation_data=(logits, labels), verbose=0, callbacks=[stop])
    assert_close(history.history["val_pixel_accuracy"][0], got["pixel_accuracy"])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is BoundaryIoU and again.get_config() == metric.get_config()


def test_labels_that_are_no_class_are_not_passed_over():
    labels, _, logits = scene()
    labels[1, 2, 3] = 4
    for kind in (MeanIoU, PixelAccuracy, BoundaryIoU):
        metric = kind(4, ignore_class=255)
        with pytest.raises(ValueError, match=r"1 pixels of the labels are no class: the first, image 1, row 2, colu"):
            metric.update_state(labels, logits)
        assert metric.result() == 0
    with pytest.raises(ValueError, match=r"predictions are no class: .*, is -2, expected 0 to 3 or the ignored 255"):
        measured(MeanIoU, (np.zeros((1, 2, 2), int), np.full((1, 2, 2), -2)))
    x = keras.Input((12, 17, 4))
    model = keras.Model(x, keras.layers.Identity()(x))
    metric = MeanIoU(4, ignore_class=255)
    model.compile(loss=lambda labels, scores: ops.mean(scores), metrics=[metric])
    assert np.isnan(model.evaluate(logits, labels, verbose=0, return_dict=True)["mean_iou"])
    with pytest.raises(ValueError, match="1 pixels had labels or predictions that are no class, expected 0 to 3 or"):
        metric.result_by_class()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 8, 8), (2, 4, 4, 4)), r"got labels \(2, 8, 8\) and predictions \(2, 4, 4, 4\) of float32, expected"),
        (((2, 8, 8), (2, 8, 8, 5)), r"predictions \[b, h, w, 4\] of the same height and width"),
        (((2, 8, 8, 1), (2, 8, 8, 1)), "label maps of floats need sparse_y_pred=True"),
    ],
)
def test_shapes_that_do_not_fit_are_told(shapes, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(4).update_state(np.zeros(shapes[0], "int32"), np.zeros(shapes[1], "float32"))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MeanIoU, {"num_classes": 1}, "is at least 2: got 1"),
        (MeanIoU, {"num_classes": 2.5}, "num_classes is a whole number: got 2.5"),
        (MeanIoU, {"num_classes": 3, "class_names": ("a", "b")}, "3 classes: class_names must be as many, got 2"),
        (PixelAccuracy, {"num_classes": 3, "ignore_class": "void"}, "ignore_class is a whole number: got 'void'"),
        (BoundaryIoU, {"num_classes": 3, "distance": 1.5}, "a whole number of pixels: got 1.5"),
        (BoundaryIoU, {"num_classes": 3, "distance": 0}, "got 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_weights_are_refused():
    with pytest.raises(ValueError, match="counts pixels and weighs none"):
        MeanIoU(2).update_state(np.zeros((1, 2, 2)), np.zeros((1, 2, 2), int), sample_weight=ops.ones((1, 2, 2)))
    with pytest.raises(ValueError, match=r"label maps \[b, h, w\]: got labels of shape \(4,\)"):
        BoundaryIoU(2).update_state(np.zeros(4, int), np.zeros(4, int))


@pytest.mark.parity
def test_equal_to_torchmetrics():
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    batches = [scene(seed, size=(40, 50), missing=None) for seed in range(2)]
    metric = measured(MeanIoU, *((labels, logits) for labels, _, logits in batches))
    every = MulticlassJaccardIndex(4, average="none", ignore_index=255)
    mean = MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    for labels, predictions, _ in batches:
        for theirs in (every, mean):
            theirs.update(torch.tensor(predictions), torch.tensor(labels))
    assert_close(list(metric.result_by_class().values()), every.compute().numpy())
    assert_close(metric.result(), mean.compute().numpy())
