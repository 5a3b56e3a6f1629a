"""Charts of runs show the numbers of the history; drawn detections show the boxes."""

import itertools

import numpy as np
import pytest

from kvision.drawing import DARK, LIGHT, PALETTE, curves, detections, grid, lines
from kvision.drawing import boxes as boxes_drawn


def test_curves_hold_the_history():
    history = {"loss": [3.0, 2.0, 1.0], "val_loss": [3.5, 2.5, 2.0], "learning_rate": [0.1, 0.1, 0.01]}
    figure = curves(history, title="run")
    loss, rate = figure.axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert np.array_equal(loss.lines[0].get_ydata(), history["loss"])
    assert np.array_equal(loss.lines[1].get_ydata(), history["val_loss"])
    assert rate.get_title() == "learning_rate"
    assert loss.lines[0].get_linestyle() != loss.lines[1].get_linestyle()


def test_a_metric_seen_in_validation_alone_has_its_own_chart():
    assert [axes.get_title() for axes in curves({"loss": [1.0], "val_AP": [0.5]}).axes] == ["loss", "val_AP"]


def test_an_empty_history_is_an_empty_figure():
    assert curves({}).axes == []


def test_lines_have_their_names():
    (axes,) = lines({"plain": ([0, 8], [0.9, 0.1]), None: ([0, 8], [0.9, 0.5])}, "epsilon", "accuracy", "digits").axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.9, 0.1], [0.9, 0.5]]
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("epsilon", "accuracy", "digits")


GREY = np.full((60, 80, 3), 128, "uint8")
NOTHING = np.zeros((0, 4)), np.zeros(0, int)


def where(image, colour):
    """Left, top, right, bottom of the pixels of a colour."""
    rows, columns = np.nonzero((image == colour).all(axis=-1))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if rows.size else None


def test_a_box_is_drawn_where_it_is_and_in_the_colour_of_its_class():
    image = detections(GREY, [[10, 20, 50, 45]], [1], classes=["a", ""])
    assert image.shape == (60, 80, 3)
    assert image.dtype == "uint8"
    line = image[33, 10:50]  # across the box, away from the corners and the name
    assert (line[:2] == PALETTE[1]).all()
    assert (line[-2:] == PALETTE[1]).all()
    assert (line[4:-4] == 128).all()
    assert (image[33, 9] == DARK).all()
    assert (image[33, 12] == DARK).all()
    assert (GREY == 128).all()


def test_what_cannot_be_drawn_is_left_out():
    boxes = [
        [np.nan, 1, 9, 9],
        [9, 9, 2, 2],
        [5, 5, 5, 9],
        [1, 1, 30, 30],
        [-1e9, 1, -1e8, 9],
        [1e30, 1, 2e30, 9],
        [0, 0, np.inf, 9],
    ]
    np.testing.assert_array_equal(detections(GREY, boxes, [0, 0, 0, -1, 0, 0, 0]), GREY)
    np.testing.assert_array_equal(detections(GREY, *NOTHING, scores=[], masks=np.zeros((0, 60, 80))), GREY)
    np.testing.assert_array_equal(detections(GREY, [], []), GREY)


def test_truth_is_a_white_rim_below():
    truth = {"boxes": np.array([[10.0, 10, 40, 40], [50, 10, 70, 40]]), "labels": np.array([0, -1])}
    missed = detections(GREY, *NOTHING, truth=truth, classes=["a"])
    assert where(missed, LIGHT) == [10, 10, 40, 40]
    both = detections(GREY, [[10, 10, 40, 40]], [0], truth=truth, classes=[""])
    row = both[25, 10:16]
    assert (row[:2] == PALETTE[0]).all()
    assert (row[3] == LIGHT).all()
    wrong = detections(GREY, [[10, 10, 40, 40]], [0], classes=[""])
    assert not (wrong[25, 9:20] == LIGHT).all(axis=-1).any()


def test_masks_are_translucent_with_a_rim():
    mask = np.zeros((1, 60, 80), "uint8")
    mask[0, 20:40, 30:60] = 1
    image = detections(GREY, [[30, 20, 60, 40]], [2], masks=mask, classes=[""] * 3)
    fill = np.round(0.55 * 128 + 0.45 * np.array(PALETTE[2]))
    np.testing.assert_array_equal(image[30, 45], fill)
    assert (image[10, 45] == 128).all()
    floats = detections(GREY, [[30, 20, 60, 40]], [2], masks=0.6 * mask, classes=[""] * 3)
    np.testing.assert_array_equal(floats, image)
    truth = {"boxes": [[30, 20, 60, 40]], "labels": [2], "box_masks": np.ones((1, 7, 7), "uint8")}
    rim = detections(GREY, *NOTHING, truth=truth, classes=[""] * 3)
    assert where(rim, LIGHT) == [30, 20, 60, 40]
    assert (rim[30, 45] == 128).all()


def test_the_side_scales_the_image_and_what_is_drawn_on_it():
    mask = np.zeros((1, 60, 80))
    mask[0, 20:40, 30:60] = 1
    image = detections(GREY, [[30, 20, 60, 40]], [0], masks=mask, classes=[""], side=320)
    assert image.shape == (240, 320, 3)
    left, _, right, bottom = where(image, PALETTE[0])
    assert (left, right, bottom) == (120, 240, 160)
    assert detections(GREY, *NOTHING, side=40).shape == (30, 40, 3)


@pytest.mark.parametrize(("side", "named"), [(128, (8, 8)), (300, (12, 25))])
def test_labels_do_not_overlap_and_the_highest_scores_come_first(monkeypatch, side, named):
    written, taken = [], []

    class Labels(boxes_drawn.Labels):
        def add(self, text, *box, **options):
            super().add(text, *box, **options)
            written.append((text, len(self.taken) > len(taken)))
            taken[:] = self.taken

    monkeypatch.setattr(boxes_drawn, "Labels", Labels)
    corners = np.random.default_rng(0).uniform(0, side * 0.9, (40, 2))
    boxes = np.concatenate([corners, corners + side / 12], axis=1)
    scores = np.random.default_rng(1).permutation(40) / 40
    detections(np.zeros((side, side, 3)), boxes, np.zeros(40, int), scores=scores, classes=["tree"])
    assert [text for text, _ in written] == [f"tree {score:.2f}" for score in sorted(scores, reverse=True)]
    assert all(placed for _, placed in written[:4])
    assert named[0] <= len(taken) <= named[1]
    for (l1, t1, r1, b1), (l2, t2, r2, b2) in itertools.combinations(taken, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1
    assert all(min(left, top) >= 0 and max(right, bottom) <= side for left, top, right, bottom in taken)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_boxes_show_on_any_background(background):
    """Each line stands out from its background, or the thin line beside it does."""
    for label in range(len(PALETTE)):
        image = detections(np.full((60, 80, 3), background), [[10, 10, 50, 50]], [label]).astype(int)
        across = image[30, 5:18] @ [0.299, 0.587, 0.114]
        assert np.abs(np.diff(across)).max() > 60


def test_colours_differ_for_every_kind_of_colour_vision():
    """Machado et al. 2009: matrices of full protanopia, deuteranopia and tritanopia, on linear light."""
    kinds = {
        "normal": np.eye(3).ravel(),
        "protanopia": [0.1523, 1.0526, -0.2049, 0.1145, 0.7863, 0.0992, -0.0039, -0.0481, 1.0520],
        "deuteranopia": [0.3673, 0.8606, -0.2280, 0.2801, 0.6725, 0.0474, -0.0118, 0.0429, 0.9689],
        "tritanopia": [1.2555, -0.0767, -0.1788, -0.0784, 0.9308, 0.1476, 0.0047, 0.6914, 0.3039],
    }
    for matrix in kinds.values():
        light = (np.array(PALETTE) / 255) ** 2.2
        seen = np.clip(light @ np.reshape(matrix, (3, 3)).T, 0, 1) ** (1 / 2.2) * 255
        for one, two in itertools.combinations(seen, 2):
            assert np.linalg.norm(one - two) > 30


@pytest.mark.parametrize(
    ("boxes", "labels", "options", "message"),
    [
        ([[1, 2, 3]], [0], {}, r"boxes of the detections must be \(1, 4\), got \(1, 3\)"),
        ([[1, 2, 3, 4]], [0, 1], {}, r"labels of the detections must be \(1,\)"),
        ([[1, 2, 3, 4]], [0], {"scores": [0.1, 0.2]}, r"scores of the detections must be \(1,\)"),
        ([[1, 2, 3, 4]], [0], {"masks": np.zeros((1, 28, 28))}, r"masks of the detections must be \(1, 60, 80\)"),
        ([], [], {"truth": {"boxes": [[1, 2, 3, 4]], "labels": []}}, r"labels of the truth must be \(1,\), got \(0,\)"),
    ],
)
def test_wrong_shapes_are_refused(boxes, labels, options, message):
    with pytest.raises(ValueError, match=message):
        detections(GREY, boxes, labels, **options)


def test_grey_images_become_colour_and_others_are_refused():
    assert detections(GREY[..., :1], *NOTHING).shape == (60, 80, 3)
    assert detections(GREY[..., 0], *NOTHING).shape == (60, 80, 3)
    assert detections(np.full((4, 4, 3), np.nan), *NOTHING).max() == 0
    with pytest.raises(ValueError, match=r"got \(60, 80, 2\)"):
        detections(GREY[..., :2], *NOTHING)


def test_a_grid_holds_every_image_once():
    images = [np.full((20 + row, 30, 3), 40 * row + 1, "uint8") for row in range(5)]
    sheet = grid(images, columns=2)
    assert sheet.shape == (3 * (24 + 4) + 4, 2 * (30 + 4) + 4, 3)
    for row, image in enumerate(images):
        assert (sheet == 40 * row + 1).all(axis=-1).sum() == image.shape[0] * 30
    left, top, right, bottom = where(sheet, [121] * 3)
    assert (left, right, top, bottom) == (38, 68, 32 + 0, 32 + 23)
    assert grid(images * 2).shape == (4 * (24 + 4) + 4, 3 * (30 + 4) + 4, 3)  # about square


def test_captions_have_a_line_of_their_own_and_end_in_time():
    images = [np.zeros((20, 60, 3), "uint8")] * 2
    plain, captioned, long = (grid(images, 1, captions) for captions in (None, ["a", "b"], ["a", "b" * 100]))
    assert captioned.shape[0] > plain.shape[0]
    assert captioned.shape == long.shape
    assert (long[:, 66:] == 255).all()
    lines = grid(images, 1, ["a\nb", "c"])
    strip = captioned.shape[0] - plain.shape[0]
    assert lines.shape[0] == plain.shape[0] + 2 * strip
    np.testing.assert_array_equal(lines[: 24 + strip // 2], captioned[: 24 + strip // 2])  # the first line as alone
    with pytest.raises(ValueError, match="2 images need as many captions, got 1"):
        grid(images, captions=["a"])
    with pytest.raises(ValueError, match="no image"):
        grid([])


def test_a_mask_begins_at_one_half():
    boxes, blank = [[8, 8, 40, 40]], np.zeros((64, 96, 3))
    inside = np.zeros((1, 64, 96))
    inside[0, 10:30, 10:30] = 1
    half, less, whole = (detections(blank, boxes, [0], masks=inside * score) for score in (0.5, 0.499, 1.0))
    assert np.array_equal(half, whole)
    assert not np.array_equal(less, whole)
