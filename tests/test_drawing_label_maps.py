"""Drawn label maps show each class where it is, and errors where they are."""

import itertools

import numpy as np
import pytest

from kvision.drawing import LIGHT, PALETTE, class_colour, legend_strip, segmentation, segmentation_errors
from kvision.drawing.label_maps import WRONG

GREY = np.full((60, 80, 3), 128, "uint8")
LABELS = np.zeros((60, 80), "int32")
LABELS[20:40, 30:60], LABELS[:, 70:] = 1, 255


def mixed(colour, opacity=0.55):
    return np.round(128 * (1 - opacity) + np.array(colour) * opacity)


def test_classes_are_colours_over_the_image_with_outlines():
    drawn = segmentation(GREY, LABELS, legend=False)
    assert drawn.shape == (60, 80, 3) and drawn.dtype == "uint8"
    np.testing.assert_array_equal(drawn[30, 45], mixed(PALETTE[1]))
    np.testing.assert_array_equal(drawn[5, 5], mixed(PALETTE[0]))
    assert (drawn[:, 70:] == 128).all()  # ignored
    assert (drawn[20, 30:60] == PALETTE[1]).all() and (drawn[19, 30:60] == PALETTE[0]).all()
    assert (drawn[0, :60] == mixed(PALETTE[0])).all()  # the border of the image is no outline
    alone = segmentation(GREY, LABELS, legend=False, background=0)
    assert (alone[5, 5] == 128).all() and (alone[19, 40] == 128).all() and (alone[20, 40] == PALETTE[1]).all()
    np.testing.assert_array_equal(segmentation(GREY, LABELS, legend=False, opacity=0)[30, 45], [128] * 3)
    assert (GREY == 128).all()


def test_the_legend_names_the_classes_that_are_there():
    names = ("ground", "tree", "house")
    drawn = segmentation(GREY, LABELS, names)
    strip = drawn[60:]
    assert len(strip) and drawn.shape[1] == 80
    for label, there in ((0, True), (1, True), (2, False)):
        assert (strip == PALETTE[label]).all(axis=-1).any() == there
    wide, narrow = (legend_strip([(PALETTE[k], f"class {k}") for k in range(5)], width) for width in (900, 120))
    assert wide.shape[1] == 900 and len(narrow) > 2 * len(wide) * 11 / 25


def test_errors_are_seen_and_what_is_ignored_is_neither():
    predicted = LABELS.copy()
    predicted[20:30, 30:60] = 0
    predicted[:, 70:] = 1
    colour = np.stack([np.full((60, 80), value) for value in (200, 100, 50)], axis=-1)
    drawn = segmentation_errors(colour, predicted, LABELS, legend=False)
    grey = np.round(np.dot((200, 100, 50), (0.299, 0.587, 0.114)))
    wrong = np.zeros((60, 80), bool)
    wrong[20:30, 30:60] = True
    assert (drawn[wrong] == np.round(grey * 0.3 + np.array(WRONG) * 0.7)).all()
    assert (drawn[:, 70:] == np.round(grey * 0.3 + np.array(LIGHT) * 0.7)).all()
    assert (drawn[~wrong & (LABELS != 255)] == grey).all()
    assert segmentation_errors(GREY, predicted, LABELS).shape[0] > 60


def test_the_side_scales_image_and_map():
    drawn = segmentation(GREY, LABELS, legend=False, side=320)
    assert drawn.shape == (240, 320, 3)
    np.testing.assert_array_equal(drawn[120, 180], mixed(PALETTE[1]))
    assert (drawn[:, 280:] == 128).all()
    assert segmentation_errors(GREY, LABELS, LABELS, legend=False, side=40).shape == (30, 40, 3)


def test_the_colours_of_twenty_one_classes_differ():
    colours = np.array([class_colour(label) for label in range(21)], int)
    for one, two in itertools.combinations(colours, 2):
        assert np.abs(one - two).max() > 20
    assert class_colour(21) == class_colour(0)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS[:10], {}, r"labels are integers of the size of the image, \(60, 80\): got int32 \(10, 80\)"),
        (LABELS.astype("float32"), {}, r"got float32 \(60, 80\). Of logits, take"),
        (LABELS - 1, {}, "labels count from 0: got -1, which is not the ignored_label 255"),
        (LABELS, {"opacity": 2}, r"opacity lies in \[0, 1\]: got 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(labels, options, message):
    with pytest.raises(ValueError, match=message):
        segmentation(GREY, labels, **options)
    if options:
        with pytest.raises(ValueError, match=message):
            segmentation_errors(GREY, labels, labels, **options)
