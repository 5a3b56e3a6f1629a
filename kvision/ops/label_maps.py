"""Label maps compared: which class is taken for which, and which pixels lie at the boundary of their class."""

from keras import ops

from kvision.ops._backend import kernels

_OUTSIDE = -(2**30)  # the label of what lies beyond the border: no class and no ignored label


def confusion_matrix(labels, predictions, num_classes, ignore_class=None):
    """How many pixels of each class are predicted as each class, counted in whole numbers.

    Args:
        labels: Integers of any shape, the class of each pixel.
        predictions: Integers of as many elements.
        num_classes: Classes count from 0 to one below.
        ignore_class: The label of pixels that are left out, in any range; None counts all.

    Returns:
        int32 [num_classes, num_classes], rows are the labels and columns the predictions, and int32 [], the number of
        pixels beside the ignored ones whose label or prediction is no class.

    >>> matrix, invalid = confusion_matrix([0, 1, 1, 255, 7], [0, 0, 1, 1, 1], 2, ignore_class=255)
    >>> keras.ops.convert_to_numpy(matrix).tolist(), int(invalid)
    ([[1, 0], [1, 1]], 1)
    """
    labels, predictions = (ops.cast(each, "int32") for each in (labels, predictions))
    cells = num_classes * num_classes
    counts = kernels.bincount(_cells(labels, predictions, num_classes, ignore_class), cells + 2)
    return ops.reshape(counts[:cells], (num_classes, num_classes)), counts[cells + 1]


@kernels.fuse
def _cells(labels, predictions, num_classes, ignore_class):
    """The cell of the matrix for each pixel; behind the last cell one for ignored pixels and one for invalid ones."""
    inside = _is_class(labels, num_classes) & _is_class(predictions, num_classes)
    cells = ops.where(inside, labels * num_classes + predictions, num_classes * num_classes + 1)
    return cells if ignore_class is None else ops.where(labels == ignore_class, num_classes * num_classes, cells)


def _is_class(labels, num_classes):
    return ops.equal(labels, ops.clip(labels, 0, num_classes - 1))


def boundaries(label_maps, distance):
    """Which pixels lie within a distance of the contour of their region: the inner side of every region's contour.

    Cheng et al. 2021, "Boundary IoU", section 3, for all classes of a map at once: a pixel belongs to the boundary of
    its class where the square of `2 * distance + 1` pixels around it holds another label. The border of the map is a
    contour, too, as in the authors' code, which erodes the mask of each class.

    Args:
        label_maps: Integers [b, h, w].
        distance: In pixels, at least 1.

    Returns:
        Booleans [b, h, w].

    >>> label_maps = np.zeros((1, 7, 7), "int32")
    >>> keras.ops.convert_to_numpy(boundaries(label_maps, 2)).astype(int)[0, 3].tolist()
    [1, 1, 0, 0, 0, 1, 1]
    """
    highest = lowest = ops.pad(
        ops.cast(label_maps, "int32"),
        ((0, 0), (distance, distance), (distance, distance)),
        constant_values=_OUTSIDE,
    )
    for axis in (1, 2):
        highest = _extreme(highest, 2 * distance + 1, axis, ops.maximum)
        lowest = _extreme(lowest, 2 * distance + 1, axis, ops.minimum)
    return ops.not_equal(highest, lowest)


def _extreme(x, window, axis, choose):
    """The largest or smallest of each window along an axis; windows double, so that their length hardly matters."""
    span = 1
    while span < window:
        step = min(span, window - span)
        before = (slice(None),) * axis
        x = choose(x[(*before, slice(None, -step))], x[(*before, slice(step, None))])
        span += step
    return x
