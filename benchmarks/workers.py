"""The processes of a benchmark: one a case, each in the environment of its peer; and the machine they run on."""

import contextlib
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from comparison import Case
from harness import QUICK, THREADS, busy_seconds

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
MOST_FOREIGN = 0.08  # fraction of the cores that others may use in a round that counts
ROUND_MS = 1 if QUICK else 1500  # a case is repeated within a round until about this much time has passed

COMPILED = {"PYTHONDONTWRITEBYTECODE": ""}  # a module is compiled once, as it is unless an environment forbids it
MALLOC = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
SHIM = "int mkl_serv_intel_cpu_true(void){return 1;}\nint mkl_serv_intel_cpu(void){return 1;}\n"


class Worker:
    """A process that has built one case and runs it on demand.

    Args:
        started: Called with the process, before it builds: whoever limits the time may kill it.
    """

    def __init__(self, case, log, started=lambda process: None):
        python, environment = ENVIRONMENTS[case.environment]()
        self.process = subprocess.Popen(
            [python, str(HERE / case.file)],
            env=os.environ | COMPILED | environment,
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        started(self.process)
        self.built = self.ask(build=case.case)
        self.repetitions = self.repetitions_in(ROUND_MS)

    def repetitions_in(self, milliseconds):
        """How often the case runs in about so much time, from once to sixty times."""
        best = self.built.get("best_ms") or milliseconds  # nothing is known of a case that is one whole run
        return max(1, min(60, int(milliseconds / max(best, 1e-3))))

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": f"the process ended with code {self.process.wait()}"}

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # of one that has ended
            self.process.stdin.close()
        self.process.wait()


def kvision_environment():
    return sys.executable, {}


def torch_environment():
    return str(ROOT / ".venv-parity" / "bin" / "python"), {}


def keras_hub_environment():
    return str(ROOT / ".venv-bench" / "bin" / "python"), {}


def tuned_torch_environment():
    python, _ = torch_environment()
    environment = {"GLIBC_TUNABLES": MALLOC}
    if library := _shim():
        environment["LD_PRELOAD"] = library
    return python, environment


def _shim():
    """The library that lets MKL take its fast path, built on first use; None without a C compiler."""
    library = ROOT / ".cache" / "mklshim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not library.exists() and compiler:
        library.parent.mkdir(exist_ok=True)
        source = library.with_suffix(".c")
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library) if library.exists() else None


ENVIRONMENTS = {
    "kvision": kvision_environment,
    "keras": kvision_environment,
    "keras_hub": keras_hub_environment,
    "torch": torch_environment,
    "torchopt": tuned_torch_environment,
}


def wait_until_quiet(limit):
    """Wait until others use less than a tenth of the cores, at most `limit` seconds."""
    end = time.time() + limit
    while time.time() < end:
        busy, start = busy_seconds(), time.perf_counter()
        time.sleep(0.5)
        if (busy_seconds() - busy) / ((time.perf_counter() - start) * os.cpu_count()) < 0.1:
            return True
    return False


@functools.cache
def peak(case, log):
    """GFLOP/s of the fastest run of a matrix product."""
    worker = Worker(case, log)
    best = min(worker.ask(run=10)["times"])
    worker.close()
    return worker.built["flop"] / best / 1e6


def machine(log):
    """What the numbers are taken on; the matrix product tells kinds of machine apart, their names often don't."""
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    theirs = "import importlib.metadata as m; print(m.version('torch'), m.version('torchvision'))"
    done = subprocess.run([torch_environment()[0], "-c", theirs], capture_output=True, text=True, check=False)
    versions |= dict(zip(("torch", "torchvision"), done.stdout.split(), strict=False))
    shim = "with" if _shim() else "without (no C compiler)"
    return {
        "processor": model,
        "gflops": peak(Case("kvision", "steps_kvision.py", "matrix-product:float32"), log),
        "threads": THREADS,
        "versions": versions,
        "torchopt": f"allocator tuned, {shim} MKL's fast path",
    }
