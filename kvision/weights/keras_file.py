"""Weight files of Keras, compared with what the model itself would save. Only arrays are read, a model's code is not.

Keras finds a layer by its class and number, `layers/conv2d_3`, and writes its name beside it. Where the numbers do not
fit, because a layer is missing or has another class, the names decide; those of the builder's `renames` too, since a
network of ours carries the names of its reference: a VGG those that an FCN knows as torchvision's.
"""

import contextlib
import functools
import math
import pathlib
import zipfile

import keras
import numpy as np

from kvision._keras import load_state, saved_state
from kvision.weights.comparison import Entry, compared, weights_of
from kvision.weights.files import MOST_EXPANSION, Refused, reading
from kvision.weights.sources import sources_of
from kvision.weights.torch_names import renamed


def load_keras(model, path):
    """Load a `.weights.h5` or `.keras` file; see `kvision.weights.load`."""
    sources = sources_of(model)
    groups, names = saved_state(model)
    owners = {id(variable): layer for layer, variable in weights_of(model)}
    of_layers = [group for group, values in groups.items() if any(id(value) in owners for value in values.values())]
    own = {(group, key): value for group in of_layers for key, value in groups[group].items()}
    with _opened(path) as file:
        arrays, file_names = _arrays(path, file)
        beside = {group for group, values in groups.items() if values} - set(of_layers)
        arrays = {place: array for place, array in arrays.items() if not _is_beside(place[0], beside)}
        places = _paired(own, names, arrays, file_names, sources)
        entries = [
            Entry(
                owners.get(id(value)),
                value,
                getattr(value, "path", "/".join(place)),
                _fitted(value.shape, arrays.get(places.get(place))),
            )
            for place, value in own.items()
        ]
        used = set(places.values())
        surplus = [
            f"{file_names.get(group, group)}/{key}"
            for group, key in arrays
            if (group, key) not in used and not any(map(sources.is_top, _named((group, key), file_names)[:-1]))
        ]
        fitted = compared(model, entries, surplus, len(arrays))
    place_of = {id(entry): place for entry, place in zip(entries, own, strict=True)}
    new = {group: dict(values) for group, values in groups.items()}
    for entry, array in fitted.arrays:
        group, key = place_of[id(entry)]
        new[group][key] = array
    before = [(variable, np.array(keras.ops.convert_to_numpy(variable))) for _, variable in weights_of(model)]
    try:
        load_state(model, new)
    except BaseException:  # a layer that loads in its own way, or no memory left
        for variable, value in before:
            variable.assign(value)
        raise
    return fitted


def saved_layers(path):
    """Where the layers with weights lie in a Keras file, such as `"layers/dense_1"`.

    Args:
        path: Of a `.weights.h5` or `.keras` file.

    Returns:
        A tuple of texts; the last part is the class of the layer, numbered. Empty for a file of another ending, and
        where there is none.

    Raises:
        ValueError: if the file is broken.
    """
    path = pathlib.Path(path)
    if not is_keras_file(path) or not path.is_file():
        return ()
    with _opened(path) as file:
        return tuple(dict.fromkeys(group for group, key in _arrays(path, file)[0]))


def is_keras_file(path):
    return pathlib.Path(path).name.endswith((".weights.h5", ".keras"))


@contextlib.contextmanager
def _opened(path):
    import h5py

    if not path.is_file():
        what = "is a folder: give the path of a file in it" if path.is_dir() else "does not exist"
        raise Refused(f"There is no weight file {str(path)!r}: it {what}.")
    with reading(path), contextlib.ExitStack() as stack:
        file = path
        if path.suffix == ".keras":
            file = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open("model.weights.h5"))
        yield stack.enter_context(h5py.File(file, "r"))


def _arrays(path, file):
    """`{(group, key): array}` of an open file, and the names of the layers by group; nothing is read yet."""
    import h5py

    arrays, names = {}, {}

    def visit(where, item):
        group, _, last = where.rpartition("/")
        if last == "vars" and "name" in item.attrs:
            names[group] = item.attrs["name"]
        if isinstance(item, h5py.Dataset):
            arrays[group.removesuffix("vars").rstrip("/"), last] = _Stored(path, where, item)

    file.visititems(visit)
    return arrays, names


class _Stored:
    """An array in an open file, whose header is checked before it is read."""

    def __init__(self, path, where, dataset):
        filters = dataset.id.get_create_plist().get_nfilters()
        stored = dataset.id.get_storage_size() * (MOST_EXPANSION if filters else 1)
        if dataset.external or dataset.is_virtual or dataset.nbytes > stored:
            raise Refused(
                f"Cannot read {str(path)!r}: {where!r} declares {dataset.nbytes:,} bytes of shape {dataset.shape}, "
                f"of which the file holds {dataset.id.get_storage_size():,}."
            )
        self.shape = dataset.shape
        self.dtype = np.dtype(dataset.attrs.get("dtype", dataset.dtype))  # HDF5 has no bfloat16: the name is beside it
        self._dataset = dataset

    def __array__(self, dtype=None, copy=None):
        array = np.array(self._dataset)
        array = array.view(self.dtype) if array.dtype.kind == "V" else array
        return array if dtype is None else array.astype(dtype)


class _Window:
    """The kernel [h·w·c, out] of a dense layer as that of a convolution whose window is the flattened map."""

    def __init__(self, stored, window):
        self.shape = (*window, stored.shape[1])
        self.dtype = stored.dtype
        self._stored = stored

    def __array__(self, dtype=None, copy=None):
        return self._stored.__array__(dtype).reshape(self.shape)


def _fitted(shape, stored):
    """What the file has for a weight of that shape; a dense kernel as a window where one is wanted."""
    is_dense = stored is not None and len(shape) == 4 and len(stored.shape) == 2
    if is_dense and stored.shape[0] == shape[0] * shape[1] * shape[2]:
        return _Window(stored, tuple(shape[:3]))
    return stored


def _is_beside(group, beside):
    """Whether an array belongs to an optimizer, a metric, a random generator or the preprocessing a network carries."""
    parts = group.split("/")
    return group in beside or parts[0] == "optimizer" or "preprocessing" in parts or "seed_generator" in group


def _paired(own, names, arrays, file_names, sources):
    """`{our place: the file's}` by the rule that makes most shapes fit: Keras's own, the names of the layers, or the
    names of a related network's layers."""
    rules = [(_same, _same)]
    if sources.top:
        rules += [(_named, _named), (_by_own_name, _by_own_name)]
        rules += [(functools.partial(_related, table), _unrelated) for table in sources.renames.values()]
    best, most = {}, (-1, 0)
    for our_rule, their_rule in rules:
        ours = {our_rule(place, names): place for place in own}
        theirs = {their_rule(place, file_names): place for place in arrays}
        if len(ours) < len(own) or len(theirs) < len(arrays):  # a name that comes twice
            continue
        pairs = {ours[key]: theirs[key] for key in ours if key in theirs}
        fitting = sum(
            tuple(own[place].shape) == tuple(_fitted(own[place].shape, arrays[other]).shape)
            for place, other in pairs.items()
        )
        misfits = math.inf if their_rule is _unrelated else len(pairs) - fitting  # others' names must fit more
        if (score := (fitting, -misfits)) > most:
            best, most = pairs, score
    return best


def _same(place, names):
    return place


def _by_own_name(place, names):
    return names.get(place[0]), place[1]


def _related(table, place, names):
    return renamed(".".join(_named(place, names)), table)


def _unrelated(place, names):
    return _related((), place, names)


def _named(place, names):
    """The names of a layer and of those around it, but for models, whose names users give."""
    group, key = place
    parts = group.split("/")
    around = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    chain = [names.get(part) for part in around if f"{part}/layers" not in around]
    return (*filter(None, chain), key)
