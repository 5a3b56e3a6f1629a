"""What single transforms do, beyond the laws of all."""

import math

import numpy as np
import pytest
import tensorflow as tf

from kvision import data
from tests.data.augmentation.samples import SIZE, compiled, detection, image

CENTRE = np.array([SIZE[1] / 2, SIZE[0] / 2], "float32")
DRAWS = 1500


def points_after(transform, points):
    """Where points (x, y) go, under many seeds: [draws, n, 2]."""

    pixels = tf.zeros([*SIZE, 3])

    @tf.function(autograph=False)
    def run(seeds):
        def one(seed):
            plan = getattr(transform, "plan", None)
            warp = plan(pixels, {}, seed)[0] if plan else transform.warp(pixels, {}, seed)
            return warp.forward(tf.constant(points, tf.float32))

        return tf.map_fn(one, seeds, fn_output_signature=tf.float32)

    return run(tf.stack([tf.zeros(DRAWS, tf.int64), tf.range(DRAWS, dtype=tf.int64)], axis=1)).numpy()


def angle(points):
    across = points[:, 1] - points[:, 0]
    return np.arctan2(across[:, 1], across[:, 0])


BASE = np.stack([CENTRE, CENTRE + [1, 0], CENTRE + [0, 1]])
# The transform, what is measured of it, and between which ends that is drawn evenly.
EVEN = {
    "rotation": (data.Rotation(40), angle, (-math.radians(40), math.radians(40))),
    "translation, x": (data.Translation(0.2), lambda p: p[:, 0, 0], (CENTRE[0] - 16, CENTRE[0] + 16)),
    "translation, y": (data.Translation(0.2), lambda p: p[:, 0, 1], (CENTRE[1] - 12.8, CENTRE[1] + 12.8)),
    "scale": (data.Scale((0.5, 2.0)), lambda p: np.log(p[:, 1, 0] - p[:, 0, 0]), (-math.log(2), math.log(2))),
    "stretching": (
        data.Stretching(4.0),
        lambda p: np.log((p[:, 1, 0] - p[:, 0, 0]) / (p[:, 2, 1] - p[:, 0, 1])),
        (-math.log(4), math.log(4)),
    ),
    "shear": (
        data.Shear(30),
        lambda p: np.arctan(p[:, 2, 0] - p[:, 0, 0]),
        (-math.radians(30), math.radians(30)),
    ),
    "crop": (data.Crop((44, 40)), lambda p: CENTRE[0] - p[:, 0, 0] + np.linspace(0, 1, DRAWS), (0, 41)),
    "area": (
        data.RandomResizedCrop((40, 48), area=(0.1, 0.4)),
        lambda p: (48 / (p[:, 1, 0] - p[:, 0, 0])) * (40 / (p[:, 2, 1] - p[:, 0, 1])) / (64 * 80),
        (0.1, 0.4),
    ),
    "aspect": (
        data.RandomResizedCrop((40, 40), area=(0.1, 0.4)),
        lambda p: np.log((p[:, 2, 1] - p[:, 0, 1]) / (p[:, 1, 0] - p[:, 0, 0])),
        (math.log(3 / 4), math.log(4 / 3)),
    ),
    "canvas": (data.ZoomOut(ratio=(1.0, 4.0)), lambda p: 1 / (p[:, 1, 0] - p[:, 0, 0]), (1.0, 4.0)),
    "large scale": (data.ScaleJitter(SIZE, scale=(0.1, 2.0)), lambda p: p[:, 1, 0] - p[:, 0, 0], (0.1, 2.0)),
}


@pytest.mark.parametrize("transform, measure, ends", EVEN.values(), ids=EVEN)
def test_parameters_are_drawn_evenly(transform, measure, ends):
    """Kolmogorov and Smirnov's distance from the even distribution, at a level of 0.1 %."""
    drawn = np.sort((measure(points_after(transform, BASE)) - ends[0]) / (ends[1] - ends[0]))
    steps = np.arange(DRAWS + 1) / DRAWS
    distance = max(np.abs(drawn - steps[1:]).max(), np.abs(drawn - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(DRAWS)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_rate_is_kept(rate):
    run = tf.function(data.HorizontalFlip(rate=rate), autograph=False)
    picture = tf.constant([[[0.0], [1.0]]])
    flipped = np.mean([run(picture, tf.constant([5, seed]))[0, 0, 0] for seed in range(400)])
    assert flipped == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / 400))


def test_keypoints_flip_at_the_edges_of_pixels_and_pairs_change_places():
    _, before = detection()
    _, after = data.HorizontalFlip(rate=1.0, keypoint_pairs=((0, 1),))(detection(), (0, 0))
    expected = before["keypoints"].numpy()[:3, ::-1].copy()
    expected[..., 0] = SIZE[1] - expected[..., 0]
    np.testing.assert_array_equal(after["keypoints"][:3], expected)
    assert not after["keypoints"][3:].numpy().any()


@pytest.mark.parametrize("least, kept", [(0.0, 2), (0.45, 2), (0.55, 1), (1.0, 1)])
def test_objects_below_the_visible_fraction_are_dropped(least, kept):
    sample = detection(boxes=[[20, 0, 40, 20], [0, 0, 10, 10], [41, 0, 60, 20]], labels=[0, 1, 2])
    crop = data.Crop((64, 30), min_visibility=least)
    seed = next(seed for seed in range(2000) if compiled_offset(crop, (0, seed)) == 0)
    _, targets = crop(sample, (0, seed))
    assert sorted(targets["labels"].numpy()[:kept].tolist()) == ([0, 1] if kept == 2 else [1])
    assert (targets["labels"].numpy()[kept:] == -1).all()
    assert not targets["masks"].numpy()[kept:].any()
    if kept == 2:
        assert targets["boxes"].numpy()[0].tolist() == [20, 0, 30, 20]
        assert targets["area"].numpy()[0] == pytest.approx(200)


def compiled_offset(crop, seed):
    return -float(crop.warp(image(), {}, seed).linear()[1][1])


@pytest.mark.parametrize(
    "transform", [data.Crop((44, 40)), data.Crop(SIZE), data.HorizontalFlip(), data.VerticalFlip(rate=0.3)]
)
def test_what_is_known_when_traced_changes_no_number(transform):
    rng = np.random.default_rng(0)
    pixels = tf.constant(rng.uniform(0, 255, (*SIZE, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 9, SIZE), tf.int32)
    spec = [tf.TensorSpec([None, None, 3]), tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([2], tf.int32)]
    of_any_size = tf.function(lambda *sample: transform(sample[:2], sample[2]), input_signature=spec)
    images = set()
    for seed in tf.stack([tf.fill([6], 3), tf.range(6)], axis=1):
        expected, expected_labels = of_any_size(pixels, labels, seed)
        image_alone, (image, found) = transform(pixels, seed), transform((pixels, labels), seed)
        with_label, label = transform((pixels, tf.constant(4)), seed)
        np.testing.assert_array_equal(found, expected_labels)
        for made in (image_alone, image, with_label):
            np.testing.assert_array_equal(made, expected)
        assert int(label) == 4
        images.add(expected.numpy().tobytes())
    assert len(images) > 1 or transform == data.Crop(SIZE)


@pytest.mark.parametrize("left_out", ["masks", "box_masks"])
def test_tight_boxes_enclose_the_mask(left_out):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    disc = ((x - 40) ** 2 + (y - 32) ** 2 < 20**2).astype("uint8")
    pixels, targets = detection(boxes=[[20, 12, 60, 52]], labels=[0], num_rows=1)
    targets["masks"] = tf.constant(disc[None])
    targets["box_masks"] = tf.constant(disc[None, 12:52, 20:60])
    del targets[left_out]
    boxes = [
        compiled(data.Rotation(40, tight=tight))((pixels, targets), (1, 3))[1]["boxes"][0] for tight in (False, True)
    ]
    sides = [box[2:] - box[:2] for box in boxes]
    assert (sides[0] > 44).all()  # the hull of the turned square
    np.testing.assert_allclose(sides[1], 40, atol=2)
    np.testing.assert_allclose(boxes[1], [20, 12, 60, 52], atol=1.5)


def test_tight_boxes_need_masks():
    with pytest.raises(ValueError, match="takes boxes from masks, and the targets have none"):
        data.Rotation(10, tight=True)((image(), {"boxes": tf.zeros([1, 4]), "labels": tf.constant([0])}), (0, 0))


def test_crops_by_overlap_keep_what_has_its_centre_inside():
    run = compiled(data.IoUCrop())
    counts = []
    for seed in range(40):
        _, targets = run(detection(), (2, seed))
        counts.append((targets["labels"] >= 0).sum())
        assert counts[-1] >= 1
    assert {1, 2, 3} == set(counts)


WRONG = [
    (data.HorizontalFlip, {"rate": 1.5}, r"rate must be a probability in \[0, 1\], got 1.5"),
    (data.Crop, {"size": 32}, r"size must be \(height, width\) in whole pixels, got 32"),
    (data.RandomResizedCrop, {"size": (24.0, 24)}, r"size must be \(height, width\) in whole pixels, got \(24.0, 24\)"),
    (data.Crop, {"size": (32, 32), "rate": 0.5}, "every image gets the size of the crop"),
    (data.RandomResizedCrop, {"size": (8, 8), "area": (0.5, 1.5)}, r"area must be \(smallest, largest\)"),
    (data.RandomResizedCrop, {"size": (8, 8), "interpolation": "cubic"}, "interpolation must be one of nearest"),
    (data.Affine, {"scale": (2, 1)}, r"scale must be \(smallest, largest\)"),
    (data.Affine, {"fill": 300}, "fill must be a value of pixels"),
    (data.Rotation, {"degrees": (-10, 10)}, r"degrees must be one number, got \(-10, 10\)"),
    (data.Rotation, {"degrees": -10}, r"degrees must be degrees in \[0, 180\], of either direction, got -10"),
    (data.Shear, {"fill": 300}, "fill must be a value of pixels"),
    (data.Stretching, {"ratio": 0.5}, "ratio must be a ratio"),
    (data.Translation, {"fraction": "a"}, "fraction must be one number"),
    (data.Scale, {"scale": 0.5}, r"scale must be \(smallest, largest\)"),
    (data.Scale, {"scale": ("a", "b")}, r"scale must be \(smallest, largest\)"),
    (data.RandAugment, {"num_operations": 1.5}, "num_operations must be one whole number"),
    (data.ColorJitter, {"hue": (0, 0.1)}, "hue must be one number"),
    (data.RandomErasing, {"value": "noise"}, "value must be one number"),
    (data.MixUp, {"classes": ("a", "b")}, "classes must be one whole number"),
    (data.HorizontalFlip, {"rate": True}, "rate must be one number"),
    (data.HorizontalFlip, {"tight": 1}, "tight must be True or False"),
    (data.HorizontalFlip, {"keypoint_pairs": ((1, 2, 3),)}, "keypoint_pairs must be pairs of indices"),
    (data.VerticalFlip, {"keypoint_pairs": 1}, "keypoint_pairs must be pairs of indices"),
    (data.VerticalFlip, {"keypoint_pairs": (1, 2)}, "keypoint_pairs must be pairs of indices"),
    (data.HorizontalFlip, {"keypoint_pairs": ((1, 2), (2, 3))}, "each index once"),
    (data.HorizontalFlip, {"keypoint_pairs": ((1, -2),)}, "indices from 0"),
    (data.Elastic, {"strength": 1.0}, r"strength must be in"),
]


@pytest.mark.parametrize("kind, options, message", WRONG, ids=[str(row[1]) for row in WRONG])
def test_arguments_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*{message}"):
        kind(**options)


@pytest.mark.parametrize(
    "sample, message",
    [
        ((tf.zeros([2, 4, 4, 3]), tf.constant([1])), "a sample is an image"),
        ((tf.zeros([4, 4, 3]), tf.constant(1), tf.constant(1.0)), "Leave out other entries"),
        ((tf.zeros([4, 4, 3]), {"boxes": tf.zeros([1, 4])}), 'targets need "boxes"'),
        ((tf.zeros([4, 4, 3]), {"boxes": tf.zeros([4, 1, 4]), "labels": tf.zeros([4, 1])}), "a sample is an image"),
        ((tf.zeros([4, 4, 3]), tf.zeros([4, 5])), "grey images need a last axis"),
        (
            (
                tf.zeros([4, 4, 3]),
                {"boxes": tf.zeros([1, 4]), "labels": tf.zeros([1], tf.int32), "depth": tf.zeros([4, 4])},
            ),
            "the entry 'depth' of shape",
        ),
    ],
)
def test_samples_of_other_forms_are_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        data.HorizontalFlip()(sample, (0, 0))
