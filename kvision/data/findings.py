"""What can be wrong with the samples of a data set, in sentences."""

import collections
import dataclasses
import itertools

import numpy as np

from kvision.data.duplicates import near_pairs

LEVELS = ("error", "warning", "note")
IMBALANCE = 20  # times that the largest class may be the smallest
OVERHANG = 1.0  # pixels by which rounding may put a box beyond the border
TINY = 4.0  # pixels of a box's shorter side below which little is left to see
MANY_TINY = 0.2  # fraction of the boxes


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that `check` found.

    Args:
        level: `"error"`: training on it is wrong or fails; `"warning"`: likely not meant; `"note"`.
        text: What, how often, and what to do.
        samples: `(split, index)` of the samples, of a pair one after the other.
    """

    level: str
    text: str
    samples: tuple = ()

    def __str__(self):
        return f"{self.level}: {self.text}"


def findings_of(samples, dataset):
    """The `Finding`s about the `Sample`s of one data set."""
    for look in (_unreadable, _pixels, _labels, _boxes):
        yield from look(samples, dataset)


def name_of(dataset, index):
    """The file of a sample, or its index."""
    files = list(getattr(dataset, "files", {}).values())
    return str(files[index]) if index < len(files) else f"sample {index}"


def _finding(level, text, samples, dataset):
    """A finding that names its first three samples."""
    shown = ", ".join(name_of(dataset, sample.index) for sample in samples[:3])
    more = f" and {len(samples) - 3} more" if len(samples) > 3 else ""
    return Finding(level, f"{text}: {shown}{more}.", tuple((sample.split, sample.index) for sample in samples))


def _plural(count, one, many):
    return f"{count} {one if count == 1 else many}"


def _unreadable(samples, dataset):
    broken = [sample for sample in samples if sample.error is not None]
    if broken:
        text = f"{_plural(len(broken), 'sample', 'samples')} cannot be read ({broken[0].error})"
        yield _finding("error", text, broken, dataset)
    if len(broken) == len(samples):
        yield Finding("error", "There is no sample that can be read.")
    problems = getattr(dataset, "problems", ())
    if problems:
        shown = "; ".join(str(problem) for problem in list(problems)[:3])
        yield Finding("warning", f"The reader left out {len(problems)}, listed in `problems`: {shown}.")


def _pixels(samples, dataset):
    read = [sample for sample in samples if sample.error is None]
    infinite = [sample for sample in read if not np.isfinite([sample.low, sample.high]).all()]
    if infinite:
        text = f"{_plural(len(infinite), 'image has', 'images have')} pixels that are not finite"
        yield _finding("error", text, infinite, dataset)
    blank = [sample for sample in read if sample.is_blank]
    if blank:
        yield _finding("warning", f"{_plural(len(blank), 'image is', 'images are')} of one colour", blank, dataset)
    unit = [sample for sample in read if not sample.is_blank and 0 <= sample.low < sample.high <= 1]
    if unit and len(unit) < len(read) - len(blank):
        text = f"{_plural(len(unit), 'image lies', 'images lie')} within 0 to 1, the others do not"
        yield _finding("error", text, unit, dataset)


def _labels(samples, dataset):
    """Of classifiers' samples and of boxes."""
    names = getattr(dataset, "class_names", None)
    labelled = [(sample, label) for sample in samples for label in _labels_of(sample)]
    if not labelled:
        return
    wrong = {sample.index: (sample, label) for sample, label in reversed(labelled) if _is_no_class(label, names)}
    if wrong:
        *_, (_, label) = wrong.values()  # of the first sample
        what = f"from 0 to {len(names) - 1}" if names else "whole numbers from 0"
        has = f"{_plural(len(wrong), 'sample has a label that is', 'samples have labels that are')} not {what}"
        text = f"{has} (such as {label!r})"
        yield _finding("error", text, [sample for sample, _ in reversed(wrong.values())], dataset)
    counts = counts_of(samples, dataset)
    empty = [name for name, count in counts.items() if not count]
    if empty:
        shown = ", ".join(map(str, empty[:5])) + (" ..." if len(empty) > 5 else "")
        yield Finding("warning", f"{_plural(len(empty), 'class has', 'classes have')} no sample: {shown}.")
    present = {name: count for name, count in counts.items() if count}
    if len(present) > 1:
        most, least = max(present, key=present.get), min(present, key=present.get)
        if present[most] > IMBALANCE * present[least]:
            yield Finding(
                "warning",
                f"Class {most} occurs {present[most]} times, class {least} {present[least]} times: give class_weight "
                "to fit, draw the rare ones more often, or measure each class by itself.",
            )


def _labels_of(sample):
    if sample.labels is not None:
        labels = sample.labels.tolist()
        return [label.decode(errors="replace") if isinstance(label, bytes) else label for label in labels]
    return sample.label if isinstance(sample.label, tuple) else [] if sample.label is None else [sample.label]


def _is_no_class(label, names):
    return not isinstance(label, int) or label < 0 or (names is not None and label >= len(names))


def counts_of(samples, dataset):
    """How often each class occurs, those that never do among them."""
    counts = collections.Counter(label for sample in samples for label in _labels_of(sample))
    names = getattr(dataset, "class_names", None)
    if names is None:
        return {
            str(label): counts[label] for label in sorted(counts, key=lambda label: (isinstance(label, str), label))
        }
    return {str(name): counts[label] for label, name in enumerate(names)}


def _boxes(samples, dataset):
    boxed = [sample for sample in samples if sample.boxes_xyxy is not None]
    if not boxed:
        return
    kinds = {
        "boxes that are not finite": lambda box, _: not np.isfinite(box).all(),
        "boxes without area": lambda box, _: np.isfinite(box).all() and not (box[2] > box[0] and box[3] > box[1]),
        "boxes outside the image": lambda box, valid: (
            box[:2].min() < -OVERHANG or box[2] > valid[1] + OVERHANG or box[3] > valid[0] + OVERHANG
        ),
    }
    for what, is_wrong in kinds.items():
        wrong = [sample for sample in boxed if any(is_wrong(box, sample.valid) for box in sample.boxes_xyxy)]
        if wrong:
            yield _finding("error", f"{_plural(len(wrong), 'image has', 'images have')} {what}", wrong, dataset)
    twice = [sample for sample in boxed if _has_twice(sample)]
    if twice:
        text = f"{_plural(len(twice), 'image has', 'images have')} the same object twice"
        yield _finding("warning", text, twice, dataset)
    sides = np.concatenate([_shorter_sides(sample) for sample in boxed])
    if sides.size and (sides < TINY).mean() > MANY_TINY:
        tiny = [sample for sample in boxed if (_shorter_sides(sample) < TINY).any()]
        text = f"{(sides < TINY).mean():.0%} of the boxes are less than {TINY:g} pixels high or wide at this image_size"
        yield _finding("warning", text, tiny, dataset)
    without = [sample for sample in boxed if not len(sample.boxes_xyxy)]
    if without:
        text = f"{_plural(len(without), 'image has', 'images have')} no object"
        yield _finding("note" if len(without) < len(boxed) else "error", text, without, dataset)


def _shorter_sides(sample):
    return (sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).min(axis=1, initial=np.inf)


def _has_twice(sample):
    _, labels = np.unique(sample.labels, return_inverse=True)  # texts too, which `_labels` tells of
    rows = np.column_stack([sample.boxes_xyxy, labels])
    return len(np.unique(rows, axis=0)) < len(rows)


def findings_between(samples, datasets, near):
    """The `Finding`s about what splits say of one another, and images that occur twice, in a split or in both."""
    return [*_names(datasets), *_twice(samples, datasets, near)]


def _names(datasets):
    """Whether a label means the same class in both splits."""
    names = {split: tuple(getattr(data, "class_names", None) or ()) for split, data in datasets.items()}
    if len(names) < 2 or not all(names.values()):
        return
    (first, second), (one, other) = names, names.values()
    pairs = enumerate(itertools.zip_longest(one, other))
    different = [(label, *pair) for label, pair in pairs if pair[0] != pair[1]]
    if different:
        count = f"{_plural(len(different), 'label means', 'labels mean')} another class in the {second} data"
        label, here, there = different[0]
        here, there = ("no class" if name is None else repr(name) for name in (here, there))
        remedy = f"Read the {second} data with classes= of the class_names of the {first} data"
        yield Finding("error", f"{count}: label {label} is {here} in the {first} data, there {there}. {remedy}.")


def _twice(samples, datasets, near):
    read = [sample for each in samples.values() for sample in each if sample.error is None]
    equal = _equal_pairs(read)
    looks = [index for index, sample in enumerate(read) if sample.look is not None]
    pairs = near_pairs(np.array([read[index].look for index in looks], "uint64"), near)
    nearly = {(looks[first], looks[second]) for first, second in pairs} - equal
    for pairs, word in ((equal, "equal"), (nearly, "nearly equal")):
        inside = [pair for pair in sorted(pairs) if read[pair[0]].split == read[pair[1]].split]
        between = [pair for pair in sorted(pairs) if read[pair[0]].split != read[pair[1]].split]
        if between:
            level = "error" if word == "equal" else "warning"
            text = f"{_plural(len(between), 'pair', 'pairs')} of {word} images in both training and validation data"
            yield _of_pairs(level, text, between, read, datasets)
        different = [pair for pair in inside if not _same_target(*(read[index] for index in pair))]
        same = [pair for pair in inside if pair not in set(different)]
        if different and word == "equal":
            has = "pair of equal images has", "pairs of equal images have"
            text = f"{_plural(len(different), *has)} different labels"
            yield _of_pairs("error", text, different, read, datasets)
        elif different:
            same = inside
        if same:
            text = f"{_plural(len(same), 'pair', 'pairs')} of {word} images"
            yield _of_pairs("warning" if word == "equal" else "note", text, same, read, datasets)


def _equal_pairs(read):
    groups = collections.defaultdict(list)
    for index, sample in enumerate(read):
        groups[sample.pixels].append(index)
    return {(group[0], other) for group in groups.values() for other in group[1:]}


def _same_target(one, other):
    if one.boxes_xyxy is None or other.boxes_xyxy is None:
        return one.label == other.label
    return np.array_equal(one.boxes_xyxy, other.boxes_xyxy) and np.array_equal(one.labels, other.labels)


def _of_pairs(level, text, pairs, read, datasets):
    named = [
        " and ".join(name_of(datasets[read[i].split], read[i].index).removeprefix("sample ") for i in pair)
        for pair in pairs[:3]
    ]
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    samples = tuple((read[index].split, read[index].index) for pair in pairs for index in pair)
    return Finding(level, f"{text}: {'; '.join(named)}{more}.", samples)
