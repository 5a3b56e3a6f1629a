"""SDS as a whole: the cache of features, SVMs, refinement, detections."""

import functools
import sys

import keras
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.svm

from kvision import applications as A
from kvision.applications.segmentation import sds_detector, sds_features, sds_refinement
from kvision.applications.segmentation.sds import LabelledRegions, RegionBatches
from kvision.applications.segmentation.sds_regions import region_boxes, region_overlaps, region_proposals
from kvision.data import shapes
from tests.support import assert_close

SIZE, CLASSES = 20, 2


@functools.cache
def network(seed=0, units=48):
    """Built once; no test changes it."""
    keras.utils.set_random_seed(seed)
    shape = (SIZE, SIZE, 3)
    backbone = A.ConvNet(1, 1, 1, input_shape=shape, filters=8, units=units, classes=CLASSES)
    return A.SDS(input_shape=shape, classes=CLASSES, backbone=backbone)


def scenes(count, seed):
    """Images, targets, and proposals: true masks, boxes around them, and rectangles anywhere."""
    images, targets = shapes(count, (48, 48), classes=CLASSES, max_shapes=2, seed=seed, masks=True)
    rng, proposals = np.random.default_rng(seed), []
    for masks, labels in zip(targets["masks"], targets["labels"], strict=True):
        masks = masks[labels >= 0].astype(bool)
        boxes = np.zeros_like(masks)
        for box, (left, top, right, bottom) in zip(boxes, region_boxes(masks), strict=True):
            box[top:bottom, left:right] = True
        noise = np.zeros((4, 48, 48), bool)
        for mask in noise:
            top, left = rng.integers(0, 36, 2)
            mask[top : top + rng.integers(4, 24), left : left + rng.integers(4, 24)] = True
        proposals.append(np.concatenate([masks, boxes, noise]))
    return images, targets, proposals


@functools.cache
def fitted():
    """Trained once; no test changes it."""
    return A.SDSDetector(network(), padding=2, batch_size=16, verbose=0).fit(*scenes(40, seed=0))


@functools.cache
def held_out():
    return scenes(12, seed=1)


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    yield
    network.cache_clear()
    fitted.cache_clear()
    held_out.cache_clear()


@pytest.fixture(autouse=True)
def fresh_session():
    """No new session: it would throw away what the shared detector has compiled."""
    keras.utils.set_random_seed(0)


def objects_of(targets, index):
    there = targets["labels"][index] >= 0
    return targets["labels"][index][there], targets["masks"][index][there].astype(bool)


# It learns.


def test_svms_name_objects_they_have_not_seen():
    images, targets, _ = held_out()
    right = []
    for index, image in enumerate(images):
        labels, masks = objects_of(targets, index)
        if len(labels):
            right += (fitted().margins(fitted().features(image, masks)).argmax(axis=1) == labels).tolist()
    assert len(right) > 10 and np.mean(right) >= 0.8  # chance is a half


def test_detections_find_the_objects_and_refine_their_masks():
    images, targets, proposals = held_out()
    boxes_only = [rows[len(objects_of(targets, index)[0]) :] for index, rows in enumerate(proposals)]
    found = fitted().detect(images, boxes_only)
    before, after = [], []
    for index, detections in enumerate(found):
        labels, masks = objects_of(targets, index)
        assert (np.diff(detections["scores"]) <= 0).all()
        assert set(detections["labels"]) <= set(range(CLASSES))
        assert detections["masks"].shape == (len(detections["labels"]), 48, 48)
        assert detections["masks"].dtype == "uint8"
        assert np.array_equal(region_boxes(detections["masks"].astype(bool)), detections["boxes"])
        if len(labels):
            before += region_overlaps(masks, boxes_only[index]).max(axis=1).tolist()
            after += region_overlaps(masks, detections["masks"].astype(bool)).max(axis=1, initial=0).tolist()
    assert np.mean(np.array(after) > 0.5) > 0.7
    assert np.mean(after) > np.mean(before)


def test_one_image_gives_one_dict_and_proposals_of_its_own():
    image = held_out()[0][0]
    detections = fitted().detect(image)
    assert set(detections) == {"boxes", "scores", "labels", "masks"}
    assert all(map(np.array_equal, fitted().detect([image])[0].values(), detections.values()))


def test_regions_of_a_class_that_stay_share_no_pixel_and_are_as_many_as_asked_for():
    images, _, proposals = held_out()
    strict = A.SDSDetector(network(), padding=2, score_threshold=0.0, num_detections=3, verbose=0)
    strict.arrays = fitted().arrays | {
        "superpixel_classifier": np.array([0, 1, 0, -2])
    }  # nothing: all stay as proposed
    for detections in strict.detect(list(images[:3]), proposals[:3]):
        assert len(detections["labels"]) == 3
        for label in range(CLASSES):
            masks = detections["masks"][detections["labels"] == label]
            assert masks.sum(axis=0).max(initial=0) <= 1


def test_names_come_with_the_networks_class_names():
    named = network.__wrapped__()
    named.class_names = ("background", "disc", "square")
    with pytest.raises(ValueError, match="class_names"):
        A.SDSDetector(named)
    named.class_names = ("disc", "square")
    detector = A.SDSDetector(named, padding=2, verbose=0)
    detector.arrays = fitted().arrays
    detections = detector.detect(held_out()[0][0], held_out()[2][0])
    assert detections["names"] == [("disc", "square")[label] for label in detections["labels"]]


@pytest.mark.slow
def test_from_images_to_masks():
    """Proposals out of segmentation trees, joint training, SVMs, detections: no region is given away."""
    images, targets = shapes(50, (48, 48), classes=CLASSES, max_shapes=2, seed=3, masks=True)
    proposals = [region_proposals(image) for image in images]
    keras.utils.set_random_seed(0)
    shape = (SIZE, SIZE, 3)
    backbone = A.ConvNet(1, 2, 1, input_shape=shape, filters=16, units=48, classes=CLASSES)
    model = A.SDS(input_shape=shape, classes=CLASSES, backbone=backbone)
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = RegionBatches(images, targets, proposals, CLASSES, size=SIZE, batch_size=64, padding=2)
    model.fit(batches, epochs=5, verbose=0)
    detector = A.SDSDetector(model, padding=2, score_threshold=0.5, verbose=0).fit(images, targets, proposals)
    images, targets, _ = held_out()
    right = found = there = 0
    for index, detections in enumerate(detector.detect(list(images))):
        labels, masks = objects_of(targets, index)
        overlaps = region_overlaps(masks, detections["masks"].astype(bool))
        overlaps *= labels[:, None] == detections["labels"]
        right += np.count_nonzero(overlaps.max(axis=1, initial=0) > 0.5)
        found, there = found + len(detections["labels"]), there + len(labels)
    assert right > 0.8 * there and right > 0.7 * found


# SVMs.


def features_and_regions(width=12):
    images, targets, proposals = scenes(10, seed=2)
    regions = LabelledRegions("it", images, targets, proposals, CLASSES)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES + 1, width))
    features = []
    for index in range(len(regions)):
        of_class = np.stack([regions.class_overlaps(index, label) for label in range(CLASSES)], axis=1)
        kind = np.where(of_class.max(axis=1) > 0.5, 1 + of_class.argmax(axis=1), 0)
        features.append((centres[kind] + rng.normal(size=(len(kind), width))).astype("float32"))
    return features, regions


def examples(features, regions, label):
    """Objects of the class; every region that overlaps none of them by more than 0.2."""
    positives = [f[: len(k)][k == label] for f, k in zip(features, regions.labels, strict=True)]
    negatives = [f[regions.class_overlaps(i, label) <= 0.2] for i, f in enumerate(features)]
    return np.concatenate(positives), np.concatenate(negatives)


def test_margins_are_scikit_learns_decision_function():
    features, regions = features_and_regions()
    detector = A.SDSDetector(network(), verbose=0)
    weights, biases = detector._train_svms(features.__getitem__, regions, scale=3.0)
    detector.arrays = {"svm_weights": weights, "svm_biases": biases}
    every = np.concatenate(features)
    for label in range(CLASSES):
        positives, negatives = examples(features, regions, label)
        model = sklearn.svm.LinearSVC(
            C=1e-3, loss="hinge", class_weight={1: 2.0}, intercept_scaling=10.0, max_iter=100_000, random_state=0
        )
        model.fit(3 * np.concatenate([positives, negatives]), [1] * len(positives) + [0] * len(negatives))
        assert_close(detector.margins(every)[:, label], model.decision_function(3 * every), tolerance=(1e-3, 1e-3))


def test_mining_leaves_out_what_is_rejected_already(monkeypatch):
    features, regions = features_and_regions()
    seen, easiest = [], []
    fit = sds_detector.SDSDetector._fit_svms

    def counted(self, positives, negatives):
        if before := [found for _, found in seen[-1:]]:  # what is new is not rejected by these, what was is gone
            ((weights, biases),) = before
            easiest.append(min((rows @ weights + biases)[:, k].min() for k, rows in enumerate(negatives)))
        found = fit(self, positives, negatives)
        seen.append(([len(rows) for rows in negatives], found))
        return found

    monkeypatch.setattr(sds_detector.SDSDetector, "_fit_svms", counted)
    detector = A.SDSDetector(network(), verbose=0, regularization=1.0)
    every = detector._train_svms(features.__getitem__, regions, scale=3.0)
    ((all_negatives, _),) = seen
    seen.clear()
    monkeypatch.setattr(sds_detector, "RETRAIN_AFTER", 25)
    mined = detector._train_svms(features.__getitem__, regions, scale=3.0)
    assert len(seen) > 1 and min(easiest) >= -1.2001
    assert all(fewer < more for fewer, more in zip(seen[-1][0], all_negatives, strict=True))
    agree = (np.concatenate(features) @ mined[0] + mined[1] > 0) == (np.concatenate(features) @ every[0] + every[1] > 0)
    assert agree.mean() > 0.95


def test_a_class_without_negatives_is_named():
    with pytest.raises(ValueError, match=r"class 1 has no negative: every region overlaps .* negative_iou=0.2"):
        A.SDSDetector(network(), verbose=0)._fit_svms([np.ones((1, 3))] * 2, [np.zeros((1, 3)), np.zeros((0, 3))])


# Refinement.


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (3, 2, 10, 15), (5, 5, 6, 6)], ids=str)
def test_cells_are_means_of_the_enlarged_mask(box):
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    left, top, right, bottom = box
    enlarged = np.kron(mask[top:bottom, left:right], np.ones((10, 10)))
    want = enlarged.reshape(10, bottom - top, 10, right - left).mean(axis=(1, 3))
    assert_close(sds_refinement.grid_means(mask, box), want)


def test_a_grid_comes_back_from_the_image_it_is_drawn_in():
    grid = np.random.default_rng(0).random((10, 10))
    image = sds_refinement.grid_to_image(grid, (4, 3, 24, 33), (40, 40))
    assert_close(image[3:33:3, 4:24:2], grid)
    assert image[:3].sum() == image[33:].sum() == image[:, :4].sum() == image[:, 24:].sum() == 0


def test_a_mask_is_refined_by_hand():
    """Two superpixels are taken whole, one by both scores; the third has too little of both, the last is too far."""
    areas = np.repeat([[0, 0, 1, 1, 2, 2, 3, 3]], 2, axis=0)
    mask = np.zeros((2, 8), bool)
    mask[:, [0, 1, 2, 5]] = True  # its box: columns 0 to 5
    grid = np.tile(np.interp(np.arange(10), [0, 4, 5, 9], [0.9, 0.9, 0.2, 0.2]), (10, 1))
    features = sds_refinement.superpixel_features(grid, mask, areas)
    coarse = [0.9, (0.9 + 0.2) / 2, 0.2, 0.0]
    assert_close(features, [[c, p, c * p] for c, p in zip(coarse, [1, 0.5, 0.5, 0], strict=True)])
    refined = sds_refinement.refined_mask(grid, mask, areas, np.array([1.0, 1.0, 0.0, -0.8]))
    assert refined.tolist() == np.isin(areas, [0, 1]).tolist()
    nothing = sds_refinement.refined_mask(grid, mask, areas, np.array([1.0, 1.0, 0.0, -8.0]))
    assert np.array_equal(nothing, mask)


def test_cells_are_scikit_learns_and_constant_ones_have_a_bias():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4))
    grids = rng.random((30, 2, 2))
    grids[:, 0, 0], grids[:, 1, 1] = 1.0, 0.2
    weights, biases = sds_refinement.fit_cells(features, grids)
    for cell in (1, 2):
        model = sklearn.linear_model.LogisticRegression(max_iter=1000)
        model.fit(features, grids.reshape(30, 4)[:, cell] >= 0.5)
        assert_close(features @ weights[:, cell] + biases[cell], model.decision_function(features))
    assert not weights[:, [0, 3]].any()
    assert_close(biases[[0, 3]], [np.log(30.5 / 0.5), np.log(0.5 / 30.5)])


def test_superpixels_are_judged_pixel_by_pixel():
    rng = np.random.default_rng(0)
    features, sizes = rng.random((20, 3)), rng.integers(1, 9, 20)
    inside = rng.integers(0, sizes + 1)
    got = sds_refinement.fit_superpixels(features, inside, sizes)
    pixels = np.repeat(features, sizes, axis=0)
    labels = np.concatenate([[1] * k + [0] * (n - k) for k, n in zip(inside, sizes, strict=True)])
    counts = np.concatenate([inside, sizes - inside])
    model = sklearn.linear_model.LogisticRegression(C=1 / counts[counts > 0].mean(), max_iter=1000)
    assert_close(got, np.append(model.fit(pixels, labels).coef_, model.intercept_), tolerance=(1e-3, 1e-3))
    assert sds_refinement.fit_superpixels(features, sizes, sizes).tolist() == [2, 0, 0, -1]


# The cache.


@pytest.fixture
def calls(monkeypatch):
    """How often a network is run."""
    seen = []
    run = keras.Model.predict_on_batch
    monkeypatch.setattr(keras.Model, "predict_on_batch", lambda self, x: seen.append(1) or run(self, x))
    return seen


def small():
    images, _, proposals = scenes(4, seed=5)
    return images[0], proposals[0]


def test_what_is_on_disk_is_not_computed_again(tmp_path, calls):
    image, masks = small()
    first = A.SDSDetector(network(), cache=tmp_path, padding=2).features(image, masks)
    count = len(calls)
    again = A.SDSDetector(network(), cache=tmp_path, padding=2).features(image, masks)
    assert count > 0 and len(calls) == count
    assert np.array_equal(first, again)
    assert_close(again, A.SDSDetector(network(), padding=2).features(image, masks))


@pytest.mark.parametrize("change", ["image", "masks", "weights", "padding", "mean"])
def test_what_differs_is_computed(change, tmp_path, calls):
    image, masks = small()
    A.SDSDetector(network(), cache=tmp_path, padding=2).features(image, masks)
    count = len(calls)
    options = {"padding": 3 if change == "padding" else 2} | ({"mean": 0.0} if change == "mean" else {})
    detector = A.SDSDetector(network(seed=change == "weights"), cache=tmp_path, **options)
    if change == "image":
        image = image + 1
    if change == "masks":
        masks = np.roll(masks, 1, axis=2)
    detector.features(image, masks)
    assert len(calls) > count


@pytest.mark.parametrize(
    "damage", [lambda x: x[:-5], lambda x: x[:40] + b"?" + x[41:], lambda x: b""], ids=["cut", "changed", "empty"]
)
def test_a_damaged_file_is_told_and_computed_again(damage, tmp_path, calls):
    image, masks = small()
    detector = A.SDSDetector(network(), cache=tmp_path, padding=2)
    first = detector.features(image, masks)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        assert_close(detector.features(image, masks), first)
    count = len(calls)
    detector.features(image, masks)
    assert len(calls) == count


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(sds_features.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        sds_features.FeatureCache(tmp_path).write("a", np.ones(3))
    assert not list(tmp_path.iterdir())


def test_a_second_fit_runs_no_network_and_finds_the_same(tmp_path, calls):
    data = scenes(5, seed=0)
    first = A.SDSDetector(network(units=4), cache=tmp_path, padding=2, verbose=0).fit(*data)
    count = len(calls)
    again = A.SDSDetector(network(units=4), cache=tmp_path, padding=2, verbose=0).fit(*data)
    assert len(calls) == count
    assert all(np.array_equal(again.arrays[name], first.arrays[name]) for name in sds_detector.ARRAYS)


# Files and errors.


def test_save_and_load(tmp_path):
    image, masks = held_out()[0][1], held_out()[2][1]
    fitted().save(tmp_path / "svms")
    copy = A.SDSDetector(network(), padding=2, verbose=0).load(tmp_path / "svms")
    for got, want in zip(copy.detect(image, masks).values(), fitted().detect(image, masks).values(), strict=True):
        assert np.array_equal(got, want)
    with pytest.raises(ValueError, match=r"\(96, 2\), features by classes, those of this network \(8, 2\)"):
        A.SDSDetector(network(units=4)).load(tmp_path / "svms")
    (tmp_path / "svms").write_bytes(b"PK else")
    with pytest.raises(ValueError, match=r"svms is not what `SDSDetector.save` wrote"):
        copy.load(tmp_path / "svms")


def test_nothing_is_detected_before_training():
    with pytest.raises(ValueError, match="Call `fit`, or `load`"):
        A.SDSDetector(network()).detect(np.zeros((9, 9, 3)))


def without_class(targets):
    return targets | {"labels": np.where(targets["labels"] == 1, -1, targets["labels"])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t, p: (i, without_class(t), p), r"the classes \[1\] of 0…1 have no object"),
        (lambda i, t, p: (i, t, p[:-1]), "3 arrays of proposals"),
        (lambda i, t, p: (i, {"labels": t["labels"]}, p), r"targets are \"labels\" and \"masks\": got \['labels'\]"),
        (lambda i, t, p: (i, t, [*p[:2], p[2][:0], *p[3:]]), "image 2: there is no proposal"),
        (lambda i, t, p: (i[:, :40], t, p), r"image 0: the masks of objects are \[n, h, w\]"),
    ],
)
def test_bad_input_is_told_before_the_network_runs(change, message, calls):
    with pytest.raises(ValueError, match=message):
        A.SDSDetector(network(), verbose=0).fit(*change(*scenes(4, seed=0)))
    assert not calls


def test_detect_names_image_and_row():
    images, _, proposals = held_out()
    broken = proposals[1].copy()
    broken[2] = False
    with pytest.raises(ValueError, match="image 1: proposal 2 has no pixel"):
        fitted().detect(list(images[:2]), [proposals[0], broken])
    with pytest.raises(ValueError, match="got 2 images and proposals for 1"):
        fitted().detect(list(images[:2]), proposals[:1])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"regularization": 0}, {"nms_threshold": 2}], ids=str)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="SDSDetector: batch_size"):
        A.SDSDetector(network(), **options)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="needs a network of `SDS`"):
        A.SDSDetector(A.ConvNet(1, 1, 1))


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'kvision\[classic\]'"):
        A.SDSDetector(network(), verbose=0).fit(*scenes(4, seed=0))
