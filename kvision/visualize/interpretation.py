"""What a trained classifier or detector gets wrong on a data set."""

import heapq

import keras
import numpy as np

from kvision.contract import images_of
from kvision.detection.batches import detection_batches
from kvision.detection.detector import Detector
from kvision.drawing.canvas import scaled
from kvision.errors import checked_names
from kvision.visualize.places import check_built
from kvision.visualize.progress import progress

DARK = 100  # a highest value below which images are not of 0…255


class Interpretation:
    """What a model gets wrong on a data set, in one pass: the way into a trained classifier or detector.

    `Interpretation(model, data)` gives a `ClassifierInterpretation` (`top_losses`, `confusion`, `most_confused`,
    `calibration`), or a `DetectorInterpretation` (errors by kind and what each costs, `worst`) if the model is a
    `kvision.detection.Detector` or the targets are boxes. `print` tells what stands out; `draw_…` draws.

    The model stays as it is. Of the images only those of the highest losses are kept, as many as `keep`, however many
    the data have; of the others a few numbers.

    Args:
        model: A built `keras.Model`.
        data: A `tf.data.Dataset`, a list or a `keras.utils.PyDataset` of batches `(images, targets)`, or one tuple
            `(images, targets)` of arrays. Targets are labels, integers [b] or [b, 1] or one-hot [b, classes], or the
            dict of the data contract of detection (`kvision.contract`). Not shuffled, so that an index is that of an
            image.
        class_names: Names of the classes, in the order of the labels; None takes those of the model or of the data.
        preprocess: A function from the images of `data` to what a classifier takes, such as `model.preprocessing`;
            None: they are what it takes. Detectors prepare images themselves.
        keep: Images that are kept, at least 1.
        batch_size: Images at once where `data` is a tuple of arrays.
        verbose: 1 shows progress. Ctrl-C ends the pass after the present batch, and what there is counts.
        measure: False only checks; `update` measures.

    Raises:
        ValueError: before work begins, on data that cannot be read twice (a generator), never end, are empty or have
            no labels, on what does not fit the model (labels beyond its classes, boxes for a classifier, label maps for
            a detector), and on other arguments that cannot be.

    Example:

    >>> model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(2)])
    >>> found = Interpretation(model, (np.ones((6, 4, 4, 1)), np.array([0, 1, 1, 0, 1, 1])), class_names=["a", "b"])
    >>> found.num_images, int(found.confusion.sum()), len(found.top_losses(3))
    (6, 6, 3)

    ```python
    found = kvision.visualize.Interpretation(model, validation, preprocess=model.preprocessing)
    print(found)
    found.draw_confusion().savefig("confusion.png")
    ```
    """

    def __new__(cls, model, data, *arguments, **options):
        if cls is Interpretation:
            cls = _kind_of(model, data)
        return super().__new__(cls)

    def __init__(
        self, model, data, *, class_names=None, preprocess=None, keep=36, batch_size=32, verbose=0, measure=True
    ):
        if keep < 1 or batch_size < 1:
            raise ValueError(
                f"Interpretation: keep and batch_size must be at least 1, got keep={keep!r} and "
                f"batch_size={batch_size!r}."
            )
        check_built(model)
        self.model = model
        self.preprocess = preprocess
        self.keep = int(keep)
        self._data, self._batch_size = data, batch_size
        named = class_names if class_names is not None else getattr(model, "class_names", None)
        named = named if named is not None else getattr(data, "class_names", None)
        self.class_names = checked_names("Interpretation", named)
        self._begin(*_first_batch(data, batch_size))
        self._reset()
        if measure:
            self.update(verbose)

    def update(self, verbose=0):
        """Measure the model anew, as it is now.

        Args:
            verbose: 1 shows progress; Ctrl-C ends the pass after the present batch, and what there is counts.
        """
        self.read(progress(self.batches(), _num_batches(self._data, self._batch_size), verbose))

    def batches(self):
        """The batches `(images, targets)` of the data, read as they are asked for."""
        return detection_batches(_as_arrays(self._data), self._batch_size, kind="data")

    def read(self, batches):
        """Forget what was measured, and measure these batches."""
        self._reset()
        for inputs, targets in batches:
            self._take(*keras.tree.map_structure(np.asarray, (inputs, targets)))
        if not self.num_images:
            raise ValueError("Interpretation: the data are empty. Give at least one batch (images, targets).")

    def _reset(self):
        self.num_images = 0
        self._kept = []  # a heap of (weight, minus the index, what is kept)

    def _keep(self, weight, index, make):
        """Keep what `make()` gives if its image has one of the highest weights so far, of equal ones the first."""
        entry = (float(weight), -int(index))
        if len(self._kept) < self.keep:
            heapq.heappush(self._kept, (*entry, make()))
        elif entry > self._kept[0][:2]:
            heapq.heapreplace(self._kept, (*entry, make()))

    def _check_count(self, k):
        if not 1 <= k <= self.keep:
            raise ValueError(
                f"Interpretation: expected k from 1 to keep={self.keep}, the images that are kept: got {k!r}."
            )

    def name_of(self, label):
        """The name of a class, or its label where it has none."""
        label = int(label)
        named = self.class_names is not None and 0 <= label < len(self.class_names)
        return str(self.class_names[label]) if named else str(label)


def _kind_of(model, data):
    """Of a detector or of a classifier, by the model and the first batch."""
    from kvision.visualize.classifier_interpretation import ClassifierInterpretation
    from kvision.visualize.detector_interpretation import DetectorInterpretation

    if isinstance(model, Detector):
        return DetectorInterpretation
    _, targets = _first_batch(data, 1)
    has_boxes = hasattr(targets, "keys") and "boxes" in targets
    outputs = getattr(model, "outputs", None) or ()
    is_plain = len(outputs) == 1 and len(outputs[0].shape) == 2
    return DetectorInterpretation if has_boxes and not is_plain else ClassifierInterpretation


def _first_batch(data, batch_size):
    """The first batch as arrays; raises on data that have none, or cannot be read again."""
    if data is None or hasattr(data, "shape"):
        got = "None" if data is None else f"images {tuple(data.shape)} without labels"
        raise ValueError(
            f"Interpretation needs data with labels: got {got}. Give (images, labels), or batches of them."
        )
    if isinstance(data, tuple) and len(data) == 3 and all(hasattr(each, "shape") for each in data):
        raise ValueError(
            "Interpretation counts every image alike: got (images, labels, sample weights). Give (images, labels)."
        )
    if not isinstance(data, keras.utils.PyDataset) and (not hasattr(data, "__iter__") or isinstance(data, str | dict)):
        got = f"the function {data.__name__}" if hasattr(data, "__name__") else type(data).__name__
        raise ValueError(
            f"Interpretation needs batches (images, targets) or a tuple of arrays: got {got}. Of a generator function "
            "give list(function()), or tf.data.Dataset.from_generator(function, …)."
        )
    if hasattr(data, "__next__"):
        raise ValueError(
            f"Interpretation reads the data once to look at them and again to measure: got a {type(data).__name__}, "
            "which can be read only once. Give a tf.data.Dataset, a list, a keras.utils.PyDataset or a tuple of arrays."
        )
    endless = hasattr(data, "cardinality") and int(data.cardinality()) == -1
    if endless or (isinstance(data, keras.utils.PyDataset) and data.num_batches is None):
        raise ValueError(f"Interpretation: the data never end: got an infinite {type(data).__name__}.")
    if isinstance(data, tuple) and len(data) == 2 and data[1] is None:
        raise ValueError("Interpretation needs labels: got (images, None).")
    data = _as_arrays(data)
    sizes = {len(each) for each in keras.tree.flatten(data)} if _are_arrays(data) else {0}
    if len(sizes) > 1:
        raise ValueError(f"Interpretation: expected as many targets as images, got {sorted(sizes)} rows.")
    first = next(iter(detection_batches(data, batch_size, kind="data")), None)
    if first is None or not len(np.atleast_1d(keras.tree.flatten(first[0])[0])):
        raise ValueError("Interpretation: the data are empty. Give at least one batch (images, targets).")
    is_dict = hasattr(first[0], "keys") and "images" in first[0]
    images = () if isinstance(first[0], list | tuple) else np.shape(images_of(first[0]) if is_dict else first[0])
    if len(images) != 4:
        raise ValueError(
            f"Interpretation: expected batches of images [b, h, w, c], got {images}. Of a data set of single images "
            "take .batch(32)."
        )
    return keras.tree.map_structure(np.asarray, first)


def _as_arrays(data):
    """`(images, labels)` with labels as an array where they are a list of numbers."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], list) and np.ndim(data[1]) in (1, 2):
        return np.asarray(data[0]), np.asarray(data[1])
    return data


def _are_arrays(data):
    return isinstance(data, tuple) and len(data) == 2 and (hasattr(data[1], "keys") or hasattr(data[1], "shape"))


def _num_batches(data, batch_size):
    """How many there are, or None where that is unknown."""
    data = _as_arrays(data)
    if _are_arrays(data):
        return -(-len(keras.tree.flatten(data[0])[0]) // batch_size)
    if hasattr(data, "cardinality"):
        number = int(data.cardinality())
        return number if number >= 0 else None
    return len(data) if hasattr(data, "__len__") else None


def visible(images):
    """Images as bytes, [h, w, 3]; those of another range than 0…255 are stretched to it, all alike."""
    if not images:
        return []
    low, high = min(float(image.min()) for image in images), max(float(image.max()) for image in images)
    low, scale = (low, 255 / max(high - low, 1e-6)) if low < 0 or high < DARK else (0.0, 1.0)
    return [as_bytes((image.astype("float32") - low) * scale) for image in images]


def as_bytes(image):
    """An image [h, w, 1 or 3] of 0…255 as bytes, [h, w, 3]; of more channels the first three."""
    image = np.clip(np.round(image), 0, 255).astype("uint8")
    return np.repeat(image[..., :1], 3, axis=-1) if image.shape[-1] < 3 else image[..., :3]


def enlarged(image, side):
    """An image [h, w, 3] of bytes whose longer side has `side` pixels."""
    from PIL import Image

    return np.array(scaled(Image.fromarray(np.ascontiguousarray(image)), side))
