"""What is wrong with a data set, told before a training learns it."""

import collections
import dataclasses
import pathlib

import keras
import numpy as np

from kvision import drawing
from kvision._keras import print_message
from kvision.data.duplicates import BANDS
from kvision.data.elements import is_batched
from kvision.data.findings import LEVELS, counts_of, findings_between, findings_of, name_of
from kvision.data.label_maps import IGNORED
from kvision.data.measures import is_label_map, length_of, measured, read_one
from kvision.page import address, encoded, page_of

SHOWN = 16  # samples drawn on the page


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What `check` found in one data set or two. `str()` of it is a table and the findings; its truth is `ok`.

    Args:
        findings: `Finding`s, errors first.
        numbers: `{split: {what: number or text}}`.
        counts: `{split: {class: number}}`, of images or of boxes; of label maps, those that hold the class.
        datasets: `{split: data set}`.
    """

    findings: tuple
    numbers: dict
    counts: dict
    datasets: dict = dataclasses.field(repr=False)

    @property
    def ok(self):
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def __bool__(self):
        return self.ok

    def __str__(self):
        lines = []
        names = list(dict.fromkeys(what for numbers in self.numbers.values() for what in numbers))
        if len(self.numbers) > 1:
            lines.append(f"{'':22}" + "".join(f"{split:>22}" for split in self.numbers))
        for name in names:
            lines.append(f"{name:22}" + "".join(f"{numbers.get(name, '')!s:>22}" for numbers in self.numbers.values()))
        return "\n".join([*lines, *map(str, self.findings or ["Nothing was found that looks wrong."])])

    def save(self, path):
        """Write one HTML page that loads nothing: the numbers, the classes, the findings, the worst 16 samples drawn.

        Args:
            path: Of the file; its folder is made where it is missing.

        Returns:
            The path.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            raise ValueError(f"DataReport.save: expected the path of a file, got the folder {str(path)!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "findings": [{"level": finding.level, "text": finding.text} for finding in self.findings],
            "numbers": self.numbers,
            "counts": self.counts,
            "images": list(self._drawn()),
        }
        path.write_text(page_of("check.html", "Data set", ("elements", "check"), data), encoding="utf-8")
        return path

    def _drawn(self):
        reasons = collections.defaultdict(list)
        for finding in self.findings:
            for sample in finding.samples:
                if finding.text not in reasons[sample]:
                    reasons[sample].append(finding.text)
        shown = 0
        for (split, index), texts in reasons.items():
            if shown == SHOWN:
                return
            try:
                image, target = read_one(self.datasets[split], index)
            except Exception:  # which is what was found
                continue
            shown += 1
            kind, content, (width, height) = encoded(_picture(image, target, self.datasets[split]))
            name = f"{name_of(self.datasets[split], index)}: {texts[0].partition(':')[0]}"
            yield {"name": name, "width": width, "height": height, "source": address(kind, content)}


def check(dataset, validation=None, *, near=3, page=None, verbose=1):
    """Look through a data set before a training does.

    Every sample is read once, as training reads it but without augmentation. Told are: samples that cannot be read;
    classes without samples, their balance, labels out of range; pixels that are not finite, images that show nothing,
    images in 0…1 where others are in 0…255; boxes that are not finite, have no area, or lie outside the image, the same
    object twice, boxes that are tiny at this size; images that occur twice, exactly or nearly, and with different
    labels; and, of both data sets, classes that are numbered differently and images that are in both.

    Args:
        dataset: What `fit` is given: of a reader of kvision, whose files are then named, or any `tf.data.Dataset` of
            `(image, label)`, `(image, label map)` or `(images, targets)`, in batches or not. It must end.
        validation: Another one, or None.
        near: Bits of 64 in which the perceptual hashes of two images may differ to be told as nearly the same, from 0
            to 3.
        page: Path of an HTML page to write, or None.
        verbose: 1 shows the progress and prints the result; 0 nothing.

    Returns:
        A `DataReport`.

    Raises:
        ValueError: If the data set does not give images, or `near` is out of range.

    >>> images, labels = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3)), np.arange(8) % 2
    >>> images[5] = images[2]
    >>> report = check(kvision.data.arrays(images, labels), verbose=0)
    >>> report.ok, str(report.findings[0])[:60]
    (False, 'error: 1 pair of equal images has different labels: 2 and 5.')
    """
    datasets = {"training": dataset} | ({} if validation is None else {"validation": validation})
    for data in datasets.values():
        is_batched("check", data)
    if near not in range(BANDS):
        raise ValueError(f"check: near lies in 0 to {BANDS - 1} bits, got {near!r}.")
    if page is not None and pathlib.Path(page).is_dir():
        raise ValueError(f"check: page is the path of a file, got the folder {str(page)!r}. Pass page='…/check.html'.")
    samples = {split: list(_counted(split, data, verbose)) for split, data in datasets.items()}
    findings = findings_between(samples, datasets, near)
    for split, data in datasets.items():
        found = list(findings_of(samples[split], data))
        if len(datasets) > 1:
            texts = [f"{split} data, {finding.text[:1].lower()}{finding.text[1:]}" for finding in found]
            found = [dataclasses.replace(finding, text=text) for finding, text in zip(found, texts, strict=True)]
        findings += found
    report = DataReport(
        tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))),
        {split: _numbers(each) for split, each in samples.items()},
        {split: counts_of(each, datasets[split]) for split, each in samples.items()},
        datasets,
    )
    if page is not None:
        report.save(page)
    if verbose:
        print_message(str(report))
    return report


def _counted(split, dataset, verbose):
    progress = keras.utils.Progbar(length_of(dataset), unit_name="sample", verbose=verbose)
    if verbose:
        print_message(f"Checking the {split} data")
    count = 0
    for count, sample in enumerate(measured(split, dataset), 1):  # noqa: B007
        progress.add(1)
        yield sample
    if verbose and length_of(dataset) is None and count:
        progress.update(count, finalize=True)


def _numbers(samples):
    read = [sample for sample in samples if sample.error is None]
    numbers = {"samples": len(samples), "unreadable": len(samples) - len(read)}
    if read:
        heights, widths = np.array([sample.size for sample in read]).T
        numbers["height"], numbers["width"] = _spread(heights), _spread(widths)
    boxed = [sample for sample in read if sample.boxes_xyxy is not None]
    if boxed:
        counts = np.array([len(sample.boxes_xyxy) for sample in boxed])
        numbers["boxes"], numbers["boxes an image"] = int(counts.sum()), _spread(counts)
        boxes = np.concatenate([sample.boxes_xyxy for sample in boxed])
        if len(boxes):
            sides = boxes[:, 2:] - boxes[:, :2]
            numbers["box width"], numbers["box height"] = _spread(sides[:, 0]), _spread(sides[:, 1])
    return numbers


def _spread(values):
    """Smallest, median and largest of those that are finite."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "not finite"
    low, middle, high = np.quantile(values, (0, 0.5, 1))
    return f"{low:.4g}" if low == high else f"{low:.4g} / {middle:.4g} / {high:.4g}"


def _picture(image, target, dataset):
    image = np.asarray(image, "float32")
    image = np.clip(np.nan_to_num(image * 255 if image.max(initial=0) <= 1 else image), 0, 255).astype("uint8")
    names = getattr(dataset, "class_names", None)
    if is_label_map(image, target):
        target = np.where(target < 0, IGNORED, target).reshape(image.shape[:2])
        return drawing.segmentation(image, target, names)
    if not isinstance(target, dict) or "boxes" not in target:
        return image
    height, width = target.get("image_size", image.shape[:2])
    return drawing.detections(image[:height, :width], target["boxes"], target["labels"], classes=names)
