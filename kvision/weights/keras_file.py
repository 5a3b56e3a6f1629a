"""Weight files of Keras, compared with what the model itself would save."""

import json
import pathlib
import tempfile
import zipfile

import numpy as np

from kvision._keras import layers_of
from kvision.weights.comparison import mismatch
from kvision.weights.files import read


def load_keras(model, path):
    """A Keras file, compared with what the model itself would save before anything is written."""
    if not path.is_file():
        raise ValueError(f"There is no weight file {str(path)!r}.")
    if path.suffix == ".keras":
        _refuse_code(path)
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder, "own.weights.h5")
        model.save_weights(own)
        expected, found = _shapes(own, own.name), read(path, lambda file: _shapes(file, file.name))
    faults = [f"{key}: wants {shape}, which is not there" for key, shape in expected.items() if key not in found]
    faults += [
        f"{key}: wants {shape}, the file gives {found[key]}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape and not _fitted(model, shape, found[key])
    ]
    faults += [f"{key!r} of the file has no counterpart in the model" for key in found if key not in expected]
    if faults:
        raise mismatch(model, faults, len(found))
    model.load_weights(path)
    return model


def _fitted(model, wanted, given):
    """Whether a layer of the model makes its weight of shape `wanted` from one of shape `given` as it loads."""
    for layer in layers_of(model):
        if hasattr(layer, "fit_weight") and wanted in [tuple(weight.shape) for weight in layer.weights]:
            try:
                return layer.fit_weight(np.zeros(given, "float32")).shape == wanted
            except ValueError:
                return False
    return False


def _shapes(path, name):
    """`{path: shape}` of the arrays in a Keras weight file; those of the optimizer are left out."""
    import h5py

    shapes = {}

    def visit(key, item):
        if isinstance(item, h5py.Dataset) and not key.startswith("optimizer") and "seed_generator" not in key:
            shapes[key] = tuple(item.shape)

    if name.endswith(".keras"):
        with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as file:
            file.visititems(visit)
    else:
        with h5py.File(path) as file:
            file.visititems(visit)
    return shapes


def _refuse_code(path):
    def classes(config):
        if isinstance(config, dict):
            yield config.get("class_name")
            for value in config.values():
                yield from classes(value)
        elif isinstance(config, list):
            for value in config:
                yield from classes(value)

    def class_names(path):
        with zipfile.ZipFile(path) as archive:
            return {"classes": set(classes(json.loads(archive.read("config.json"))))}

    if read(path, class_names)["classes"] & {"Lambda", "__lambda__"}:
        raise ValueError(
            f"{str(path)!r} holds a Lambda layer, which is code of whoever made it; it was not run and nothing was "
            "loaded. Ask for a .weights.h5 file."
        )
