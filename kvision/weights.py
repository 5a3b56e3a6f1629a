"""Reading weights that others trained. The only room that knows foreign file formats.

A network of kvision carries its reference's own names, so a torch key follows from a weight's path by the leaf rules
below; what differs beyond that stands in the architecture's `RENAMES`. All shapes are compared before anything is
written: on a mismatch nothing changes. No file can run code: torch's are read with `weights_only=True`, safetensors and
HDF5 hold arrays alone.
"""

import collections.abc
import dataclasses
import hashlib
import json
import pathlib
import re
import tempfile
import zipfile

import keras
import numpy as np

from kvision._keras import inbound_nodes, layers_of, own_variables, print_message, producer
from kvision.errors import unknown

SOURCES = ("torchvision", "timm", "transformers")

# How a weight of ours is called in torch. Others keep their name.
_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

_OF_TORCH = (".pth", ".pt", ".bin")

# Entries of a state dict that are no weights: counters, and constants that follow from the architecture.
_NOT_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of an architecture's `WEIGHTS`: where weights lie that others published, and what they reach.

    Args:
        repository, file: On the Hugging Face Hub; or an address (`"https://…"`) and a file below it, whose name ends in
            `-` and the first digits of its sha256.
        source: Whose names the file carries: `"torchvision"`, `"timm"` or `"transformers"`.
        licence: Of the weights.
        accuracy: Published, in percent: top-1 on the 50,000 validation images of ImageNet; of a detector, the AP of
            its boxes on COCO's val2017.
        resizing: What the images go through before `preprocessing`, in words.
        head: Names of the layers that depend on the number of classes.
        mask_ap: The AP of its masks on COCO's val2017, in percent, if it has masks.
        epsilon: Of the batch normalisations in use with these weights; None: the model's own.
        preprocessing: What RGB images of 0…255 go through with these weights, a serializable object such as
            `kvision.network.Preprocessing`; None: the family's own.
    """

    repository: str
    file: str
    source: str
    licence: str
    accuracy: float
    resizing: str
    head: tuple
    mask_ap: float | None = None
    epsilon: float | None = None
    preprocessing: collections.abc.Callable | None = None

    def get_config(self):
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        preprocessing = keras.saving.serialize_keras_object(self.preprocessing)
        return config | {"head": list(self.head), "preprocessing": preprocessing}

    @classmethod
    def from_config(cls, config):
        preprocessing = keras.saving.deserialize_keras_object(config["preprocessing"])
        return cls(**config | {"head": tuple(config["head"]), "preprocessing": preprocessing})


@keras.saving.register_keras_serializable("kvision")
@dataclasses.dataclass(frozen=True)
class WeightSources:
    """What a builder knows of weights from elsewhere; a `kvision.network.Network` keeps it through save and load.

    Args:
        renames: `{source: [(pattern, replacement), …]}`, applied to the keys that follow from our paths.
        published: `{name: Published}`.
        older_names: `{source: [(pattern, replacement), …]}`, from the names that older files carry to today's, applied
            to the keys of a file.
    """

    renames: dict = dataclasses.field(default_factory=dict)
    published: dict = dataclasses.field(default_factory=dict)
    older_names: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("renames", "older_names"):
            tables = {source: tuple(map(tuple, rules)) for source, rules in getattr(self, name).items()}
            object.__setattr__(self, name, tables)

    def get_config(self):
        rules = [rule for table in (self.renames, self.older_names) for rules in table.values() for rule in rules]
        if computed := [pattern for pattern, replacement in rules if not isinstance(replacement, str)]:
            raise ValueError(
                f"The names of foreign weights cannot be saved with the model: a function computes the rule for "
                f"{computed[0]!r}. Write it as rules whose replacement is text."
            )
        return {
            "renames": self.renames,
            "published": {name: row.get_config() for name, row in self.published.items()},
            "older_names": self.older_names,
        }

    @classmethod
    def from_config(cls, config):
        published = {name: Published.from_config(row) for name, row in config["published"].items()}
        return cls(config["renames"], published, config["older_names"])


def remember(model, renames=None, published=None, older_names=None):
    """Tell a model what its builder knows of weights from elsewhere; arguments as those of `WeightSources`."""
    model.weight_sources = WeightSources(renames or {}, published or {}, older_names or {})


def published_names(model):
    """Names of the published weights that a model as built can load."""
    return tuple(_sources_of(model).published)


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
    _write(_matched(model, _state(model, state_dict_or_path, source), source))
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
    state = _state(model, _download(row), row.source)
    own = {layer.name: layer for layer in layers_of(model)}
    fresh = [name for name in row.head if name in own and not _fits(model, own[name], state, row.source)]
    loaded = [name for name in row.head if name in own and name not in fresh]
    kept = {_torch_key(weight.path, _rules(model, row.source)) for name in loaded for weight in own[name].weights}
    heads = {
        _torch_key(f"{name}/{leaf}", _rules(model, row.source)) for name in row.head for leaf in ("kernel", "bias")
    }
    state = {key: value for key, value in state.items() if key in kept or key not in heads}
    _write(_matched(model, state, row.source, skip=fresh))
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
        return _load_keras(model, path)
    return load_torch(model, path)


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


# Torch's names and layouts


def _matched(model, state, source, skip=()):
    """`[(variable, array)]` for every weight of the model, or the ValueError that says what does not fit."""
    rules = _rules(model, source)
    left = {key: value for key, value in state.items() if not key.endswith(_NOT_WEIGHTS)}
    count = len(left)
    pairs, faults = [], []
    for layer, variable in _weights(model):
        if layer.name in skip:
            continue
        key = _torch_key(variable.path, rules)
        if key not in left:
            faults.append(f"{variable.path}: wants {tuple(variable.shape)} from {key!r}, which is not there")
            continue
        array = _from_torch(layer, variable, _numpy(left.pop(key)))
        if array.shape != tuple(variable.shape):
            faults.append(f"{variable.path}: wants {tuple(variable.shape)}, {key!r} gives {array.shape}")
        pairs.append((variable, array))
    faults += [f"{key!r} of the file has no counterpart in the model" for key in left]
    if faults:
        raise _mismatch(model, faults, count)
    return pairs


def _write(pairs):
    for variable, array in pairs:
        variable.assign(array)


def _rules(model, source):
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    return _sources_of(model).renames.get(source, [])


def _sources_of(model):
    return getattr(model, "weight_sources", None) or WeightSources()


def _weights(model):
    """Every weight with the layer that owns it, nested models included; states of random generators left out."""
    seen = set()
    for layer in layers_of(model):
        for variable in own_variables(layer):
            if id(variable) not in seen and not variable.path.endswith("seed_generator_state"):
                seen.add(id(variable))
                yield layer, variable


def _torch_key(path, rules):
    *modules, leaf = path.split("/")
    return _renamed(".".join([*modules, _LEAVES.get(leaf, leaf)]), rules)


def _renamed(key, rules):
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _numpy(value):
    return value.detach().cpu().float().numpy() if hasattr(value, "detach") else np.asarray(value)


def _from_torch(layer, variable, array):
    """Torch counts channels first and keeps dense kernels transposed."""
    leaf = variable.path.rsplit("/", 1)[-1]
    if leaf == "kernel" and isinstance(layer, keras.layers.DepthwiseConv2D):
        return np.transpose(array, (2, 3, 0, 1))
    if leaf == "kernel" and array.ndim == 4:
        array = np.transpose(array, (2, 3, 1, 0))
        return array.reshape(-1, array.shape[-1]) if isinstance(layer, keras.layers.Dense) else array
    if leaf == "kernel" and isinstance(layer, keras.layers.Dense):
        return _after_flatten(layer, array).T
    return layer.fit_weight(array) if hasattr(layer, "fit_weight") else array


def _after_flatten(layer, array):
    """A dense kernel [out, c·h·w] that follows a flattened map, reordered to [out, h·w·c]."""
    if not inbound_nodes(layer):  # a part of another layer, where Keras keeps no graph
        return array
    operation = producer(layer.input)
    while isinstance(operation, keras.layers.Dropout):
        operation = producer(operation.input)
    if not isinstance(operation, keras.layers.Flatten) or len(operation.input.shape) != 4:
        return array
    height, width, channels = operation.input.shape[1:]
    maps = array.reshape(len(array), channels, height, width)
    return np.transpose(maps, (0, 2, 3, 1)).reshape(array.shape)


def _fits(model, layer, state, source):
    """Whether the file's arrays for one layer have the shapes of its weights."""
    rules = _rules(model, source)
    keys = {_torch_key(variable.path, rules): variable for variable in layer.weights}
    return all(
        key in state and _from_torch(layer, variable, _numpy(state[key])).shape == tuple(variable.shape)
        for key, variable in keys.items()
    )


def _mismatch(model, faults, count):
    shown = "\n  ".join(faults[:5])
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    return ValueError(
        f"These weights are not {model.name}'s: it has {len(list(_weights(model)))} weights, the file {count}; nothing "
        f"was changed.\n  {shown}{more}\nLikely cause: {_likely_cause(faults)}"
    )


def _likely_cause(faults):
    if all("not there" in fault for fault in faults):
        return "the file lacks layers: was it saved with include_top=False, or under other names (source=)?"
    if all("no counterpart" in fault for fault in faults):
        return "the model lacks layers: was it built with include_top=False, or is it another variant?"
    if len(faults) <= 2 and not any("no counterpart" in fault or "not there" in fault for fault in faults):
        return "another number of classes: build the model with the file's, or give include_top=False."
    return "another variant, or a file of another source (source=)."


# Files


def _state(model, state_dict_or_path, source):
    """`{key: array}` of a state dict or of a file that holds one, older names brought to today's."""
    state = _read_state(state_dict_or_path)
    rules = _sources_of(model).older_names.get(source, [])
    names = {key: _renamed(key, rules) for key in state}  # a key whose new name is taken keeps its own
    return {key if names[key] in state else names[key]: value for key, value in state.items()}


def _read_state(state_dict_or_path):
    if not isinstance(state_dict_or_path, str | pathlib.Path):
        return dict(state_dict_or_path)
    path = pathlib.Path(state_dict_or_path)
    if not path.is_file():
        raise ValueError(f"There is no weight file {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _read(path, _read_safetensors)
    if path.suffix in _OF_TORCH:
        return _read(path, _read_torch)
    raise ValueError(
        f"Cannot read weights from {str(path)!r}: the name must end in .weights.h5, .keras, .safetensors, .pth, .pt or "
        ".bin."
    )


def _read(path, reader):
    try:
        state = reader(path)
    except ImportError:
        raise
    except Exception as error:  # every reader has errors of its own for a broken file
        raise ValueError(
            f"Cannot read {str(path)!r}: it is cut short, or holds more than tensors ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}). No code of it was run. Fetch the file again, or convert it to "
            ".safetensors."
        ) from error
    return state.get("state_dict", state) if isinstance(state, dict) else state


def _read_safetensors(path):
    try:
        from safetensors import safe_open
    except ImportError:
        raise ImportError("Reading .safetensors needs safetensors: pip install 'kvision[weights]'") from None
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (the file is no dict)


def _read_torch(path):
    return _torch(path.name).load(path, map_location="cpu", weights_only=True)


def _torch(name):
    try:
        import torch
    except ImportError:
        raise ImportError(f"Reading {name} needs torch: pip install torch, or take a .safetensors file.") from None
    return torch


def _download(row):
    has_address = "://" in row.repository
    try:
        path = pathlib.Path(_from_address(row) if has_address else _from_hub(row))
    except ImportError:
        raise
    except Exception as error:  # offline mode, no network, no such file: each its own class
        raise ValueError(
            f"The weights {row.repository}/{row.file} are not downloaded yet and could not be fetched now "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Connect to the network once, or pass "
            "weights=None or the path of a file."
        ) from error
    if has_address:
        _check_digits(path)
    return path


def _from_hub(row):
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("Published weights are fetched by huggingface_hub: pip install 'kvision[weights]'") from None
    return huggingface_hub.hf_hub_download(row.repository, row.file)


def _from_address(row):
    if row.file.endswith(_OF_TORCH):
        _torch(row.file)  # before anything is fetched
    return keras.utils.get_file(row.file, f"{row.repository}/{row.file}", cache_subdir="models")


def _check_digits(path):
    """Compare a file with the digits its name ends in."""
    expected = path.stem.rsplit("-", 1)[-1]
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if not got.startswith(expected):
        path.unlink()
        raise ValueError(
            f"{path.name} is not the file that was published: its sha256 begins with {got[: len(expected)]}, not with "
            f"{expected}. It was deleted; nothing of it was read. Likely cause: a download cut short, or altered on "
            "its way. Try again, or pass the path of a file fetched otherwise."
        )


def _load_keras(model, path):
    """A Keras file, compared with what the model itself would save before anything is written."""
    if not path.is_file():
        raise ValueError(f"There is no weight file {str(path)!r}.")
    if path.suffix == ".keras":
        _refuse_code(path)
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder, "own.weights.h5")
        model.save_weights(own)
        expected, found = _shapes(own, own.name), _read(path, lambda file: _shapes(file, file.name))
    faults = [f"{key}: wants {shape}, which is not there" for key, shape in expected.items() if key not in found]
    faults += [
        f"{key}: wants {shape}, the file gives {found[key]}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape and not _fitted(model, shape, found[key])
    ]
    faults += [f"{key!r} of the file has no counterpart in the model" for key in found if key not in expected]
    if faults:
        raise _mismatch(model, faults, len(found))
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

    def read(path):
        with zipfile.ZipFile(path) as archive:
            return {"classes": set(classes(json.loads(archive.read("config.json"))))}

    if _read(path, read)["classes"] & {"Lambda", "__lambda__"}:
        raise ValueError(
            f"{str(path)!r} holds a Lambda layer, which is code of whoever made it; it was not run and nothing was "
            "loaded. Ask for a .weights.h5 file."
        )
