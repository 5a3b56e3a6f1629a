"""What files hold, by their ending; no code of a file is run, and no header is believed beyond the file's size."""

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import zipfile

import numpy as np

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
INDEX_ENDING = ".index.json"

# How many times its bytes in the file a compressed or repeated array may become; real weights hardly shrink at all.
MOST_EXPANSION = 1000

# https://github.com/huggingface/safetensors, "Format"; what NumPy itself lacks comes with Keras, from ml_dtypes.
SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "BOOL": "bool",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
}


class Refused(ValueError):
    """A fault that we found, told in full."""


@contextlib.contextmanager
def reading(path):
    """Turn whatever a reader raises for a broken file into one ValueError that says what to do."""
    try:
        yield
    except (ImportError, Refused):
        raise
    except Exception as error:  # every reader has errors of its own for a broken file
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise Refused(
                f"Cannot read {str(path)!r}: beside tensors it holds {code[1]}, an object made by code. No code of it "
                "was run. If you trust the file, load it by torch.load(..., weights_only=False) and save its state "
                'dict alone, such as torch.save(checkpoint["state_dict"], "weights.pth").'
            ) from error
        lines = str(error).splitlines() or [""]
        raise Refused(
            f"Cannot read {str(path)!r}: it is cut short, or no file of its ending ({type(error).__name__}: "
            f"{lines[0][:200]}). No code of it was run. Fetch the file again, or convert it to .safetensors."
        ) from error


def read_state(state_dict_or_path):
    """The dict given, or what a file holds: arrays by their names, perhaps nested."""
    if not isinstance(state_dict_or_path, str | os.PathLike):
        return dict(state_dict_or_path)
    path = pathlib.Path(state_dict_or_path)
    if not path.is_file():
        what = "is a folder: give the path of a file in it" if path.is_dir() else "does not exist"
        raise Refused(f"There is no weight file {str(path)!r}: it {what}.")
    if path.name.endswith(INDEX_ENDING):
        return _read_shards(path)
    if part := re.search(r"-\d+-of-0*(\d+)(?=\.\w+$)", path.name):
        whole = path.name[: part.start()] + path.name[part.end() :]
        if int(part[1]) > 1:
            raise Refused(
                f"{path.name} is one of {int(part[1])} parts of a network: pass {whole}{INDEX_ENDING} beside it."
            )
    return _read_file(path)


def _read_file(path):
    if path.suffix == ".safetensors":
        reader = _read_safetensors
    elif path.name.endswith(TORCH_ENDINGS):
        reader = _read_torch
    else:
        raise Refused(
            f"Cannot read weights from {str(path)!r}: the name must end in .weights.h5, .keras, .safetensors, "
            f"{INDEX_ENDING} or {', '.join(TORCH_ENDINGS)}."
        )
    with reading(path):
        state = reader(path)
        if not hasattr(state, "items"):
            raise Refused(f"Cannot read {str(path)!r}: it holds a {type(state).__name__}, not tensors by their names.")
        return dict(state)


def _read_shards(path):
    """The parts of a network that `path` lists, all in its folder."""
    with reading(path):
        parts = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        names = sorted(set(parts.values()))
        if outside := [name for name in names if pathlib.PurePath(name).name != name]:
            raise Refused(f"{path.name} lists {outside[0]!r}: its parts must lie in its own folder.")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise Refused(
            f"{path.name} lists {len(names)} parts, of which {len(missing)} are not in {str(path.parent)!r}: "
            f"{', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}. Fetch them too."
        )
    state = {}
    for name in names:
        part = _read_file(path.parent / name)
        state |= {key: value for key, value in part.items() if parts.get(key) == name}
    if lacking := [key for key in parts if key not in state]:
        raise Refused(f"{path.name} lists {lacking[0]!r} in {parts[lacking[0]]}, which does not hold it.")
    return state


def _read_safetensors(path):
    """Arrays that are read from the disk when they are looked into."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise Refused(f"Cannot read {str(path)!r}: it is cut short, its header alone has {length:,} bytes.")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    held = size - 8 - length
    data = np.memmap(path, "uint8", "r", offset=8 + length) if held else np.zeros(0, "uint8")
    arrays = {}
    for key, entry in header.items():
        dtype, shape = np.dtype(SAFETENSORS_TYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        declared = math.prod(shape) * dtype.itemsize
        if min((*shape, begin)) < 0 or end - begin != declared or end > held:
            raise Refused(
                f"Cannot read {str(path)!r}: it is cut short or altered, {key!r} declares {declared:,} bytes, "
                f"{begin:,} to {end:,} of {held:,}."
            )
        arrays[key] = data[begin:end].view(dtype).reshape(shape)
    return arrays


def _read_torch(path):
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            declared = sum(part.file_size for part in archive.infolist())
        if declared > size:
            raise Refused(f"Cannot read {str(path)!r}: it declares {declared:,} bytes, the file has {size:,}.")
    torch = import_torch(path.name)
    with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a script, beside its tensors
        return torch.load(path, map_location="cpu", weights_only=True)


def import_torch(name):
    try:
        import torch
    except ImportError:
        raise ImportError(f"Reading {name} needs torch: pip install torch, or take a .safetensors file.") from None
    return torch
