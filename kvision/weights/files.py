"""State dicts out of files, by their ending; no code of a file is run."""

import pathlib

TORCH_ENDINGS = (".pth", ".pt", ".bin")


def read_state(state_dict_or_path):
    if not isinstance(state_dict_or_path, str | pathlib.Path):
        return dict(state_dict_or_path)
    path = pathlib.Path(state_dict_or_path)
    if not path.is_file():
        raise ValueError(f"There is no weight file {str(path)!r}.")
    if path.suffix == ".safetensors":
        return read(path, _read_safetensors)
    if path.suffix in TORCH_ENDINGS:
        return read(path, _read_torch)
    raise ValueError(
        f"Cannot read weights from {str(path)!r}: the name must end in .weights.h5, .keras, .safetensors, .pth, .pt or "
        ".bin."
    )


def read(path, reader):
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
    return import_torch(path.name).load(path, map_location="cpu", weights_only=True)


def import_torch(name):
    try:
        import torch
    except ImportError:
        raise ImportError(f"Reading {name} needs torch: pip install torch, or take a .safetensors file.") from None
    return torch
