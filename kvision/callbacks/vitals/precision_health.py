"""What 16 bits cost a training: the loss scale, skipped steps, and gradients too small for float16."""

from kvision.callbacks.vitals.vital import Vital
from kvision.trackers.clock import optimizer_steps, unwrapped_optimizer

HEALTHY_SKIPPED = (0.0, 0.02)  # once the loss scale has settled: Keras tries a larger one every 2,000 steps
HEALTHY_LOST = (0.0, 0.05)


class PrecisionHealth(Vital):
    """Measures how well a training fits into float16.

    After Micikevicius et al., *Mixed Precision Training*, arXiv 1710.03740, sections 3.2 and 4.

    At the end of each epoch the logs hold

    - `loss_scale`: what the loss was multiplied by when it was last measured (1 without loss scaling);
    - `skipped_steps`: the fraction of the epoch's steps that loss scaling skipped, as a gradient overflowed; healthy is
      under 2 % after the first epoch;
    - `float16_subnormal`: the fraction of the gradient's numbers, times the loss scale, below 6.1e-5, the smallest
      normal float16, where it loses digits;
    - `float16_lost`: the fraction below 6e-8, which float16 rounds to 0; healthy is under 5 %.

    Numbers that are exactly 0 do not count. In float32 the last two say what float16 would do to this training; under
    `mixed_float16` gradients that were rounded to 0 already cannot be seen, and a loss scale that keeps
    `float16_subnormal` small is the sign of health.

    Args:
        every: Optimizer steps from one measurement to the next; the first step is measured as well.

    Attributes:
        loss_scale, subnormal, lost: As last measured; None before.
        skipped: Fraction of the steps of the latest epoch that were skipped; None before its end.

    Example:

    ```python
    precision = kvision.callbacks.PrecisionHealth(every=50)
    model.fit(images, labels, callbacks=[precision])
    precision.loss_scale, precision.skipped, precision.lost
    ```
    """

    remembers = ("loss_scale", "subnormal", "lost", "skipped", "_begin")

    def __init__(self, every=100):
        super().__init__(every)
        self.loss_scale = self.subnormal = self.lost = self.skipped = None
        self._begin = None  # batches and steps when the epoch began

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._begin = None

    def on_norms(self, norms):
        self.loss_scale, self.subnormal, self.lost = norms.loss_scale, norms.subnormal, norms.lost
        self.emit("float16_lost", norms.step, {"all gradients": norms.lost}, HEALTHY_LOST)
        self.emit("float16_subnormal", norms.step, {"all gradients": norms.subnormal})
        self.emit("loss_scale", norms.step, {"loss": norms.loss_scale})

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if self._begin is None:  # else the epoch was begun in an earlier process
            self._begin = self._tap.batches, optimizer_steps(self.model)

    def on_epoch_end(self, epoch, logs=None):
        batches, steps = self._tap.batches - self._begin[0], optimizer_steps(self.model) - self._begin[1]
        self._begin = None
        optimizer = unwrapped_optimizer(self.model)
        if batches and optimizer is not None and self._tap.measures_norms():
            wanted = batches // (getattr(optimizer, "gradient_accumulation_steps", None) or 1)
            self.skipped = max(0.0, 1 - steps / wanted) if wanted and optimizer is not self.model.optimizer else 0.0
            self.emit("skipped_steps", self._tap.step, {"steps": self.skipped}, HEALTHY_SKIPPED)
        super().on_epoch_end(epoch, logs)

    def summary(self):
        return {
            "loss_scale": self.loss_scale,
            "skipped_steps": self.skipped,
            "float16_subnormal": self.subnormal,
            "float16_lost": self.lost,
        }
