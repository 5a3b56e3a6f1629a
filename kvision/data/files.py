"""The files of a data set: which are found, in which order, which belong to a split, and text of any encoding."""

import hashlib
import os
import pathlib
import re

from kvision.errors import unknown

LEFT_OUT = ("__MACOSX",)  # what the zip files of a Mac add; hidden files and folders begin with a dot
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def natural(path):
    """Sorts names with numbers in them by the numbers: `2.jpg` before `10.jpg`."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], str(path)


def is_hidden(name):
    """Whether a file or folder is no part of a data set by its name."""
    return name.startswith(".") or name in LEFT_OUT


def walk(folder):
    """All files below a folder in natural order, through links, without what is hidden."""
    found = []
    seen = {str(parent) for parent in pathlib.Path(os.path.realpath(folder)).parents}
    for home, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(home)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [pathlib.Path(home, name) for name in files if not is_hidden(name)]
    return sorted(found, key=natural)


def sub_folders(folder):
    """The folders in a folder, in natural order, without what is hidden."""
    return sorted((path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)), key=natural)


def split_of(name):
    """`"train"`, `"val"` or `"test"` for the name of a folder such as `valid` or `train2017`; None for another."""
    stem = re.sub(r"[-_ ]?\d{4}$", "", name.lower())
    return next((split for split, names in SPLITS.items() if stem in names), None)


def homes(folder):
    """A folder, and those above it as far as it is one split of a data set, or its images."""
    found = [folder]
    while len(found) < 3 and (split_of(found[-1].name) or found[-1].name.lower() == "images"):
        found.append(found[-1].parent)
    return found


def named_split(kind, name, known):
    """The value of a split in `known`, by its name or by one that means the same."""
    if name in known:
        return known[name]
    alike = [key for key in known if split_of(name) is not None and split_of(key) == split_of(name)]
    if len(alike) != 1:
        raise unknown(kind, name, sorted(known, key=natural))
    return known[alike[0]]


def fraction(name):
    """Where a file lies in [0, 1): a hash of its name relative to the data set, uniform over many files."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def relative(path, folder):
    """The name of a file relative to its data set, alike on every system."""
    return pathlib.Path(os.path.relpath(path, folder)).as_posix()


def inside(folder, name, outside=False):
    """The path of a file that a data set names.

    Args:
        folder: Of the images.
        name: As the data set has it, relative to the folder; backslashes will do.
        outside: Whether it may lie elsewhere.

    Raises:
        ValueError: If it lies outside the folder.
    """
    if "\0" in name or not name.strip() or len(name) > 3000 or max(map(len, re.split(r"[\\/]", name))) > 250:
        raise ValueError(f"{name[:60]!r} is no name of a file")
    folder = pathlib.Path(folder)
    path = folder / name
    if "\\" in name and not path.is_file():
        path = folder / name.replace("\\", "/")
    lexical = os.path.relpath(os.path.normpath(path), os.path.normpath(folder))
    leaves = lexical == ".." or lexical.startswith(".." + os.sep) or pathlib.PureWindowsPath(name).drive
    if not outside and (leaves or pathlib.PurePath(name).is_absolute()):
        raise ValueError(f"{name!r} leads out of the folder {str(folder)!r}; pass outside=True if that is meant")
    return path


def read_text(path):
    """The text of a file in UTF-8 or UTF-16, with a byte order mark or without, else in Latin-1."""
    content = pathlib.Path(path).read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    if content[:200].count(0) > len(content[:200]) // 3:
        return content.decode("utf-16-le" if content[1:2] == b"\0" else "utf-16-be", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
