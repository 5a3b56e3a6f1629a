"""The multiscale net: counts, a NumPy twin, regions, the segmentation tree and the optimal cover."""

import sys

import keras
import numpy as np
import pytest
import scipy.ndimage

from kvision.applications import MultiscaleNet
from kvision.applications.segmentation.multiscale_net import (
    optimal_cover,
    region_labels,
    segmentation_tree,
    superpixels,
)
from tests.applications.classification.twins import count, randomised
from tests.applications.segmentation.twins import convolve, pool, read
from tests.support import PARITY, SLOW, assert_close

FEATURES = [(7, 3, 16), (7, 16, 64), (7, 64, 256)]  # window, inputs, outputs of the three stages


def parameters(**options):
    with keras.StatelessScope(initialize_variables=False):
        model = MultiscaleNet(**options)
    return sum(np.prod(weight.shape, dtype="int64") for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("options", "table", "total"),
    [
        ({}, [(1, 768, 1024), (1, 1024, 8)], 1_651_336),
        ({"hidden_units": 0}, [(1, 768, 8)], 861_832),
        ({"hidden_units": 0, "classes": 33}, [(1, 768, 33)], 881_057),
        ({"hidden_units": 0, "scales": 1}, [(1, 256, 8)], 857_736),
        ({"hidden_units": 0, "scales": 5}, [(1, 1280, 8)], 865_928),
    ],
    ids=str,
)
def test_every_scale_has_the_same_weights(options, table, total):
    assert parameters(**options) == count(FEATURES) + count(table) == total


def twin(weights, image, scales):
    """Every number of the network from the paper's description, at the pixel where it belongs."""
    luminance = image @ [0.299, 0.587, 0.114]
    blue = 0.436 * (image[..., 2] - luminance) / (1 - 0.114)
    red = 0.615 * (image[..., 0] - luminance) / (1 - 0.299)
    level, maps = np.stack([luminance, blue, red], axis=-1), []
    for scale in range(scales):
        last = scale == scales - 1
        smaller = level if last else blurred(level)[::2, ::2]
        detail = level if last else level - enlarged(smaller, level.shape)
        x = pool(np.tanh(convolve(normalised(detail), weights, "conv1")))
        x = pool(np.tanh(convolve(x, weights, "conv2")))
        maps.append(convolve(x, weights, "conv3"))
        level = smaller
    pixels = [4 * np.arange(n) + 1.5 for n in maps[0].shape[:2]]  # the centres of the cells of the first scale
    maps = [read(x, *((p / 2**scale - 1.5) / 4 for p in pixels)) for scale, x in enumerate(maps)]
    x = np.tanh(convolve(np.concatenate(maps, axis=-1), weights, "hidden"))
    logits = convolve(x, weights, "classifier")
    return read(logits, *((np.arange(n) - 1.5) / 4 for n in image.shape[:2]))


def blurred(x, gain=1.0):
    for axis in (0, 1):
        x = scipy.ndimage.correlate1d(x, gain * np.array([1, 4, 6, 4, 1]) / 16, axis, mode="mirror")
    return x


def enlarged(x, shape):
    zeros = np.zeros(shape)
    zeros[::2, ::2] = x
    return blurred(zeros, gain=2.0)


def normalised(x, reach=2):
    """The mean of each window subtracted, divided by its deviation."""
    result = np.empty_like(x)
    for row, column in np.ndindex(x.shape[:2]):
        window = x[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
        result[row, column] = (x[row, column] - window.mean((0, 1))) / np.maximum(window.std((0, 1)), 1e-2)
    return result


@pytest.mark.parametrize("size", [(24, 32), (21, 19)], ids=str)
def test_the_network_equals_its_twin(size):
    model = MultiscaleNet("tiny", input_shape=(*size, 3), classes=3)
    weights = randomised(model)
    image = np.random.default_rng(0).uniform(-1, 1, (*size, 3))
    got = keras.ops.convert_to_numpy(model(image[None].astype("float32")))[0]
    want = twin(weights, image, scales=3)
    assert_close(got / abs(want).max(), want / abs(want).max(), tolerance=PARITY)


def random_regions(rng, size, number):
    """Regions that are patches around random pixels, so that they hang together."""
    seeds = rng.uniform(0, size, (number, 2))
    pixels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    nearest = np.linalg.norm(pixels[:, :, None] - seeds, axis=-1).argmin(axis=-1)
    return np.unique(nearest, return_inverse=True)[1].reshape(size)


def merged_one_by_one(image, regions):
    """Parents by looking at all pixels again after each merging."""
    number = regions.max() + 1
    parents, regions = [-1] * (2 * number - 1), regions.copy()
    for node in range(number, 2 * number - 1):
        across = {}
        for row, column in np.ndindex(regions.shape):
            for other in ((row + 1, column), (row, column + 1)):
                if other[0] < regions.shape[0] and other[1] < regions.shape[1]:
                    pair = tuple(sorted((regions[row, column], regions[other])))
                    if pair[0] != pair[1]:
                        across.setdefault(pair, []).append(np.sqrt(((image[row, column] - image[other]) ** 2).sum()))
        pair = min(across, key=lambda pair: np.mean(across[pair]))
        for child in pair:
            parents[child] = node
            regions[regions == child] = node
    return parents


@pytest.mark.parametrize("seed", range(3))
def test_the_weakest_boundary_goes_first(seed):
    rng = np.random.default_rng(seed)
    image, regions = rng.uniform(0, 255, (9, 11, 3)), random_regions(rng, (9, 11), 8)
    assert segmentation_tree(image, regions).tolist() == merged_one_by_one(image, regions)


def test_one_region_is_a_tree():
    assert segmentation_tree(np.ones((2, 3)), np.zeros((2, 3), int)).tolist() == [-1]


def random_tree(rng, leaves):
    """Two random nodes without a parent are joined until one is left."""
    parents, alone = [-1] * (2 * leaves - 1), list(range(leaves))
    for node in range(leaves, 2 * leaves - 1):
        for _ in range(2):
            parents[alone.pop(rng.integers(len(alone)))] = node
        alone.append(node)
    return parents


def path(parents, node):
    return [node, *path(parents, parents[node])] if node >= 0 else []


@pytest.mark.parametrize("seed", range(10))
def test_each_leaf_takes_the_best_node_on_its_way_to_the_root(seed):
    rng = np.random.default_rng(seed)
    parents = random_tree(rng, 6)
    costs = rng.uniform(size=11)
    want = [min(path(parents, node), key=lambda k: costs[k]) for node in range(11)]
    assert optimal_cover(parents, costs).tolist() == want


def test_of_equal_costs_the_largest_segment_is_taken():
    assert optimal_cover([3, 3, 4, 4, -1], np.zeros(5)).tolist() == [4] * 5


def test_a_cover_mends_a_region_and_keeps_another():
    """Worked by hand: two regions of one object are pure together; the third is purer alone than the image."""
    regions = np.array([[0, 1, 2, 2]])
    scores = np.array([[[0.9, 0.1], [0.45, 0.55], [0.05, 0.95], [0.05, 0.95]]])
    parents = [3, 3, 4, 4, -1]
    assert region_labels(scores, regions).tolist() == [[0, 1, 1, 1]]
    # Entropies: 0.33, 0.69, 0.20; of 0 and 1 together (0.675, 0.325) 0.63; of all (0.3625, 0.6375) 0.65.
    assert region_labels(scores, regions, parents).tolist() == [[0, 0, 1, 1]]


def test_superpixels_keep_to_the_edges_of_the_image():
    image = np.zeros((20, 30, 3))
    image[:, 15:] = 200.0
    image += np.random.default_rng(0).normal(0, 2, image.shape)
    for pixels in (image, image[..., 0]):
        regions = superpixels(pixels)
        assert regions.dtype == "int32"
        assert regions.shape == (20, 30)
        assert set(np.unique(regions)) == set(range(regions.max() + 1))
        assert not set(regions[:, :14].ravel()) & set(regions[:, 16:].ravel())
    regions = superpixels(image)
    scores = np.random.default_rng(1).uniform(size=(20, 30, 2)) + 2 * (image[..., :2] > 100) * [0, 1]
    labels = region_labels(scores / scores.sum(axis=-1, keepdims=True), regions, segmentation_tree(image, regions))
    assert (labels[:, 16:] == 1).all()


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r"pip install 'kvision\[classic\]'"):
        superpixels(np.zeros((8, 8)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: segmentation_tree(np.ones((2, 3)), np.zeros((3, 2), int)), "of the image's size"),
        (lambda: segmentation_tree(np.ones((1, 2)), np.array([[0, 2]])), "without gaps"),
        (lambda: segmentation_tree(np.ones((1, 2)), np.array([[0.0, 1.0]])), "Regions are integers"),
        (lambda: optimal_cover([-1, 0], [0.1, 0.2]), "stand behind their children"),
        (lambda: optimal_cover([1, -1], [0.1]), "one cost a node"),
        (lambda: region_labels(np.ones((1, 2, 3)), np.array([[0, 1]]), [-1]), "another image"),
        (lambda: region_labels(np.array([[[-2.0, 1]]]), np.array([[0]])), r"probabilities of 0…1, got scores in -2…1"),
        (lambda: region_labels(np.array([[[0, 1.5]]]), np.array([[0]])), r"softmax\(logits\)"),
        (lambda: region_labels(np.array([[[0.5, np.nan]]]), np.array([[0]])), "got scores in nan…nan"),
    ],
)
def test_errors_say_what_is_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=SLOW)])
def test_norms(norm):
    model = MultiscaleNet("tiny", input_shape=(24, 32, 3), norm=norm)
    assert np.isfinite(keras.ops.convert_to_numpy(model(np.ones((2, 24, 32, 3), "float32"), training=True))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": 0}, "at least 1 scale"),
        ({"hidden_units": -1}, "no negative number of hidden units"),
        ({"input_shape": (15, 32, 3)}, "at least 16 pixels"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiscaleNet(**{"variant": "tiny", "input_shape": (24, 32, 3)} | options)
