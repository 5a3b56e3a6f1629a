"""How much a run has been shown: images, object instances and pixels."""

import math
import numbers
import weakref

import keras

from kvision._keras import print_message
from kvision.metrics.exposure_count import ExposureCount
from kvision.task_model import TaskModel

UNITS = ("images", "instances", "pixels")

# One count a model, for all its fits and callbacks: the step that it observes is compiled once.
_counts = weakref.WeakKeyDictionary()


class Exposure(keras.callbacks.Callback):
    """Counts the images, instances and pixels seen in training, and ends it when a budget is spent.

    The accounting of He, Girshick, Dollár, *Rethinking ImageNet Pre-training* (arXiv 1811.08883), Figure 2: runs of
    different length, resolution and data become comparable. `images_seen`, `instances_seen` and `pixels_seen` enter
    `logs` at the end of each epoch, as integers, summed over all `fit`s this callback took part in: given to the
    pre-training and to the fine-tuning, it holds what the paper compares with training from scratch. What validation
    sees does not count; a batch counts even if loss scaling skips its update.

    - A `TaskModel`, such as a detector, is observed inside its training step: labelled rows that are no crowd, and
      pixels of the valid part of each image (`"image_size"`). What counts is no part of the model and of its files.
      Any model that holds a `kvision.metrics.ExposureCount` is followed likewise.
    - Any other model counts one instance an image, as the paper does for ImageNet, and the pixels of its input's fixed
      size; `pixels_seen` is left out where its inputs have none. Its images are read from Keras's own mean of the loss,
      smaller last batches included, exactly for epochs of up to 2²⁴ images. A callback that evaluates in the middle of
      an epoch resets that mean, as it resets the loss in the logs; one that does so at an epoch's end does no harm if
      the number of steps is known, otherwise list it after this one.
    - A model with a `train_step` or `metrics` of its own keeps no such count: it needs `batch_size`, and each batch
      counts as a full one.

    Args:
        batch_size: Images in one batch, all replicas together, for models that cannot be counted otherwise.
        stop_at_images: Ends training at the end of the batch that reaches so many images. With
            `steps_per_execution=k`, of the execution.
        stop_at_instances: The same for object instances.
        stop_at_pixels: The same for pixels. On JAX a budget brings the state of the model back from the compiled step
            at every batch: a few milliseconds for a large network.

    Attributes:
        images_seen, instances_seen, pixels_seen: The numbers of the epoch's end, or of the last batch under a budget.

    Raises:
        ValueError: For a budget or batch size that is not a positive number; before the first batch, for a model that
            cannot be counted without `batch_size`, and for a budget of pixels without a fixed input size.

    Example:

    ```python
    exposure = kvision.callbacks.Exposure(stop_at_pixels=1e9)
    detector.fit(train, epochs=1000, callbacks=[exposure])
    exposure.images_seen, exposure.instances_seen
    ```
    """

    def __init__(self, batch_size=None, stop_at_images=None, stop_at_instances=None, stop_at_pixels=None):
        super().__init__()
        if batch_size is not None and not (isinstance(batch_size, numbers.Integral) and batch_size > 0):
            raise ValueError(f"`batch_size` counts the images in a batch: got {batch_size!r}, expected an integer > 0.")
        budgets = dict(zip(UNITS, (stop_at_images, stop_at_instances, stop_at_pixels), strict=True))
        for unit, budget in budgets.items():
            if budget is not None and not (isinstance(budget, numbers.Real) and 0 < budget < math.inf):
                raise ValueError(
                    f"`stop_at_{unit}` is the number of {unit} after which training ends: got {budget!r}, expected a "
                    "finite number > 0, or None for no end."
                )
        self.batch_size = batch_size
        self.images_seen = self.instances_seen = self.pixels_seen = 0
        self._budgets = {unit: math.ceil(budget) for unit, budget in budgets.items() if budget is not None}
        self._seen_before = None  # what the model had counted when last read; None while it does not count for training

    def get_state(self):
        """The three numbers, those of the present epoch included, to go on from in another process."""
        self._read()
        return {f"{unit}_seen": getattr(self, f"{unit}_seen") for unit in UNITS}

    def set_state(self, state):
        """Take over what `get_state` gave."""
        for unit in UNITS:
            setattr(self, f"{unit}_seen", state[f"{unit}_seen"])

    def on_train_begin(self, logs=None):
        model = self.model
        self._batches = 0
        self._seen_before = None
        self._spent = None
        if isinstance(model, TaskModel):
            self._counter = _observing(model)
        else:
            self._counter = next((metric for metric in model.metrics if isinstance(metric, ExposureCount)), None)
        self._area = _input_area(model)
        self._units = UNITS[:2] if self._counter is None and self._area is None else UNITS
        self._keras_counts = (
            type(model).train_step is keras.Model.train_step and type(model).metrics is keras.Model.metrics
        )
        if self._counter is None and not self._keras_counts and self.batch_size is None:
            raise ValueError(
                f"{model.name} has a train_step or metrics of its own, by which images cannot be counted: give "
                "Exposure(batch_size=...), or let the model update a `kvision.metrics.ExposureCount`."
            )
        if not self._budgets.keys() <= set(self._units):
            raise ValueError(
                f"stop_at_pixels needs the size of the images: {model.name} has no input [h, w, c] of a fixed size. "
                "Build it with a fixed input_shape, or give stop_at_images."
            )

    def on_train_batch_begin(self, batch, logs=None):
        self._begin = batch
        if self._seen_before is None:
            self._seen_before = self._counted()

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params.get("steps") or math.inf
        last = min(batch + 1, steps)  # the last execution of an epoch may hold fewer steps than the others
        self._batches += last - self._begin
        if self._budgets or last == steps:
            self._read()
        for unit, budget in self._budgets.items():
            if getattr(self, f"{unit}_seen") >= budget:
                self._spent = unit
                self.model.stop_training = True
        if last == steps:
            self._seen_before = None

    def on_test_begin(self, logs=None):
        self._read()  # Keras's mean of the loss is about to be reset
        self._seen_before = None

    def on_epoch_end(self, epoch, logs=None):
        self._read()
        self._seen_before = None
        if logs is not None:
            logs.update({f"{unit}_seen": getattr(self, f"{unit}_seen") for unit in self._units})

    def on_train_end(self, logs=None):
        if isinstance(self.model, TaskModel):
            self.model.remove_observer(self._counter)
        if self._spent is not None:
            seen, budget = getattr(self, f"{self._spent}_seen"), self._budgets[self._spent]
            print_message(f"Training ended by its budget: {seen:,} {self._spent} seen of {budget:,}.")

    def _read(self):
        """Add what was counted since the last reading."""
        if self._seen_before is None:
            return
        seen = self._counted()
        for unit, now, before in zip(UNITS, seen, self._seen_before, strict=True):
            setattr(self, f"{unit}_seen", getattr(self, f"{unit}_seen") + now - before)
        self._seen_before = seen

    def _counted(self):
        """Images, instances and pixels, from any zero on."""
        model = self.model  # on JAX, asking for it brings its variables up to date
        if self._counter is not None:
            return self._counter.totals()
        if self._keras_counts:
            images = round(float(keras.ops.convert_to_numpy(model.metrics[0].count)))  # of the mean loss
        else:
            images = self._batches * self.batch_size
        return images, images, images * (self._area or 0)


def _observing(model):
    """The count of a `TaskModel`, put into its training step."""
    if model not in _counts:
        with model.scope():
            _counts[model] = ExposureCount()
    model.add_observer(_counts[model])
    return _counts[model]


def _input_area(model):
    """Pixels of all images among the inputs of one example; None if there is none of a fixed size."""
    shapes = [value.shape for value in getattr(model, "inputs", None) or ()]
    areas = [shape[1:3] for shape in shapes if len(shape) == 4]
    if not areas or any(side is None for area in areas for side in area):
        return None
    return sum(math.prod(area) for area in areas)
