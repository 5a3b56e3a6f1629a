"""How fast a training runs beside what the machine can do: images, waiting for input, multiply-adds, memory."""

import math
import time

import keras
from keras import ops

from kvision._keras import graph_of
from kvision.callbacks.vitals.step_tap import tap_of
from kvision.multiply_adds import multiply_adds
from kvision.trackers.backend import device_memory, process_memory
from kvision.trackers.clock import clock_of, optimizer_steps
from kvision.trackers.events import Measurement
from kvision.trackers.tracker import emit

HEALTHY_WAITING = (0.0, 0.1)
PASSES = 3  # the backward pass takes two products for each of the forward pass
_peaks = {}


class Throughput(keras.callbacks.Callback):
    """Measures images a second, the time the step waits for its input, the use of the machine's peak, and memory.

    At the end of each epoch the logs hold, of its training without the first batch of a `fit`, which compiles,

    - `images_per_second`;
    - `input_wait`: the fraction of the time in which the step waited for the next batch; healthy is under 0.1, above it
      more readers, a cache or `prefetch` help and a faster model does not;
    - `peak_fraction`: FLOP/s over those of the fastest product of two square matrices on this device, measured once,
      in the model's compute dtype; a training step counts 6 FLOPs a multiply-add of the forward pass. NaN for a model
      whose multiply-adds cannot be counted (no functional graph, several inputs);
    - `memory_gib`: the most that the process has held, on an accelerator the most on one device.

    The batches are handed to the compiled step one by one, also with `steps_per_execution`. Steps are those of the
    first device; with several replicas images are those of all, and the peak is that of one.

    Attributes:
        images_per_second, input_wait, peak_fraction, memory: Of the latest epoch, memory in bytes; None before.
        flops: FLOP/s achieved, or None.

    Example:

    ```python
    throughput = kvision.callbacks.Throughput()
    model.fit(images, labels, epochs=2, callbacks=[throughput])
    throughput.images_per_second, throughput.input_wait
    ```
    """

    def __init__(self):
        super().__init__()
        self.images_per_second = self.input_wait = self.peak_fraction = self.memory = self.flops = None
        self._tap = None
        self._start = None

    def on_train_begin(self, logs=None):
        self._tap = tap_of(self)
        self._tap.join_reader(self)
        self._per_image = _flops_per_image(self.model)
        self._compiled = False
        self._start = None

    def on_epoch_begin(self, epoch, logs=None):
        clock_of(self.model).begin(self, epoch)
        if self._compiled:
            self._begin()

    def on_train_batch_begin(self, batch, logs=None):
        self._tap.before_batch(self, batch)

    def on_train_batch_end(self, batch, logs=None):
        self._tap.after_batch(self, batch)
        if not self._compiled:
            self._compiled = True
            self._begin()

    def on_test_begin(self, logs=None):
        self._end()

    def on_epoch_end(self, epoch, logs=None):
        self._end()
        clock_of(self.model).end_epoch(self, epoch)
        memory = device_memory() or process_memory()
        self.memory = memory
        summary = {
            "images_per_second": self.images_per_second,
            "input_wait": self.input_wait,
            "peak_fraction": self.peak_fraction,
            "memory_gib": None if memory is None else memory / 2**30,
        }
        if self.input_wait is not None:
            step = optimizer_steps(self.model)
            emit(self, Measurement("input_wait", step, {"input": self.input_wait}, HEALTHY_WAITING))
        if logs is not None:
            logs.update({name: math.nan if value is None else value for name, value in summary.items()})

    def on_train_end(self, logs=None):
        self._tap.close()

    def _begin(self):
        read = self._tap.read
        self._start = None if read is None else (time.perf_counter(), *read)

    def _end(self):
        """The training part of an epoch has ended: a validation may follow."""
        if self._start is None:
            return
        (begin, images, waited), self._start = self._start, None
        seconds, now = time.perf_counter() - begin, self._tap.read
        if now is None or now[0] == images:
            return
        self.images_per_second = (now[0] - images) / seconds
        self.input_wait = (now[1] - waited) / seconds
        if self._per_image:
            self.flops = self.images_per_second * self._per_image
            self.peak_fraction = self.flops / peak_flops(self.model.compute_dtype)

    def __getstate__(self):
        """A copy belongs to no fit."""
        return vars(self) | {"_tap": None}


def peak_flops(dtype="float32"):
    """FLOP/s of the fastest product of two square matrices on this device, by trying sizes; measured once a process.

    Args:
        dtype: Of the matrices.

    >>> peak_flops("float32") > 1e6
    True
    """
    if dtype in _peaks:
        return _peaks[dtype]
    fastest, size = 0.0, 256
    while size <= 16384:
        matrix = ops.ones((size, size), dtype)
        _wait(ops.matmul(matrix, matrix))
        seconds = math.inf
        for _ in range(3):
            begin = time.perf_counter()
            _wait(ops.matmul(matrix, matrix))
            seconds = min(seconds, time.perf_counter() - begin)
        fastest = max(fastest, 2 * size**3 / seconds)
        if seconds > 0.02:
            break
        size *= 2
    _peaks[dtype] = fastest
    return fastest


def _wait(tensor):
    """Until the device has made it."""
    ops.convert_to_numpy(tensor[0, 0])


def _flops_per_image(model):
    """FLOPs of a training step for one image; None where they cannot be counted."""
    graph = graph_of(model)
    if len(getattr(graph, "inputs", None) or ()) != 1:
        return None
    try:
        return 2 * PASSES * sum(multiply_adds(graph).values())
    except Exception:  # a graph that does not run on shapes of its own, such as of images of any size
        return None
