"""Folders of generated files in `.cache`, made once and alike for every peer."""

import os
import pathlib
import shutil
import tempfile

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache"


def made_once(name, write):
    """The folder `.cache/NAME`, filled by `write(path)` where it is missing.

    It gets its name when it is complete: one that was broken off, or that another process fills, is not seen.
    """
    home = CACHE / name
    if home.exists():
        return home
    CACHE.mkdir(exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=CACHE))
    try:
        write(partial)
        os.replace(partial, home)
    except OSError:
        if not home.exists():  # else another process was first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return home
