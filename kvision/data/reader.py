"""What all readers share: their options, the order of the classes, the images that can be read, and the data set."""

import collections
import dataclasses
import functools
import inspect
import numbers
import os
import re
from collections.abc import Collection

import numpy as np

from kvision._keras import print_message
from kvision.data import images
from kvision.data.annotations import Problem, are
from kvision.data.files import fraction, relative
from kvision.data.source import Order, Source
from kvision.errors import choose, unknown

MOST_LOST = 0.1  # the fraction of the images that may fail in training before it stops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a reader reads; every reader takes these.

    Args:
        split: None takes all images. A name, such as `"train"`, takes a part that the data set lists. `(low, high)`
            takes the images whose hash lies in [low, high) of [0, 1): `(0, 0.8)` to train and `(0.8, 1)` to validate
            are disjoint, and an image stays where it is when others are added or the folder moves. A list takes these
            files, by their names relative to the data set.
        classes: Names of the classes, in the order of the labels, such as `train.class_names` for the validation data;
            what belongs to others is left out and counted. None takes all names of the data set, whatever the split.
        batch_size: Images per batch; None gives single images.
        shuffle: Whether to go through the images in a new order each epoch.
        seed: Of the order.
        shard: `(index, count)`: of `count` processes, the one of this index reads its part of each epoch.
        drop_remainder: Whether to leave out the last batch where it is smaller, so that shapes are wholly static.
        check: `"full"` decodes every image once beforehand and reports those that fail. `"header"` reads their first
            bytes only: quicker where hundreds of thousands are known to be whole.
        on_error: `"skip"` leaves out images that cannot be read, beforehand or in training, and lists them in
            `problems`; where more than a tenth fails in training, it stops. `"raise"` stops at the first.
        orientation: `"upright"` turns images as their EXIF data say, as labelling tools show them; `"stored"` takes the
            pixels as they lie in the file. It also says on which of the two boxes and masks were made. Where the data
            set states an image's size and that fits one of the two only, the size decides for this image: the tool that
            measured it also made the boxes.
        max_pixels: An image of more pixels is left out before it is decoded.
    """

    split: object = None
    classes: object = None
    batch_size: int | None = 8
    shuffle: bool = False
    seed: int = 0
    shard: tuple = (0, 1)
    drop_remainder: bool = False
    check: str = "full"
    on_error: str = "skip"
    orientation: str = "upright"
    max_pixels: int = images.MAX_PIXELS

    def __post_init__(self):
        if self.batch_size is None and self.drop_remainder:
            raise ValueError("drop_remainder is for batches: with batch_size=None there are none. Leave it out.")
        if not isinstance(self.seed, numbers.Integral) or self.seed < 0:
            raise ValueError(f"seed is a whole number from 0, got {self.seed!r}.")
        choose("check of the images", {"full": True, "header": True}, self.check)
        choose("on_error", {"skip": True, "raise": True}, self.on_error)
        choose("orientation", dict.fromkeys(images.ORIENTATIONS), self.orientation)
        if self.batch_size is not None and not _is_whole(self.batch_size):
            raise ValueError(
                f"batch_size is a whole number from 1, or None for single images, got {self.batch_size!r}."
            )
        if not (self.classes is None or _are_different_names(self.classes)):
            raise ValueError(
                f"classes are different names in the order of the labels, such as ('cat', 'dog'), got {self.classes!r}."
            )
        if self.is_range and not 0 <= self.split[0] < self.split[1] <= 1:
            raise ValueError(f"split=(low, high) takes 0 <= low < high <= 1, got {self.split!r}.")
        if not (self.split is None or self.is_range or isinstance(self.split, str) or _are_files(self.split)):
            raise ValueError(
                "split is None, the name of a split, a range such as (0, 0.8) to train and (0.8, 1) to validate, or a "
                f"list of files, got {self.split!r}."
            )

    @property
    def is_range(self):
        """Whether the split is a pair of numbers."""
        split = self.split
        return (
            isinstance(split, tuple) and len(split) == 2 and all(isinstance(number, numbers.Real) for number in split)
        )


def _is_whole(number):
    return isinstance(number, numbers.Integral) and not isinstance(number, bool) and number >= 1


def _are_different_names(names):
    listed = isinstance(names, Collection) and not isinstance(names, str | bytes | dict | set)
    return listed and len(set(map(str, names))) == len(tuple(names))


def _are_files(names):
    listed = isinstance(names, Collection) and not isinstance(names, bytes | dict)
    return listed and all(isinstance(name, str | os.PathLike) for name in names)


class Reading:
    """One call of a reader: its options, and what it has to tell.

    Args:
        reader: Name of the reader, for messages.
        options: Its `Options`.
    """

    def __init__(self, reader, options):
        self.reader = reader
        self.options = options
        self.problems = []
        self.notes = []  # sentences to print that are no problems
        self.folder = None  # of the data set
        self.others = collections.Counter()  # (file, class): objects whose class is not in `classes`

    def problem(self, file, row, reason):
        """Note something that is left out."""
        self.problems.append(Problem(str(file), row, reason))

    def chosen(self, paths, folder):
        """Those of the paths that are in the split; of a named one, the reader has found the paths."""
        split, self.folder = self.options.split, folder
        if split is None or isinstance(split, str):
            return list(paths)
        names = {path: relative(path, folder) for path in paths}
        if self.options.is_range:
            return [path for path, name in names.items() if self._in_range(name)]
        asked = {relative(folder / os.fspath(name), folder) for name in split}
        missing = sorted(asked - set(names.values()))
        if missing:
            raise unknown(f"file in the split of {self.reader}", missing[0], sorted(names.values()))
        return [path for path, name in names.items() if name in asked]

    def _in_range(self, name):
        return self.options.split[0] <= fraction(name) < self.options.split[1]

    def _asks_for(self, path, folder):
        """Whether the split takes a file that it does not name."""
        split = self.options.split
        if self.options.is_range:
            return self._in_range(relative(path, folder))
        return split is None or isinstance(split, str)

    def images(self, paths, folder):
        """Those of the paths that are images of kinds that are read; images of other kinds are problems."""
        for path in paths:
            if path.suffix.lower() in images.UNREAD and self._asks_for(path, folder):
                self.unreadable(path, f"{path.suffix} is not read; expected {', '.join(images.SUFFIXES)}")
        return [path for path in paths if images.is_image(path)]

    def refuse_named_split(self, remedy):
        """Raises on the name of a split, which some data sets do not list."""
        if isinstance(self.options.split, str):
            raise ValueError(f"{self.reader}: its file lists no splits, got split={self.options.split!r}. {remedy}")

    def class_names(self, known):
        """The names in the order of the labels; `known` are those of the data set, in its own order.

        Raises:
            ValueError: If a name is not in the data set, and it is not just that the data set lacks some.
        """
        known = tuple(map(str, known))
        if self.options.classes is None:
            return known
        names = tuple(map(str, self.options.classes))
        if not known:
            raise ValueError(f"{self.reader}: the data set lists no class, got classes={names!r}. Leave it out.")
        missing = [name for name in names if name not in known]
        others = [name for name in known if name not in names]
        if missing and (others or len(missing) == len(names)):
            raise unknown(f"class in classes= of {self.reader}", missing[0], known)
        if missing:
            self.notes.append(f"the data set has no class {', '.join(map(repr, missing))}; the labels keep their order")
        return names

    def different(self, names, file):
        """The names without those that occur again, whose objects are taken as of one class; that is a problem."""
        names = tuple(names)
        twice = [name for name, count in collections.Counter(names).items() if count > 1]
        if twice:
            shown = ", ".join(map(repr, twice[:6]))
            self.problem(
                file, "", f"several classes are called {shown}; the objects of one name are taken as one class"
            )
        return tuple(dict.fromkeys(names))

    def headers(self, paths, channels=3):
        """`{path: Header}` of the images that can be read; the others are problems."""
        options = self.options
        found, unreadable = images.read_headers(paths, options.check, channels, options.max_pixels)
        for path, reason in unreadable.items():
            self.unreadable(path, reason)
        return found

    def unreadable(self, path, reason, what="image"):
        """Note an image, or what belongs to it, that cannot be read, or stop at it."""
        self.problem(path, "", f"the {what} cannot be read: {reason}")
        if self.options.on_error == "raise":
            raise ValueError(f"kvision.data.{self.reader}: {self.problems[-1]}.")

    def other_class(self, file, name):
        """Count an object whose class is not in `classes`."""
        self.others[str(file), str(name)] += 1

    def require(self, found):
        """Raises if no image was found that can be used."""
        if not found:
            where = "" if self.options.split is None else f" with split={self.options.split!r}"
            raise ValueError(
                f"{self.reader}: there is no image that can be used{where}. {self.summary() or 'None was found.'}"
            )

    def is_upright(self, header, stated=None):
        """Whether an image is turned as its EXIF data say; None if the size that is stated for it fits neither way."""
        default = self.options.orientation == "upright"
        if stated is None:
            return default
        sizes = {True: header.upright_size, False: header.size}
        return next((upright for upright in (default, not default) if sizes[upright] == stated), None)

    def dataset(self, example, paths, headers, channels, facts, fault=None, annotated=None):
        """The data set of the samples that a function of `tf.data` makes by their index.

        Args:
            example: The function, as of `Source`.
            paths, headers: Of the images, by index.
            channels: With which they are decoded.
            facts: Attributes of the data set beside `problems`.
            fault: A function from the index of a sample that failed in training to the file beside its image that is
                to blame and what is wrong with it, or None; None where there are no such files.
            annotated: As of `Source`.
        """
        options = self.options
        self.require(paths)
        order = Order(
            len(paths),
            batch_size=options.batch_size,
            shuffle=options.shuffle,
            seed=options.seed,
            shard=options.shard,
        )
        for (file, name), count in self.others.items():
            self.problem(file, "", f"{count} of class {name!r}, which is not in classes, {are(count)} left out")
        for line in [*self.notes, *([self.summary()] if self.problems else [])]:
            print_message(f"kvision.data.{self.reader}: {line}")
        facts = {"classes": len(facts["class_names"]), **facts, "problems": self.problems}
        lost = Lost(self, list(paths), list(headers), channels, fault)
        beside = {"lost": lost, "annotated": annotated, "folder": self.folder}
        return Source(example, order, options.drop_remainder, facts, **beside).dataset()

    def summary(self):
        """One line on the problems; empty if there are none."""
        if not self.problems:
            return ""
        return f"{len(self.problems)} problem{'s'[: len(self.problems) > 1]}, see `problems`. First: {self.problems[0]}"


class Lost:
    """Accounts for the images that could not be made in training."""

    def __init__(self, reading, paths, headers, channels, fault=None):
        self.reading, self.paths, self.headers, self.channels, self.fault = reading, paths, headers, channels, fault
        self.indices = set()

    def __call__(self, indices):
        """Lists them in `problems`.

        Raises:
            ValueError: With `on_error="raise"`, or if they are more than a tenth of all.
        """
        for index in np.asarray(indices).tolist():
            if index in self.indices:
                continue
            self.indices.add(index)
            beside = None if self.fault is None else self.fault(index)
            if beside is not None:
                self.reading.unreadable(*beside, "map")
                continue
            try:
                images.load_stored(self.paths[index], self.headers[index], self.channels)
                reason = "it failed in training, but not when tried again"
            except ValueError as error:
                reason = str(error)
            self.reading.unreadable(self.paths[index], reason)
        if len(self.indices) > MOST_LOST * len(self.paths):
            raise ValueError(
                f"kvision.data.{self.reading.reader}: {len(self.indices)} of {len(self.paths)} images failed in "
                f"training, more than a tenth. Last: {self.reading.problems[-1]}"
            )


def reader(batches, **defaults):
    """Let a reader take `Options` and the options of its batches, and show them in its signature and docstring.

    Args:
        batches: The function that makes the batches, whose keyword arguments the reader passes on.
        **defaults: Of the reader's own among the `Options`.
    """

    def decorate(function):
        shared = [
            parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in inspect.signature(Options).parameters.items()
        ]
        own = list(inspect.signature(function).parameters.values())[1:]  # after the `Reading`
        own = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        batch = [p for p in inspect.signature(batches).parameters.values() if p.kind is p.KEYWORD_ONLY]
        signature = inspect.Signature([*own, *batch, *shared])
        names = {parameter.name for parameter in shared}

        @functools.wraps(function)
        def read(*arguments, **options):
            try:
                signature.bind(*arguments, **options)  # an unknown name is told before any file is read
            except TypeError as error:
                raise TypeError(f"{function.__name__}: {error}; it takes {', '.join(signature.parameters)}.") from None
            given = {name: value for name, value in options.items() if name in names}
            rest = {name: value for name, value in options.items() if name not in names}
            try:
                checked = Options(**{**defaults, **given})
            except ValueError as error:
                raise ValueError(f"{function.__name__}: {error}") from None
            return function(Reading(function.__name__, checked), *arguments, **rest)

        read.__signature__ = signature
        if function.__doc__:  # none under `python -OO`
            described = _arguments(batches) + _arguments(Options)
            read.__doc__ = re.sub(
                r"^ {8}\*\*batch: (?:.+\n)+", lambda _: described, function.__doc__, count=1, flags=re.M
            )
        return read

    return decorate


def _arguments(documented):
    """The lines of a docstring's Args, indented as in a function's."""
    lines = inspect.getdoc(documented).split("Args:\n")[1].split("\n\n")[0].splitlines()
    return "".join(f"    {line}\n" if line else "\n" for line in lines)
