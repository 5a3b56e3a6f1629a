"""The `data.yaml` of a YOLO data set: names of the classes, splits, and what a line with keypoints holds."""

import dataclasses
import os
import pathlib

from kvision.data.files import homes, inside, read_text, split_of
from kvision.data.values import number

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MOST_NAMES = 100_000
MOST_BRACKETS = 500


@dataclasses.dataclass(frozen=True)
class Described:
    """What a `data.yaml` says.

    Args:
        file: Its path.
        names: Of the classes, in order.
        splits: `{name: [path, …]}` of folders or lists of files, as far as they exist.
        keypoints: How many numbers stand behind the box in a line with keypoints; None if it does not say.
    """

    file: pathlib.Path
    names: tuple
    splits: dict
    keypoints: int | None


def read_yaml(folder):
    """The `Described` of the data set of which a folder is the whole or a part; None if there is none.

    Raises:
        ImportError: without PyYAML.
        ValueError: if the file cannot be read, or its names or their number are contradictory.
    """
    file = next((home / name for home in homes(folder) for name in NAMES if (home / name).is_file()), None)
    if file is None:
        others = [path for end in ("*.yaml", "*.yml") for path in folder.glob(end)]
        file = others[0] if len(others) == 1 else None
    if file is None:
        return None
    content = _load(file)
    if not isinstance(content, dict) or not content.get("names"):
        return None
    shape = content.get("kpt_shape")
    shape = [number(side) for side in shape] if isinstance(shape, list) else []
    keypoints = int(shape[0] * shape[1]) if len(shape) == 2 and None not in shape and max(shape) < 1e4 else None
    return Described(file, _names(file, content), _splits(file, content), keypoints)


def _load(file):
    try:
        import yaml
    except ImportError:
        raise ImportError(f'Reading {str(file)!r} needs PyYAML: pip install "kvision[yolo]"') from None
    text = read_text(file)
    if text.count("[") + text.count("{") > MOST_BRACKETS:  # the parser takes seconds for thousands of them
        raise ValueError(f"yolo: {str(file)!r} cannot be read as YAML: it has more than {MOST_BRACKETS} brackets.")
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # makes texts, lists and dicts alone
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"yolo: {str(file)!r} cannot be read as YAML: {reason}") from None


def _names(file, content):
    names, stated = content["names"], content.get("nc")
    if isinstance(names, dict):
        indices = {number(key): name for key, name in names.items()}
        if not all(key is not None and 0 <= key < MOST_NAMES and key == int(key) for key in indices):
            raise ValueError(f"yolo: the names of {str(file)!r} need numbers from 0 as keys, got {list(names)[:6]}.")
        names = [indices.get(index, str(index)) for index in range(int(max(indices)) + 1)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"yolo: the names of {str(file)!r} are a list of texts, or texts by number.")
    if stated is not None and number(stated) != len(names):
        raise ValueError(f"yolo: {str(file)!r} has {len(names)} names, but says nc: {str(stated)[:20]}; which is it?")
    return tuple(names)


def _splits(file, content):
    """The folders and lists of each split; a path that leads above the data set is taken as one within it."""
    base = content.get("path")
    bases = [file.parent / base] if isinstance(base, str) and base.strip("./") else []
    splits = {}
    for name, entries in content.items():
        if split_of(name) is None:
            continue
        entries = entries if isinstance(entries, list) else [entries]
        found = []
        for entry in entries:
            if isinstance(entry, str):
                found += existing(file.parent, bases, entry)
        if found:
            splits[name] = found
    return splits


def existing(home, bases, entry):
    """The path in a data set that an entry means, as a list; empty if there is none.

    What leads out of the data set, as `../train/images` and absolute paths, was right on another machine: leading parts
    are left out until a path exists.

    Args:
        home: Folder of the data set.
        bases: Folders within it that are tried first.
        entry: The path as the data set has it.
    """
    parts = pathlib.PureWindowsPath(entry).parts
    for name in (entry, *("/".join(parts[start:]) for start in range(1, len(parts)))):
        for base in (*bases, home):
            try:
                path = inside(home, os.path.relpath(inside(base, name), home))
            except ValueError:
                continue
            if path.exists():
                return [path]
    return []
