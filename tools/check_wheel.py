"""Fail unless a wheel holds the package and nothing else: python tools/check_wheel.py dist/kvision-*.whl"""

import pathlib
import sys
import zipfile

ROOT = pathlib.Path(__file__).parent.parent


def main(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kvision").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in sorted(names - expected):
        print(f"in the wheel, not in the package: {name}")
    for name in sorted(expected - names):
        print(f"in the package, not in the wheel: {name}")
    print(f"{wheel}: {len(names)} files")
    return 0 if names == expected else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
