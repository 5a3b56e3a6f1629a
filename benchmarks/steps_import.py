"""The time to import a module in a fresh interpreter."""

import subprocess
import sys

import harness


def import_of(module):
    return lambda: lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)


CASES = {module: import_of(module) for module in ("kvision", "keras")}

if __name__ == "__main__":
    harness.serve(CASES)
