"""Occlusion: closed form on a linear score, windows at the border, and what Ctrl-C leaves."""

import signal

import keras
import numpy as np
import pytest

from kvision.visualize import occlusion
from tests.support import SLOW, assert_close
from tests.visualize import nets


def by_hand(weights, image, window, stride, fill):
    """The mean drop of a linear score over the windows that cover each pixel, pixel by pixel."""
    height, width, _ = image.shape
    parts = (weights * (image - fill)).sum(axis=-1)
    starts = [
        sorted({*range(0, length - side, step), length - side})
        for length, side, step in zip((height, width), window, stride, strict=True)
    ]
    drops = [[[] for _ in range(width)] for _ in range(height)]
    for top in starts[0]:
        for left in starts[1]:
            drop = parts[top : top + window[0], left : left + window[1]].sum()
            for row in range(top, top + window[0]):
                for column in range(left, left + window[1]):
                    drops[row][column].append(drop)
    return np.array([[np.mean(each) for each in row] for row in drops])


@pytest.mark.parametrize(
    ("window", "stride", "fill"),
    [
        ((2, 4), (2, 3), (0.5, -1.0, 2.0)),
        *(pytest.param(*row, marks=SLOW) for row in ((3, 2, 0.0), (8, 8, None), (None, None, None))),
    ],
)
def test_of_a_linear_score_it_is_known(window, stride, fill):
    model, images = nets.linear(), nets.images()
    got = occlusion(model, images, 1, window=window, stride=stride, fill=fill, batch_size=7)
    pairs = [(each or 1,) * 2 if isinstance(each, int | None) else each for each in (window, stride)]
    want = [
        by_hand(nets.kernel(model)[1], image, *pairs, image.mean(axis=(0, 1)) if fill is None else np.array(fill))
        for image in images.astype("float64")
    ]
    assert_close(got, want, tolerance=(1e-4, 1e-4))


@SLOW
def test_what_covers_is_prepared_as_the_images_are():
    model, images = nets.linear(), 20 * np.abs(nets.images())
    got = occlusion(model, images, 1, window=3, stride=2, fill=7.0, preprocess=lambda x: x / 10 - 1)
    want = occlusion(model, images / 10 - 1, 1, window=3, stride=2, fill=-0.3)
    assert_close(got, want, tolerance=(1e-4, 1e-4))


def test_stopped_it_gives_what_there_is():
    model, images = nets.linear(), nets.images()
    calls = []

    def score(outputs):
        calls.append(len(outputs))
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return outputs[:, 1]

    got = occlusion(model, images, score, window=4, stride=4, fill=0.0, batch_size=4)  # 1 + 6 windows an image
    whole = occlusion(model, images, 1, window=4, stride=4, fill=0.0)
    assert len(calls) == 3 and got.shape == (2, 8, 9)
    assert_close(got[0], whole[0])
    assert np.isnan(got[1][4:, 5:]).all() and not np.isnan(got[1][:4]).any()
    assert_close(got[1][:4, :4], whole[1][:4, :4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 9}, r"window must fit images of \[8, 9\] pixels: got \[9, 9\]"),
        ({"window": 2, "stride": 3}, "stride lies between 1 and the window"),
        ({"window": (1, 2, 3)}, "window is a number of pixels, or two"),
        ({"window": 2, "stride": 1, "fill": (0, 1)}, "fill is a number, or one for each of the 3 channels"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        occlusion(nets.linear(), nets.images(), 0, **options)


def test_integers_go_in_and_nothing_need_be_differentiable():
    model = keras.Sequential(
        [keras.Input(nets.SIZE, dtype="uint8"), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    )
    got = occlusion(model, np.full((1, *nets.SIZE), 255, "uint8"), 0, window=2, stride=2, fill=0)
    assert got[0, 0, 0] == 1 and not got[0, 2:].any()
