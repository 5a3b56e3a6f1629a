"""The tests that a change can break: those whose imports, followed through the tree, reach a file that changed.

python tools/touched_tests.py                   prints them
python tools/touched_tests.py --run PYTHON      runs them with that interpreter, the slow ones left out

What changed is what differs from HEAD, or on a clean tree the last commit. Names are followed to the file that defines
them (`kvision.applications.ResNet50` is `resnet.py`), so importing a package does not depend on all of it. Any other
file, and a script, counts for the modules that name it; the settings of pytest and what every test shares select
everything.
"""

import ast
import functools
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
ALWAYS = ("tests/test_rooms.py", "tests/test_package.py")
EVERYTHING = ("setup.cfg", "pyproject.toml", "tests/conftest.py", "tests/__init__.py")
MARKERS = "not (slow or parity or jax or real or browser or keras_cv or gpu)"


def changed_files():
    """Paths that differ from HEAD or that git does not know yet; on a clean tree, those of the last commit."""
    lines = _git("status", "--porcelain", "--untracked-files=all").splitlines()
    if not lines:
        return _git("diff", "--name-only", "HEAD~1", "HEAD").splitlines()
    return [line[3:].split(" -> ")[-1] for line in lines]


def tests_of(changed):
    """The test files that changed files can break, as sorted paths relative to the root."""
    changed = set(changed)
    if changed & set(EVERYTHING):
        return ["tests"]
    tests = [path for path in sources() if path.startswith("tests/") and pathlib.Path(path).name.startswith("test_")]
    mentioned = [path for path in changed if not path.endswith(".py") or not path.startswith(("kvision/", "tests/"))]
    chosen = {path for path in tests if reach(path) & changed or any(names(path, other) for other in mentioned)}
    return sorted(chosen | set(ALWAYS))


def names(path, other):
    """Whether `path` or what it reaches names `other`, or the folder of a file of the package or a guide."""
    other = pathlib.PurePath(other)
    words = {other.name} | (
        {other.parent.name} if other.parts[0] == "kvision" or other.match("docs/guides/*") else set()
    )
    return any(words & set(re.split(r"[/\"'\s*]", text)) for file in reach(path) for text in strings(file))


@functools.cache
def reach(path):
    """All files that a file needs: what it uses, what that uses, and so on; not all that a package re-exports."""
    found, waiting = set(), [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += uses(file) - found if not file.endswith("__init__.py") else ()
    return found


@functools.cache
def uses(path):
    """The files whose names a file uses, the `__init__.py` on the way to them, and the `conftest.py` beside a test."""
    tree = parsed(path)
    bound, found = {}, {conftest for conftest in _conftests(path) if conftest in sources()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    bound[alias.asname] = alias.name
                else:
                    bound[alias.name.split(".")[0]] = alias.name.split(".")[0]
                found |= resolve(alias.name) if alias.name != "kvision" else {"kvision/__init__.py"}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                bound[alias.asname or alias.name] = full
                if not _is_package(full):  # of a package only what is used of it
                    found |= resolve(full)
    chains = {chain for node in ast.walk(tree) if (chain := _chain(node)) and chain.split(".")[0] in bound}
    longest = {chain for chain in chains if not any(other.startswith(f"{chain}.") for other in chains)}
    for chain in longest:
        first, *rest = chain.split(".")
        found |= resolve(".".join([bound[first], *rest]))
    if any(isinstance(node, ast.Subscript) and _chain(node.value) == "sys.modules" for node in ast.walk(tree)):
        found |= resolve(str(pathlib.PurePath(path).parent).replace("/", "."))  # looks through its own package
    if path.startswith("tests/"):  # scripts for another process, and modules by name
        for text in strings(path):
            for name in re.findall(r"\bkvision(?:\.\w+)+", text):
                found |= resolve(name)
            if re.search(r"\bimport\b.*\bkvision\b", text):
                found |= {"kvision/__init__.py"} | uses("kvision/__init__.py")
    return found - {path}


@functools.cache
def resolve(name):
    """The files that `name` stands for: a module, the module that defines it, or a package with all that is in it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        folder = "/".join(parts[:length])
        if f"{folder}.py" in sources():
            return {f"{folder}.py", *_packages_above(parts[:length])}
        if f"{folder}/__init__.py" in sources():
            if length == len(parts):
                inside = {path for path in sources() if path.startswith(f"{folder}/")}
                return inside | _packages_above(parts[:length])
            origin = _exports(f"{folder}/__init__.py").get(parts[length])
            rest = parts[length + 1 :]
            above = {f"{folder}/__init__.py", *_packages_above(parts[:length])}
            return (resolve(".".join([origin, *rest])) if origin else set()) | above
    return set()


@functools.cache
def _exports(path):
    """`{name: full name}` of what an `__init__.py` imports."""
    statements = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in statements for alias in node.names}


@functools.cache
def parsed(path):
    """The syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@functools.cache
def strings(path):
    """The string constants of a file, without its docstrings."""
    tree = parsed(path)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    documents = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, kinds) and _documented(node)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node.value for node in constants if id(node) not in documents]


@functools.cache
def sources():
    """The Python files of the tree."""
    known = _git("ls-files", "--cached", "--others", "--exclude-standard", "*.py").splitlines()
    return frozenset(path for path in known if (ROOT / path).exists())


def _documented(node):
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _chain(node):
    """`a.b.c` of an attribute of an attribute of a name, or None."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _is_package(name):
    return f"{name.replace('.', '/')}/__init__.py" in sources()


def _packages_above(parts):
    folders = ["/".join(parts[:length]) for length in range(1, len(parts))]
    return {f"{folder}/__init__.py" for folder in folders if f"{folder}/__init__.py" in sources()}


def _conftests(path):
    folders = pathlib.PurePath(path).parents if path.startswith("tests/") else ()
    return [str(folder / "conftest.py") for folder in folders]


def _git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def main():
    chosen = tests_of(changed_files())
    if "--run" not in sys.argv:
        print("\n".join(chosen))
        return 0
    python = sys.argv[sys.argv.index("--run") + 1]
    command = [python, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-m", MARKERS, *chosen]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
