"""The list of networks, and the table in the docs that is made of it."""

import pathlib
import subprocess
import sys

import pytest

from kvision import applications as A

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_patterns_choose_by_name():
    assert [row.name for row in A.list_models("vgg1?")] == ["VGG11", "VGG13", "VGG16", "VGG19"]
    assert A.list_models("no such network") == []


def test_a_task_chooses_by_subpackage():
    assert {row.task for row in A.list_models("*net*b0", task="classification")} == {"classification"}
    assert [row.name for row in A.list_models("retina*", task="detection")] == ["RetinaNet"]
    assert [row.name for row in A.list_models("fcn*s", task="segmentation")] == ["FCN16s", "FCN32s", "FCN8s"]
    assert A.list_models("vgg*", task="detection") == []


def test_unknown_tasks_list_the_nearest():
    with pytest.raises(ValueError, match="Unknown task: got 'detecting'.*'classification', .*, 'segmentation'"):
        A.list_models(task="detecting")


def test_a_row_tells_parameters_paper_proof_and_weights():
    (row,) = A.list_models("ResNet18")
    assert (row.task, row.parameters, row.weights) == ("classification", 11_689_512, ("imagenet",))
    assert "Deep Residual Learning" in row.paper
    assert row.proof.startswith("torchvision")


@pytest.mark.slow
def test_the_table_in_the_docs_is_up_to_date(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "models_table.py", tmp_path / "models.md"], check=True)
    assert (tmp_path / "models.md").read_text() == (ROOT / "docs" / "models.md").read_text()
