"""The configuration of a run, as W&B and the report record it: what the model tells, and no secrets."""

import importlib
import json
import math
import platform
import re

import keras

import kvision

_SECRET_NAME = re.compile(
    r"(^|_)((api|access|private|secret|auth|wandb)_?keys?|tokens?|secrets?|passwords?|passwd|pwd|passphrase|"
    r"credentials?|auth|authorization|jwt)$"
)
_KEY_NAME = re.compile(r"(^|_)key$")
_KEY_TEXT = re.compile(r"[\w-]{20,}")


def check_config(config):
    """Raise on a `config` of the user that is neither None nor a dict."""
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"config must be a dict: got {type(config).__name__}. Give vars(config) or dict(config).")


def config_of(model):
    """The configuration of a compiled model; what the model cannot tell is left out.

    Returns:
        A dict that JSON can hold: `compile`, `optimizer`, `parameters`, `trainable_parameters`, `versions`.
    """
    backend = keras.backend.backend()
    parts = {
        "compile": model.get_compile_config,
        "optimizer": lambda: {"class_name": type(model.optimizer).__name__, **model.optimizer.get_config()},
        "parameters": model.count_params,
        "trainable_parameters": lambda: sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "versions": lambda: {
            "kvision": kvision.__version__,
            "keras": keras.__version__,
            "backend": f"{backend} {importlib.import_module(backend).__version__}",
            "python": platform.python_version(),
        },
    }
    config = {}
    for name, tell in parts.items():
        try:
            config[name] = json.loads(json.dumps(tell(), default=str))
        except Exception:  # an unbuilt model, a loss that cannot be serialized: the run is better off without the entry
            continue
    return config


def mask_secrets(config):
    """`config` with text under a name that reads like a secret replaced by `"***"`, at any depth.

    Returns:
        The new dict, and the names that were masked, joined by dots.
    """
    masked = []

    def clean(value, path):
        if _is_secret(path[-1], value) if path else False:
            masked.append(".".join(path))
            return "***"
        if isinstance(value, dict):
            return {key: clean(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, (*path, str(index))) for index, item in enumerate(value)]
        return value

    return clean(config, ()), masked


def _is_secret(name, value):
    if value is None or isinstance(value, bool | int | float):
        return False
    if is_secret_name(name):
        return True
    return bool(_KEY_NAME.search(_words(name)) and isinstance(value, str) and _KEY_TEXT.fullmatch(value))


def is_secret_name(name):
    """Whether a name reads like that of a secret: `api_key`, `HF_TOKEN`, `db.password`, ..."""
    return bool(_SECRET_NAME.search(_words(name)))


def _words(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower().strip("_")
