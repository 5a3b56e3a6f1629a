"""Attributes of an object that are other ones for a while."""

import contextlib


@contextlib.contextmanager
def replaced(attributes):
    """Instance attributes `(object, name, value)` replaced for a while, past Keras's tracking of attributes."""
    absent = object()
    before = [(vars(owner), name, vars(owner).get(name, absent)) for owner, name, _ in attributes]
    try:
        for owner, name, value in attributes:
            vars(owner)[name] = value
        yield
    finally:
        for namespace, name, value in before:
            if value is absent:
                namespace.pop(name, None)
            else:
                namespace[name] = value
