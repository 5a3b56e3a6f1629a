"""Errors about names: what was got, and the nearest names that exist."""

import difflib


def unknown(kind, got, known):
    """The ValueError for a name that does not exist; lists the three nearest (or all, when there are few).

    Args:
        kind: What the name names, as the user knows it: `"norm"`, `"ResNet variant"`.
        got: The name the user gave.
        known: The names that exist.

    Returns:
        A ValueError, to be raised by the caller.

    >>> str(unknown("norm", "bach", ["batch", "group"]))
    "Unknown norm: got 'bach'. The known names are: 'batch', 'group'."
    """
    known = [str(name) for name in known]
    near = known if len(known) <= 6 else _nearest(str(got), known)
    listed = ", ".join(repr(name) for name in near)
    label = "known" if len(known) <= 6 else "nearest"
    return ValueError(f"Unknown {kind}: got {got!r}. The {label} names are: {listed}.")


def _nearest(got, known):
    """The three names most like `got`, in capitals or not."""
    likeness = {name: difflib.SequenceMatcher(None, got.lower(), name.lower()).ratio() for name in known}
    return sorted(known, key=likeness.get, reverse=True)[:3]


def choose(kind, table, name):
    """`table[name]`, or the ValueError of `unknown`."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def checked_names(owner, names, count=None):
    """Names of `count` classes as a tuple of texts, or None; the ValueError that says what was got otherwise."""
    if names is None:
        return None
    checked = (names,) if isinstance(names, str) else tuple(names)
    if isinstance(names, str) or not all(isinstance(name, str) for name in checked):
        raise ValueError(
            f"{owner}: class_names are texts in the order of the labels, such as ('cat', 'dog'): got {names!r}."
        )
    if count is not None and len(checked) != count:
        raise ValueError(f"{owner} has {count} classes: class_names must be as many, got {len(checked)}.")
    return checked
