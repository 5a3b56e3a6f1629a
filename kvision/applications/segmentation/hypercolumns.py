"""Hypercolumns: Hariharan, Arbeláez, Girshick, Malik, "Hypercolumns for Object Segmentation" (2015).

The hypercolumn of a pixel is the stack of all maps above it, read bilinearly (section 3). Linear classifiers on it tell
for each of 50x50 pixels of a detected box whether it is the object's. They differ by the place in the box: a grid of
KxK of them, and at a pixel the functions themselves are interpolated: the mean of what the four nearest classifiers say
of the pixel's own column, weighed bilinearly. A classifier of a stack is the sum of classifiers of its maps (section
4), so the stack is never built.

Deviations. The network runs once on the image, and columns are read within each box, where the paper runs it on every
box, warped and a little enlarged, and puts the features of its last dense layer below every pixel; here the coarsest
level stands there. It is trained through the interpolation, where the paper trains each classifier on the pixels of its
cell.

How it trains (section 5): on the boxes of the objects, moved at random as detections are, by the logistic loss of every
pixel.
"""

import keras
import numpy as np
from keras import ops

from kvision.applications.building import finish, image_input
from kvision.applications.classification import imagenet
from kvision.applications.classification.vgg import VGG16
from kvision.detection.assigner import Sample, read_targets
from kvision.detection.backbone import backbone_maps, backbone_preprocessing, choose_norms
from kvision.detection.detector import Detector
from kvision.detection.mask_branch import MaskBranch
from kvision.layers import RoIAlign
from kvision.layers.conventions import conventions
from kvision.ops import BACKGROUND, clip_xyxy
from kvision.part import Part

PROOF = "torch's interpolation of the maps, and a NumPy twin of the grid of classifiers"

LEVELS = ("C2", "C4", "C5")  # section 5 takes pool2, conv4 and fc7 of AlexNet
TOP = ("hypercolumn_branch",)


def Hypercolumns(
    *,
    input_shape=(512, 512, 3),
    classes=20,
    backbone=None,
    weights=None,
    backbone_norm="auto",
    levels=LEVELS,
    channels=64,
    grid_size=5,
    heatmap_size=50,
    jitter=0.1,
    num_mask_samples=32,
    preprocess="auto",
    name="hypercolumns",
):
    """Build the refinement of masks by hypercolumns, for the detections of any detector.

    Args:
        input_shape: (height, width, channels) of the padded images.
        classes: Number of classes, without a background.
        backbone: A `keras.Model` that returns a dict of `levels`; None: VGG-16.
        weights: None, or the path of weights of the whole model.
        backbone_norm: Of VGG-16: `"frozen_batch"`, `"group"`, `"batch"`, `"sync_batch"` or None; `"auto"`: frozen with
            `weights`, else group norm.
        levels: Maps of the column, finest first.
        channels: Each map is projected to so many by a 1x1 convolution, to save memory; None stacks them as they are.
        grid_size: K, classifiers along each side of a box, ≥ 1; the paper has grids of 5 and 10.
        heatmap_size: Pixels along each side of a box's heat map, ≥ `grid_size`.
        jitter: In training each side of a box moves at random by up to this fraction of the box, in [0, 0.5).
        num_mask_samples: Objects of an image that a step trains on, at most.
        preprocess: A function applied to the images, RGB 0…255, before the backbone, or None. `"auto"`: what the
            backbone carries as `preprocessing`; ImageNet's for the one built here.
        name: Of the model.

    Returns:
        A `kvision.detection.Detector` with the loss `mask_loss`. It trains on images and targets with `"masks"` or
        `"box_masks"`. In `predict` it takes `{"images", "boxes", "labels", "scores"}`, a detector's output beside the
        images, and gives these detections with `"box_masks"` [b, k, heatmap_size, heatmap_size], scores in 0…1; so does
        `evaluate`.

    Raises:
        ValueError: on a wrong shape, numbers out of range, or a backbone without the levels.

    ```python
    refiner = kvision.applications.Hypercolumns(input_shape=(256, 256, 3), classes=3)
    refiner.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0))
    refiner.fit(images, targets)
    detections = refiner.predict({"images": images} | detector.predict(images))
    ```
    """
    images = image_input("Hypercolumns", input_shape, stride=32, classes=classes)
    norms = choose_norms(
        "Hypercolumns", backbone=backbone, weights=weights, backbone_norm=backbone_norm, norm="auto", initializer="auto"
    )
    preprocess = backbone_preprocessing("Hypercolumns", backbone, preprocess, imagenet.preprocess_input)
    if backbone is None:
        backbone = VGG16(include_top=False, input_shape=input_shape, features=tuple(levels), norm=norms.backbone)
    maps = backbone_maps("Hypercolumns", backbone, tuple(levels), images, preprocess)
    if channels is not None:
        conv = conventions(norm=None).conv
        maps = {level: conv(channels, 1, name=f"column.{level}")(feature) for level, feature in maps.items()}
    branch = HypercolumnBranch(
        classes,
        {level: int(feature.shape[-1]) for level, feature in maps.items()},
        grid_size=grid_size,
        size=heatmap_size,
        num_samples=num_mask_samples,
        name="hypercolumn_branch",
    )
    head = HypercolumnHead(branch, input_shape[:2], jitter=jitter, name=f"{name}_head")
    return finish(Detector(keras.Model(images, maps, name=f"{name}_trunk"), head, name=name), weights, top=TOP)


@keras.saving.register_keras_serializable("kvision")
class HypercolumnHead(Part):
    """Trains masks on the boxes of objects, and draws those of given detections.

    Args:
        branch: A `HypercolumnBranch`.
        image_size: (height, width) of the images.
        jitter: In training each side of a box moves at random by up to this fraction of the box, in [0, 0.5).

    Raises:
        ValueError: on a jitter out of range.
    """

    loss_names = ("mask_loss",)

    def __init__(self, branch, image_size, jitter=0.1, **options):
        super().__init__(**options)
        if not 0 <= jitter < 0.5:
            raise ValueError(f"{self.name}: jitter is a fraction of a box, in [0, 0.5): got {jitter!r}.")
        self.branch = branch
        self.image_size = tuple(image_size)
        self.jitter = jitter
        self._seed_generator = keras.random.SeedGenerator(name=f"{self.name}_seed")
        self.complete()

    @property
    def classes(self):
        return self.branch.classes

    def check(self, x, y):
        """Raises unless the targets have masks."""
        self.branch.check(x, y)

    def losses(self, features, targets, training=None):
        boxes, labels, crowd = read_targets(targets)
        counts = labels >= 0 if crowd is None else (labels >= 0) & ~ops.cast(crowd, "bool")
        if training and self.jitter:
            noise = keras.random.uniform(ops.shape(boxes), -self.jitter, self.jitter, seed=self._seed_generator)
            boxes = boxes + noise * ops.tile(boxes[..., 2:] - boxes[..., :2], (1, 1, 2))
        boxes = clip_xyxy(boxes, self.image_size)
        matches = ops.where(counts, ops.arange(boxes.shape[1], dtype="int32"), BACKGROUND)
        return {"mask_loss": self.branch.loss(features, Sample(boxes, matches, counts), targets, training)}

    def decode(self, features):
        """The detections among the features, with `"box_masks"`."""
        if missing := {"boxes", "labels"} - set(features):
            raise ValueError(
                f"{self.name} draws the masks of detections: {' and '.join(sorted(missing))} are missing. Call "
                'predict({"images": images} | detector.predict(images)), and evaluate with boxes and labels likewise.'
            )
        boxes, labels = ops.cast(features["boxes"], "float32"), ops.cast(features["labels"], "int32")
        scores = features.get("scores", labels >= 0)
        masks = self.branch.scores(features, boxes, labels)
        return {"boxes": boxes, "scores": ops.cast(scores, "float32"), "labels": labels, "box_masks": masks}


@keras.saving.register_keras_serializable("kvision")
class HypercolumnBranch(MaskBranch):
    """Classifies every pixel of a box by its hypercolumn and its place in the box (sections 3 and 4).

    Args:
        classes: Number of classes, without a background; each has a grid of its own.
        channels: `{"C2": channels, …}` of each map of the column, finest first.
        grid_size: K, classifiers along each side of a box.
        size: Pixels along each side of a heat map.
        num_samples: Objects of an image that a step trains on, at most.

    Raises:
        ValueError: on a grid of none, or finer than the heat map.
    """

    def __init__(self, classes, channels, grid_size=5, size=50, num_samples=32, **options):
        Part.__init__(self, **options)  # of the mask branch it has the loss, not the layers
        if not 1 <= grid_size <= size:
            raise ValueError(
                f"{self.name}: a box has 1 to {size} classifiers along each side, no more than pixels of its heat map: "
                f"got grid_size={grid_size} and size={size}."
            )
        self.classes = classes
        self.channels = dict(channels)
        self.grid_size = grid_size
        self.size = size
        self.num_samples = num_samples
        self.poolings = [RoIAlign(size, 1 / 2 ** int(level[1:]), sampling_ratio=1) for level in self.channels]
        for pooling in self.poolings:
            pooling.build(None)  # Keras on JAX calls a model with unbuilt layers on images alone, before it trains
        self.pooling = self.poolings[0]  # of the finest map: its alignment is that of the targets
        normal = keras.initializers.RandomNormal(stddev=0.01)
        self.kernels = [
            self.add_weight((classes, width, grid_size**2), initializer=normal.clone(), name=f"{level}.kernel")
            for level, width in self.channels.items()
        ]
        self.bias = self.add_weight((classes, grid_size**2), initializer="zeros", name="bias", autocast=False)
        self._log_mixture = np.log(np.maximum(_mixture(size, grid_size), 1e-30))
        self.complete()

    def columns(self, features, boxes_xyxy):
        """The hypercolumns of the pixels of each box [b, n, 4]: [b, n, size, size, sum of all channels]."""
        return ops.concatenate(list(self._maps(features, boxes_xyxy)), axis=-1)

    def _maps(self, features, boxes_xyxy):
        """Each map of the column within the boxes, one after the other."""
        for level, pooling in zip(self.channels, self.poolings, strict=True):
            yield pooling(features[level], boxes_xyxy)

    def predict(self, features, boxes_xyxy, labels, training=False):
        """Logits [b, n, size, size], float32: the mask of each box [b, n, 4] for its label [b, n], from 0."""
        labels = ops.reshape(labels, (-1,))
        logits = ops.take(ops.cast(self.bias, "float32"), labels, axis=0)[:, None]
        for maps, kernel in zip(self._maps(features, boxes_xyxy), self.kernels, strict=True):
            maps = ops.reshape(maps, (-1, self.size**2, maps.shape[-1]))
            kernel = ops.cast(ops.take(kernel, labels, axis=0), maps.dtype)
            logits = logits + ops.cast(ops.matmul(maps, kernel), "float32")
        inside, outside = (
            ops.logsumexp(ops.log_sigmoid(one) + self._log_mixture, axis=-1) for one in (logits, -logits)
        )
        logits = inside - outside  # of the mean probabilities, which alone would round to 0 and have no gradient
        return ops.reshape(logits, (-1, ops.shape(boxes_xyxy)[1], self.size, self.size))


def _mixture(size, grid_size):
    """What each classifier of the grid counts at each pixel, [size², grid_size²]; rows add up to 1."""
    centres = np.clip((np.arange(size) + 0.5) * grid_size / size - 0.5, 0, grid_size - 1)
    weights = np.maximum(1 - np.abs(centres[:, None] - np.arange(grid_size)), 0)
    return np.einsum("ia,jb->ijab", weights, weights).reshape(size**2, grid_size**2).astype("float32")
