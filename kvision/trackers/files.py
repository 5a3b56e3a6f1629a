"""Writing files so that a run which dies leaves either the old file or the new one."""

import os
import pathlib
import tempfile


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
            f"Cannot write to a directory: got {str(directory)!r} ({error.strerror}), expected a directory in which "
            "files can be created. Choose another directory, or mend its path or its permissions."
        ) from error
    return directory


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
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
