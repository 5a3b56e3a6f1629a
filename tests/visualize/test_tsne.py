"""t-SNE of codes: scikit-learn's own result, and the map of images."""

import itertools
import sys

import keras
import numpy as np
import pytest
from sklearn.manifold import TSNE

from kvision import drawing
from kvision.visualize import grid_cells, tsne


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 10, 3))
    x = keras.layers.Conv2D(16, 3, activation="relu", name="conv")(keras.layers.Rescaling(1 / 255)(image))
    codes = keras.layers.Dense(12, name="codes")(keras.layers.Flatten()(x))
    return keras.Model(image, codes)


@pytest.fixture(scope="module")
def images():
    """Three groups of colours."""
    rng = np.random.default_rng(0)
    colours = np.eye(3)[np.arange(30) % 3] * 200
    return (colours[:, None, None] + rng.uniform(0, 55, (30, 12, 10, 3))).astype("uint8")


@pytest.fixture(scope="module")
def embedding(model, images):
    return tsne(model, (images, np.arange(30) % 3), "codes", perplexity=5, seed=3, batch_size=16, thumbnail=6)


def test_it_is_scikit_learns(model, images, embedding):
    np.testing.assert_allclose(embedding.codes, model.predict(images.astype("float32"), 16, 0), rtol=1e-4, atol=1e-5)
    theirs = TSNE(perplexity=5, random_state=3)
    np.testing.assert_array_equal(embedding.points, theirs.fit_transform(embedding.codes))
    assert embedding.kl_divergence == theirs.kl_divergence_


def test_labels_and_small_images_come_along(images, embedding):
    assert embedding.labels.tolist() == list(np.arange(30) % 3)
    assert embedding.thumbnails.shape == (30, 6, 5, 3)
    mean = images.reshape(30, 6, 2, 5, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(embedding.thumbnails, mean, rtol=1e-4)


def test_alike_images_lie_together(embedding):
    distances = np.linalg.norm(embedding.points[:, None] - embedding.points, axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (embedding.labels[distances.argmin(axis=1)] == embedding.labels).all()


@pytest.mark.parametrize(("average", "size"), [(True, 16), (False, 10 * 8 * 16)])
def test_codes_of_maps(model, images, average, size):
    found = tsne(model, images, "conv", perplexity=4, batch_size=16, average=average)
    assert found.codes.shape == (30, size)
    assert found.labels is None


def test_cells_are_the_cheapest():
    points = np.random.default_rng(0).random((6, 2))
    cells = grid_cells(points, columns=3)
    unit = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    wanted = np.stack([1 - unit[:, 1], 2 * unit[:, 0]], axis=1)
    every = np.array(list(itertools.product(range(2), range(3))))
    costs = [np.square(wanted - every[list(order)]).sum() for order in itertools.permutations(range(6))]
    assert np.square(wanted - cells).sum() == pytest.approx(min(costs))
    assert len(np.unique(cells, axis=0)) == 6


def test_each_image_has_its_cell_and_is_drawn_there(embedding):
    cells = embedding.cells()
    assert len(np.unique(cells, axis=0)) == 30
    assert cells.max() <= 5
    drawn = drawing.image_grid(embedding.thumbnails, cells, embedding.labels, thumbnail=6)
    step = 10
    for image, (row, column) in zip(embedding.thumbnails, cells, strict=True):
        inside = drawn[row * step + 2 : row * step + 8, column * step + 2 : column * step + 7]
        np.testing.assert_allclose(inside, image, atol=1)
    scattered = drawing.image_map(embedding.thumbnails, embedding.points, embedding.labels, side=200, thumbnail=12)
    assert scattered.shape == (200, 200, 3)
    assert drawing.scatter(embedding.points, embedding.labels, ["r", "g", "b"], side=200).shape[1] == 200


def test_points_are_drawn_where_they_are():
    drawn = drawing.image_map(np.zeros((2, 4, 4)), [[0, 0], [1, 1]], side=100, thumbnail=10)
    assert (drawn[80:90, 5:10] == 0).any()  # y points upwards
    assert (drawn[5:10, 85:95] == 0).any()
    assert (drawn[:40, :40] == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perplexity": 30}, "less than the number of images"),
        ({"perplexity": 0}, "at least 1"),
        ({"layer": "cods"}, "codes"),
        ({"thumbnail": 0}, "at least 1 pixel"),
        ({"data": np.zeros((12, 10, 3))}, r"got \[12, 10, 3\]. Of a data set of single images take .batch\(32\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(model, images, change, message):
    arguments = {"data": images, "layer": "codes", "batch_size": 16} | change
    with pytest.raises(ValueError, match=message):
        tsne(model, **arguments)


@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_perplexity_is_checked_before_any_code_is_computed(model, images, form):
    def preprocess(values):
        raise AssertionError("a code is computed")

    data = {"arrays": (images, np.zeros(30)), "batches": [images[:16], (images[16:], np.zeros(14))]}[form]
    with pytest.raises(ValueError, match="less than the number of images, 30: got 31"):
        tsne(model, data, "codes", perplexity=31, preprocess=preprocess)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "of 'codes' are equal for all images: expected codes that tell images apart"),
        (1e-30, "of 'codes' differ by .*e-"),
        (1e30, "of 'codes' differ by .*e\\+"),
        (np.nan, "of 'codes' for image 0 are not finite"),
    ],
)
def test_codes_that_scikit_learn_does_not_survive(images, factor, message):
    image = keras.Input((12, 10, 3))
    codes = keras.layers.Rescaling(factor, name="codes")(image)
    with pytest.raises(ValueError, match=message):
        tsne(keras.Model(image, codes), images, "codes", perplexity=5, average=True)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: drawing.scatter(np.zeros((2, 3))), r"points are finite numbers \[n, 2\]"),
        (lambda: drawing.scatter(np.zeros((2, 2)), [0, -1]), "labels are"),
        (lambda: drawing.image_grid(np.zeros((2, 4, 4)), [[0, 0], [0, 0]]), "same cell"),
        (lambda: drawing.image_map(np.zeros((2, 4, 4)), [[0, 0]]), "a point for each image"),
        (lambda: drawing.tiles(np.zeros((4, 4))), "images are"),
        (lambda: drawing.tiles(np.zeros((1, 1, 4, 4, 1)), columns=2), "their own columns"),
        (lambda: drawing.to_pixels([1.0], 2, 1), "at most high"),
    ],
)
def test_drawings_refuse_what_they_cannot_draw(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_without_scikit_learn(model, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match="classic"):
        tsne(model, images, "codes")
