"""Writing files so that a run which dies leaves either the old file or the new one, and no two runs write one."""

import contextlib
import os
import pathlib
import tempfile

with contextlib.suppress(ImportError):  # Windows has no such locks: two runs in one directory are not noticed there
    import fcntl

_held = {}  # descriptors of the files that this process has locked, by path


def writable_directory(path):
    """Create the directory `path` where it is missing and prove that files can be created in it.

    Args:
        path: The directory, as a string or path.

    Returns:
        The directory as a `pathlib.Path`.

    Raises:
        ValueError: If the directory cannot be created or written to.
    """
    directory = pathlib.Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ValueError(
            f"Cannot write to a directory: got {readable(directory)!r} ({error.strerror}), expected a directory in "
            "which files can be created. Choose another directory, or mend its path or its permissions."
        ) from error
    return directory


def hold(path):
    """Keep a file for this process until `release`, or its end; the system lets go of it even after a kill.

    Args:
        path: The file, which exists.

    Raises:
        ValueError: If another process holds it.
    """
    path = pathlib.Path(path).resolve()
    if "fcntl" not in globals() or (path in _held and os.path.samestat(os.fstat(_held[path]), path.stat())):
        return
    release(path)
    descriptor = os.open(path, os.O_RDWR)  # open for as long as the file is held
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"Another process is writing to a directory: got {readable(path.parent)!r}, expected one that no other "
            "running training records in. Choose another directory, or end that process."
        ) from error
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _held[path] = descriptor


def release(path):
    """Let other processes have a file again."""
    descriptor = _held.pop(pathlib.Path(path).resolve(), None)
    if descriptor is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # which a process that was forked in between would keep
        os.close(descriptor)


def readable(path):
    """A path as text that any terminal and file takes: bytes that are no characters become `?`."""
    return str(path).encode(errors="replace").decode()


def replace_file(path, content):
    """Write `content` to `path` as a whole: whoever reads, and whenever the process dies, sees the old or the new file.

    Args:
        path: The file, as a string or path; its directory must exist.
        content: A string (written as UTF-8) or bytes.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
