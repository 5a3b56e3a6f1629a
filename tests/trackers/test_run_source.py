"""Where a run comes from, and no secrets in it."""

import subprocess
import sys

import pytest

from kvision.trackers import run_source
from kvision.trackers.run_source import source_of_run

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train.py", "--rate", "0.1", "--name", "first try"], "train.py --rate 0.1 --name 'first try'"),
        (["train.py", "--api-key", "hunter2", "--rate", "1"], "train.py --api-key *** --rate 1"),
        (["train.py", "--wandb_api_key=hunter2"], "train.py '--wandb_api_key=***'"),
        (["train.py", "hf_token=hunter2", "data=x"], "train.py 'hf_token=***' data=x"),
        (["train.py", "--password", "--rate", "1"], "train.py --password --rate 1"),
        (["train.py", "https://me:hunter2@host/x"], "train.py 'https://***@host/x'"),
        (["train.py", "-k", "planted-hunter2"], "train.py -k ***"),
        (["train.py", "\udce9"], "train.py '?'"),
        (["/x/ipykernel_launcher.py", "-f", "kernel.json"], None),
        ([""], None),
    ],
)
def test_the_command_line_is_told_without_secrets(monkeypatch, words, command):
    monkeypatch.setenv("SOME_API_KEY", "planted-hunter2")
    monkeypatch.setenv("SOME_PATH", "train.py")
    monkeypatch.setattr(sys, "argv", words)
    assert source_of_run().get("command") == command


def test_the_commit_is_that_of_the_script(tmp_path, monkeypatch):
    script = tmp_path / "a folder" / "train.py"
    script.parent.mkdir()
    script.write_text("first")
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "commit" not in source_of_run()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, "-C", str(tmp_path), *words], check=True)
    asked = subprocess.run([*GIT, "-C", str(tmp_path), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert source_of_run()["commit"] == asked.stdout.strip()
    script.write_text("second")
    assert source_of_run()["commit"] == f"{asked.stdout.strip()} with changes"


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setattr(run_source.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert "commit" not in source_of_run()
