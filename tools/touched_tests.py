"""The tests of the rooms a change touches: what differs from HEAD, its room, and the rooms that look down on it.

python tools/touched_tests.py                   prints them
python tools/touched_tests.py --run PYTHON      runs them with that interpreter, the slow ones left out
"""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
ALWAYS = ["tests/test_rooms.py", "tests/test_package.py"]


def changed_files():
    """Paths that differ from HEAD or that git does not know yet; on a clean tree, those of the last commit."""
    lines = _git("status", "--porcelain", "--untracked-files=all").splitlines()
    if not lines:
        return _git("diff", "--name-only", "HEAD~1", "HEAD").splitlines()
    return [line[3:].split(" -> ")[-1] for line in lines]


def tests_of(path):
    """The tests beside a file: `kvision/ops/roi.py` → `tests/ops/test_roi.py`, else the whole room's."""
    parts = pathlib.Path(path).parts
    if path.startswith("tests/") and path.endswith(".py"):
        if parts[-1].startswith("test_"):
            return [path]
        return [f"tests/{parts[1]}"] if len(parts) > 2 and (ROOT / "tests" / parts[1]).is_dir() else []
    if path.startswith("examples/"):
        return ["tests/test_examples.py"]
    if not path.startswith("kvision/") or not path.endswith(".py"):
        return []
    room = pathlib.Path("tests", *parts[1:-1])
    own = room / f"test_{parts[-1]}"
    if (ROOT / own).exists():
        return [str(own)]
    return [str(room)] if len(parts) > 2 and (ROOT / room).is_dir() else []


def _git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def main():
    chosen = sorted({test for path in changed_files() for test in tests_of(path)} | set(ALWAYS))
    chosen = [test for test in chosen if (ROOT / test).exists()]
    if "--run" not in sys.argv:
        print("\n".join(chosen))
        return 0
    python = sys.argv[sys.argv.index("--run") + 1]
    marks = "not (slow or parity or jax or real or browser or gpu)"
    return subprocess.run([python, "-m", "pytest", "-n", "2", "-m", marks, *chosen], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
