"""An attack block by block of images, of which Ctrl-C gives what there is."""

import numpy as np
from keras import ops

from kvision.visualize.adversarial.attack import Attack
from kvision.visualize.adversarial.classifier import probabilities
from kvision.visualize.progress import progress


def attack_blocks(case, run, steps, *, starts=1, verbose=0, is_success=None):
    """The `Attack` of a case, block by block.

    Args:
        case: A `Case`.
        run: `function(rows, start)`, which gives a generator of the attacked images `rows` after each step, at most
            `steps` of them; it may end before.
        steps: How many.
        starts: How often a block is attacked, from 0 on, until all of its images are fooled.
        verbose: 1 shows a bar.
        is_success: `function(logits)` → [b], where it is not `case.are_fooled` that tells it.
    """
    kept = Kept(case)
    blocks = list(case.blocks())
    schedule = ((*block, start, step) for block in blocks for start in range(starts) for step in range(steps))
    total, reached, done = len(blocks) * starts * steps, 0, False
    images = changing = None
    for rows, count, start, step in progress(schedule, total, verbose):
        reached += 1
        if step == 0:
            done = done and start > 0
            images, changing = None, iter(()) if done else run(rows, start)
        following = next(changing, None)
        images = images if following is None else following
        if images is not None and (following is None or step == steps - 1):
            done, images = kept.update(rows, count, images), None
    if images is not None:  # Ctrl-C came in the midst of a block
        kept.update(rows, count, images)
    return kept.attack(reached == total, is_success)


class Kept:
    """The best image that an attack has found for each one given: fooled before not, then by its margin."""

    def __init__(self, case):
        self.case = case
        self.images = case.images.copy()
        self.logits = case.logits.copy()
        self.fooled = np.zeros(len(case.images), bool)
        self.margins = np.full(len(case.images), -np.inf)

    def update(self, rows, count, images):
        """Keep, of attacked `images` of `rows`, of which `count` count, those that are better.

        Returns:
            Whether all of these rows are fooled by now.
        """
        case, rows = self.case, rows[:count]
        images = images if isinstance(images, np.ndarray) else ops.convert_to_numpy(images)
        logits = case.classifier.logits(images, len(images))[:count]
        fooled = case.are_fooled(logits.argmax(axis=1), rows) & np.isfinite(logits).all(axis=1)
        margins = _margins(logits, case.labels[rows]) if case.targets is None else -_margins(logits, case.targets[rows])
        better = (fooled & ~self.fooled[rows]) | ((fooled == self.fooled[rows]) & (margins > self.margins[rows]))
        chosen = rows[better]
        self.images[chosen], self.logits[chosen] = images[:count][better], logits[better]
        self.fooled[chosen], self.margins[chosen] = fooled[better], margins[better]
        return bool(self.fooled[rows].all())

    def attack(self, complete=True, is_success=None):
        """The `Attack` of what was kept, images that were not reached as they were given."""
        case = self.case
        predicted = self.logits.argmax(axis=1).astype("int32")
        return Attack(
            images=self.images,
            success=is_success(self.logits) if is_success else case.are_fooled(predicted),
            labels=case.labels,
            predicted=predicted,
            confidence=probabilities(self.logits).max(axis=1).astype("float32"),
            **distances(self.images, case.images),
            complete=complete,
        )


def distances(images, given):
    """Norms of the changes between images, as float32 [b] under the names of an `Attack`."""
    changes = [(one.astype("float64") - other).ravel() for one, other in zip(images, given, strict=True)]
    return {
        "l2_distance": np.array([np.linalg.norm(change) for change in changes], "float32"),
        "linf_distance": np.array([np.abs(change).max() for change in changes], "float32"),
    }


def _margins(logits, classes):
    """As `classifier.margin`, in NumPy."""
    chosen = np.arange(logits.shape[1]) == classes[:, None]
    others = np.where(chosen, -np.inf, logits).astype("float64")
    largest = others.max(axis=1)
    return largest + np.log(np.exp(others - largest[:, None]).sum(axis=1)) - logits[chosen]
