"""Regions of SDS (Hariharan et al. 2014): proposals out of segmentation trees, overlaps, suppression, crops."""

import itertools

import numpy as np

from kvision.applications.classification import imagenet
from kvision.applications.segmentation.multiscale_net import segmentation_tree, superpixels

MEAN = tuple(255.0 * mean for mean in imagenet.MEAN)


def region_proposals(image, scales=(50.0, 100.0, 200.0, 400.0), num_proposals=2000, min_size=20, duplicate_iou=0.9):
    """Propose regions: the nodes of a segmentation tree over superpixels of each scale.

    Superpixels are grouped from the bottom up, as Uijlings et al. 2013, "Selective Search for Object Recognition", do
    it, here by the strength of the boundary between them (`segmentation_tree`); the paper's own come from MCG.

    Args:
        image: [h, w] or [h, w, 3] in 0…255.
        scales: Of the superpixels, see `multiscale_net.superpixels`: one tree each.
        num_proposals: At most so many, those merged last before the others, of each tree in its turn.
        min_size: Pixels of the smallest superpixel, and so of a proposal.
        duplicate_iou: A region that overlaps one kept before by more is left out, in (0, 1].

    Returns:
        [n, h, w] bool, at least one: the whole image comes first.

    Raises:
        ImportError: without scikit-image (`pip install 'kvision[classic]'`).
        ValueError: on no scale, or numbers out of range.

    >>> image = np.zeros((40, 40, 3))
    >>> image[8:20, 8:30] = 200
    >>> masks = region_proposals(image)
    >>> masks.shape[1:], bool(masks[0].all()), float(region_overlaps(masks, image[None, ..., 0] > 0).max())
    ((40, 40), True, 1.0)
    """
    image = np.asarray(image)
    if not scales or num_proposals < 1 or not 0 < duplicate_iou <= 1:
        raise ValueError(
            "region_proposals needs at least one scale and one proposal, and duplicate_iou in (0, 1]: got "
            f"scales={scales}, num_proposals={num_proposals}, duplicate_iou={duplicate_iou}."
        )
    trees = (_from_the_root_down(image, superpixels(image, scale, min_size=min_size)) for scale in scales)
    kept, sizes = [], []
    for mask in itertools.chain.from_iterable(itertools.zip_longest(*trees)):
        if mask is None:  # a tree with fewer nodes than another
            continue
        size = np.count_nonzero(mask)
        known = np.array(sizes)
        near = np.flatnonzero(np.minimum(known, size) > duplicate_iou * np.maximum(known, size)) if kept else ()
        shared = {index: np.count_nonzero(kept[index] & mask) for index in near}
        if any(both > duplicate_iou * (sizes[index] + size - both) for index, both in shared.items()):
            continue
        kept.append(mask)
        sizes.append(size)
        if len(kept) == num_proposals:
            break
    return np.stack(kept)


def _from_the_root_down(image, regions):
    """The masks of the nodes of an image's tree, the last merged first."""
    parents = segmentation_tree(image, regions)
    leaves = np.eye(len(parents), (len(parents) + 1) // 2, dtype=bool)  # [nodes, superpixels]
    for node, parent in enumerate(parents):
        if parent >= 0:
            leaves[parent] |= leaves[node]
    for node in leaves[::-1]:
        yield node[regions]


def region_boxes(masks):
    """The boxes around masks: [n, h, w] bool → [n, 4] int32, left, top, right, bottom, in whole pixels.

    >>> region_boxes(np.array([[[0, 0, 0], [0, 1, 1]]], bool)).tolist()
    [[1, 1, 3, 2]]
    """
    edges = []
    for axis in (1, 2):
        held = np.any(masks, axis=axis)
        edges += [held.argmax(axis=1), held.shape[1] - held[:, ::-1].argmax(axis=1)]
    return np.stack([edges[0], edges[2], edges[1], edges[3]], axis=1).astype("int32")


def region_overlaps(masks, others):
    """Intersection over union of every pair of regions: [n, h, w] and [m, h, w] bool → [n, m].

    >>> region_overlaps(np.array([[[1, 1, 0]]], bool), np.array([[[0, 1, 1]], [[1, 1, 0]]], bool)).round(3).tolist()
    [[0.333, 1.0]]
    """
    others = np.reshape(others, (len(others), np.prod(np.shape(others)[1:]))).astype("float32")
    shared = np.zeros((len(masks), len(others)))
    for row, mask in zip(shared, masks, strict=True):  # one at a time: numbers of all would be four times their memory
        row[:] = others @ mask.ravel()
    sizes = np.count_nonzero(masks, axis=(1, 2))[:, None] + others.sum(axis=1, dtype="float64")
    return shared / np.maximum(sizes - shared, 1)


def suppress_regions(masks, scores, nms_threshold=0.0, num_regions=100):
    """Non-maximum suppression by the overlap of regions, not of boxes (section 3.4).

    Args:
        masks: [n, h, w] bool.
        scores: [n].
        nms_threshold: Intersection over union in [0, 1] above which the lower score gives way; 0, the paper's, keeps
            regions that share no pixel.
        num_regions: At most so many.

    Returns:
        Indices of those kept, int, by falling score.

    >>> masks = np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 0, 1]]], bool)
    >>> suppress_regions(masks, [0.5, 0.9, 0.1]).tolist()
    [1, 2]
    """
    boxes, left = region_boxes(masks), np.argsort(-np.asarray(scores), kind="stable")
    sizes = np.count_nonzero(masks, axis=(1, 2))
    kept = []
    while len(left) and len(kept) < num_regions:
        best, left = left[0], left[1:]
        kept.append(best)
        x1, y1, x2, y2 = boxes[best]
        window = masks[best, y1:y2, x1:x2]
        meets = (boxes[left, :2] < (x2, y2)).all(axis=1) & (boxes[left, 2:] > (x1, y1)).all(axis=1)
        shared = np.zeros(len(left))
        shared[meets] = [np.count_nonzero(masks[index, y1:y2, x1:x2] & window) for index in left[meets]]
        left = left[shared <= nms_threshold * (sizes[left] + sizes[best] - shared)]
    return np.array(kept, int)


def region_crops(image, masks, size=227, padding=16, mean=MEAN):
    """What the two networks see of each region (section 3.2): its box, and its box without the background.

    As in R-CNN, the box grows until `padding` pixels of the crop lie around it, and is warped to the crop, whatever its
    shape, by bilinear reading. What lies outside the image, and in the second crop outside the region, is the mean.

    Args:
        image: [h, w, c] in 0…255.
        masks: [n, h, w] bool, or integers 0 and 1; each has a pixel.
        size: Of the crops in pixels, a number or (height, width).
        padding: Pixels of the crop on each side that show the surroundings of the box.
        mean: Of the data set, a number or one for each channel; ImageNet's by default.

    Returns:
        `{"boxes": [n, height, width, c], "regions": the same}` float32 in 0…255.

    Raises:
        ValueError: on masks of another size or type, without a pixel, and padding that leaves no room for the box.

    >>> crops = region_crops(np.full((9, 9, 3), 50), np.eye(9, dtype=bool)[None], size=4, padding=0, mean=0)
    >>> crops["boxes"][0, ..., 0].tolist()[0], crops["regions"][0, ..., 0].tolist()[0]
    ([50.0, 50.0, 50.0, 50.0], [50.0, 0.0, 0.0, 0.0])
    """
    image = checked_image(image, "region_crops")
    masks = checked_masks(masks, image.shape[:2], "region_crops")
    height, width = (size, size) if np.ndim(size) == 0 else size
    mean = np.asarray(mean, "float32")
    if not 0 <= 2 * padding < min(height, width) or mean.size not in (1, image.shape[2]):
        raise ValueError(
            "region_crops: padding lies on both sides of the box, so twice it is less than the size of the crop; the "
            f"mean is one number or one a channel: got padding={padding}, size={(height, width)} and {mean.size} "
            f"numbers for {image.shape[2]} channels."
        )
    crops = {name: np.empty((len(masks), height, width, image.shape[2]), "float32") for name in ("boxes", "regions")}
    for row, (left, top, right, bottom) in enumerate(region_boxes(masks)):
        down = _points(top, bottom, height, padding, image.shape[0])
        across = _points(left, right, width, padding, image.shape[1])
        crop = _between(_between(image, *down[:3]).swapaxes(0, 1), *across[:3]).swapaxes(0, 1)
        visible = down[4][:, None] & across[4]
        crops["boxes"][row] = np.where(visible[..., None], crop, mean)
        figure = visible & masks[row][np.ix_(down[3], across[3])]
        crops["regions"][row] = np.where(figure[..., None], crop, mean)
    return crops


def _points(low, high, size, padding, length):
    """Of each pixel of a crop: the image's pixels before and after it, the fraction between, the nearest, if inside."""
    points = low + (np.arange(size) + 0.5 - padding) * ((high - low) / (size - 2 * padding))
    centres = np.clip(points - 0.5, 0, length - 1)
    before = centres.astype(int)
    nearest = np.clip(np.floor(points).astype(int), 0, length - 1)
    inside = (points >= 0) & (points < length)
    return before, np.minimum(before + 1, length - 1), (centres - before).astype("float32"), nearest, inside


def _between(values, before, after, fraction):
    """Linear interpolation along the first axis."""
    fraction = fraction.reshape(-1, *[1] * (values.ndim - 1))
    return values[before] * (1 - fraction) + values[after] * fraction


def checked_image(image, name):
    """An image as an array [h, w, c]."""
    image = np.asarray(image)
    if image.ndim != 3 or not image.size or image.dtype.kind not in "iuf":
        raise ValueError(f"{name}: an image is [h, w, c] in 0…255: got {image.dtype} {image.shape}.")
    return image


def checked_masks(masks, size, name, what="proposal"):
    """Masks as bools, after a check of type, size, and that each has a pixel."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.shape[1:] != tuple(size):
        raise ValueError(
            f"{name}: the masks of {what}s are [n, h, w], as large as the image, here (n, {size[0]}, {size[1]}): got "
            f"{masks.shape}. `kvision.contract.paste_masks(box_masks, boxes, (h, w))` enlarges masks of boxes."
        )
    if not len(masks):
        raise ValueError(f"{name}: there is no {what}. `region_proposals(image)` gives the whole image at least.")
    if masks.dtype != bool and (masks.dtype.kind not in "iu" or masks.min() < 0 or masks.max() > 1):
        span = f"{masks.dtype} in {masks.min()}…{masks.max()}"
        raise ValueError(f"{name}: masks are bool, or integers 0 and 1: got {span}. Pass scores as `scores >= 0.5`.")
    masks = masks.astype(bool, copy=False)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if len(empty):
        raise ValueError(
            f"{name}: {what} {empty[0]} has no pixel ({len(empty)} of {len(masks)} have none). Leave such rows out: "
            "masks[masks.any(axis=(1, 2))]."
        )
    return masks
