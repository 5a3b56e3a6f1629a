"""Loading weights into a model: all fits, or nothing is changed."""

import pathlib

import keras

from kvision._keras import layers_of, print_message
from kvision.weights.download import download
from kvision.weights.files import read_state
from kvision.weights.keras_file import load_keras
from kvision.weights.sources import sources_of
from kvision.weights.torch_names import fits, matched, renamed, rules_of, torch_key, write


def load(model, path):
    """Load a weight file into a model, by its ending.

    Args:
        model: The model; unchanged if anything does not fit.
        path: `.weights.h5` or `.keras` of Keras; `.safetensors`, `.pth`, `.pt` or `.bin` of torchvision.

    Returns:
        The model.

    Raises:
        ValueError: on another ending, a broken file, weights of another network, or a `.keras` file that holds code.
    """
    path = pathlib.Path(path)
    if path.name.endswith((".weights.h5", ".keras")):
        return load_keras(model, path)
    return load_torch(model, path)


def load_torch(model, state_dict_or_path, source="torchvision"):
    """Load the weights of the torch implementation a network equals.

    Args:
        model: A model built by `kvision.applications`.
        state_dict_or_path: `{key: array or tensor}`, as torch's `module.state_dict()` gives it, or the path of a
            `.safetensors` file (needs no torch) or a `.pth`, `.pt` or `.bin` file (needs torch).
        source: Whose names the keys are: `"torchvision"`, `"timm"` or `"transformers"`.

    Returns:
        The model.

    Raises:
        ValueError: if keys or shapes differ, both ways: lists the first five. Also if the file is cut short or holds
            more than tensors. The model is then unchanged.
        ImportError: if the file needs a package that is not installed.

    ```python
    model = kvision.applications.ResNet50()
    kvision.weights.load_torch(model, torchvision.models.resnet50().state_dict())
    ```
    """
    write(matched(model, _state(model, state_dict_or_path, source), source))
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
    state = _state(model, download(row), row.source)
    own = {layer.name: layer for layer in layers_of(model)}
    fresh = [name for name in row.head if name in own and not fits(model, own[name], state, row.source)]
    loaded = [name for name in row.head if name in own and name not in fresh]
    kept = {torch_key(weight.path, rules_of(model, row.source)) for name in loaded for weight in own[name].weights}
    heads = {
        torch_key(f"{name}/{leaf}", rules_of(model, row.source)) for name in row.head for leaf in ("kernel", "bias")
    }
    state = {key: value for key, value in state.items() if key in kept or key not in heads}
    write(matched(model, state, row.source, skip=fresh))
    if row.epsilon is not None:
        set_epsilon(model, row.epsilon)
    if row.preprocessing is not None:
        model.preprocessing = row.preprocessing
    if fresh:
        start = "starts" if len(fresh) == 1 else "start"
        print_message(
            f"{model.name}: {', '.join(fresh)} {start} fresh: the published weights have another number of classes."
        )
    return model


def _state(model, state_dict_or_path, source):
    """`{key: array}` of a state dict or of a file that holds one, older names brought to today's."""
    state = read_state(state_dict_or_path)
    rules = sources_of(model).older_names.get(source, [])
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
