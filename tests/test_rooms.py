"""The import law: who may import whom, read from the imports themselves."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "kvision"

# Each room and the rooms it may import. Siblings on one floor do not import each other; errors about names, the seam to
# private Keras and the moments of a data set are for all, the data contract for those who deliver batches and those who
# take them.
FLOOR = {"ops", "errors", "_keras", "moments"}
PARTS = FLOOR | {"drawing", "contract", "losses", "metrics", "layers", "optimizers"}
MAY_IMPORT = {
    "errors": set(),
    "_keras": set(),
    "contract": set(),
    "ops": {"errors"},
    "moments": set(),
    "drawing": {"errors", "contract"},
    "losses": FLOOR,
    "metrics": FLOOR | {"contract"},
    "layers": FLOOR,
    "optimizers": FLOOR,
    "weights": PARTS - {"contract"},
    "network": FLOOR | {"batches", "contract", "weights"},
    "part": {"errors", "_keras"},
    "task_model": FLOOR | {"batches"},
    "batches": set(),
    "stop_signals": set(),
    "diagnosis": {"_keras"},
    "multiply_adds": {"_keras"},
    "detection": PARTS | {"batches", "network", "part", "task_model", "data", "weights"},
    "applications": PARTS | {"detection", "network", "part", "task_model", "weights"} - {"contract"},
    "test_time": FLOOR | {"detection"},
    "page": set(),
    "data": {"errors", "contract", "drawing", "moments", "page", "_keras"},
    "trackers": {"errors", "drawing", "page", "_keras"},
    "relus": {"_keras"},
    "receptive_field": {"_keras", "layers"},
    "visualize": PARTS | {"batches", "stop_signals", "task_model", "network", "detection", "relus", "receptive_field"},
    "callbacks": PARTS
    | {
        "task_model",
        "detection",
        "trackers",
        "weights",
        "diagnosis",
        "multiply_adds",
        "relus",
        "stop_signals",
        "visualize",
    },
}
MAY_IMPORT["training"] = MAY_IMPORT["applications"] | {
    "batches",
    "contract",
    "applications",
    "diagnosis",
    "multiply_adds",
    "receptive_field",
}

# TensorFlow and JAX by name only where the design puts them.
BACKEND_FILES = ("_tensorflow.py", "_jax.py")


# Inside the room of networks.
KINDS = {
    "classification": set(),
    "detection": {"classification"},
    "segmentation": {"classification", "detection"},
    "sequences": {"classification"},
}


def room_of(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports_of(path):
    """Every module a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "kvision":
                yield from (f"kvision.{alias.name}" for alias in node.names)


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    room = room_of(path)
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("kvision.")}
    assert rooms - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", sorted(ROOT.glob("applications/*/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_kinds_of_networks_import_as_the_design_says(path):
    parts = [name.split(".") for name in imports_of(path) if name.startswith("kvision.applications.")]
    kinds = {part[2] for part in parts} & KINDS.keys()
    assert kinds - {path.parent.name} <= KINDS[path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_backends_are_named_only_where_the_design_says(path):
    named = {name.split(".")[0] for name in imports_of(path)} & {"tensorflow", "jax"}
    assert not named or path.name.endswith(BACKEND_FILES) or room_of(path) == "data"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_in_the_package(path):
    assert not [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


def test_nothing_imports_examples():
    assert not [path for path in FILES for name in imports_of(path) if name.split(".")[0] == "examples"]
