"""Published files, fetched on first use and kept."""

import hashlib
import pathlib

import keras

from kvision.weights.files import TORCH_ENDINGS, import_torch


def download(row):
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
    if row.file.endswith(TORCH_ENDINGS):
        import_torch(row.file)  # before anything is fetched
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
