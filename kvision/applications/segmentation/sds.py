"""SDS: Hariharan, Arbeláez, Girshick, Malik, "Simultaneous Detection and Segmentation" (2014).

Regions are proposed (section 3.1; `region_proposals`, or masks of any source). One network sees the box of each,
another the box with all but the region replaced by the data set's mean (section 3.2, network C: both are trained as
one, on their joined penultimate features). A linear SVM a class scores these features (section 3.3); overlapping
regions are suppressed, and the masks of those that stay refined (section 3.4). `SDS` is the network, `RegionBatches`
feeds it, `sds_detector.SDSDetector` is all of it.

Deviation: regions come from segmentation trees, where the paper has MCG's.

How it trains (section 3.2, R-CNN's section 2.3): both paths from ImageNet's weights, SGD at a tenth of the rate they
were trained with, 0.001; batches of 128 regions, a quarter of them objects: overlap of at least 0.5 with one.
"""

import keras
import numpy as np

from kvision.applications.building import build_network, finish, image_input
from kvision.applications.classification import alexnet
from kvision.applications.segmentation.sds_regions import (
    MEAN,
    checked_image,
    checked_masks,
    region_crops,
    region_overlaps,
)
from kvision.applications.segmentation.sds_regions import region_proposals as region_proposals
from kvision.detection.backbone import backbone_preprocessing
from kvision.layers.conventions import conventions

TOP = ("classifier",)

PROOF = "the sum of two AlexNets, NumPy twins of crops, overlaps and masks, scikit-learn's decision functions"


def SDS(
    *,
    input_shape=(227, 227, 3),
    classes=20,
    backbone=None,
    weights=None,
    include_top=True,
    preprocess="auto",
    name="sds",
):
    """Build the network of SDS, 113,908,501 parameters: two paths, one for boxes, one for regions.

    Args:
        input_shape: (height, width, channels) of both crops.
        classes: Number of classes, without a background; the paper's VOC has 20.
        backbone: A classifier of images, of which each path gets a copy with its weights, up to the features that go
            into its last dense layer; or a network without one, whose last map is averaged. None is an AlexNet.
        weights: None, or the path of weights of the whole network.
        include_top: End with the classifier; otherwise the joined features are returned.
        preprocess: A function applied to crops, RGB 0…255, or None. `"auto"`: what the backbone carries as
            `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `keras.Model`: `{"boxes": [b, h, w, c], "regions": [b, h, w, c]}` in 0…255, as `region_crops` makes them, →
        logits [b, 1 + classes] float32, the background first; without its top the joined features [b, d] float32.

    Raises:
        ValueError: on a wrong shape, fewer than one class, or a backbone of another size or with several outputs.

    >>> trunk = kvision.applications.AlexNet("tiny", input_shape=(67, 67, 3))
    >>> model = SDS(input_shape=(67, 67, 3), classes=3, backbone=trunk)
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> model.output_shape, model.get_layer("features").output.shape
    ((None, 4), (None, 32))
    """
    shape = image_input("SDS", input_shape, classes=classes).shape[1:]
    preprocess = backbone_preprocessing("SDS", backbone, preprocess, alexnet.preprocess_input)
    template = alexnet.AlexNet(input_shape=shape) if backbone is None else _checked_backbone(backbone, shape)
    inputs, features = {}, []
    for crop, path in (("boxes", "box"), ("regions", "region")):
        x = inputs[crop] = keras.Input(shape, name=crop)
        x = x if preprocess is None else preprocess(x)
        features.append(_copy(template, path, with_weights=backbone is not None)(x))
    x = keras.layers.Concatenate(dtype="float32", name="features")(features)
    if include_top:
        bound = conventions(None, "relu", "normal_0.01", "zero")
        x = bound.dense(1 + classes, dtype="float32", name="classifier")(x)
    model = build_network(inputs, x, {}, include_top=True, features=None, name=name)
    return finish(model, weights, top=TOP)


def _checked_backbone(backbone, shape):
    output = getattr(backbone, "output", None)
    if getattr(output, "ndim", None) not in (2, 4):
        got = sorted(output) if isinstance(output, dict) else getattr(output, "shape", type(backbone).__name__)
        raise ValueError(
            f"SDS needs a backbone from images to one vector or map: got {got}. Build a classifier of ours, or one "
            "with include_top=False and without `features`."
        )
    theirs = tuple(backbone.inputs[0].shape[1:])
    if any(size not in (None, ours) for ours, size in zip(shape, theirs, strict=True)):
        raise ValueError(f"SDS has input_shape={tuple(shape)}, its backbone {theirs}: build both for one size.")
    return backbone


def _copy(template, path, with_weights):
    """A model up to the penultimate features, with layers of its own, named after the path."""

    def renamed(layer):
        return type(layer).from_config(layer.get_config() | {"name": f"{path}.{layer.name}"})

    copy = keras.models.clone_model(template, clone_function=renamed, recursive=True)
    if with_weights:
        copy.set_weights(template.get_weights())
    x, last = copy.output, copy.layers[-1]
    if isinstance(last, keras.layers.Dense) and last.output is x:
        x = last.input
    elif x.ndim == 4:
        x = keras.layers.GlobalAveragePooling2D(name=f"{path}.avgpool")(x)
    return keras.Model(copy.inputs[0], x, name=f"{path}_path")


class LabelledRegions:
    """Of each image its objects and proposals, in this order, and how much each overlaps each object.

    Args:
        name: Of who asks, for the messages.
        images: [b, h, w, 3], or a list of images [h, w, 3] of any sizes, in 0…255.
        targets: As the data contract has them, `{"labels": [b, n], "masks": [b, n, h, w]}` and optional `"crowd"`
            [b, n]; or a list of such dicts without the first axis.
        proposals: For each image [m, h, w] bool, or integers 0 and 1: a list, or a sequence of one's own that reads
            those of an image when it is asked for them.
        classes: Number of classes, without a background.

    Attributes:
        labels: Of each image [objects], the class of each.
        overlaps: Of each image [regions, objects], intersection over union.
        ignored: Of each image [regions] bool: most of it lies in a crowd.

    Raises:
        ValueError: with image and row, on numbers of images that differ, labels out of range, and masks of another
            size or type or without a pixel.

    >>> mask = np.eye(4, dtype=bool)[None]
    >>> regions = LabelledRegions("it", np.zeros((1, 4, 4, 3)), [{"labels": [1], "masks": mask}], [~mask], classes=2)
    >>> regions.overlaps[0].tolist()
    [[1.0], [0.0]]
    """

    def __init__(self, name, images, targets, proposals, classes):
        self.images, self._objects, self._proposals = images, [], proposals
        self.labels, self.overlaps, self.ignored = [], [], []
        several = not hasattr(targets, "keys")
        if not several:
            _check_keys(name, targets)
        counts = len(images), len(targets if several else targets["labels"]), len(proposals)
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(
                f"{name} needs targets and proposals for each image: got {counts[0]} images, {counts[1]} targets and "
                f"{counts[2]} arrays of proposals."
            )
        for index in range(counts[0]):
            rows = targets[index] if several else {key: values[index] for key, values in targets.items()}
            self._add(f"{name}, image {index}", rows, index, classes)

    def _add(self, name, rows, index, classes):
        _check_keys(name, rows)
        size = checked_image(self.images[index], name).shape[:2]
        labels = np.asarray(rows["labels"])
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or np.any(labels >= classes) or np.any(labels < -1):
            raise ValueError(
                f"{name}: labels are integers from 0 to {classes - 1}, −1 for padding: got {labels.dtype} "
                f"{labels.tolist()}."
            )
        masks = np.asarray(rows["masks"])
        crowd = np.asarray(rows.get("crowd", np.zeros(len(labels)))).astype(bool) & (labels >= 0)
        present = (labels >= 0) & ~crowd
        objects = np.zeros((0, *size), bool)
        if present.any():
            objects = checked_masks(masks[present], size, name, "object")
        proposals = checked_masks(self._proposals[index], size, name)
        around = np.zeros(size, bool)
        if crowd.any():
            around = checked_masks(masks[crowd], size, name, "crowd").any(axis=0)
        self._objects.append(objects)
        self.labels.append(labels[present])
        self.overlaps.append(region_overlaps(np.concatenate([objects, proposals]), objects))
        inside = np.array([np.count_nonzero(mask & around) / np.count_nonzero(mask) for mask in proposals])
        self.ignored.append(np.concatenate([np.zeros(len(objects), bool), inside > 0.5]))

    def __len__(self):
        return len(self.labels)

    def masks(self, index, rows=None):
        """[regions, h, w] bool, or some rows of it."""
        objects = self._objects[index]
        proposals = np.asarray(self._proposals[index]).astype(bool, copy=False)
        if rows is None:
            return np.concatenate([objects, proposals])
        count = len(objects)
        return np.stack([objects[row] if row < count else proposals[row - count] for row in rows])

    def class_overlaps(self, index, label):
        """[regions], the largest overlap with an object of a class."""
        return self.overlaps[index][:, self.labels[index] == label].max(axis=1, initial=0.0)


def _check_keys(name, targets):
    if not {"labels", "masks"} <= set(targets):
        raise ValueError(
            f'{name}: targets are "labels" and "masks": got {sorted(targets)}. Readers give masks with masks=True; '
            "`kvision.contract.paste_masks` makes them of box_masks."
        )


class RegionBatches(keras.utils.PyDataset):
    """Batches of regions to train the network on, objects and background, drawn over all images.

    An epoch shows each object region once, in another order each; the background is drawn anew.

    Args:
        images, targets, proposals: As of `LabelledRegions`.
        classes: Number of classes, without a background.
        size: Of the crops, a number or (height, width).
        batch_size: Regions in a batch.
        positive_fraction: Of a batch, in (0, 1], rounded; more where there is no background.
        matching_iou_threshold: Overlap from which on a region has the label of an object, in (0, 1].
        padding, mean: See `region_crops`.
        seed: Of the draws.
        **options: Of `keras.utils.PyDataset`: `workers`, `use_multiprocessing`, `max_queue_size`.

    Batch: `({"boxes": [b, h, w, 3], "regions": …}, labels [b] int32)`, 0 the background, 1 the first class.

    Raises:
        ValueError: as `LabelledRegions`, on fractions out of range, and if no image has an object.

    ```python
    network = kvision.applications.SDS(classes=3)
    network.compile(keras.optimizers.SGD(0.001, 0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(RegionBatches(images, targets, proposals, classes=3))
    ```
    """

    def __init__(
        self,
        images,
        targets,
        proposals,
        classes,
        size=227,
        batch_size=128,
        positive_fraction=0.25,
        matching_iou_threshold=0.5,
        padding=16,
        mean=MEAN,
        seed=0,
        **options,
    ):
        super().__init__(**options)
        if batch_size < 1 or not 0 < positive_fraction <= 1 or not 0 < matching_iou_threshold <= 1:
            raise ValueError(
                "RegionBatches: batch_size is at least 1, positive_fraction and matching_iou_threshold lie in (0, 1]: "
                f"got {batch_size}, {positive_fraction} and {matching_iou_threshold}."
            )
        self._regions = regions = LabelledRegions("RegionBatches", images, targets, proposals, classes)
        self._crops = {"size": size, "padding": padding, "mean": mean}
        self._batch_size, self._seed, self._epoch = batch_size, seed, 0
        found = []  # image, region, label
        for index, (overlaps, labels) in enumerate(zip(regions.overlaps, regions.labels, strict=True)):
            best = overlaps.max(axis=1, initial=0.0)
            named = 1 + labels[overlaps.argmax(axis=1)] if len(labels) else 0
            of_region = np.where(best >= matching_iou_threshold, named, 0)
            rows = np.arange(len(best))
            known = ~regions.ignored[index] | (of_region > 0)
            found.append(np.stack([np.full_like(rows, index), rows, of_region], axis=1)[known])
        found = np.concatenate(found)
        self._positives, self._background = found[found[:, 2] > 0], found[found[:, 2] == 0]
        if not len(self._positives):
            raise ValueError('RegionBatches: no image has an object: all "labels" are −1 or crowd. Nothing to learn.')
        self._num_positives = max(1, round(batch_size * positive_fraction))
        if not len(self._background):
            self._num_positives = batch_size

    def __len__(self):
        return -(-len(self._positives) // self._num_positives)

    def __getitem__(self, index):
        rng = np.random.default_rng((self._seed, self._epoch))
        order = np.resize(rng.permutation(len(self._positives)), len(self) * self._num_positives)
        chosen = self._positives[order[index * self._num_positives :][: self._num_positives]]
        rest = self._batch_size - len(chosen)
        if rest:
            rng = np.random.default_rng((self._seed, self._epoch, index))
            chosen = np.concatenate([chosen, self._background[rng.integers(len(self._background), size=rest)]])
        crops = {"boxes": [None] * len(chosen), "regions": [None] * len(chosen)}
        for image in np.unique(chosen[:, 0]):
            (rows,) = np.nonzero(chosen[:, 0] == image)
            masks = self._regions.masks(image, chosen[rows, 1])
            for name, values in region_crops(self._regions.images[image], masks, **self._crops).items():
                for row, crop in zip(rows, values, strict=True):
                    crops[name][row] = crop
        return {name: np.stack(values) for name, values in crops.items()}, chosen[:, 2].astype("int32")

    def on_epoch_end(self):
        self._epoch += 1
