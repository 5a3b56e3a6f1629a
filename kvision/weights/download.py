"""Published files, fetched on first use and kept."""

import hashlib
import os
import pathlib
import tempfile
import uuid

import keras

from kvision._keras import keras_home
from kvision.weights.files import TORCH_ENDINGS, import_torch


def download(row):
    """The path of a row's file, which is fetched if it is not here yet."""
    try:
        return pathlib.Path(_from_address(row) if "://" in row.repository else _from_hub(row))
    except (ImportError, _Altered):
        raise
    except Exception as error:  # offline mode, no network, no such file: each its own class
        raise ValueError(
            f"The weights {row.repository}/{row.file} are not downloaded yet and could not be fetched now "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Connect to the network once, or pass "
            "weights=None or the path of a file."
        ) from error


class _Altered(ValueError):
    """A file that is not the published one."""


def _from_hub(row):
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("Published weights are fetched by huggingface_hub: pip install 'kvision[weights]'") from None
    return huggingface_hub.hf_hub_download(row.repository, row.file)


def _from_address(row):
    """Fetched beside its place and renamed once it is whole: another process sees all of a file or none."""
    if row.file.endswith(TORCH_ENDINGS):
        import_torch(row.file)  # before anything is fetched
    home = keras_home()
    if not os.access(home, os.W_OK):
        home = os.path.join(tempfile.gettempdir(), ".keras")
        os.makedirs(home, exist_ok=True)
    path = pathlib.Path(home, "models", row.file)
    if path.is_file():
        _check_digits(path, row.file)
        return path
    address, beside = f"{row.repository}/{row.file}", f"{uuid.uuid4().hex}-{row.file}"
    fetched = pathlib.Path(keras.utils.get_file(beside, address, cache_dir=home, cache_subdir="models"))
    _check_digits(fetched, row.file)
    return fetched.replace(path)


def _check_digits(path, name):
    """Compare a file with the digits its name ends in."""
    expected = pathlib.PurePath(name).stem.rsplit("-", 1)[-1]
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if not got.startswith(expected):
        path.unlink(missing_ok=True)
        raise _Altered(
            f"{name} is not the file that was published: its sha256 begins with {got[: len(expected)]}, not with "
            f"{expected}. It was deleted; nothing of it was read. Likely cause: a download cut short, or altered on "
            "its way. Try again, or pass the path of a file fetched otherwise."
        )
