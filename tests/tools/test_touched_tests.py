"""`make check` runs the tests that a change can break: followed through the imports, not guessed from the folders."""

import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[2] / "tools" / "touched_tests.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("touched_tests", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = "tests/applications/classification/test_rows.py"
DETECTORS = "tests/applications/detection/test_detectors.py"
LISTING = "tests/applications/test_listing.py"
REPORT = "tests/trackers/test_report.py"
EXAMPLES = "tests/test_examples.py"


@pytest.mark.parametrize(
    ("changed", "selected", "left_out"),
    [
        ("kvision/applications/classification/lenet5.py", [ROWS, LISTING], [DETECTORS, REPORT, EXAMPLES]),
        ("kvision/applications/detection/retinanet.py", [DETECTORS, LISTING], ["tests/trackers/test_run_history.py"]),
        ("kvision/applications/classification/imagenet_classes.txt", [ROWS], [REPORT]),
        ("kvision/ops/nms.py", ["tests/ops/test_nms.py", DETECTORS], [REPORT, "tests/data/test_yolo.py"]),
        ("kvision/page_files/page.js", [REPORT], [ROWS, DETECTORS]),
        ("tests/trackers/report_probe.js", ["tests/trackers/test_report_browser.py"], [ROWS]),
        ("tests/support.py", [ROWS, DETECTORS, "tests/ops/test_boxes.py"], ["tests/ops/test_nms.py"]),
        ("tests/ops/conftest.py", ["tests/ops/test_nms.py"], [ROWS]),
        ("tests/golden/addons.json", ["tests/losses/test_giou.py"], [ROWS]),
        ("examples/train_digits.py", [EXAMPLES], [ROWS]),
        ("README.md", [EXAMPLES], [ROWS]),
        ("docs/guides/export.md", ["tests/test_guides.py"], [ROWS]),
        ("kvision/callbacks/__init__.py", ["tests/callbacks/test_exposure.py"], ["tests/ops/test_nms.py"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_selects_what_it_can_break(tool, changed, selected, left_out):
    chosen = set(tool.tests_of([changed]))
    assert set(selected) <= chosen
    assert not set(left_out) & chosen
    assert set(tool.ALWAYS) <= chosen


@pytest.mark.parametrize("changed", ["setup.cfg", "pyproject.toml", "tests/conftest.py"])
def test_what_every_test_stands_on_selects_all(tool, changed):
    assert tool.tests_of([changed, "README.md"]) == ["tests"]


def test_every_module_of_the_package_is_reached_by_some_test(tool):
    """A module that no test reaches could change without one of them running."""
    tests = [path for path in tool.sources() if pathlib.Path(path).name.startswith("test_")]
    reached = set().union(*(tool.reach(path) for path in tests))
    assert {path for path in tool.sources() if path.startswith("kvision/")} <= reached
