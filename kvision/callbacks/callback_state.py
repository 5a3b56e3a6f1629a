"""What the callbacks of a fit remember, as plain values and arrays, and the state of the random number generators."""

import os
import random

import keras
import numpy as np

from kvision._keras import callback_memory

PLAIN = (type(None), bool, int, float, str)


def pack(value, arrays, name):
    """`value` as what JSON can hold; arrays within it go to the dict `arrays`, under names that begin with `name`.

    Raises:
        TypeError: For what is neither plain, nor an array, nor made of such.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in PLAIN:
        return value
    if isinstance(value, list | tuple):
        packed = [pack(each, arrays, f"{name}/{index}") for index, each in enumerate(value)]
        return packed if type(value) is list else {"tuple": packed}
    if isinstance(value, dict):
        return {"dict": [[pack(key, arrays, name), pack(each, arrays, f"{name}/{key}")] for key, each in value.items()]}
    if isinstance(value, np.ndarray) or keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
        arrays[name] = np.array(keras.ops.convert_to_numpy(value))
        return {"array": name}
    raise TypeError(f"got {type(value).__name__}, expected numbers, text, arrays, and lists and dicts of them")


def unpack(packed, arrays):
    """What `pack` was given."""
    if isinstance(packed, list):
        return [unpack(each, arrays) for each in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "array":
        return np.array(arrays[content])
    if kind == "tuple":
        return tuple(unpack(each, arrays) for each in content)
    return {unpack(key, arrays): unpack(each, arrays) for key, each in content}


def labels_of(callbacks):
    """`{name: callback}` by which the callbacks of two fits are matched: the class, and which one of its kind."""
    seen, labels = {}, {}
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] = seen.get(kind, 0) + 1
        labels[f"{kind} {seen[kind]}"] = callback
    return labels


def has_memory(callback):
    """Whether a callback gives its memory by `get_state`, and takes it back by `set_state`."""
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def callback_states(callbacks, arrays):
    """`{label: packed memory}` of those that have one.

    Raises:
        ValueError: If `get_state` of one gives what cannot be kept.
    """
    states = {}
    for label, callback in labels_of(callbacks).items():
        state = _memory(callback)
        if state is None:
            continue
        try:
            states[label] = pack(state, arrays, f"callbacks/{label}")
        except TypeError as error:
            raise ValueError(
                f"The memory of a callback cannot be kept: {type(callback).__name__} {error}. Let its get_state() give "
                "such values."
            ) from error
    return states


def restore_callbacks(callbacks, states, arrays, only=lambda callback: True):
    """Give each callback its memory back, where `only(callback)`; the labels of memories that nobody took."""
    labels = labels_of(callbacks)
    for label, packed in states.items():
        callback = labels.get(label)
        if callback is not None and only(callback):
            _remember(callback, unpack(packed, arrays))
    return [label for label in states if label not in labels]


def _memory(callback):
    if has_memory(callback):
        return callback.get_state()
    if isinstance(callback, keras.callbacks.CSVLogger):
        return {"size": os.path.getsize(callback.filename)}
    return {name: vars(callback)[name] for name in callback_memory(callback) if name in vars(callback)} or None


def _remember(callback, state):
    if has_memory(callback):
        callback.set_state(state)
    elif isinstance(callback, keras.callbacks.CSVLogger):
        if os.path.getsize(callback.filename) > state["size"]:  # rows of epochs that are trained again
            os.truncate(callback.filename, state["size"])
        callback.append_header = state["size"] == 0
    else:
        vars(callback).update(state)


def random_states():
    """The states of Python's and NumPy's global generators, to be packed."""
    return {"python": random.getstate(), "numpy": np.random.get_state()}


def restore_random(states):
    """Put back what `random_states` gave."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
