"""A detector that looks at several views of each image and merges what it finds in them."""

import keras
import numpy as np
from keras import ops

from kvision.detection.detector import Detector
from kvision.detection.proposals import GivenProposals
from kvision.errors import choose
from kvision.ops import batched_nms, fuse_boxes, resize_bilinear
from kvision.test_time.untrained import Untrained, checked_size

NAMES = ("boxes", "scores", "labels", "box_masks")


@keras.saving.register_keras_serializable("kvision")
class TestTimeDetection(Untrained):
    """A trained detector on mirrored and resized images: their detections in one list, merged.

    It is a `keras.Model` that gives the dict of the detector's `predict`, in pixels of the images it is given, and as
    many rows. All views of a batch go through the detector at once. It is not trained: train the detector inside.

    Args:
        detector: A `kvision.detection.Detector` of images. Its weights are shared, not copied.
        flips: Whether the mirror image is looked at as well.
        scales: Factors of the images' size. What is smaller than the detector's input is padded at the right and
            bottom. For factors above 1 build the detector for larger images, its weights fit any size, and give
            `image_size`.
        merge: `"fusion"`: overlapping boxes of a label become their mean, and what few views find loses score
            (`kvision.ops.fuse_boxes`); `"nms"`: the highest score stays, as it is.
        merge_iou_threshold: Overlap in [0, 1] above which boxes of a label are merged.
        image_size: Height and width of the images it takes, in pixels; None: those of the detector.
        name: Of the model.

    Call: images [b, *image_size, c] in 0…255, or `{"images": …, "image_size": [b, 2]}`, height and width without the
    padding → `{"boxes": [b, k, 4], "scores": [b, k], "labels": [b, k]}` and, if the detector has masks,
    `"box_masks"`: those of the best box of each that were merged.

    Raises:
        ValueError: on a detector of features or of given proposals, one view only, scales that do not fit into the
            detector's input, and an unknown `merge`.

    ```python
    larger = kvision.applications.RetinaNet(input_shape=(640, 640, 3), classes=3)
    larger.set_weights(detector.get_weights())  # trained at 512 x 512
    model = TestTimeDetection(larger, scales=(1.0, 1.25), image_size=(512, 512))
    model.predict(images)["boxes"]
    ```
    """

    __test__ = False  # or pytest would collect a class of this name from whoever imports it

    def __init__(
        self,
        detector,
        flips=True,
        scales=(1.0,),
        merge="fusion",
        merge_iou_threshold=0.55,
        image_size=None,
        name=None,
        **options,
    ):
        _check_detector(detector)
        *canvas, channels = detector.trunk.inputs[0].shape[1:]
        image_size = checked_size("TestTimeDetection", image_size, canvas)
        scales = tuple(scales)
        sizes = [tuple(round(side * scale) for side in image_size) for scale in scales]
        if not sizes or any(not 1 <= side <= most for size in sizes for side, most in zip(size, canvas, strict=True)):
            raise ValueError(
                f"TestTimeDetection: images of {image_size} at the scales {scales} become {sizes}: each must fit into "
                f"the detector's input {tuple(canvas)}. Build the detector for larger images, with the same weights, "
                "and give image_size=, or choose scales of at most 1."
            )
        if len(set(sizes)) != len(sizes) or (len(sizes) == 1 and not flips):
            raise ValueError(f"TestTimeDetection needs two views or more, each its own: got {flips=} and {scales=}.")
        if not 0 <= merge_iou_threshold <= 1:
            raise ValueError(f"merge_iou_threshold lies in 0 to 1: got {merge_iou_threshold!r}.")
        choose("merge", MERGES, merge)
        super().__init__(name=name or f"{detector.name}_test_time", **{"autocast": False} | options)
        self.detector = detector
        self.flips = flips
        self.scales = scales
        self.merge = merge
        self.merge_iou_threshold = merge_iou_threshold
        self.image_size = image_size
        self._canvas = tuple(canvas)
        self._channels = channels
        self._views = tuple((size, mirrored) for size in sizes for mirrored in (False, True)[: 1 + bool(flips)])
        self.built = True  # the detector is

    @property
    def inside(self):
        return self.detector

    @property
    def image_shape(self):
        return (*self.image_size, self._channels)

    @property
    def num_views(self):
        """How many views of an image there are."""
        return len(self._views)

    def call(self, inputs):
        inputs = dict(inputs) if hasattr(inputs, "keys") else {"images": inputs}
        if inputs.keys() - {"images", "image_size"} or "images" not in inputs:
            raise ValueError(f'{self.name} takes "images" and, if they are padded, "image_size": got {sorted(inputs)}.')
        images = self.check_images(inputs["images"])
        valid = ops.cast(inputs.get("image_size", self.image_size), "float32")
        valid = valid + ops.zeros((ops.shape(images)[0], 2))
        mirror_images = _mirrored(images, valid if "image_size" in inputs else None) if self.flips else None
        views, sizes = [], []
        for size, mirrored in self._views:
            view = resize_bilinear(mirror_images if mirrored else images, size)
            padding = [(0, most - side) for side, most in zip(size, self._canvas, strict=True)]
            views.append(ops.pad(view, [(0, 0), *padding, (0, 0)]))
            sizes.append(valid * self._factors(size))
        found = self._detect(ops.stack(views, axis=1), ops.stack(sizes, axis=1))
        return self._merged([self._in_the_image(found, view, valid) for view in range(self.num_views)])

    def _factors(self, size):
        return (np.array(size) / self.image_size).astype("float32")

    def _detect(self, views, sizes):
        """Detections of all views, `{name: [b, views, k, …]}`."""
        inputs = {"images": views, "image_size": sizes}
        inputs = {name: ops.reshape(values, (-1, *values.shape[2:])) for name, values in inputs.items()}
        found = self.detector(inputs, training=False)[self.detector.predictions_name]
        if found.keys() - set(NAMES):
            raise ValueError(f"{self.name} merges {', '.join(NAMES)}: {self.detector.name} gives {sorted(found)}.")
        return {name: ops.reshape(rows, (-1, self.num_views, *rows.shape[1:])) for name, rows in found.items()}

    def _in_the_image(self, found, view, valid):
        """The detections of one view in pixels of the image."""
        size, mirrored = self._views[view]
        rows = {name: values[:, view] for name, values in found.items()}
        height, width = self._factors(size)
        rows["boxes"] = rows["boxes"] / np.stack([width, height, width, height])
        if mirrored:
            left, top, right, bottom = ops.split(rows["boxes"], 4, axis=-1)
            end = valid[:, None, 1:]
            rows["boxes"] = ops.concatenate([end - right, top, end - left, bottom], axis=-1)
            if "box_masks" in rows:
                rows["box_masks"] = ops.flip(rows["box_masks"], axis=-1)
        return rows

    def _merged(self, views):
        max_outputs = views[0]["labels"].shape[1]
        rows = {name: ops.concatenate([view[name] for view in views], axis=1) for name in views[0]}
        merged = MERGES[self.merge](rows, self.merge_iou_threshold, len(views), max_outputs)
        index = merged.pop("indices")
        if "box_masks" in rows:
            masks = ops.take_along_axis(rows["box_masks"], ops.maximum(index, 0)[..., None, None], axis=1)
            merged["box_masks"] = ops.where((index >= 0)[..., None, None], masks, 0.0)
        return merged

    def compile(self, **options):
        """As `keras.Model.compile`, for `predict`: without optimizer, loss and metrics; such as `jit_compile=True`."""
        if any(options.get(name) is not None for name in ("loss", "metrics")):
            raise ValueError(f"{self.name} has no loss and no metrics: {Detector.metrics_advice}")
        super().compile(**options)

    def evaluate(self, *arguments, **options):
        """Refused."""
        raise ValueError(
            f"{self.name} has no losses: give what it predicts to kvision.metrics.COCOAveragePrecision, or evaluate "
            "the detector inside."
        )

    def get_config(self):
        names = ("flips", "scales", "merge", "merge_iou_threshold", "image_size", "name")
        return {name: getattr(self, name) for name in names} | {
            "detector": keras.saving.serialize_keras_object(self.detector),
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"detector": keras.saving.deserialize_keras_object(config["detector"])})


def _check_detector(detector):
    if not isinstance(detector, Detector):
        raise ValueError(
            f"TestTimeDetection needs a kvision.detection.Detector: got {type(detector).__name__}. Classifiers are for "
            "TestTimeAverage."
        )
    if detector.trunk is None or isinstance(getattr(detector.head, "proposals", None), GivenProposals):
        raise ValueError(
            f"TestTimeDetection needs a detector of images alone: {detector.name} is given features or proposals, "
            "which do not follow the views."
        )


def _mirrored(images, valid):
    """Mirror images; padding stays at the right."""
    if valid is None:
        return ops.flip(images, axis=2)
    width, column = ops.cast(valid[:, 1:], "int32"), ops.arange(images.shape[2], dtype="int32")
    index = ops.where(column < width, width - 1 - column, column)
    return ops.take_along_axis(images, index[:, None, :, None], axis=2)


def _suppressed(rows, iou_threshold, num_views, max_outputs):
    """Of overlapping boxes of a label that with the highest score."""
    scores = ops.where(rows["labels"] >= 0, rows["scores"], -float("inf"))
    indices, _ = batched_nms(rows["boxes"], scores, rows["labels"], iou_threshold, max_outputs)
    is_there, index = indices >= 0, ops.maximum(indices, 0)
    return {
        "boxes": ops.where(is_there[..., None], ops.take_along_axis(rows["boxes"], index[..., None], axis=1), 0.0),
        "scores": ops.where(is_there, ops.take_along_axis(rows["scores"], index, axis=1), 0.0),
        "labels": ops.where(is_there, ops.take_along_axis(rows["labels"], index, axis=1), -1),
        "indices": indices,
    }


def _fused(rows, iou_threshold, num_views, max_outputs):
    """Of overlapping boxes of a label their mean."""
    scores = ops.where(rows["labels"] >= 0, rows["scores"], 0.0)
    return fuse_boxes(rows["boxes"], scores, rows["labels"], iou_threshold, num_views, max_outputs)


MERGES = {"fusion": _fused, "nms": _suppressed}
