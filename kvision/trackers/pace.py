"""How a run goes within an epoch: the loss of the steps so far, thinned, and images a second."""

import math
import time

import keras

POINTS = 100  # of the loss, before the steps from one to the next double


class Pace:
    """Reads the loss within the epochs of one fit: step by step at first, then at steps ever farther apart.

    A run of n steps has at most `POINTS * (1 + log2(n / POINTS))` points. They are read between two steps from the mean
    that Keras keeps of the loss in an epoch, so that they are exact and cost nothing at the other steps.
    """

    def __init__(self):
        self._batches = self._points = self._begun = 0
        self._stride = self._next = 1
        self._read = 0.0, 0.0  # sum and count of Keras's mean at the latest point of the epoch
        self._resumed = False  # whether the present epoch goes on with what another process had read of it
        self._images_before = 0  # of the present epoch, seen by that process
        self._start = None
        self.images_per_second = None  # of the training of the latest epoch; None where it cannot be counted

    def begin_epoch(self):
        """An epoch begins now."""
        self._batches, self._begun = self._batches + self._begun, 0
        if not self._resumed:
            self._read = 0.0, 0.0
        self._images_before = 0
        self._start = time.perf_counter()
        self.images_per_second = None

    def get_state(self):
        """Where the points stand, to go on from in another process."""
        return {
            "batches": self._batches + self._begun,
            "points": (self._points, self._stride, self._next),
            "read": (0.0, 0.0) if self._start is None else self._read,
        }

    def set_state(self, state):
        """Take over what `get_state` gave, before an epoch begins."""
        self._batches, self._begun = state["batches"], 0
        self._points, self._stride, self._next = state["points"]
        self._read = state["read"]
        self._resumed = self._read[1] > 0

    def loss(self, callback, batch):
        """The mean loss since the last point, where one is due before the batch of that number; else None."""
        self._begun = batch + 1
        done = self._batches + batch
        resumed, self._resumed = self._resumed, False
        if resumed:
            self._go_on(_mean_of(callback.model))
        if (batch == 0 and not resumed) or done < self._next:
            return None
        self._points += 1
        if self._points % POINTS == 0:
            self._stride *= 2
        self._next = done + self._stride
        mean = _mean_of(callback.model)  # on JAX, asking for the model brings its variables up to date
        if mean is None:
            self._next = math.inf
            return None
        total, count = (float(keras.ops.convert_to_numpy(sums)) for sums in (mean.total, mean.count))
        if count <= self._read[1]:  # reset in the middle of an epoch, by an evaluation
            self._read = 0.0, 0.0
        (total_before, count_before), self._read = self._read, (total, count)
        return (total - total_before) / (count - count_before) if count > count_before else None

    def _go_on(self, mean):
        """Take note of what of the present epoch was done before; its metrics may have been restored, or not."""
        self._images_before = 0.0 if mean is None else float(keras.ops.convert_to_numpy(mean.count))
        if self._images_before < self._read[1]:
            self._read = 0.0, 0.0

    def end_training(self, callback):
        """The training part of an epoch has ended: a validation may follow."""
        if self._start is None:
            return
        seconds, self._start = time.perf_counter() - self._start, None
        model = callback.model
        mean = _mean_of(model)
        if mean is not None and type(model).train_step is keras.Model.train_step:  # which weighs by the images
            images = float(keras.ops.convert_to_numpy(mean.count)) - self._images_before
            self.images_per_second = images / seconds if images and seconds else None


def _mean_of(model):
    """The metric that holds the mean loss of the epoch so far; None where a model keeps none."""
    metrics = [metric for metric in model.metrics if metric.name == "loss"]
    return next((metric for metric in metrics if hasattr(metric, "total") and hasattr(metric, "count")), None)
