"""Detection as the prediction of a set: Carion et al., "End-to-End Object Detection with Transformers" (2020).

Every query predicts one object or none. Targets are assigned to queries one to one at the least cost, so nothing has to
be suppressed afterwards.
"""

import math

import keras
import numpy as np
from keras import ops

from kvision.detection.assigner import read_targets
from kvision.losses import giou_loss
from kvision.ops import (
    absolute_to_relative,
    area_xyxy,
    clip_xyxy,
    cxcywh_to_xyxy,
    giou_xyxy,
    hungarian,
    relative_to_absolute,
    take_rows,
    xyxy_to_cxcywh,
)
from kvision.part import Part

PADDING = -1  # the label of rows that hold nothing


@keras.saving.register_keras_serializable("kvision")
class SetHead(Part):
    """Trains and decodes a network whose queries predict a set (Carion 2020, section 3.1).

    The losses are those of the last layer of the decoder, and, as one sum, the same three of each layer before it, with
    an assignment of its own. The classification loss is a weighted mean over queries, the others are sums over the
    number of boxes in the batch. `fit` refuses more boxes than queries where it sees them; in a later batch those are
    left out whose omission is cheapest. A crowd is no target.

    Args:
        network: A layer with `predict(features, valid_size, training)`, which gives `{"class_logits": [layers, b,
            queries, classes + 1], "boxes_cxcywh": [layers, b, queries, 4]}`: no object is the last class, boxes are
            relative to the valid image, the last layer of the decoder comes last; with `return_weights=True` also
            `"attention"` [b, queries, rows, columns]. It has `num_queries` and `map_size`, (rows, columns).
        classes: Number of classes, without "no object".
        image_size: (height, width) of the images.
        auxiliary_losses: Whether the layers before the last are trained towards the targets as well.
        no_object_weight: Of queries without an object in the classification loss, at least 0.
        class_cost, box_cost, giou_cost: Of an assignment: less the probability of the class, absolute error, less GIoU.
        box_weight, giou_weight: Of the absolute error and of the GIoU loss in what is trained on.
        score_threshold: Predictions with a score of at most this are padding; 0 keeps all, as average precision needs.
        attention_maps: Whether detections come with `"attention_maps"` [b, queries, rows, columns]: how much each looks
            at each cell of the map, over all heads of the last layer; the sum of a map is 1.

    Raises:
        ValueError: on negative weights, costs that are all 0, a threshold outside 0 to 1.

    Features: those of the network; `"image_size"` [b, 2], if it is there, says what is no padding.
    """

    def __init__(
        self,
        network,
        classes,
        image_size,
        auxiliary_losses=True,
        no_object_weight=0.1,
        class_cost=1.0,
        box_cost=5.0,
        giou_cost=2.0,
        box_weight=5.0,
        giou_weight=2.0,
        score_threshold=0.0,
        attention_maps=False,
        **options,
    ):
        super().__init__(**options)
        self.network = network
        self.classes = classes
        self.image_size = tuple(image_size)
        self.auxiliary_losses = auxiliary_losses
        self.no_object_weight = no_object_weight
        self.class_cost = class_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.score_threshold = score_threshold
        self.attention_maps = attention_maps
        weights = (no_object_weight, class_cost, box_cost, giou_cost, box_weight, giou_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not any((class_cost, box_cost, giou_cost)):
            raise ValueError(
                f"{self.name}: weights and costs are finite numbers of at least 0, one of the costs above 0: got "
                f"no_object_weight={no_object_weight}, class_cost={class_cost}, box_cost={box_cost}, "
                f"giou_cost={giou_cost}, box_weight={box_weight}, giou_weight={giou_weight}."
            )
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"{self.name}: score_threshold lies in 0 to 1: got {score_threshold!r}.")
        self.complete()

    @property
    def loss_names(self):
        names = ("classification_loss", "box_loss", "giou_loss")
        return (*names, "auxiliary_loss") if self.auxiliary_losses else names

    @property
    def num_detections(self):
        """One for each query."""
        return self.network.num_queries

    def check(self, x, y):
        """Raises on images with more boxes than there are queries."""
        real = np.asarray(y["labels"]) >= 0
        if y.get("crowd") is not None:
            real &= np.asarray(y["crowd"]) == 0
        numbers = real.sum(axis=1)
        if numbers.size and numbers.max() > self.network.num_queries:
            image = int(numbers.argmax())
            raise ValueError(
                f"{self.name}: image {image} has {numbers[image]} boxes, and {self.network.num_queries} queries find "
                f"one each. Build the network with num_queries of at least {numbers[image]}, or keep fewer boxes by "
                "max_boxes= of the reader."
            )

    def predict(self, features, image_size=None, training=False, **options):
        """What the network predicts of every layer; `image_size` [b, 2] is of the images without their padding."""
        valid_size = None if image_size is None else self._valid_cells(image_size)
        return self.network.predict(features, valid_size, training, **options)

    def _valid_cells(self, image_size):
        """[b, 2]: rows and columns of the map whose first pixel is no padding."""
        image_size = ops.cast(image_size, "int32")
        first_pixels = [
            [cell * pixels // cells for cell in range(cells)]
            for cells, pixels in zip(self.network.map_size, self.image_size, strict=True)
        ]
        counts = [
            ops.sum(ops.cast(ops.convert_to_tensor(first, "int32") < image_size[:, axis, None], "int32"), axis=1)
            for axis, first in enumerate(first_pixels)
        ]
        return ops.maximum(ops.stack(counts, axis=1), 1)

    def losses(self, features, targets, training=None):
        """`{name: scalar}`, weighed; the valid image is that of the targets' `image_size`, or of the features'."""
        image_size = targets.get("image_size", features.get("image_size"))
        predictions = self.predict(features, image_size, training)
        if not self.auxiliary_losses:
            predictions = {name: values[-1:] for name, values in predictions.items()}
        losses = self.layer_losses(predictions, targets, image_size)
        last = {name: values[-1] for name, values in losses.items()}
        if self.auxiliary_losses:
            last["auxiliary_loss"] = sum(ops.sum(values[:-1]) for values in losses.values())
        return last

    def layer_losses(self, predictions, targets, image_size=None):
        """`{name: [layers]}` of predictions [layers, b, …], each layer with an assignment of its own."""
        logits, boxes = predictions["class_logits"], predictions["boxes_cxcywh"]
        labels, target_boxes = self._relative_targets(targets, image_size)
        labels, target_boxes = ops.stop_gradient(labels), ops.stop_gradient(target_boxes)
        layers, queries = logits.shape[0], logits.shape[2]
        queries_of = self.assign(predictions, labels, target_boxes)

        assigned = ops.one_hot(queries_of, queries, dtype="int32")  # [layers, b, targets, queries], zeros for padding
        label = ops.where(
            ops.any(assigned > 0, axis=2), ops.sum(assigned * labels[None, :, :, None], axis=2), self.classes
        )
        weight = ops.where(label < self.classes, 1.0, self.no_object_weight)
        entropy = ops.logsumexp(logits, axis=-1)
        entropy = entropy - ops.take_along_axis(logits, label[..., None], axis=-1)[..., 0]
        total = ops.sum(weight, axis=(1, 2))
        classification = ops.sum(weight * entropy, axis=(1, 2)) / ops.maximum(total, 1e-12)

        found = queries_of >= 0
        number = ops.maximum(ops.sum(ops.cast(labels >= 0, "float32")), 1.0)
        matched = take_rows(boxes, ops.maximum(queries_of, 0))
        wanted = ops.broadcast_to(target_boxes[None], (layers, *ops.shape(target_boxes)))
        errors = ops.where(found, ops.sum(ops.abs(matched - wanted), axis=-1), 0.0)
        apart = ops.where(found, giou_loss(cxcywh_to_xyxy(wanted), cxcywh_to_xyxy(matched)), 0.0)
        return {
            "classification_loss": classification,
            "box_loss": self.box_weight * ops.sum(errors, axis=(1, 2)) / number,
            "giou_loss": self.giou_weight * ops.sum(apart, axis=(1, 2)) / number,
        }

    def _relative_targets(self, targets, image_size):
        """Labels [b, n], −1 for padding and crowds, and boxes [b, n, 4], cxcywh relative to the valid image."""
        boxes, labels, crowd = read_targets(targets)
        size = self.image_size if image_size is None else image_size
        boxes = clip_xyxy(boxes, size)
        real = (labels >= 0) & (area_xyxy(boxes) > 0)
        if crowd is not None:
            real = real & ~ops.cast(crowd, "bool")
        return ops.where(real, labels, PADDING), xyxy_to_cxcywh(absolute_to_relative(boxes, size))

    def assign(self, predictions, labels, boxes_cxcywh):
        """The query of each target, [layers, b, n], −1 for padding: section 3.1, equation 1, all layers in one call."""
        cost = self.cost(predictions, labels, boxes_cxcywh)
        layers, _, queries, targets = cost.shape
        valid = ops.broadcast_to((labels >= 0)[None], (layers, *ops.shape(labels)))
        queries_of = hungarian(ops.reshape(cost, (-1, queries, targets)), ops.reshape(valid, (-1, targets)))
        return ops.reshape(queries_of, (layers, -1, targets))

    def cost(self, predictions, labels, boxes_cxcywh):
        """Of each query for each target, [layers, b, queries, n], float32 without gradient."""
        logits, boxes = (ops.stop_gradient(predictions[name]) for name in ("class_logits", "boxes_cxcywh"))
        shape = (*ops.shape(logits)[:3], labels.shape[1])
        label = ops.broadcast_to(ops.maximum(labels, 0)[None, :, None], shape)
        probability = ops.take_along_axis(ops.softmax(logits), label, axis=-1)
        wanted = boxes_cxcywh[None]
        error = ops.sum(ops.abs(boxes[..., :, None, :] - wanted[..., None, :, :]), axis=-1)
        overlap = giou_xyxy(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
        return self.box_cost * error - self.class_cost * probability - self.giou_cost * overlap

    def chance_losses(self, targets):
        """`{name: float}` of a network that knows nothing: every class, and no object, is as likely."""
        return {"classification_loss": math.log(self.classes + 1)}

    def decode(self, features):
        """The predictions of all queries by falling score: boxes xyxy [b, queries, 4] in pixels, scores and labels.

        Padding, where a threshold leaves some out, is 0, 0 and −1. Boxes are within the features' `image_size`, if it
        is there; with `attention_maps` these come along.
        """
        image_size = features.get("image_size")
        predictions = self.predict(features, image_size, return_weights=self.attention_maps)
        size = self.image_size if image_size is None else image_size
        scores = ops.softmax(predictions["class_logits"][-1])[..., :-1]
        scores, labels = ops.top_k(scores, k=1)
        scores, order = ops.top_k(scores[..., 0], k=self.network.num_queries)
        boxes = relative_to_absolute(cxcywh_to_xyxy(predictions["boxes_cxcywh"][-1]), size)
        boxes = ops.take_along_axis(clip_xyxy(boxes, size), order[..., None], axis=1)
        kept = (scores > self.score_threshold) & (area_xyxy(boxes) > 0)
        detections = {
            "boxes": ops.where(kept[..., None], boxes, 0.0),
            "scores": ops.where(kept, scores, 0.0),
            "labels": ops.where(kept, ops.take_along_axis(ops.cast(labels[..., 0], "int32"), order, axis=1), PADDING),
        }
        if self.attention_maps:
            maps = ops.take_along_axis(predictions["attention"], order[..., None, None], axis=1)
            detections["attention_maps"] = ops.where(kept[..., None, None], maps, 0.0)
        return detections
