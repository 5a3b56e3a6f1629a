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
ONCE = {  # steps that resample once at most, and those whose chain ends before the second
    "jitter, flip": [data.ScaleJitter((48, 56), scale=(0.5, 2.0)), data.HorizontalFlip()],
    "crops": [data.IoUCrop(rate=0.5), data.VerticalFlip(), data.Crop((40, 44), padding=4)],
    "nearest": [data.RandomResizedCrop((90, 70), interpolation="nearest"), data.HorizontalFlip()],
    "two interpolations": [
        data.ScaleJitter(SIZE, scale=(0.5, 1.5), interpolation="bicubic"),
        data.RandomResizedCrop((48, 56)),
    ],
    "colours between": [data.ScaleJitter(SIZE, scale=(0.5, 2.0)), data.ColorJitter(), data.HorizontalFlip()],
}
TWICE = {  # and more often
    "jitter, crop": [data.ScaleJitter(SIZE, scale=(0.5, 2.0)), data.RandomResizedCrop((48, 56), area=(0.5, 1.0))],
    "canvas": [
        data.ZoomOut(ratio=(1.0, 1.5)),
        data.RandomResizedCrop((48, 56), area=(0.5, 1.0)),
        data.Affine(translation=0.2, scale=(0.7, 1.4)),
    ],
}
CHAINS = ONCE | TWICE
SEEDS = [(2, seed) for seed in range(8)]


def rows(chains, quick):
    return [pytest.param(name, marks=[] if name == quick else slow) for name in chains]


@functools.cache
def made(name):
    """Samples of each seed, by one resampling and by one a step: of noise, and of coordinates (x, y, 255)."""

    def run(sample, seed):
        seeds = [tf.random.fold_in(seed, position) for position in range(len(CHAINS[name]))]
        one, each = pend(sample), sample
        for transform, own in zip(CHAINS[name], seeds, strict=True):
            one, each = _applied(transform, one, own), transform(each, own)
        return finished(one), each

    graph, samples = tf.function(run, autograph=False), []
    y, x = np.meshgrid(*(np.arange(side) + 0.5 for side in SIZE), indexing="ij")
    coordinates = np.stack([x, y, np.full(SIZE, 255.0)], axis=-1).astype("float32")
    for number, seed in enumerate(SEEDS):
        pixels, targets = detection(padded=bool(number % 2))
        places = np.where(pixels > 0, coordinates, 0.0).astype("float32")
        both = [graph((shown, targets), tf.constant(seed, tf.int64)) for shown in (pixels, tf.constant(places))]
        samples.append(tf.nest.map_structure(lambda tensor: tensor.numpy(), both))
    return samples


def grown(region, by=1):
    """A region [h, w] with what lies so many pixels around it."""
    padded = np.pad(region, by)
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * by + 1, 2 * by + 1)).any(axis=(2, 3))


def interior(image, by=2):
    """Where pixels lie that far from the border of what an image of coordinates shows."""
    return ~grown(np.pad(image[..., 2] < 254.9, by, constant_values=True), by)[by:-by, by:-by]


@pytest.mark.parametrize("name", rows(CHAINS, "crops"))
def test_objects_go_where_they_went_step_by_step(name):
    kept = 0
    for ((_, one), (_, each)), _ in made(name):
        assert one.keys() == each.keys()
        kept += (each["labels"] >= 0).sum()
        for target, value in each.items():
            if target != "masks" or name in ONCE:  # the nearest pixel of the nearest is not always the nearest
                np.testing.assert_allclose(one[target], value, rtol=1e-4, atol=2e-3, err_msg=target)
    assert kept >= len(SEEDS)


@pytest.mark.parametrize("name", rows(ONCE, "crops"))
def test_pixels_are_those_of_step_by_step(name):
    for ((one, _), (each, targets)), ((places, _), _) in made(name):
        if name == "colours between":  # which change the white
            places = np.zeros_like(places)
            places[tuple(map(slice, targets["image_size"]))] = 255.0
        seen = interior(places)
        np.testing.assert_allclose(one[seen], each[seen], atol=0.05)


@pytest.mark.parametrize("name", rows(TWICE, None))
def test_pixels_show_the_places_that_they_show_step_by_step(name):
    """A bilinear kernel, also the wider one that shrinks, leaves coordinates as they are, once or three times."""
    seen = 0
    for _, ((one, _), (each, _)) in made(name):
        both = interior(one, by=4) & interior(each, by=4)
        seen += both.sum()
        np.testing.assert_allclose(one[both], each[both], atol=0.5)  # a step rounds its size, and moves by less
    assert seen > 100 * len(SEEDS)


@pytest.mark.parametrize("name", rows(CHAINS, "crops"))
def test_what_was_cut_off_or_is_padding_stays_off(name):
    for _, ((one, _), (each, _)) in made(name):
        if name == "colours between":  # which change the white
            continue
        for this, other in ((one, each), (each, one)):
            assert not ((this[..., 2] > 127) & ~grown(other[..., 2] > 127)).any()  # but for a row of pixels


@pytest.mark.parametrize("name", rows(TWICE, None))
def test_masks_show_the_objects_at_the_places_that_the_pixels_show(name):
    for number, (_, ((places, targets), _)) in enumerate(made(name)):
        _, stored = detection(padded=bool(number % 2))
        x, y = places[..., 0], places[..., 1]
        told = interior(places) & (np.abs(x - np.round(x)) > 0.02) & (np.abs(y - np.round(y)) > 0.02)
        for label, mask in zip(targets["labels"], targets["masks"], strict=True):
            if label >= 0:
                whole = stored["masks"].numpy()[list(stored["labels"].numpy()).index(label)]
                np.testing.assert_array_equal(mask[told], whole[y.astype(int), x.astype(int)][told])


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
