"""What the vitals of a run mean, in sentences: which layer, which number, what is healthy, what to change.

Rules for the update ratio after CS231n, "Babysitting the learning process", and for dead units after its "Commonly
used activation functions". A rule speaks only about kernels (weights of rank 2 or more with a root mean square above
1e-6), not in the first steps of a fit nor while the learning rate rises, and only where two measurements in a row say
the same: fresh biases, zero-initialized layers, Adam's first steps, warm-up and a rate that decays to zero are healthy.
So are branches that have nothing to learn for a while, such as a level of a pyramid on which no object lies, and layers
with many dead units in a run whose loss falls. What the run does already (a `Setup`) is not advised.
"""

import dataclasses
import math
import re
import statistics

from kvision.callbacks.vitals import dead_relu, update_ratio
from kvision.callbacks.vitals.loss_curve import LossCurve
from kvision.callbacks.vitals.setup import Setup

WARM_UP = 50  # optimizer steps at the start of a fit about which nothing is said
GROWN = 5.0  # how many times larger the median layer's weights may become
START = (0.1, 3.0)  # the root mean square of healthy initial kernels, relative to He initialization
SPIKE = 20.0  # how far above its largest value so far the gradient norm may lie
SPREAD = 1e5  # how far apart the relative gradients of two layers may lie
EXPLODED = 10.0  # the relative gradient of the median layer from which it has exploded
FEWEST_DEAD = 4  # dead units of a layer below which nothing is said
NEARLY_ALL = 0.9  # fraction of dead units of which is spoken even while the loss falls
SUDDEN = 0.3  # fraction of a layer that dies from one window to the next, likewise
RECENT = 3  # epochs in which a loss that falls reaches a new minimum, by this much:
BETTER = 0.02
SLOWER = "lower the learning rate about ten times"


class Adviser:
    """Judges the measurements of one fit.

    Args:
        setup: What the run does already, a `Setup`.

    Example:

    ```python
    adviser = Adviser()
    adviser.see_norms(norms)  # a `readings.Norms`, as often as there is one
    adviser.sentences()  # {"update_ratio": "layer2.1.conv1: updates are 8e-2 of the weights, ..."}
    ```
    """

    def __init__(self, setup=None):
        self._start = _Start(setup or Setup())
        self._inputs = _InputRule(self._start)
        self._ratio = _RatioRule(self._start)
        self._gradient = _GradientRule(self._start)
        self._dead = _DeadRule(self._start)
        self._curve = LossCurve(lambda: self._start.is_new)
        self._said = {}

    def see_norms(self, norms):
        """Take in the norms of one step."""
        self._start.see(norms)
        self._inputs.see(norms)
        self._ratio.see(norms)
        self._gradient.see(norms)

    def see_dead(self, fractions, units):
        """Take in `{layer path: fraction of dead units}` and `{layer path: units}` of one window."""
        self._dead.see(fractions, units)

    def see_epoch(self, logs):
        """Take in the logs of one epoch, with `loss` and, where there is one, `val_loss`."""
        self._curve.see(logs)

    @property
    def curve(self):
        """What the curve of the loss looks like: "too early", "good", "high", "low", "plateau" or "overfitting"."""
        kind, _ = self._curve.verdict(self._ratio.largest_median)
        return "overfitting" if kind == "good" and self._curve.overfits() else kind

    def sentences(self):
        """`{vital: sentence}` of what is wrong now and was not said since it was last right."""
        ratio, gradient, dead = self._ratio.verdict(), self._gradient.verdict(), self._dead.verdict()
        inputs = self._inputs.verdict()
        if self._curve.losses and not math.isfinite(self._curve.losses[-1]):
            dead = None  # units are inactive because of that
        if dead and not dead.severe and self._loss_falls():
            dead = None
        if inputs:
            ratio = gradient = None  # both follow from the inputs
        if ratio and ratio.kind in ("low", "start") and (gradient or dead):
            ratio = None  # the weights move little since no gradient reaches them, not since the rate is low
        kind, says = self._curve.verdict(self._ratio.largest_median)
        curve = None if says is None or inputs or ratio or dead or gradient else _Finding(kind, _capital(says))
        sentences = {}
        found_by = {
            "inputs": inputs,
            "update_ratio": ratio,
            "dead_relu": dead,
            "gradient_norm": gradient,
            "loss": curve,
        }
        for vital, found in found_by.items():
            if found is None:
                self._said.pop(vital, None)
            elif found.kind not in self._said.setdefault(vital, set()):
                self._said[vital].add(found.kind)
                sentences[vital] = found.sentence
        if overfits := self._curve.overfits_anew():
            sentences["val_loss"] = _capital(overfits)
        return sentences

    def _loss_falls(self):
        """Whether the loss of the last epochs says that the run goes well; after one epoch nothing says otherwise."""
        losses = self._curve.losses
        if len(losses) <= RECENT:
            return len(losses) == 1 or (len(losses) > 1 and losses[-1] < losses[0])
        before = min(losses[:-RECENT])
        return min(losses[-RECENT:]) < before - BETTER * abs(before)


@dataclasses.dataclass(frozen=True)
class _Finding:
    kind: str
    sentence: str
    certain: bool = False  # told after one measurement
    severe: bool = True  # told even while the loss falls


class _Start:
    """How a fit began: its first step, its kernels before that beside He initialization, its warm-up."""

    def __init__(self, setup):
        self.setup = setup
        self._step = None
        self._rate = 0.0
        self._healthy = True
        self.sizes = {}
        self.settled = False
        self.rising = False

    @property
    def is_new(self):
        """Whether the first step of the fit was that of the run."""
        return self._step == 1

    def see(self, norms):
        if self._step is None:
            self._step = norms.step
            self.sizes = {path: norms.root_mean_square(path) for path in norms.kernels}
            self._he = {path: math.sqrt(2 / _fan_in(norms.shapes[path])) for path in self.sizes}
            self._off = {path: abs(math.log(self.sizes[path] / self._he[path])) for path in self.sizes}
            relative = statistics.median(self.sizes[path] / self._he[path] for path in self.sizes) if self.sizes else 1
            self._healthy = norms.step > 1 or START[0] <= relative <= START[1]
        self.settled = norms.step - self._step >= WARM_UP
        self.rising = norms.learning_rate > self._rate > 0
        self._rate = norms.learning_rate

    def cure(self, *cures):
        """Pairs of what a run may do already, or None, and its words: those that are left, or a lower rate."""
        left = [words for done, words in cures if done is None or not getattr(self.setup, done)]
        *others, last = left or [SLOWER]
        return f"{', '.join(others)}, or {last}" if others else last

    def finding(self, kind, layer, says, cure, certain=False):
        """A finding whose cure is another initializer, if the kernels were far from He initialization."""
        if not self._healthy:
            own = [path for path, off in self._off.items() if _layer(path) == layer and off > math.log(START[1])]
            path = own[0] if own else max(self._off, key=self._off.get)
            kind = "start"
            cure = (
                f"use He initialization, {_short(self._he[path])} root mean square "
                f"(the weights of {_layer(path)} started at {_short(self.sizes[path])})"
            )
        return _Finding(kind, f"{layer}: {says}: {cure}", certain)


class _Rule:
    """Finds something in every measurement; speaks when two in a row are of one kind."""

    def __init__(self, start):
        self._start = start
        self._found = None
        self._streak = 0

    def see(self, *measurement):
        found = self.find(*measurement)
        same = found is not None and self._found is not None and found.kind == self._found.kind
        self._streak = self._streak + 1 if same else 1
        self._found = found

    def verdict(self):
        """The finding, if it is to be spoken of."""
        return self._found if self._found and (self._streak >= 2 or self._found.certain) else None


class _InputRule(_Rule):
    def find(self, norms):
        setup = self._start.setup
        if None in (norms.largest_input, setup.largest_input) or not norms.largest_input >= setup.largest_input:
            return None
        sentence = f"The images reach {_short(norms.largest_input)}, unprepared: prepare them {setup.preparation}"
        return _Finding("unprepared", sentence, certain=True)


class _RatioRule(_Rule):
    _was_healthy = False
    largest_median = None  # after warm-up

    def find(self, norms):
        ratios = {path: norms.updates[path] / norms.weights[path] for path in norms.kernels}
        if not ratios or not all(math.isfinite(ratios[path] * norms.weights[path]) for path in ratios):
            return None
        low, high = update_ratio.HEALTHY
        median = statistics.median(ratios.values())
        self._was_healthy |= median >= low
        if self._start.settled:
            self.largest_median = max(median, self.largest_median or 0.0)
        if not self._start.settled or self._start.rising:
            return None
        if median > high:
            worst = max(ratios, key=ratios.get)
            return self._ratio("high", worst, ratios, f"lower the learning rate {_times(median / 1e-3)}")
        sizes = self._start.sizes
        grown = {path: norms.root_mean_square(path) / sizes[path] for path in ratios if path in sizes}
        if grown and statistics.median(grown.values()) > GROWN:
            worst = max(grown, key=grown.get)
            says = f"its weights are {_short(grown[worst])} times those at the start, healthy is under {GROWN:g}"
            return self._start.finding("high", _layer(worst), says, SLOWER)
        if 0 < median < low and not self._was_healthy:  # else the rate has decayed, or the loss is down
            worst = min((path for path in ratios if ratios[path] > 0), key=ratios.get)
            return self._ratio("low", worst, ratios, f"raise the learning rate {_times(1e-3 / median)}")
        return None

    def _ratio(self, kind, path, ratios, cure):
        says = f"updates are {_short(ratios[path])} of the weights, healthy is near 1e-3"
        return self._start.finding(kind, _layer(path), says, cure)


class _GradientRule(_Rule):
    _largest = 0.0

    def find(self, norms):
        broken = [path for path, gradient in norms.gradients.items() if not math.isfinite(gradient)]
        slower = self._start.cure((None, SLOWER), ("clips", "clip by the global norm"))
        if broken:
            says = f"its gradient is not finite, at step {norms.step}"
            return self._start.finding("not finite", _layer(broken[0]), says, slower, certain=True)
        size = math.hypot(*norms.gradients.values())
        relative = {path: norms.gradients.get(path, 0) / norms.weights[path] for path in norms.kernels}
        relative = {path: gradient for path, gradient in relative.items() if gradient > 0}
        if not self._start.settled or not relative:
            self._largest = max(self._largest, size)
            return None
        largest = max(relative, key=relative.get)
        if size > SPIKE * self._largest:
            says = f"the gradient norm is {_short(size)}, before it was at most {_short(self._largest)}"
            return self._start.finding("spike", _layer(largest), says, slower)
        self._largest = max(self._largest, size)
        if statistics.median(relative.values()) > EXPLODED:
            says = f"its gradient is {_short(relative[largest])} times its weights, healthy is under 1"
            cure = self._start.cure(("normalizes", "normalize the activations"), (None, "scale inputs and loss down"))
            return self._start.finding("exploding", _layer(largest), says, cure)
        return self._spread(relative)

    def _spread(self, relative):
        """From the input to the output, not from one branch to another: near the input the whole end must be off."""
        paths = list(relative)
        end = max(1, len(paths) // 4)
        first, last = paths[:end], paths[-end:]
        least, most = min(first, key=relative.get), max(first, key=relative.get)
        low, high = min(last, key=relative.get), max(paths, key=relative.get)
        middle_of_first, middle_of_last = (statistics.median(map(relative.get, part)) for part in (first, last))
        apart = math.sqrt(SPREAD)  # of the middle of an end
        normalize = ("normalizes", "normalize the activations")
        if relative[high] >= SPREAD * relative[least] and relative[high] >= apart * middle_of_first:
            kind, path, other = "vanishing", least, high
            cure = self._start.cure(normalize, ("rectifies", "use ReLU"), ("skips", "add skip connections"))
        elif relative[most] >= SPREAD * relative[low] and relative[most] >= apart * middle_of_last:
            kind, path, other = "exploding", most, low
            cure = self._start.cure(normalize, ("clips", "clip by the global norm"))
        else:
            return None
        says = (
            f"its gradient is {_short(relative[path])} times its weights where that of {_layer(other)} is "
            f"{_short(relative[other])}, healthy is within {_short(SPREAD)} of each other"
        )
        return self._start.finding(kind, _layer(path), says, cure)


class _DeadRule(_Rule):
    def __init__(self, start):
        super().__init__(start)
        self._at_first, self._before, self._struck = {}, {}, set()

    def find(self, fractions, units):
        self._at_first = fractions | self._at_first
        if self._start.settled:
            self._struck |= {path for path, now in fractions.items() if now > self._before.get(path, now) + SUDDEN}
        self._before = fractions
        healthy, least = dead_relu.HEALTHY[1], {}
        for path, fraction in fractions.items():
            least[self._shared(path)] = min(fraction, least.get(self._shared(path), 1.0))
        dead = {path: round(fraction * units[path]) for path, fraction in fractions.items()}
        dead = {path: count for path, count in dead.items() if least[self._shared(path)] >= healthy}
        dead = {path: count for path, count in dead.items() if count >= FEWEST_DEAD}
        if not dead:
            return None
        worst = max(dead, key=fractions.get)
        says = f"{dead[worst]} of {units[worst]} units are dead, healthy is under {100 * healthy:.0f} %"
        kind, cure = "dead", "biases at 0.01 and weights by He initialization"
        if fractions[worst] > self._at_first[worst] + 0.1:
            kind, cure = "dying", "a learning rate about ten times lower"
        cure = f"dead units do not come back, so start again with {cure}"
        severe = worst in self._struck or fractions[worst] >= NEARLY_ALL
        return dataclasses.replace(self._start.finding(kind, worst, says, cure), severe=severe)

    def _shared(self, path):
        """What places with the same weights before them have in common: a unit that is active in one lives."""
        base = re.sub(r" \(\d+\)$", "", path)
        return path if base in self._start.setup.apart else base


def _capital(sentence):
    return sentence[0].upper() + sentence[1:]


def _layer(path):
    return path.rpartition("/")[0] or path


def _fan_in(shape):
    depthwise = len(shape) == 4 and shape[-1] == 1
    return math.prod(shape[:2] if depthwise else shape[:-1])


def _short(number):
    """A number to one digit: 0.083 is 8e-2; between 0.1 and 1000 to two: 12.3 is 12."""
    if 0.1 <= number < 1000:
        return f"{number:.2g}" if number < 100 else f"{number:.0f}"
    mantissa, exponent = f"{number:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _times(factor):
    """A factor in words, rounded down to a power of ten: a step too short is mended by the next advice."""
    power = 10 ** max(1, math.floor(math.log10(factor)))
    words = {10: "ten", 100: "a hundred", 1000: "a thousand"}
    return f"about {words.get(power, f'{power:,}')} times"
