"""The training vitals at once, with advice."""

import keras

from kvision._keras import print_message
from kvision.callbacks.vitals.advice import Adviser
from kvision.callbacks.vitals.dead_relu import DeadReLU
from kvision.callbacks.vitals.gradient_norm import GradientNorm
from kvision.callbacks.vitals.precision_health import PrecisionHealth
from kvision.callbacks.vitals.saturation import Saturation
from kvision.callbacks.vitals.setup import setup_of
from kvision.callbacks.vitals.update_ratio import UpdateRatio
from kvision.callbacks.vitals.vital import Vital
from kvision.trackers.clock import clock_of
from kvision.trackers.events import Advice
from kvision.trackers.tracker import emit


class Vitals(Vital):
    """Measures update ratios, dead and saturated units and gradient norms, and says what to change if they are ill.

    All share one measurement inside the training step. Their summaries go into `logs` as `update_ratio`, `dead_relu`
    and `gradient_norm`, so Keras shows them in the line of each epoch and records them in its history; `saturation`
    comes where the model has hidden sigmoids or tanhs, those of `PrecisionHealth` under dynamic loss scaling. When
    two measurements in a row are unhealthy, one sentence a vital is printed at the end of the epoch and handed to the
    trackers; it comes again only after the vital has been healthy in between. A healthy run prints nothing. Images of
    0...255 that reach a network which expects prepared ones are told as well.

    Args:
        every: Optimizer steps from one measurement to the next; the first step is measured as well.
        data: Inputs of the model, one batch, to watch ReLUs that no layer holds (see `DeadReLU`); or None.

    Attributes:
        update_ratio: The `UpdateRatio`, with `ratios`.
        dead_relu: The `DeadReLU`, with `dead` and `fractions`.
        gradient_norm: The `GradientNorm`, with `norms` and `global_norm`.
        saturation: The `Saturation`, with `saturated`, `means` and `deviations`.
        precision: The `PrecisionHealth`, which measures where the optimizer scales the loss.
        curve: What the curve of the loss looks like so far: `"too early"`, `"good"`, `"high"` (the rate is), `"low"`,
            `"plateau"` (it never moved) or `"overfitting"`.
        advice: The sentences of the latest fit, as `kvision.trackers.Advice`.

    Example:

    ```python
    model.fit(images, labels, epochs=10, callbacks=[kvision.callbacks.Vitals()])
    ```
    """

    def __init__(self, every=100, data=None):
        super().__init__(every)
        self.update_ratio = UpdateRatio(every)
        self.dead_relu = DeadReLU(every, data)
        self.gradient_norm = GradientNorm(every)
        self.saturation = Saturation(every)
        self.precision = PrecisionHealth(every)
        self.advice = []
        self._parts = (self.update_ratio, self.dead_relu, self.gradient_norm, self.saturation)  # those of this fit
        self._all_parts = (*self._parts, self.precision)
        self._adviser = None
        self._unprinted = []

    @property
    def curve(self):
        return "too early" if self._adviser is None else self._adviser.curve

    def get_state(self):
        return super().get_state() | {"parts": [part.get_state() for part in self._all_parts]}

    def set_state(self, state):
        super().set_state({name: value for name, value in state.items() if name != "parts"})
        for part, memory in zip(self._all_parts, state.get("parts", ()), strict=False):
            part.set_state(memory)

    def set_params(self, params):
        super().set_params(params)
        for part in self._all_parts:
            part.set_params(params)

    def set_model(self, model):
        super().set_model(model)
        for part in self._all_parts:
            part.set_model(model)

    def on_train_begin(self, logs=None):
        scales = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)
        self._parts = tuple(part for part in self._parts if part is not self.precision)
        self._parts += (self.precision,) if scales else ()
        for part in self._parts:
            part.on_train_begin(logs)
        super().on_train_begin(logs)
        self._adviser = Adviser(setup_of(self.model))
        self._fractions = self.dead_relu.fractions
        self._step = 0
        self.advice, self._unprinted = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.update_ratio.on_train_batch_begin(batch, logs)  # one of them is enough: they share a tap

    def on_train_batch_end(self, batch, logs=None):
        self.update_ratio.on_train_batch_end(batch, logs)

    def on_norms(self, norms):
        self._step = norms.step
        self._adviser.see_norms(norms)

    def on_activations(self, step, activations):
        self._step = step
        self._see_dead()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if self.precision in self._parts:
            self.precision.on_epoch_begin(epoch, logs)
        self._print()

    def on_epoch_end(self, epoch, logs=None):
        for part in self._parts:
            part.on_epoch_end(epoch, logs)
        super().on_epoch_end(epoch)
        if self._tap.unmeasured is not None and self._tap.unmeasured not in self.advice:
            self.advice.append(self._tap.unmeasured)
        if "loss" in (logs or {}):
            self._adviser.see_epoch(logs)
        for vital, text in self._adviser.sentences().items():
            advice = Advice(vital, self._step, clock_of(self.model).epoch(epoch), text)
            self.advice.append(advice)
            if self._tap.first(Vitals) is self:
                self._unprinted.append(text)
                emit(self, advice)

    def on_train_end(self, logs=None):
        for part in self._parts:
            part.on_train_end(logs)
        self._print()

    def _see_dead(self):
        if self.dead_relu.fractions is not self._fractions:
            self._fractions = self.dead_relu.fractions
            self._adviser.see_dead(self._fractions, self.dead_relu.units)

    def _print(self):
        """On a line of its own: at the end of an epoch Keras's progress bar still stands in the line."""
        for text in self._unprinted:
            print_message(text)
        self._unprinted = []
