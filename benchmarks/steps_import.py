"""The time that importing kvision adds to importing Keras, in a fresh interpreter."""

import subprocess
import sys

import harness

SCRIPT = "import keras, time; start = time.perf_counter(); import kvision; print(1e3 * (time.perf_counter() - start))"


def after_keras():
    def step():
        done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
        return harness.Milliseconds(done.stdout)

    return step


CASES = {"kvision": after_keras}

if __name__ == "__main__":
    harness.serve(CASES)
