"""The preview shows samples as they were and as they become."""

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.data.augmentation.preview import draw
from kvision.data.source import Order, Source
from kvision.drawing import class_colour, grid, legend_strip, segmentation
from tests.data.augmentation.samples import detection, image

FLIP = [data.HorizontalFlip(rate=1.0)]


def flipped(sample):
    return FLIP[0](sample, (0, 0))


@pytest.mark.parametrize("kind", ["samples", "batches", "source"])
def test_each_row_is_one_sample_before_and_after(kind):
    samples = [(image(seed=seed), tf.constant(seed)) for seed in range(3)]
    pixels, labels = (tf.stack(parts) for parts in zip(*samples, strict=True))
    plain = tf.data.Dataset.from_tensor_slices((pixels, labels))
    if kind == "batches":
        plain = plain.batch(2)
    if kind == "source":
        plain = Source(lambda index: (pixels[index], labels[index]), Order(3, batch_size=2)).dataset()
    drawn = data.preview(data.augment(plain, FLIP), count=3, classes=["a", "b", "c"])
    shown = [draw(sample, ["a", "b", "c"]) for one in samples for sample in (one, flipped(one))]
    assert shown[-1][1] == "80 x 64, c"
    images, captions = zip(*shown, strict=True)
    np.testing.assert_array_equal(drawn, grid(images, columns=2, captions=captions))


def test_label_maps_are_drawn_as_everywhere_over_one_legend():
    labels = tf.repeat(tf.constant([[0, 8, 255]]), [20, 30, 30], axis=1)
    sample = image(), tf.repeat(labels, 64, axis=0)
    drawn = data.preview(data.augment(tf.data.Dataset.from_tensors(sample), FLIP), classes=[*"abcdefgh", "tree"])
    plain = image().numpy(), sample[1].numpy()
    halves = [segmentation(*(part[:, ::step] for part in plain), legend=False) for step in (1, -1)]
    rows = grid(halves, columns=2, captions=["80 x 64"] * 2)
    np.testing.assert_array_equal(drawn[: len(rows)], rows)
    entries = [(class_colour(0), "a"), (class_colour(8), "tree")]
    np.testing.assert_array_equal(drawn[len(rows) :], legend_strip(entries, rows.shape[1]))


def test_every_kind_of_sample_is_drawn():
    assert draw(image())[1] == "80 x 64"
    assert draw((image(), tf.constant([0.0, 0.25, 0.75])))[1] == "80 x 64, 2 0.75, 1 0.25"
    drawn, caption = draw(detection())
    assert caption == "80 x 64, 3 objects"
    assert np.abs(drawn - image().numpy()).max() > 50


def test_other_data_sets_are_refused():
    with pytest.raises(ValueError, match="expected the data set that kvision.data.augment returned"):
        data.preview(tf.data.Dataset.from_tensors(image()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"count": 0}, "count is a number of samples, at least 1, got 0"),
        ({"count": 1.5}, "count is a number of samples, at least 1, got 1.5"),
        ({"classes": ["a"]}, "there is a label 2, and names of 1 classes"),
        ({"classes": "abc"}, "class_names are texts"),
    ],
)
@pytest.mark.parametrize("label", [tf.constant(2), tf.one_hot(1, 3)], ids=["index", "soft"])
def test_what_cannot_be_shown_is_refused(label, options, message):
    made = data.augment(tf.data.Dataset.from_tensors((image(), label)), FLIP)
    with pytest.raises(ValueError, match=f"preview.*{message}"):
        data.preview(made, **options)


def test_boxes_without_a_name_and_empty_data_are_refused():
    made = data.augment(tf.data.Dataset.from_tensors(detection()), FLIP)
    with pytest.raises(ValueError, match="there is a label 2, and names of 2 classes"):
        data.preview(made, classes=["a", "b"])
    with pytest.raises(ValueError, match="has no samples"):
        data.preview(data.augment(tf.data.Dataset.from_tensors(image()).take(0), FLIP))
