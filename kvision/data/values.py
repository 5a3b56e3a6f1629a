"""Numbers, flags and ids as annotation files hold them: as numbers, or as text."""

import math
import re

YES = ("1", "1.0", "true", "yes", "y")


def number(value):
    """A finite float, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def floats(values, count):
    """A tuple of `count` floats, which may not be finite, from a list or a text; None for anything else."""
    if isinstance(values, str):
        values = re.split(r"[\s,;]+", values.strip(" \t\r\n[]()"))
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if len(found) == count else None


def flag(value):
    """Whether a value says yes: `1`, `true`, `"1"`, `"true"`."""
    return str(value).strip().lower() in YES


def key(value):
    """An id: an int for `3`, `3.0` and `"3"`, the text for another text; None for what is no id."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) < 20 and re.fullmatch(r"0|-?[1-9]\d*", value, re.ASCII):
        return int(value)
    return value if isinstance(value, int | str) else None


def pixels(height, width):
    """(height, width) of an image as whole numbers, or None where a file does not state them."""
    size = number(height), number(width)
    if None in size or not all(1 <= side < 1e9 and side == int(side) for side in size):
        return None
    return int(size[0]), int(size[1])
