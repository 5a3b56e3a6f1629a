"""Multiscale net: Farabet, Couprie, Najman, LeCun, "Learning Hierarchical Features for Scene Labeling" (2013).

One network, the same weights, runs on every level of a Laplacian pyramid; its maps are enlarged to the first one's size
and joined (section 3.1, figure 1). Superpixels, a segmentation tree and the optimal cover (section 4) then make the
labels smooth: `superpixels`, `segmentation_tree`, `optimal_cover`, `region_labels`.

Deviations. Every map sees every map of the layer before, where the paper drew connections at random: 10 filters on Y
and 6 on U and V, then 8 of 16 and 32 of 64 maps. Convolutions are zero-padded, and the logits are enlarged to the
pixels. Maps are aligned to a fraction of a cell: pixel i of a level lies at pixel 2i of the level before. The scores of
a region are the mean of its pixels' (section 4.1) at every level of the tree, where section 4.3 trains a second
classifier on a 3x3 grid of each segment.

How it trains (section 5): softmax and cross-entropy on pixels, first with the linear classifier (`hidden_units=0`),
then with a hidden layer on the features found; flips, scales of 90 to 110 % and rotations of up to 8 degrees.
"""

import heapq

import keras
import numpy as np
from keras import ops

from kvision.applications.building import build_network, finish, image_input, variant_row
from kvision.layers import BilinearSampling, LaplacianPyramid, LocalContrastNormalization
from kvision.layers.conventions import conventions
from kvision.network import Preprocessing

# Section 3.1: filter banks of 7x7, tanh and 2x2 pooling after each but the last, windows of 15x15. Section 5: 1024.
VARIANTS = {
    "2013": {"filters": (16, 64, 256), "kernel_size": 7, "hidden_units": 1024, "window": 15},
    "tiny": {"filters": (16, 16, 16), "kernel_size": 3, "hidden_units": 16, "window": 5},
}

PROOF = "the layer table of the paper and a NumPy twin; scipy's means of regions, and every path of small trees"

TOP = ("hidden", "classifier")

preprocess_input = Preprocessing(value_range=(-1.0, 1.0))


def MultiscaleNet(
    variant="2013",
    *,
    weights=None,
    input_shape=(240, 320, 3),
    classes=8,
    norm=None,
    activation="tanh",
    initializer="xavier",
    bias_initializer="zero",
    scales=3,
    filters=None,
    hidden_units=None,
    name=None,
):
    """Build the multiscale convolutional network: 1,651,336 parameters, 861,832 with the linear classifier.

    Args:
        variant: A row of `VARIANTS`: `"2013"`.
        weights: None, or the path of a weight file.
        input_shape: (height, width, channels), at least 4 pixels at the coarsest scale, so 16 at three scales. Three
            channels are RGB and become YUV.
        classes: Number of classes, the background among them; the paper's Stanford Background has 8, SIFT Flow 33.
        norm: None as in the paper, `"batch"`, `"sync_batch"`, `"group"` or `"frozen_batch"`, after every convolution
            but the last.
        activation, initializer, bias_initializer: Names, see `kvision.layers.conventions.conventions`.
        scales: Levels of the pyramid, an octave apart, ≥ 1.
        filters: Filters of each stage; None takes the row's.
        hidden_units: Of the classifier's hidden layer; 0 makes it linear, None takes the row's.
        name: Of the model.

    Returns:
        A `keras.Model`: images [b, h, w, c], prepared by `preprocess_input`, → logits [b, h, w, classes] float32.

    Raises:
        ValueError: on an unknown variant or name, a wrong shape, fewer than one class or scale.

    >>> model = MultiscaleNet(hidden_units=0, input_shape=(48, 64, 3))
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    >>> model.compile("adam", loss)
    >>> model.output_shape
    (None, 48, 64, 8)
    """
    row = variant_row("MultiscaleNet", VARIANTS, variant, filters=filters, hidden_units=hidden_units)
    if scales < 1 or not row["filters"] or row["hidden_units"] < 0:
        raise ValueError(
            "MultiscaleNet: needs at least 1 scale and 1 stage of filters, and no negative number of hidden units: got "
            f"scales={scales}, filters={row['filters']} and hidden_units={row['hidden_units']}."
        )
    stride = 2 ** (len(row["filters"]) - 1)
    images = image_input("MultiscaleNet", input_shape, stride=stride * 2 ** (scales - 1), classes=classes)
    bound = conventions(norm, activation, initializer, bias_initializer)
    extract = _feature_extractor(bound, row)

    x = RGBToYUV(name="yuv")(images) if images.shape[-1] == 3 else images
    normalization = LocalContrastNormalization(row["window"], name="normalization")
    pyramid = LaplacianPyramid(scales, name="pyramid")(x)
    maps = [extract(normalization(level), scale) for scale, level in enumerate(pyramid)]

    size = maps[0].shape[1:3]
    for scale in range(1, scales):
        step = 2.0**-scale  # cell i lies at the image's pixel 2^scale · (stride · i + (stride − 1) / 2)
        first = (stride - 1) / 2 * (step - 1) / stride
        maps[scale] = BilinearSampling(size, step, first, name=f"upsample{scale + 1}")(maps[scale])
    x = keras.layers.Concatenate(name="features")(maps) if scales > 1 else maps[0]
    if row["hidden_units"]:
        x = bound.conv(row["hidden_units"], 1, name="hidden")(x)
        x = bound.activation(name="hidden.act")(bound.norm(name="hidden.norm")(x))
    x = bound.conv(classes, 1, use_bias=True, dtype="float32", name="classifier")(x)
    logits = BilinearSampling(images.shape[1:3], 1 / stride, dtype="float32", name="logits")(x)
    model = build_network(
        images,
        logits,
        {},
        include_top=True,
        features=None,
        name=name or f"multiscale_net_{variant}",
        preprocessing=preprocess_input,
    )
    return finish(model, weights, top=TOP)


def _feature_extractor(bound, row):
    """A function from a level of the pyramid to its map, with one set of weights."""
    stages = range(1, len(row["filters"]) + 1)
    convs = [bound.conv(row["filters"][stage - 1], row["kernel_size"], name=f"conv{stage}") for stage in stages]
    norms = [bound.norm(name=f"norm{stage}") for stage in stages]

    def extract(x, scale):
        for stage, conv, norm in zip(stages, convs, norms, strict=True):
            x = conv(x)
            if stage < len(convs):  # "the last layer is a simple filter bank"
                x = bound.activation(name=f"act{stage}_{scale + 1}")(norm(x))
                x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{stage}_{scale + 1}")(x)
        return x

    return extract


@keras.saving.register_keras_serializable("kvision")
class RGBToYUV(keras.layers.Layer):
    """Luminance and two differences of colour (ITU-R BT.601), in float32.

    Shapes: [..., 3] → the same.

    >>> [round(float(value), 3) for value in RGBToYUV()(keras.ops.ones((1, 1, 1, 3)))[0, 0, 0]]
    [1.0, 0.0, 0.0]
    """

    MATRIX = np.array([[0.299, -0.14713, 0.615], [0.587, -0.28886, -0.51499], [0.114, 0.436, -0.10001]], "float32")

    def __init__(self, **options):
        super().__init__(**{"dtype": "float32"} | options)

    def call(self, inputs):
        return ops.matmul(inputs, self.MATRIX)


# Section 4: labels of regions instead of pixels. NumPy, one image at a time.


def superpixels(image, scale=100.0, sigma=0.8, min_size=20):
    """Superpixels by Felzenszwalb & Huttenlocher 2004, which section 4.1 takes.

    Args:
        image: [h, w] or [h, w, 3] in 0…255.
        scale: Larger ones make larger regions, > 0.
        sigma: Of the Gaussian blur before, in pixels.
        min_size: Of a region, in pixels.

    Returns:
        [h, w] int32: the region of each pixel, from 0.

    Raises:
        ImportError: without scikit-image (`pip install 'kvision[classic]'`).

    ```python
    regions = superpixels(image)
    labels = region_labels(scores, regions, segmentation_tree(image, regions))
    ```
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise ImportError("Superpixels are made by scikit-image: pip install 'kvision[classic]'") from None
    image = np.clip(np.asarray(image), 0, 255).astype("uint8")
    channel_axis = -1 if image.ndim == 3 else None
    found = felzenszwalb(image, scale=scale, sigma=sigma, min_size=min_size, channel_axis=channel_axis)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype("int32")


def segmentation_tree(image, regions):
    """Merge regions, those with the weakest boundary first, until one is left (section 4.3).

    The strength of a boundary is the mean difference of colour of the pixels that face each other across it.

    Args:
        image: [h, w] or [h, w, c].
        regions: [h, w] integers, the region of each pixel: all of 0…n−1 occur, as `superpixels` gives them.

    Returns:
        [2n − 1] int32, the parent of each node: nodes 0…n−1 are the regions, the others follow in the order of their
        merging, and the last is the whole image, whose parent is −1.

    Raises:
        ValueError: on sizes that differ, and numbers of regions that are left out.

    >>> segmentation_tree(np.array([[0.0, 1.0, 5.0]]), np.array([[0, 1, 2]])).tolist()
    [3, 3, 4, 4, -1]
    """
    image, regions = np.asarray(image, "float64"), _checked_regions(regions, np.shape(image)[:2])
    count = int(regions.max()) + 1
    borders = _borders(image.reshape(*regions.shape, -1), regions, count)
    parents = np.full(2 * count - 1, -1, "int32")
    queue = [(total / length, a, b) for a in range(count) for b, (total, length) in borders[a].items() if a < b]
    heapq.heapify(queue)
    merged = count
    while queue:
        _, a, b = heapq.heappop(queue)
        if parents[a] >= 0 or parents[b] >= 0:
            continue
        parents[a] = parents[b] = merged
        around = {}
        for old in (a, b):
            for other, (total, length) in borders[old].items():
                if other not in (a, b):
                    before = around.get(other, (0.0, 0))
                    around[other] = (before[0] + total, before[1] + length)
                    del borders[other][old]
        borders.append(around)
        for other, (total, length) in around.items():
            borders[other][merged] = (total, length)
            heapq.heappush(queue, (total / length, other, merged))
        merged += 1
    return parents


def _borders(image, regions, count):
    """Of each region, `{neighbour: (sum of the differences across the boundary, its length)}`."""
    pairs, differences = [], []
    for before, after in (np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:]):
        pairs.append(np.stack([regions[before].ravel(), regions[after].ravel()], axis=-1))
        differences.append(np.linalg.norm(image[after] - image[before], axis=-1).ravel())
    pairs, differences = np.sort(np.concatenate(pairs), axis=-1), np.concatenate(differences)
    across = pairs[:, 0] != pairs[:, 1]
    found, index = np.unique(pairs[across], axis=0, return_inverse=True)
    totals, lengths = np.bincount(index.ravel(), differences[across]), np.bincount(index.ravel())
    borders = [{} for _ in range(count)]
    for (a, b), total, length in zip(found.tolist(), totals.tolist(), lengths.tolist(), strict=True):
        borders[a][b] = borders[b][a] = (total, length)
    return borders


def optimal_cover(parents, costs):
    """The best node on the way from each node to the root (section 4.3, "minimal purity cost").

    Args:
        parents: [nodes] integers, as `segmentation_tree` gives them: a parent stands behind its children; a root
            has −1.
        costs: [nodes], lower is better, such as the entropy of the classes in each segment.

    Returns:
        [nodes] int32, of each node the one with the least cost among itself and all that contain it, the largest of
        equal ones. Of the leaves, these are the segments of the cover.

    Raises:
        ValueError: on lengths that differ, and parents that stand before their children.

    >>> optimal_cover([3, 3, 4, 4, -1], [0.5, 0.1, 0.3, 0.2, 0.4]).tolist()
    [3, 1, 2, 3, 4]
    """
    parents, costs = np.asarray(parents), np.asarray(costs)
    index = np.arange(len(parents))
    if parents.shape != costs.shape or ((parents <= index) & (parents >= 0)).any() or (parents >= len(parents)).any():
        raise ValueError(
            "optimal_cover needs one cost a node, and parents that stand behind their children, −1 for a root: got "
            f"{parents.shape} parents and {costs.shape} costs. `segmentation_tree` gives such trees."
        )
    best = index.astype("int32")
    for node in index[::-1]:
        if parents[node] >= 0 and costs[best[parents[node]]] <= costs[node]:
            best[node] = best[parents[node]]
    return best


def region_labels(scores, regions, parents=None):
    """One label for each region, or for each segment of the optimal cover of a tree (sections 4.1 and 4.3).

    Args:
        scores: [h, w, classes], the probabilities of the classes at each pixel.
        regions: [h, w] integers, the region of each pixel: all of 0…n−1 occur.
        parents: A tree over these regions, as `segmentation_tree` gives it. Each pixel then takes the label of the
            purest segment that holds it: the one whose mean scores have the least entropy.

    Returns:
        [h, w] int32 labels.

    Raises:
        ValueError: on sizes that differ, scores that are not of 0…1, such as logits, and a tree of other regions.

    >>> scores = np.array([[[0.9, 0.1], [0.4, 0.6], [0.0, 1.0]]])
    >>> region_labels(scores, np.array([[0, 0, 1]])).tolist()
    [[0, 0, 1]]
    """
    scores = np.asarray(scores, "float64")
    if not (scores.min(initial=0.0) >= 0 and scores.max(initial=0.0) <= 1 + 1e-3):  # 16 bits round
        raise ValueError(
            f"region_labels takes probabilities of 0…1, got scores in {scores.min():.3g}…{scores.max():.3g}. Of "
            "logits, take `keras.ops.softmax(logits)`."
        )
    regions = _checked_regions(regions, scores.shape[:2])
    count = int(regions.max()) + 1
    flat = scores.reshape(regions.size, -1)
    sums = np.stack([np.bincount(regions.ravel(), column, count) for column in flat.T], axis=-1)
    sizes = np.bincount(regions.ravel(), minlength=count).astype("float64")
    if parents is None:
        return sums.argmax(axis=-1).astype("int32")[regions]
    parents = np.asarray(parents)
    if len(parents) < count:
        raise ValueError(
            f"region_labels: the tree has {len(parents)} nodes for {count} regions: it is another image's."
        )
    sums = np.concatenate([sums, np.zeros((len(parents) - count, sums.shape[1]))])
    sizes = np.concatenate([sizes, np.zeros(len(parents) - count)])
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            sums[parent] += sums[node]
            sizes[parent] += sizes[node]
    means = sums / sizes[:, None]
    entropy = -(means * np.log(np.maximum(means, 1e-12))).sum(axis=-1)
    best = optimal_cover(parents, entropy)[:count]
    return means.argmax(axis=-1).astype("int32")[best][regions]


def _checked_regions(regions, size):
    """Regions as an array, after a check that all numbers from 0 occur and that they are as large as the image."""
    regions = np.asarray(regions)
    if regions.shape != tuple(size) or regions.dtype.kind not in "iu" or not regions.size:
        raise ValueError(
            f"Regions are integers [h, w] of the image's size {tuple(size)}: got {regions.dtype} {regions.shape}."
        )
    found = np.unique(regions)
    if found[0] != 0 or found[-1] != len(found) - 1:
        raise ValueError(
            f"Regions are numbered 0…n−1 without gaps: got {len(found)} numbers from {found[0]} to {found[-1]}. "
            "np.unique(regions, return_inverse=True)[1].reshape(regions.shape) numbers them so."
        )
    return regions
