"""The network of SDS, and the regions it is fed with."""

import functools

import keras
import numpy as np
import pytest
import scipy.ndimage
from numpy.lib import stride_tricks

from kvision import applications as A
from kvision.applications.segmentation import sds
from kvision.applications.segmentation.sds_regions import (
    region_boxes,
    region_crops,
    region_overlaps,
    region_proposals,
    suppress_regions,
)
from kvision.data import shapes
from tests.support import assert_close

SIZE = 24
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trunk(norm=None, **options):
    return A.ConvNet(1, 2, 1, input_shape=(SIZE, SIZE, 3), classes=5, filters=8, units=16, norm=norm, **options)


def build(**options):
    return A.SDS(**({"input_shape": (SIZE, SIZE, 3), "classes": 3, "backbone": trunk()} | options))


@functools.cache
def tiny():
    """Built once; no test changes it."""
    keras.utils.set_random_seed(0)
    return build()


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    yield
    tiny.cache_clear()


def crops_of(count=2, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0, 255, (count, SIZE, SIZE, 3)).astype("float32") for name in ("boxes", "regions")}


def numpy(value):
    return keras.ops.convert_to_numpy(value)


# The network.


def test_the_papers_network_is_two_alexnets_and_a_classifier():
    with keras.StatelessScope(initialize_variables=False):
        model = A.SDS()
    alexnet = 60_965_224 - 4097 * 1000
    assert sum(np.prod(w.shape, dtype="int64") for w in model.weights) == 2 * alexnet + 21 * 8193 == 113_908_501


def test_paths_have_weights_of_their_own_that_start_as_the_backbones():
    backbone = trunk()
    model = build(backbone=backbone)
    paths = [weight.path for weight in model.weights]
    assert len(set(paths)) == len(paths) == 2 * (len(backbone.weights) - 2) + 2
    for name in ("box_path", "region_path"):
        for ours, theirs in zip(model.get_layer(name).get_weights(), backbone.get_weights(), strict=False):
            assert np.array_equal(ours, theirs)
    moved = model.get_layer("box_path").weights[0]
    before = numpy(moved).copy()
    moved.assign(before + 1)
    for other in (backbone, model.get_layer("region_path")):
        assert np.array_equal(numpy(other.weights[0]), before)


def test_the_features_are_those_before_the_last_dense_layer_of_both():
    backbone = trunk()
    model = build(backbone=backbone, include_top=False)
    hidden = keras.Model(backbone.input, backbone.layers[-1].input)
    crops = crops_of()
    want = [numpy(hidden(backbone.preprocessing(crops[name]))) for name in ("boxes", "regions")]
    assert_close(model(crops), np.concatenate(want, axis=-1))


def test_maps_are_averaged():
    backbone = trunk(include_top=False)
    model = build(backbone=backbone, include_top=False)
    crops = crops_of()
    want = [numpy(backbone(backbone.preprocessing(crops[name]))).mean(axis=(1, 2)) for name in ("boxes", "regions")]
    assert_close(model(crops), np.concatenate(want, axis=-1))


def test_save_and_load(tmp_path):
    model, crops = tiny(), crops_of()
    model.save(tmp_path / "sds.keras")
    copy = keras.saving.load_model(tmp_path / "sds.keras")
    assert [w.path for w in copy.weights] == [w.path for w in model.weights]
    assert_close(copy(crops), model(crops))
    again = build(weights=str(tmp_path / "sds.keras"))
    assert_close(again(crops), model(crops))


def step(model, jit):
    model.compile("sgd", LOSS, jit_compile=jit)
    before = model.get_weights()
    history = model.fit(crops_of(4), np.arange(4), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    return [not np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_compiled_steps_in_16_bits(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    model = build(backbone=trunk())
    moved = step(model, jit=True)
    assert policy == "mixed_float16" or any(moved)  # loss scaling may skip steps
    assert {keras.backend.standardize_dtype(tensor.dtype) for tensor in model.outputs} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, "classes must be a whole number of at least 1, got 0"),
        ({"weights": "imagnet"}, "weights='imagnet' is neither a file nor published"),
        ({"input_shape": (32, 32, 3)}, r"SDS has input_shape=\(32, 32, 3\), its backbone \(24, 24, 3\)"),
        ({"backbone": "alexnet"}, "backbone is a keras.Model"),
    ],
    ids=str,
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_backbones_of_levels_are_refused():
    with pytest.raises(ValueError, match=r"one vector or map: got \['C1'\]"):
        build(backbone=trunk(include_top=False, features=("C1",)))


# Crops.


def crop_twin(image, mask, size, padding, mean):
    """Every pixel of both crops, one at a time."""
    rows, columns = np.nonzero(mask)
    top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    box = np.empty((size, size, 3))
    region = np.empty((size, size, 3))
    for i, j in np.ndindex(size, size):
        y = top + (i + 0.5 - padding) * height / (size - 2 * padding)
        x = left + (j + 0.5 - padding) * width / (size - 2 * padding)
        box[i, j] = region[i, j] = mean
        if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
            channels = np.moveaxis(image, -1, 0)
            box[i, j] = [
                scipy.ndimage.map_coordinates(c, [[y - 0.5], [x - 0.5]], order=1, mode="nearest")[0] for c in channels
            ]
            if mask[int(y), int(x)]:
                region[i, j] = box[i, j]
    return box, region


@pytest.mark.parametrize("padding", [0, 3])
def test_crops_equal_their_twin(padding):
    rng = np.random.default_rng(padding)
    image = rng.uniform(0, 255, (13, 17, 3))
    masks = np.zeros((3, 13, 17), bool)
    masks[0, 0:9, 5:17] = rng.random((9, 12)) > 0.3
    masks[1, 4:12, 3:6] = True
    masks[2, 7, 8] = True
    mean = (10.0, 20.0, 30.0)
    got = region_crops(image, masks, size=11, padding=padding, mean=mean)
    for row, mask in enumerate(masks):
        box, region = crop_twin(image, mask, 11, padding, mean)
        assert_close(got["boxes"][row], box, tolerance=(1e-5, 1e-3))
        assert_close(got["regions"][row], region, tolerance=(1e-5, 1e-3))


def test_the_box_is_read_pixel_by_pixel_at_its_own_size():
    image = np.random.default_rng(0).uniform(0, 255, (9, 9, 3)).astype("float32")
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 2:6, 3:7] = np.eye(4)
    crops = region_crops(image, mask, size=4, padding=0, mean=7.0)
    assert np.array_equal(crops["boxes"][0], image[2:6, 3:7])
    assert np.array_equal(crops["regions"][0], np.where(np.eye(4)[..., None] > 0, image[2:6, 3:7], 7.0))


def test_the_surroundings_of_a_box_are_as_wide_as_the_padding():
    image = np.zeros((40, 40, 3))
    image[16:24, 16:24] = 200
    mask = image[None, ..., 0] > 0
    crops = region_crops(image, mask, size=(227, 227), padding=16, mean=0.0)
    bright = crops["boxes"][0, 113, :, 0] > 100
    assert np.flatnonzero(bright).min() == 16 and np.flatnonzero(bright).max() == 210


# Overlaps, suppression, boxes.


def random_masks(rng, count, size=(9, 11)):
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        top, left = rng.integers(0, 6, 2)
        mask[top : top + rng.integers(1, 5), left : left + rng.integers(1, 6)] = True
        mask &= rng.random(size) > 0.3
        mask[top, left] = True
    return masks


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_and_boxes_equal_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    a, b = random_masks(rng, 6), random_masks(rng, 4)
    sets = [[set(map(tuple, np.argwhere(mask))) for mask in masks] for masks in (a, b)]
    assert_close(region_overlaps(a, b), [[len(x & y) / len(x | y) for y in sets[1]] for x in sets[0]])
    found = [scipy.ndimage.find_objects(mask.astype(int))[0] for mask in a]
    assert region_boxes(a).tolist() == [[x.start, y.start, x.stop, y.stop] for y, x in found]


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_equals_a_greedy_loop(seed, threshold):
    rng = np.random.default_rng(seed)
    masks, scores = random_masks(rng, 20), rng.random(20)
    overlaps, want = region_overlaps(masks, masks), []
    for index in np.argsort(-scores):
        if all(overlaps[index, other] <= threshold for other in want):
            want.append(index)
    assert suppress_regions(masks, scores, threshold).tolist() == want
    assert suppress_regions(masks, scores, threshold, num_regions=2).tolist() == want[:2]


# Proposals.


def scene():
    image = np.full((48, 64, 3), 20.0)
    image[8:28, 6:30] = (200, 30, 30)
    image[14:40, 40:58] = (30, 200, 30)
    return image


def test_proposals_hold_the_things_that_can_be_seen():
    image = scene()
    masks = region_proposals(image)
    assert masks.dtype == bool and masks.shape[1:] == (48, 64) and masks[0].all()
    things = np.stack([image[..., 0] == 200, image[..., 1] == 200])
    assert (region_overlaps(things, masks).max(axis=1) > 0.9).all()
    assert region_boxes(masks).shape == (len(masks), 4)


def test_no_proposal_repeats_another_or_is_small():
    image = shapes(1, image_size=(64, 64), seed=3)[0][0]
    masks = region_proposals(image, min_size=30)
    assert len(masks) > 5
    overlaps = region_overlaps(masks, masks)
    assert overlaps[~np.eye(len(masks), dtype=bool)].max() <= 0.9
    assert np.count_nonzero(masks, axis=(1, 2)).min() >= 30
    assert np.array_equal(region_proposals(image, min_size=30, num_proposals=4), masks[:4])
    assert len(region_proposals(image, min_size=30, duplicate_iou=0.3)) < len(masks)


def test_an_image_of_one_colour_is_one_proposal():
    assert region_proposals(np.zeros((16, 16, 3))).tolist() == np.ones((1, 16, 16), bool).tolist()


@pytest.mark.parametrize("options", [{"scales": ()}, {"num_proposals": 0}, {"duplicate_iou": 0.0}], ids=str)
def test_proposals_refuse_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="region_proposals needs"):
        region_proposals(scene(), **options)


# Batches of regions.


def a_set_of_images():
    """Two images of two sizes: an object of class 2 with a crowd beside it, and nothing."""
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 2:10, 2:10] = True
    masks[2, 12:, 12:] = True
    images = [np.random.default_rng(0).uniform(0, 255, (*size, 3)) for size in ((20, 20), (16, 18))]
    targets = [
        {"labels": np.array([2, -1, 1]), "masks": masks, "crowd": np.array([0, 0, 1])},
        {"labels": np.array([-1]), "masks": np.zeros((1, 16, 18), "uint8")},
    ]
    proposals = np.zeros((4, 20, 20), bool)
    proposals[0, 2:10, 2:8] = True  # 0.75 of the object
    proposals[1, 2:10, 6:14] = True  # a third
    proposals[2, 13:, 13:] = True  # of the crowd
    proposals[3, :, 12:14] = True  # a part of it
    return images, targets, [proposals, np.ones((1, 16, 18), bool)]


class ReadWhenAsked:
    """Proposals that do not lie in memory."""

    def __init__(self, proposals):
        self.proposals = proposals

    def __len__(self):
        return len(self.proposals)

    def __getitem__(self, index):
        return self.proposals[index].astype("uint8")


def test_regions_are_labelled_by_what_they_overlap():
    images, targets, proposals = a_set_of_images()
    regions = sds.LabelledRegions("it", images, targets, ReadWhenAsked(proposals), classes=3)
    assert regions.masks(0).dtype == bool and np.array_equal(regions.masks(0)[1:], proposals[0])
    assert np.array_equal(regions.masks(0, [3, 0]), regions.masks(0)[[3, 0]])
    assert [labels.tolist() for labels in regions.labels] == [[2], []]
    assert_close(regions.overlaps[0], [[1.0], [0.75], [1 / 3], [0.0], [0.0]])
    assert regions.overlaps[1].shape == (1, 0)
    assert [rows.tolist() for rows in regions.ignored] == [[False, False, False, True, False], [False]]
    assert_close(regions.class_overlaps(0, 2), [1.0, 0.75, 1 / 3, 0.0, 0.0])
    assert regions.class_overlaps(0, 1).tolist() == [0.0] * 5


def test_batches_hold_objects_and_background_and_no_crowd():
    data = a_set_of_images()
    batches = sds.RegionBatches(*data, classes=3, size=16, batch_size=8, padding=2, mean=0.0)
    every = {}
    for index, masks in enumerate(data[2]):
        masks = np.concatenate([data[1][0]["masks"][:1], masks]) if index == 0 else masks
        for row, crop in enumerate(region_crops(data[0][index], masks, 16, 2, 0.0)["regions"]):
            every[crop.tobytes()] = index, row
    assert len(batches) == 1
    seen, draws = set(), set()
    for _ in range(8):
        crops, labels = batches[0]
        assert labels.dtype == "int32" and labels.tolist() == [3, 3] + [0] * 6
        found = [every[crop.tobytes()] for crop in crops["regions"]]
        assert {(0, 0), (0, 1)} == set(found[:2])
        seen |= set(found[2:])
        draws.add(tuple(found))
        again = batches[0]
        assert all(map(np.array_equal, again[0].values(), crops.values()))
        batches.on_epoch_end()
    assert seen == {(0, 2), (0, 4), (1, 0)} and len(draws) > 4


def test_every_object_is_shown_once_an_epoch():
    images, targets, proposals = a_set_of_images()
    proposals[0] = np.stack([np.roll(targets[0]["masks"][0], shift, axis=1) for shift in range(3)])
    proposals[0][2] = stride_tricks.as_strided(proposals[0][1], (20, 20))
    batches = sds.RegionBatches(images, targets, proposals, classes=3, size=8, batch_size=4, padding=0)
    assert len(batches) == 4
    assert all(batch[1].tolist() == [3, 0, 0, 0] for batch in batches)


def test_batches_train_the_network():
    model = build()
    model.compile(keras.optimizers.Adam(1e-2), LOSS)
    batches = sds.RegionBatches(*a_set_of_images(), classes=3, size=SIZE, batch_size=8, padding=2)
    before = model.get_weights()
    history = model.fit(batches, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    assert not any(map(np.array_equal, before, model.get_weights()))  # both paths learn


def bad(change):
    images, targets, proposals = a_set_of_images()
    change(images, targets, proposals)
    return images, targets, proposals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t, p: p[1].fill(False), "image 1: proposal 0 has no pixel"),
        (lambda i, t, p: p[0].__setitem__(2, False), "image 0: proposal 2 has no pixel"),
        (
            lambda i, t, p: p.__setitem__(1, p[0]),
            r"image 1: the masks of proposals .* \(n, 16, 18\): got \(4, 20, 20\)",
        ),
        (lambda i, t, p: p.__setitem__(1, p[1][:0]), "image 1: there is no proposal"),
        (lambda i, t, p: p.__setitem__(0, 0.5 * p[0]), r"image 0: masks are bool, .* got float64 in 0.0…0.5"),
        (lambda i, t, p: p.__setitem__(0, 7 * p[0]), r"image 0: masks are bool, or integers 0 and 1: got int64 in 0…7"),
        (lambda i, t, p: p.pop(), "2 images, 2 targets and 1 arrays of proposals"),
        (lambda i, t, p: t[0]["labels"].__setitem__(0, 3), "image 0: labels are integers from 0 to 2"),
        (lambda i, t, p: t[0]["masks"][0].fill(0), "image 0: object 0 has no pixel"),
        (lambda i, t, p: t[1].pop("masks"), 'image 1: targets are "labels" and "masks"'),
        (lambda i, t, p: t[0]["labels"].fill(-1), "no image has an object"),
    ],
)
def test_bad_regions_are_told_with_image_and_row(change, message):
    with pytest.raises(ValueError, match=message):
        sds.RegionBatches(*bad(change), classes=3)
