"""t-SNE of the codes of a layer (van der Maaten and Hinton 2008), by scikit-learn.

Images that a network holds to be alike lie together; the map of images is that of CS231n, "Visualizing what ConvNets
learn". The cells of the grid are the cheapest assignment of images to cells, by scipy.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from kvision.visualize.batches import ImageStream, num_images
from kvision.visualize.probe import Probe
from kvision.visualize.progress import progress

SMALLEST_SPREAD = 1e-15  # of codes, in float32
PIP = 'pip install "kvision[classic]"'


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Images as points in the plane.

    Args:
        points: [n, 2] float32, in the order of the data.
        codes: [n, d] float32: what was embedded.
        labels: [n, …] those of the data, or None.
        thumbnails: [n, h, w, c] float32: the images averaged to small ones, in the units of the images.
        kl_divergence: What t-SNE minimizes, at its end.
    """

    points: np.ndarray
    codes: np.ndarray
    labels: np.ndarray | None
    thumbnails: np.ndarray
    kl_divergence: float

    def cells(self, columns=None):
        """A cell of a grid for each image, near its point and for itself alone, for `kvision.drawing.image_grid`.

        The sum of the squared distances of points to cells is the least; it takes a minute for some 5,000 images.

        Args:
            columns: Of the grid; None makes it square.

        Returns:
            [n, 2] int row and column.
        """
        return grid_cells(self.points, columns)


def tsne(
    model,
    data,
    layer,
    *,
    perplexity=30.0,
    average=True,
    thumbnail=32,
    preprocess=None,
    batch_size=32,
    seed=0,
    verbose=0,
):
    """t-SNE of what a layer makes of images: a map on which those it holds to be alike lie together.

    Van der Maaten and Hinton 2008. Neighbours mean something; distances between groups, their sizes and the axes do
    not, and other perplexities give other maps: look at several.

    Args:
        model: A built `keras.Model`.
        data: Images [n, h, w, c], `(images, labels)`, or a data set of batches, with labels or without, read once. Some
            thousand images are a matter of minutes.
        layer: The name of a layer at any depth, the end of its path, or the layer; `(name, call)` where it is called
            several times.
        perplexity: About the number of neighbours of each, at least 1 and less than the number of images.
        average: Whether maps are averaged over their positions; else they are flattened.
        thumbnail: Pixels of the longer side of the images that are kept for drawing, at most.
        preprocess: A function from the images to what the model takes; None: they are that.
        batch_size: Of arrays; a data set has batches of its own.
        seed: `random_state` of scikit-learn, which begins with principal components and draws for large codes only:
            for small ones every seed gives the same map.
        verbose: 1 shows a bar of the codes. Ctrl-C ends them, and those that are there are embedded.

    Returns:
        An `Embedding`; its points are those of `sklearn.manifold.TSNE(perplexity=perplexity, random_state=seed)` on its
        codes.

    Raises:
        ImportError: without scikit-learn.
        ValueError: on a layer that does not exist, a perplexity out of range, images the model does not take, and codes
            that are not finite or equal for all images.

    >>> network = kvision.applications.LeNet5("modern", input_shape=(32, 32, 1))
    >>> images = np.random.default_rng(0).random((9, 32, 32, 1), "float32")
    >>> embedding = tsne(network, images, "C3", perplexity=2)
    >>> embedding.points.shape, embedding.codes.shape, embedding.cells().shape
    ((9, 2), (9, 16), (9, 2))
    """
    estimator = _estimator()
    if not perplexity >= 1:
        raise ValueError(f"perplexity must be at least 1, got {perplexity}.")
    if thumbnail < 1:
        raise ValueError(f"thumbnail must be at least 1 pixel, got {thumbnail}.")
    probe = Probe(model, [layer], preprocess=preprocess, logits=False)

    def small(look):
        (outputs,) = look.activations.values()
        outputs = ops.cast(outputs, "float32")
        if average and len(outputs.shape) > 2:
            outputs = ops.mean(outputs, axis=tuple(range(1, len(outputs.shape) - 1)))
        factor = math.ceil(max(look.images.shape[1:3]) / thumbnail)
        images = ops.cast(look.images, "float32")
        images = images if factor == 1 else ops.average_pool(images, factor, factor, "same")
        return ops.reshape(outputs, (outputs.shape[0], -1)), images

    run = probe.compute(small)
    stream = ImageStream(model, data, preprocess, batch_size)
    _check_perplexity(perplexity, num_images(data))
    codes, thumbnails, labels = [], [], []
    for _, values, count, batch_labels in progress(stream, stream.num_batches, verbose):
        batch_codes, batch_images = (ops.convert_to_numpy(each)[:count] for each in run(values))
        codes.append(batch_codes)
        thumbnails.append(batch_images)
        labels.append(batch_labels)
    codes = np.concatenate(codes)
    _check_perplexity(perplexity, len(codes))
    _check_codes(codes, probe.names[0])
    fitted = estimator(perplexity=perplexity, random_state=seed)
    points = fitted.fit_transform(codes)
    has_labels = all(each is not None for each in labels)
    return Embedding(
        points,
        codes,
        np.concatenate(labels) if has_labels else None,
        np.concatenate(thumbnails),
        float(fitted.kl_divergence_),
    )


def grid_cells(points, columns=None):
    """A cell of a grid for each point, none twice, with the least sum of squared distances.

    The points are stretched to the grid, x to the columns and y, upwards, to the rows. There are at least as many cells
    as points; those that stay free are where there is no point.

    Args:
        points: [n, 2] x and y.
        columns: Of the grid; None makes it square.

    Returns:
        [n, 2] int row and column.

    Raises:
        ValueError: on points of another shape, and fewer than one column.

    >>> grid_cells(np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 5.0], [1.0, 1.0]])).tolist()
    [[1, 0], [1, 1], [0, 0], [0, 1]]
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ImportError(f"grid_cells needs scipy. {PIP}") from None
    points = np.asarray(points, "float64")
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"Expected points [n, 2], at least one: got {points.shape}.")
    columns = math.ceil(math.sqrt(len(points))) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    rows = math.ceil(len(points) / columns)
    low = points.min(axis=0)
    unit = (points - low) / np.maximum(points.max(axis=0) - low, 1e-12)
    wanted = np.stack([(1 - unit[:, 1]) * (rows - 1), unit[:, 0] * (columns - 1)], axis=1)
    cells = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    _, chosen = linear_sum_assignment(np.square(wanted[:, None] - cells).sum(axis=2))
    return cells[chosen]


def _check_perplexity(perplexity, count):
    if count and perplexity >= count:
        raise ValueError(f"perplexity must be less than the number of images, {count}: got {perplexity}.")


def _check_codes(codes, layer):
    """Raise on codes that scikit-learn's compiled code does not survive."""
    if not np.isfinite(codes).all():
        wrong = int(np.flatnonzero(~np.isfinite(codes).all(axis=1))[0])
        raise ValueError(
            f"The outputs of {layer!r} for image {wrong} are not finite: expected finite codes. Has the model "
            "diverged, or does float16 overflow?"
        )
    spread = float(np.ptp(codes, axis=0).max())
    if not SMALLEST_SPREAD < spread < 1 / SMALLEST_SPREAD:  # beyond, squared distances leave float32
        got = "are equal for all images" if spread == 0 else f"differ by {spread:.3g} at most"
        raise ValueError(
            f"The outputs of {layer!r} {got}: expected codes that tell images apart. Are the images identical, or "
            "is the layer dead? Choose another layer."
        )


def _estimator():
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ImportError(f"tsne needs scikit-learn. {PIP}") from None
    return TSNE
