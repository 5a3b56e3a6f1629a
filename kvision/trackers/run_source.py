"""Where a run comes from: its command line and the commit of its code, without secrets."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

from kvision.trackers.files import readable
from kvision.trackers.run_config import is_secret_name

_USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # of an address
SECONDS = 5  # that git may take


def source_of_run():
    """The `"command"` and the git `"commit"` of this process, as far as there are any."""
    source = {"command": _command(), "commit": _commit()}
    return {name: value for name, value in source.items() if value}


def _command():
    """The command line, unless it is that of a notebook's kernel; what reads like a secret is masked."""
    if not sys.argv[0] or "ipykernel" in sys.argv[0]:
        return None
    secrets = {value for name, value in os.environ.items() if len(value) >= 8 and is_secret_name(name)}
    words, masked = [], False
    for word in sys.argv:
        name, equals, _ = word.partition("=")
        if masked and not word.startswith("-"):
            word = "***"
        elif equals and is_secret_name(name.lstrip("-")):
            word = f"{name}=***"
        masked = name.startswith("-") and not equals and is_secret_name(name.lstrip("-"))
        for secret in secrets:
            word = word.replace(secret, "***")
        words.append(_USER.sub("***", word))
    return readable(shlex.join(words).replace("'***'", "***"))


def _commit():
    """The commit of the repository in which the script lies (or the notebook runs), and whether files differ."""
    script = pathlib.Path(sys.argv[0] or ".").resolve()
    directory = script.parent if script.is_file() else pathlib.Path.cwd()
    commit = _git(directory, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if changed else commit


def _git(directory, *words):
    try:
        command = ["git", "--no-optional-locks", "-C", str(directory), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
