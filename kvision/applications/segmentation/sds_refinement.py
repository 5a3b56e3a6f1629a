"""Refinement of masks in SDS (Hariharan et al. 2014), section 3.4.

A logistic classifier for each cell of a 10x10 grid over the box of a region predicts, from the features of the network,
whether the cell belongs to an object of the class. The coarse mask is projected to superpixels, and a second classifier
combines it with the region: here it sees of each superpixel the mean coarse score, the fraction inside the region and
their product, and is one for all classes.
"""

import numpy as np

from kvision.applications.segmentation.multiscale_net import superpixels
from kvision.applications.segmentation.sds_regions import region_boxes

CELLS = 10
REFINEMENT_IOU = 0.7  # overlap from which on a region is an example of its object's mask
REGULARIZATION = 1.0  # scikit-learn's C of both logistic classifiers, features of unit mean norm


def grid_means(mask, box_xyxy, cells=CELLS):
    """The fraction of each cell of a grid over a box that a mask covers: [h, w] → [cells, cells].

    >>> grid_means(np.array([[0, 1, 1, 1]], bool), (0, 0, 4, 1), cells=2).tolist()
    [[0.5, 1.0], [0.5, 1.0]]
    """
    left, top, right, bottom = box_xyxy
    down, across = _coverage(top, bottom, cells, mask.shape[0]), _coverage(left, right, cells, mask.shape[1])
    return down @ mask @ across.T


def _coverage(low, high, cells, length):
    """[cells, length]: the fraction of each cell of an axis that lies in each pixel."""
    edges = low + (high - low) * np.arange(cells + 1)[:, None] / cells
    pixels = np.arange(length)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(shared, 0) * cells / (high - low)


def grid_to_image(grid, box_xyxy, size):
    """A grid over a box as a map of the image: each pixel takes the cell at its centre, 0 around the box.

    >>> grid_to_image(np.array([[0.5, 1.0], [0.0, 0.2]]), (1, 0, 3, 2), (2, 4)).tolist()
    [[0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.2, 0.0]]
    """
    left, top, right, bottom = box_xyxy
    rows, columns = (
        ((np.arange(high - low) + 0.5) * cells / (high - low)).astype(int)
        for low, high, cells in ((top, bottom, grid.shape[0]), (left, right, grid.shape[1]))
    )
    full = np.zeros(size)
    full[top:bottom, left:right] = grid[np.ix_(rows, columns)]
    return full


def superpixel_features(grid, mask, regions):
    """Of each superpixel: the mean of a coarse mask over the region's box, the fraction in the region, their product.

    Args:
        grid: [cells, cells] coarse scores of the region's box, in 0…1.
        mask: [h, w] bool, the region.
        regions: [h, w] integers, the superpixel of each pixel, 0…n−1.

    Returns:
        [n, 3].

    >>> superpixel_features(np.full((10, 10), 0.5), np.array([[1, 0, 0]], bool), np.array([[0, 0, 1]])).tolist()
    [[0.25, 0.5, 0.125], [0.0, 0.0, 0.0]]
    """
    coarse = grid_to_image(grid, region_boxes(mask[None])[0], mask.shape)
    sizes = np.bincount(regions.ravel())
    coarse, inside = (np.bincount(regions.ravel(), values.ravel()) / sizes for values in (coarse, mask))
    return np.stack([coarse, inside, coarse * inside], axis=1)


def fit_cells(features, grids):
    """Logistic classifiers of all cells: features [n, d] and grids [n, cells, cells] of 0…1 → weights, biases.

    A cell that is figure, or is not, in all examples gets a bias alone: the smoothed log-odds.

    Returns:
        [d, cells²] and [cells²] float32.
    """
    from sklearn.linear_model import LogisticRegression

    labels = np.reshape(grids, (len(grids), -1)) >= 0.5
    weights = np.zeros((features.shape[1], labels.shape[1]), "float32")
    count = labels.sum(axis=0)
    biases = np.log((count + 0.5) / (len(labels) - count + 0.5)).astype("float32")
    for cell in np.flatnonzero((count > 0) & (count < len(labels))):
        model = LogisticRegression(C=REGULARIZATION, max_iter=1000).fit(features, labels[:, cell])
        weights[:, cell], biases[cell] = model.coef_[0], model.intercept_[0]
    return weights, biases


def fit_superpixels(features, inside, sizes):
    """The second classifier: features [n, 3] of superpixels, pixels of the object in each, pixels of each → [4].

    Each pixel counts as an example.
    """
    from sklearn.linear_model import LogisticRegression

    examples = np.concatenate([features, features])
    labels = np.repeat([1, 0], len(features))
    counts = np.concatenate([inside, sizes - inside]).astype("float64")
    seen = counts > 0
    if len(set(labels[seen])) < 2:  # all of it one of the two: the coarse mask decides
        return np.array([2.0, 0.0, 0.0, -1.0], "float32")
    model = LogisticRegression(C=REGULARIZATION, max_iter=1000)
    model.fit(examples[seen], labels[seen], sample_weight=counts[seen] / counts[seen].mean())
    return np.append(model.coef_[0], model.intercept_[0]).astype("float32")


def refined_mask(grid, mask, regions, classifier):
    """The superpixels that the second classifier takes for the object; the region as it was where there are none.

    Args:
        grid, mask, regions: See `superpixel_features`.
        classifier: [4], weights of the three features and the bias.

    >>> regions = np.array([[0, 0, 1, 1]])
    >>> refined_mask(np.ones((10, 10)), np.array([[1, 1, 1, 0]], bool), regions, np.array([0, 4, 0, -1])).tolist()
    [[True, True, True, True]]
    """
    figure = superpixel_features(grid, mask, regions) @ classifier[:3] + classifier[3] > 0
    return figure[regions] if figure.any() else mask


def coarse_mask(arrays, features, label):
    """The grid of figure scores of one region, from what `train_refinement` gives: [d] → [10, 10] in 0…1."""
    logits = features @ arrays["cell_weights"][label] + arrays["cell_biases"][label]
    return (1.0 / (1.0 + np.exp(-np.clip(logits, -80, 80)))).reshape(CELLS, CELLS)


def train_refinement(features_of, regions, classes, scale, progress):
    """Train the classifiers of the cells of each class, and the one of superpixels.

    Args:
        features_of: A function from the index of an image to the features of its regions [n, d].
        regions: A `LabelledRegions`, in which each class has an object.
        classes: Number of classes.
        scale: Factor that gives the features a mean norm of 1.
        progress: A function of a number and a unit that yields 0…number−1.

    Returns:
        `"cell_weights"` [classes, d, cells²], `"cell_biases"` [classes, cells²], `"superpixel_classifier"` [4], for
        features as they are.
    """
    examples = []  # image, and its regions with their objects
    for index, overlaps in enumerate(regions.overlaps):
        if overlaps.shape[1]:
            (rows,) = np.nonzero(overlaps.max(axis=1) >= REFINEMENT_IOU)
            examples.append((index, [(row, overlaps[row].argmax()) for row in rows]))
    by_class = [{"features": [], "grids": []} for _ in range(classes)]
    for index, pairs in examples:
        features, masks = features_of(index), regions.masks(index)
        boxes = region_boxes(masks)
        for row, target in pairs:
            of_class = by_class[regions.labels[index][target]]
            of_class["features"].append(features[row] * scale)
            of_class["grids"].append(grid_means(masks[target], boxes[row]))
    cells = [
        fit_cells(np.stack(by_class[label]["features"]), np.stack(by_class[label]["grids"]))
        for label in progress(classes, "class")
    ]
    arrays = {
        "cell_weights": np.stack([weights for weights, _ in cells]) * np.float32(scale),
        "cell_biases": np.stack([biases for _, biases in cells]),
    }
    seen = []
    for index, pairs in examples:
        features, masks = features_of(index), regions.masks(index)
        areas = superpixels(regions.images[index])
        sizes = np.bincount(areas.ravel())
        for row, target in pairs:
            grid = coarse_mask(arrays, features[row], regions.labels[index][target])
            of_areas = superpixel_features(grid, masks[row], areas)
            inside = np.bincount(areas.ravel(), masks[target].ravel())
            near = of_areas[:, :2].any(axis=1) | (inside > 0)
            seen.append(np.column_stack([of_areas, inside, sizes])[near])
    seen = np.concatenate(seen)
    return arrays | {"superpixel_classifier": fit_superpixels(seen[:, :3], seen[:, 3], seen[:, 4])}
