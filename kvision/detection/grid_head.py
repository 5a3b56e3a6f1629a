"""The head of detectors that divide the image into a grid, each cell of which predicts the object centred in it."""

import typing

import keras
import numpy as np
from keras import ops

from kvision.detection.assigner import read_targets
from kvision.detection.dense_head import check_decoding
from kvision.ops import area_xyxy, clip_xyxy, cxcywh_to_xyxy, iou_xyxy, select_detections, take_rows, xyxy_to_cxcywh
from kvision.part import Part


class Cells(typing.NamedTuple):
    """What each cell of the grid is trained towards.

    boxes [b, cells, 4]: centre within the cell, 1 being its side, width and height as fractions of the image; labels
    [b, cells]; has_object [b, cells]; ignored [b, cells]: cells of a crowd, neither object nor background.
    """

    boxes: typing.Any
    labels: typing.Any
    has_object: typing.Any
    ignored: typing.Any


@keras.saving.register_keras_serializable("kvision")
class GridHead(Part):
    """YOLO's losses and its decoding (Redmon 2016, sections 2 and 2.2). It has no weights.

    A cell holds one object: the first in the order of the targets whose centre lies in it; others there are not
    learned. Of the cell's boxes the one that overlaps the object most is responsible for it, the first of equal ones;
    where none overlaps, the nearest by the squared distance of centre and sides. All losses are sums of squares over an
    image, averaged over the batch: equation 3. Its gradient is twice that of the authors' code, so a rate of theirs is
    half as large here.

    Args:
        classes: Number of classes, without a background.
        image_size: (height, width) of the network's input.
        grid_size: Cells along each side; it divides both sides of the image.
        boxes_per_cell: Boxes that each cell predicts.
        coordinate_weight: λ_coord, of the box loss, at least 0.
        no_object_weight: λ_noobj, of the confidences of boxes that are responsible for nothing, at least 0.
        score_threshold: Candidates with a score of at most this are left out, in [0, 1].
        num_candidates: Of an image go on to suppression, at most.
        nms_threshold: Overlap above which the lower score of the same class gives way, in [0, 1].
        num_detections: Given for an image, at most, and at fixed size.

    Features, linear outputs, float32: `"class_scores"` [b, s, s, classes]; `"confidences"` [b, s, s, boxes_per_cell];
    `"cell_boxes"` [b, s, s, boxes_per_cell, 4]: centre within the cell, and the square roots of width and height as
    fractions of the image, so that no root of a prediction is ever taken.

    Raises:
        ValueError: on a grid that does not divide the image, numbers below their least, thresholds out of range.

    >>> head = GridHead(classes=20, image_size=(448, 448), grid_size=7)
    >>> shapes = {"class_scores": (20,), "confidences": (2,), "cell_boxes": (2, 4)}
    >>> features = {name: keras.ops.zeros((1, 7, 7, *shape)) for name, shape in shapes.items()}
    >>> targets = {"boxes": np.array([[[32.0, 0.0, 480.0, 448.0]]]), "labels": np.array([[3]])}
    >>> {name: float(loss) for name, loss in head.losses(features, targets).items()}["classification_loss"]
    1.0
    """

    loss_names = ("box_loss", "object_loss", "no_object_loss", "classification_loss")

    def __init__(
        self,
        classes,
        image_size,
        grid_size,
        boxes_per_cell=2,
        coordinate_weight=5.0,
        no_object_weight=0.5,
        score_threshold=0.05,
        num_candidates=1000,
        nms_threshold=0.5,
        num_detections=100,
        **options,
    ):
        super().__init__(**options)
        check_grid(image_size, grid_size, boxes_per_cell)
        check_decoding(score_threshold, nms_threshold, num_candidates, num_detections)
        if not coordinate_weight >= 0 or not no_object_weight >= 0:
            raise ValueError(
                "The weights of YOLO's losses are at least 0: got coordinate_weight="
                f"{coordinate_weight!r} and no_object_weight={no_object_weight!r}."
            )
        self.classes = classes
        self.image_size = tuple(image_size)
        self.grid_size = grid_size
        self.boxes_per_cell = boxes_per_cell
        self.coordinate_weight = coordinate_weight
        self.no_object_weight = no_object_weight
        self.score_threshold = score_threshold
        self.num_candidates = num_candidates
        self.nms_threshold = nms_threshold
        self.num_detections = num_detections
        rows, columns = np.divmod(np.arange(grid_size**2), grid_size)
        self._corners = np.stack([columns, rows], axis=-1).astype("float32")  # of the cells, in cells
        self.complete()

    def check(self, x, y):
        """A ValueError on boxes whose centre lies outside the image: no cell holds them."""
        boxes, present = np.asarray(y["boxes"]), np.asarray(y["labels"]) >= 0
        size = np.asarray(y["image_size"])[:, None] if "image_size" in y else np.array(self.image_size)
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        outside = ((centres < 0) | (centres > size[..., ::-1])).any(axis=-1) & present
        if outside.any():
            image, row = (int(index) for index in np.argwhere(outside)[0])
            height, width = np.broadcast_to(size, (len(boxes), 1, 2))[image, 0].tolist()
            shown = ", ".join(f"{number:g}" for number in boxes[image, row])
            number = "1 box has its centre" if outside.sum() == 1 else f"{outside.sum()} boxes have their centres"
            raise ValueError(
                f"{self.name}: {number} outside the image, where no cell is: image {image}, row {row}: [{shown}], of "
                f"an image of height {height:g} and width {width:g}. Scale and cut boxes with their images, or mark "
                "the rows as padding by the label -1."
            )

    def losses(self, features, targets, training=None):
        """`{name: scalar}`: sums of squares over each image's cells, averaged over the batch; weights are in them."""
        class_scores, confidences, predicted = self._by_cell(features)
        cells = self._assign(targets)
        iou, distance = self._compare(predicted, cells.boxes)
        responsible = _responsible(iou, distance) & cells.has_object[..., None]
        free = ~responsible & ~cells.ignored[..., None]

        centres, sides = cells.boxes[..., None, :2], cells.boxes[..., None, 2:]
        wanted = ops.concatenate([centres, ops.sqrt(ops.maximum(sides, 0.0))], axis=-1)
        box_errors = ops.sum(ops.square(wanted - predicted), axis=-1)
        one_hot = ops.one_hot(ops.where(cells.has_object, cells.labels, -1), self.classes, dtype="float32")
        class_errors = ops.sum(ops.square(one_hot - class_scores), axis=-1)
        return {
            "box_loss": self.coordinate_weight * _mean_sum(box_errors, responsible),
            "object_loss": _mean_sum(ops.square(iou - confidences), responsible),
            "no_object_loss": self.no_object_weight * _mean_sum(ops.square(confidences), free),
            "classification_loss": _mean_sum(class_errors, cells.has_object),
        }

    def chance_losses(self, targets):
        """`{name: float}` of a network whose outputs are all 0: 1 for the class of every object."""
        shape = (len(targets["labels"]), self.grid_size, self.grid_size)
        ends = {"class_scores": (self.classes,), "confidences": (self.boxes_per_cell,)}
        ends["cell_boxes"] = (self.boxes_per_cell, 4)
        losses = self.losses({name: ops.zeros((*shape, *end)) for name, end in ends.items()}, targets)
        return {"classification_loss": float(losses["classification_loss"])}

    def decode(self, features):
        """Detections: boxes xyxy in pixels [b, num_detections, 4], scores and labels; padding is 0, 0 and −1.

        A score is the confidence times that of the class, equation 1. Both are linear outputs: below 0 they count as
        0, and a score may exceed 1. Boxes are cut to the features' `image_size`, if it is there.
        """
        class_scores, confidences, predicted = self._by_cell(features)
        scores = ops.relu(confidences)[..., :, None] * ops.relu(class_scores)[..., None, :]
        count = self.grid_size**2 * self.boxes_per_cell
        scores = ops.reshape(scores, (-1, count * self.classes))
        best, indices = ops.top_k(scores, k=min(self.num_candidates, count * self.classes))
        corners = self._corners[:, None] / self.grid_size
        boxes = cxcywh_to_xyxy(
            ops.concatenate([corners + predicted[..., :2] / self.grid_size, ops.square(predicted[..., 2:])], axis=-1)
        )
        height, width = self.image_size
        boxes = ops.reshape(boxes, (-1, count, 4)) * np.array([width, height, width, height], "float32")
        boxes = take_rows(boxes, indices // self.classes)
        boxes = clip_xyxy(boxes, features.get("image_size", self.image_size))
        best = ops.where((best > self.score_threshold) & (area_xyxy(boxes) > 0), best, -float("inf"))
        labels = ops.cast(indices % self.classes, "int32")
        return select_detections(boxes, best, labels, self.nms_threshold, self.num_detections)

    def _by_cell(self, features):
        """Class scores [b, cells, classes], confidences [b, cells, boxes], boxes [b, cells, boxes, 4], in float32."""
        shapes = {"class_scores": (self.classes,), "confidences": (self.boxes_per_cell,)}
        shapes["cell_boxes"] = (self.boxes_per_cell, 4)
        return [
            ops.reshape(ops.cast(features[name], "float32"), (-1, self.grid_size**2, *shape))
            for name, shape in shapes.items()
        ]

    def _assign(self, targets):
        """The `Cells` of a batch of targets."""
        boxes, labels, crowd = read_targets(targets)
        crowd = ops.zeros_like(labels, "bool") if crowd is None else ops.cast(crowd, "bool")
        num_boxes, num_cells = boxes.shape[1], self.grid_size**2
        height, width = self.image_size
        boxes = boxes / np.array([width, height, width, height], "float32")
        centres_and_sides = xyxy_to_cxcywh(boxes)
        centres, sides = centres_and_sides[..., :2] * self.grid_size, centres_and_sides[..., 2:]
        corners = ops.clip(ops.floor(centres), 0.0, self.grid_size - 1.0)  # the far border belongs to the last cell
        index = ops.cast(corners[..., 1] * self.grid_size + corners[..., 0], "int32")
        here = (index[..., None] == np.arange(num_cells, dtype="int32")) & ((labels >= 0) & ~crowd)[..., None]
        first = ops.min(ops.where(here, np.arange(num_boxes, dtype="int32")[:, None], num_boxes), axis=1)
        has_object = first < num_boxes
        first = ops.where(has_object, first, 0)
        in_cell = ops.concatenate([centres - corners, sides], axis=-1)
        in_cell = ops.take_along_axis(in_cell, first[..., None], axis=1)
        in_cell = ops.where(has_object[..., None], in_cell, 0.0)  # padding may hold anything

        middles = ((self._corners + 0.5) / self.grid_size)[None, None]
        covered = (middles > boxes[..., None, :2]) & (middles < boxes[..., None, 2:])
        covered = ops.all(covered, axis=-1) & ((labels >= 0) & crowd)[..., None]
        ignored = ops.any(covered, axis=1) & ~has_object
        return Cells(in_cell, ops.take_along_axis(labels, first, axis=1), has_object, ignored)

    def _compare(self, predicted, truths):
        """IoU and squared distance [b, cells, boxes] of predictions and the cell's box, as fractions of the image."""
        predicted, truths = ops.stop_gradient(predicted), truths[..., None, :]
        first = ops.concatenate([predicted[..., :2] / self.grid_size, ops.square(predicted[..., 2:])], axis=-1)
        second = ops.concatenate([truths[..., :2] / self.grid_size, truths[..., 2:]], axis=-1)
        iou = iou_xyxy(cxcywh_to_xyxy(first), cxcywh_to_xyxy(second), pairwise=False)
        return iou, ops.sum(ops.square(first - second), axis=-1)


def check_grid(image_size, grid_size, boxes_per_cell):
    """A ValueError for a grid that has no cells of whole pixels."""
    for name, value in (("grid_size", grid_size), ("boxes_per_cell", boxes_per_cell)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is a whole number of at least 1: got {value!r}.")
    height, width = image_size
    if height % grid_size or width % grid_size:
        near = tuple(max(1, round(side / grid_size)) * grid_size for side in (height, width))
        raise ValueError(
            f"A grid of {grid_size}x{grid_size} cells does not divide an image of {height}x{width} pixels: a cell must "
            f"be whole pixels high and wide. Pass images of {near[0]}x{near[1]}, or another grid_size."
        )


def _responsible(iou, distance):
    """Which box of each cell is responsible, [b, cells, boxes], one each: by overlap, else by distance."""
    best = ops.max(iou, axis=-1, keepdims=True)
    candidates = ops.where(best > 0, iou == best, distance == ops.min(distance, axis=-1, keepdims=True))
    return candidates & (ops.cumsum(ops.cast(candidates, "int32"), axis=-1) == 1)


def _mean_sum(errors, counted):
    """The sum of those counted in each image [b, …], averaged over the batch."""
    errors = ops.where(counted, errors, 0.0)
    return ops.mean(ops.sum(errors, axis=tuple(range(1, len(errors.shape)))))
