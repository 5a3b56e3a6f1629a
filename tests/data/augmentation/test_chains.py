"""Steps that only scale, move, mirror and cut are one resampling; all else is as if each had made its own image."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from kvision.data.augmentation.chains import pend
from kvision.data.augmentation.pipeline import _applied
from kvision.data.pending import finished
from tests.data.augmentation.samples import SIZE, detection, image

slow = pytest.mark.slow
CHAINS = {
    "jitter, flip": [data.ScaleJitter((48, 56), scale=(0.5, 2.0)), data.HorizontalFlip()],
    "crops": [data.IoUCrop(rate=0.5), data.VerticalFlip(), data.Crop((40, 44), padding=4)],
    "canvas": [
        data.ZoomOut(ratio=(1.0, 1.5)),
        data.RandomResizedCrop((48, 56), area=(0.5, 1.0)),
        data.Affine(translation=0.2, scale=(0.7, 1.4)),
    ],
    "nearest": [data.RandomResizedCrop((90, 70), interpolation="nearest"), data.HorizontalFlip()],
    "two interpolations": [data.ScaleJitter(SIZE, interpolation="bicubic"), data.RandomResizedCrop((48, 56))],
    "colours between": [data.ScaleJitter(SIZE), data.ColorJitter(), data.HorizontalFlip()],
}
ROWS = [
    pytest.param(name, marks=[] if name == "crops" else slow) for name in CHAINS
]  # of the others, steps are tried alone
SEEDS = [(2, seed) for seed in range(6)]


@functools.cache
def made(name):
    """Samples of each seed, by one resampling and by one a step: of noise, and of white."""

    def run(sample, seed):
        seeds = [tf.random.fold_in(seed, position) for position in range(len(CHAINS[name]))]
        one, each = pend(sample), sample
        for transform, own in zip(CHAINS[name], seeds, strict=True):
            one, each = _applied(transform, one, own), transform(each, own)
        return finished(one), each

    graph, samples = tf.function(run, autograph=False), []
    for number, seed in enumerate(SEEDS):
        pixels, targets = detection(padded=bool(number % 2))
        white = tf.cast(pixels > 0, tf.float32) * 255.0
        both = [graph((shown, targets), tf.constant(seed, tf.int64)) for shown in (pixels, white)]
        samples.append(tf.nest.map_structure(lambda tensor: tensor.numpy(), both))
    return samples


@pytest.mark.parametrize("name", ROWS)
def test_objects_go_where_they_went_step_by_step(name):
    kept = 0
    for ((_, one), (_, each)), _ in made(name):
        assert one.keys() == each.keys()
        kept += (each["labels"] >= 0).sum()
        for target, value in each.items():
            if target not in ("masks", "box_masks"):
                np.testing.assert_allclose(one[target], value, rtol=1e-4, atol=2e-3, err_msg=target)
        for target in ("masks", "box_masks"):  # the nearest pixel of the nearest is at times another, along the border
            area = np.maximum((each[target] > 0).sum(axis=(1, 2)), 20)
            assert ((one[target] != each[target]).sum(axis=(1, 2)) < np.maximum(0.25 * area, 2 * area**0.5)).all()
    assert kept >= len(SEEDS)


@pytest.mark.parametrize("name", ROWS)
def test_pixels_are_as_step_by_step_and_what_was_cut_off_stays_off(name):
    for ((one, _), (each, _)), ((white, _), (white_by_steps, _)) in made(name):
        assert one.shape == each.shape
        assert np.abs(one - each).mean() < 5  # three resamplings are smoother than one
        assert ((white > 127) != (white_by_steps > 127)).mean() < 0.03  # a row of pixels at most


def test_pixels_are_read_once_and_no_more_of_them_than_are_shown():
    windows = []

    def read(window):
        windows.append([int(number) for number in window])
        top, left, height, width = windows[-1]
        return image()[top : top + height, left : left + width]

    pending = dataclasses.replace(pend((image(), tf.constant(1))), read=read)
    crop = data.RandomResizedCrop((20, 24), area=(0.1, 0.2))
    for transform in (crop, data.HorizontalFlip(rate=1.0), data.Crop((10, 12))):
        pending = transform.on_pending(pending, (1, 2))
    assert windows == []
    pixels, label = pending.finished()
    assert (tuple(pixels.shape), int(label)) == ((10, 12, 3), 1)
    ((_, _, height, width),) = windows
    assert height * width < 0.1 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize("transform", [data.Rotation(10), data.Scale(fill=9), data.HorizontalFlip(tight=True)])
def test_what_is_no_such_step_reads_first(transform):
    assert transform.on_pending(pend(detection()), (0, 1)) is None
    tf.nest.map_structure(
        np.testing.assert_array_equal, _applied(transform, pend(detection()), (0, 1)), transform(detection(), (0, 1))
    )


def test_transforms_of_others_get_samples_and_not_pending_ones():
    class Average:
        num_partners = 1

        def __call__(self, sample, seed, partners=None):
            ((other, _),) = partners()
            return (sample[0] + other) / 2, sample[1]

    pixels = tf.fill([4, 8, 8, 3], 10.0)
    found = data.arrays(pixels, np.arange(4), batch_size=2)
    source = found.source
    found.source = type(source)(lambda index: pend((pixels[index], index)), source.order)
    chain = [data.HorizontalFlip(), Average(), lambda sample, seed: (sample[0] + 1.0, sample[1])]
    for images, _ in data.augment(found, chain):
        np.testing.assert_array_equal(images, np.full((2, 8, 8, 3), 11.0))
