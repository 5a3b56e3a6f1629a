"""A directory of checkpoints of which there is a whole one, whenever the process that writes there dies.

A checkpoint is a folder: `arrays.bin` (the arrays, one after the other), `state.json` (where each lies, and all that is
no array) and `manifest.json` (size and SHA-256 of both). It is written beside the others, flushed and renamed; the
manifest comes last, and a folder without one was never finished. Nothing in it is unpickled.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import threading

import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by it
import numpy as np

from kvision.trackers.files import hold, release, replace_file, writable_directory

FORMAT = 1
NAME = re.compile(r"checkpoint-([0-9]{8})")
ARRAYS, STATE, MANIFEST = "arrays.bin", "state.json", "manifest.json"
PIECE = 1 << 24  # bytes written at once

_writers = {}  # the thread that writes into a directory, for all that this process opens there


class Snapshots:
    """The checkpoints in a directory.

    Args:
        directory: Where they lie; made where it is missing.
        keep: How many valid ones to keep.

    Raises:
        ValueError: If nothing can be written there.
    """

    def __init__(self, directory, keep=2):
        self.directory = writable_directory(directory).resolve()
        self.keep = keep
        self.damaged = {}  # why `newest` passed over a folder, by its name
        self._failure = None

    def hold(self):
        """Keep other processes from writing here, until `release` or the end of this one.

        Raises:
            ValueError: If another process does; the message names it.
        """
        lock = self.directory / "lock"
        lock.touch()
        try:
            hold(lock)
        except ValueError as error:
            raise ValueError(f"{error} It is {lock.read_text(errors='replace').strip() or 'unknown'}.") from error
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}")  # in place: the lock is on this very file

    def release(self):
        """Let other processes write here."""
        release(self.directory / "lock")

    def newest(self):
        """`(name, state, arrays)` of the newest checkpoint that is whole, or None; `damaged` tells of newer ones."""
        self.wait()
        self.damaged = {}
        for path in reversed(_folders(self.directory)):
            if not (path / MANIFEST).exists():
                continue  # the process died before it was done
            try:
                return path.name, *_read(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.damaged[path.name] = f"{type(error).__name__}: {error}"
        return None

    def save(self, state, arrays):
        """Begin to write a checkpoint; the arrays must not change any more. Waits for the one before.

        Args:
            state: What `json` can write.
            arrays: `{name: NumPy array}`.
        """
        self.wait()
        thread = threading.Thread(target=self._save, args=(state, arrays), name="kvision checkpoint")
        _writers[self.directory] = thread
        thread.start()

    def wait(self):
        """Wait until what was begun is written."""
        thread = _writers.pop(self.directory, None)
        if thread is not None:
            thread.join()

    def failure(self):
        """What went wrong since the last call, as an `OSError`, or None."""
        failure, self._failure = self._failure, None
        return failure

    def _save(self, state, arrays):
        folders = _folders(self.directory)
        number = 1 + max((int(NAME.fullmatch(path.name)[1]) for path in folders), default=0)
        partial = self.directory / f".checkpoint-{number:08d}.partial"
        try:
            _write(partial, self.directory / f"checkpoint-{number:08d}", state, arrays)
            _prune(self.directory, self.keep, self.damaged)
        except OSError as error:
            self._failure = error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write(partial, path, state, arrays):
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    index, offset = [], 0
    for name, array in arrays.items():
        index.append([name, str(array.dtype), list(array.shape), offset])
        offset += array.nbytes
    text = json.dumps({"format": FORMAT, "arrays": index, "state": state}).encode()
    facts = {
        ARRAYS: _write_file(partial / ARRAYS, (_bytes_of(array) for array in arrays.values())),
        STATE: _write_file(partial / STATE, [text]),
    }
    _flush_folder(partial)
    os.rename(partial, path)
    try:
        _flush_folder(path.parent)
        replace_file(path / MANIFEST, json.dumps({"format": FORMAT, "files": facts}))
        _flush_folder(path)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _write_file(path, blocks):
    """Write and flush a file; its size and hash."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for block in blocks:
            for begin in range(0, len(block), PIECE):
                piece = block[begin : begin + PIECE]
                file.write(piece)
                digest.update(piece)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _bytes_of(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _read(path):
    """The state and the arrays of a checkpoint; an OSError, ValueError, KeyError or TypeError if it is damaged."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    if manifest["format"] != FORMAT:
        raise ValueError(f"got format {manifest['format']}, expected {FORMAT}")
    contents = {}
    for name in (ARRAYS, STATE):
        contents[name] = (path / name).read_bytes()
        size, expected = len(contents[name]), manifest["files"][name]
        if size != expected["size"]:
            raise ValueError(f"{name} has {size} bytes, expected {expected['size']}")
        if hashlib.sha256(contents[name]).hexdigest() != expected["sha256"]:
            raise ValueError(f"{name} was altered: its SHA-256 is not the one in {MANIFEST}")
    state = json.loads(contents[STATE])
    arrays = {
        name: np.ndarray(shape, np.dtype(dtype), contents[ARRAYS], offset)
        for name, dtype, shape, offset in state["arrays"]
    }
    return state["state"], arrays


def _folders(directory):
    return sorted(path for path in directory.iterdir() if NAME.fullmatch(path.name))


def _prune(directory, keep, damaged):
    """Remove all but the newest `keep` whole checkpoints, and what a killed process left behind."""
    finished = [path for path in _folders(directory) if (path / MANIFEST).exists() and path.name not in damaged]
    for path in _folders(directory):
        if path not in finished[-keep:]:
            shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".checkpoint-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _flush_folder(path):
    """Make the names in a folder last; Windows does not open folders."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
