"""`import kvision` is light, silent and complete."""

import json
import subprocess
import sys

import kvision

# What an import of kvision may not pull in beyond what keras itself does.
HEAVY = ("wandb", "matplotlib", "faster_coco_eval", "PIL", "scipy", "torch", "mlxtend", "pandas")

SCRIPT = """
import json, os, socket, subprocess, sys, threading
import keras
before, threads, opened = set(sys.modules), threading.active_count(), []
ACTS = ("socket.connect", "subprocess.Popen", "os.system")
def watch(event, args):
    if event in ACTS or (event == "open" and "w" in str(args[1])):
        opened.append(event)
sys.addaudithook(watch)
import kvision
print(json.dumps({"modules": sorted(set(sys.modules) - before), "opened": opened,
                  "threads": threading.active_count() - threads}))
"""


def test_import_is_light_and_silent():
    done = subprocess.run([sys.executable, "-B", "-c", SCRIPT], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["opened"] == []
    assert seen["threads"] == 0
    assert not [name for name in seen["modules"] if name.split(".")[0] in HEAVY]


def test_rooms_load_on_first_use():
    assert kvision.callbacks.RunHistory
    assert kvision.weights.load_torch
    assert {"callbacks", "applications", "weights"} <= set(dir(kvision))


def test_version_is_the_installed_one():
    import importlib.metadata

    assert importlib.metadata.version("kvision") == kvision.__version__
