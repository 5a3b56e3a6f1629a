"""Loading weights into a model: all fits, or nothing is changed."""

import functools
import pathlib

import keras
import numpy as np

from kvision._keras import layers_of
from kvision.weights.checkpoint import most_found, network_state
from kvision.weights.download import download
from kvision.weights.files import read_state
from kvision.weights.keras_file import is_keras_file, load_keras
from kvision.weights.sources import sources_of
from kvision.weights.torch_names import SOURCES, keys_of, matched, renamed


def load(model, path):
    """Load a weight file into a model, by its ending.

    A network of kvision takes weights of another number of classes, or of its form with or without the classifier: the
    layers that a file does not fit stay fresh, and one line says which. A kernel for images of three channels is summed
    for those of one. Anything else that differs is refused.

    Args:
        model: The model; unchanged if anything does not fit.
        path: `.weights.h5` or `.keras` of Keras, of which only the arrays are read; or what `load_torch` takes.

    Returns:
        The model.

    Raises:
        ValueError: on another ending, a broken file, or weights of another network.
    """
    path = pathlib.Path(path)
    if is_keras_file(path):
        load_keras(model, path).tell(model)
        return model
    return load_torch(model, path)


def load_torch(model, state_dict_or_path, source=None, prefix=None):
    """Load the weights of the torch implementation a network equals.

    What a training saved is unpacked: a state dict inside other dicts, below a prefix such as `"module."`, or beside an
    optimizer; of several, an averaged copy (`"model_ema"`, `"teacher"`) comes first. One line says what was read.

    Args:
        model: A model built by `kvision.applications`.
        state_dict_or_path: `{key: array or tensor}`, as torch's `module.state_dict()` gives it; or the path of a
            `.safetensors` file or the `.safetensors.index.json` of one in parts (need no torch), or a `.pth`, `.pt`,
            `.bin`, `.ckpt` or `.pth.tar` file (need torch).
        source: Whose names the keys are: `"torchvision"`, `"timm"`, `"transformers"`, `"effdet"`, `"detr"` or
            `"torchfcn"`; None takes the one by which most weights are found.
        prefix: Where in the file the network lies, such as `"student."`; None looks for it.

    Returns:
        The model.

    Raises:
        ValueError: if keys or shapes differ, both ways: lists the first five (see `load` for what may differ). Also if
            the file is cut short, holds objects that code would have to make, or more than one network of this kind.
            The model is then unchanged.
        ImportError: if the file needs a package that is not installed.

    ```python
    model = kvision.applications.ResNet50()
    kvision.weights.load_torch(model, torchvision.models.resnet50().state_dict())
    ```
    """
    checkpoint = read_state(state_dict_or_path)
    source = source or _likely_source(model, checkpoint)
    _write(model, matched(model, _state(model, checkpoint, source, prefix), source))
    return model


def load_published(model, row):
    """Load a row of an architecture's `WEIGHTS`, downloading the file on first use; a head of other size stays fresh.

    A file of the Hub needs the extra `weights` and is kept in the cache of `huggingface_hub`, whose offline mode
    (`HF_HUB_OFFLINE=1`) and `HF_ENDPOINT` are honoured. A file of another address is kept in Keras's folder `models`
    (below `~/.keras`, or `KERAS_HOME`) and compared with its sha256 before it is read.

    Raises:
        ValueError: if the file is not here and cannot be fetched, or is not the published one, or does not fit; the
            model is then unchanged.
        ImportError: if the file needs a package that is not installed.
    """
    state = _state(model, read_state(download(row)), row.source)
    _write(model, matched(model, state if row.adapt is None else row.adapt(state), row.source))
    if row.epsilon is not None:
        set_epsilon(model, row.epsilon)
    if row.preprocessing is not None:
        model.preprocessing = row.preprocessing
    return model


def _write(model, fitted):
    before = []
    try:
        for entry, array in fitted.arrays:
            before.append((entry.variable, np.array(keras.ops.convert_to_numpy(entry.variable))))
            entry.variable.assign(array)
    except BaseException:  # no memory left, or interrupted
        for variable, value in before:
            variable.assign(value)
        raise
    fitted.tell(model)


def _likely_source(model, checkpoint):
    """The first source by whose names most of the model's weights are in a file."""
    expected = {source: keys_of(model, source) for source in SOURCES}
    distinct = [
        source for number, source in enumerate(SOURCES) if expected[source] not in list(expected.values())[:number]
    ]
    if len(distinct) == 1:
        return distinct[0]
    return max(distinct, key=lambda source: most_found(checkpoint, expected[source], _renaming(model, source)))


def _state(model, checkpoint, source, prefix=None):
    """`{key: array}` of the network in a checkpoint, older names brought to today's."""
    return network_state(model, checkpoint, keys_of(model, source), _renaming(model, source), prefix)


def _renaming(model, source):
    return functools.partial(_by_todays_names, sources_of(model).older_names.get(source, []))


def _by_todays_names(rules, state):
    names = {key: renamed(key, rules) for key in state}  # a key whose new name is taken keeps its own
    return {key if names[key] in state else names[key]: value for key, value in state.items()}


def set_epsilon(model, epsilon):
    """Give all batch normalisations of a model the epsilon its weights were trained with, which no weight file tells.

    Torchvision's COCO_V1 detectors are used with 0: `weights="coco"` sees to it; after loading such a file by its path
    call this, before the model is compiled or used. It is saved with the model.

    Args:
        model: The model; changed in place.
        epsilon: Added to the variance, >= 0.

    Returns:
        The model.

    ```python
    detector = kvision.applications.FasterRCNN(classes=90, weights="fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    kvision.weights.set_epsilon(detector, 0.0)
    ```
    """
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = float(epsilon)
    return model
