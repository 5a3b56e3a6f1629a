"""What a card of yours does with kvision: `make gpu`, or `python benchmarks/gpu.py` where JAX, Keras and this tree are.

Times training steps in bfloat16 beside torchvision on the same card, interleaved; trains every tiny network under
`mixed_float16` and `mixed_bfloat16`; runs the numeric tests; all within `--minutes`, and what was not reached is named.
Prints one table and writes it as JSON. Runs on the backend of KERAS_BACKEND, else on JAX where it is installed, which
needs no TensorFlow; torchvision and pytest are left out where they are missing.

The machine kvision is made on has no card: this file is tested on the CPU (`--cpu`: everything small, no figure means
anything). Please report what you find.
"""

import argparse
import collections
import concurrent.futures
import datetime
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
STEPS = ("resnet50", "vit-b16", "retinanet", "mask-rcnn")
POLICIES = ("mixed_float16", "mixed_bfloat16")
NUMERIC_TESTS = ("tests/ops", "tests/layers", "tests/losses", "tests/optimizers")
MARKS = {
    "jax": "not (parity or real or browser or keras_cv or tensorflow_only or slow)",
    "tensorflow": "not (parity or jax or real or browser or keras_cv or slow)",
}
TIMED_SHARE = 0.55  # of the minutes, until which the steps are timed
ROUNDS = 5
CUDA = {
    "jax": "No GPU is visible to JAX. Install its CUDA build: pip install 'jax[cuda13]'",
    "tensorflow": "No GPU is visible to TensorFlow. Install the extra: pip install 'kvision[gpu]'",
}


def main():
    options, begin = arguments(), time.monotonic()
    set_environment(options.cpu)
    seen = facts()
    if not seen["cards"] and not options.cpu:
        raise SystemExit(
            f"{CUDA[seen['backend']]}, and see that nvidia-smi lists your card; "
            "or look at what would run: python benchmarks/gpu.py --cpu"
        )
    end = begin + 60 * options.minutes
    result = {"date": datetime.date.today().isoformat(), "quick": options.cpu, **seen}
    result |= timings(options, begin + TIMED_SHARE * 60 * options.minutes)
    with concurrent.futures.ThreadPoolExecutor() as both:  # nothing is timed any more
        tests = both.submit(numeric_tests, options.tests, seen["backend"], end - 10)
        result["training"] = sixteen_bit_training(options, end - 10)
        result["tests"] = tests.result()
    result["minutes"] = round((time.monotonic() - begin) / 60, 1)
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{table(result)}\n\nWritten to {options.json}")
    return any(row.get("error") for row in result["training"]) or any(
        "failed" in line for line in result["tests"].values()
    )


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run the same on the CPU, everything small")
    parser.add_argument("--minutes", type=float, default=8, help="after which no part runs any more (8)")
    parser.add_argument("--steps", nargs="*", default=STEPS, help="training steps to time; none with no names")
    parser.add_argument("--networks", nargs="*", help="tiny networks to train; all of them without, none with no names")
    parser.add_argument("--tests", nargs="*", default=NUMERIC_TESTS, help="test folders; none with no names")
    parser.add_argument("--torch", help="a Python with torchvision; this one, or that of .venv-parity, without")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / ".cache" / "gpu.json", help="where the result goes")
    return parser.parse_args()


def set_environment(cpu):
    """For this process's children: which backend, and whether they see the card, whose memory they share."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background, and so by children
    jax = importlib.util.find_spec("jax") is not None
    os.environ.setdefault("KERAS_BACKEND", "jax" if jax else "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["BENCH_THREADS"] = str(os.cpu_count())
    if cpu:
        os.environ |= {"BENCH_QUICK": "1", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
    else:
        os.environ["KVISION_TEST_GPU"] = "1"


def facts():
    """What `steps_card.seen` says."""
    command = [sys.executable, "-c", "import json, steps_card; print(json.dumps(steps_card.seen()))"]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def torch_python(named):
    """A Python that imports torchvision, or None."""
    for python in [named] if named else [sys.executable, str(ROOT / ".venv-parity" / "bin" / "python")]:
        command = [python, "-c", "import torchvision"]
        if os.path.exists(python) and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return python
    return None


def timings(options, end):
    """`{"peak_tflops": …, "steps": {name: {peer: row}}}`; a row has `median_ms`, `images_s`, `first_s` or `error`."""
    from comparison import Case
    from workers import ENVIRONMENTS

    if not options.steps:
        return {"steps": {}}
    theirs = torch_python(options.torch)
    ENVIRONMENTS |= {"card": lambda: (sys.executable, {}), "card-torch": lambda: (theirs, {})}
    cases = {("matrix products", "kvision"): Case("card", "steps_card.py", "matrix-products")}
    for name in options.steps:
        cases[name, "kvision"] = Case("card", "steps_card.py", name)
        if theirs:
            cases[name, "torchvision"] = Case("card-torch", "steps_card_torch.py", name)
    rows = collections.defaultdict(dict)
    # A card's machine has cores to build all at once; on the CPU one step after the other.
    names = list(dict.fromkeys(name for name, _ in cases))
    for group in [[name] for name in names] if options.cpu else [names]:
        for (name, peer), row in timed({key: case for key, case in cases.items() if key[0] in group}, end).items():
            rows[name][peer] = row
    product = rows.pop("matrix products")["kvision"]
    peak = {"peak_tflops": product.get("tflops"), "peak_error": product.get("error")}
    return peak | {"steps": dict(rows), "torchvision": bool(theirs)}


def timed(cases, end):
    """Rows of a few cases, run in turn: A B A B …"""
    from workers import Worker

    processes, times = [], collections.defaultdict(list)

    def stop():
        for process in processes:
            process.kill()

    def started(process):
        processes.append(process)
        if time.monotonic() >= end:
            stop()

    def error(reply):
        return {"error": "no time was left" if time.monotonic() >= end else reply["error"]}

    (ROOT / ".cache").mkdir(exist_ok=True)
    watch = threading.Timer(max(0.0, end - time.monotonic()), stop)
    watch.start()
    with open(ROOT / ".cache" / "gpu.log", "a") as log, concurrent.futures.ThreadPoolExecutor(len(cases)) as together:
        built = together.map(lambda case: Worker(case, log, started), cases.values())
        workers = dict(zip(cases, built, strict=True))
        rows = {key: error(worker.built) for key, worker in workers.items() if "error" in worker.built}
        for _ in range(ROUNDS):
            for key in [key for key in workers if key not in rows]:
                reply = workers[key].ask(run=workers[key].repetitions)
                if "error" in reply:
                    rows[key] = error(reply)
                else:
                    times[key] += reply["times"]
        watch.cancel()
        for key, worker in workers.items():
            if key not in rows:
                rows[key] = row(worker.built, times[key])
            worker.close()
    return rows


def row(built, times):
    seconds = statistics.median(times) / 1e3
    found = {"median_ms": 1e3 * seconds, "low_ms": min(times), "high_ms": max(times)}
    found["first_s"] = built["first_ms"] / 1e3
    if "images" in built:
        found |= {"images": built["images"], "images_s": built["images"] / seconds}
    return found | ({"tflops": built["flop"] / seconds / 1e12} if "flop" in built else {})


def sixteen_bit_training(options, end):
    """Three steps of each tiny network under both policies, in as many processes as there are cores for."""
    names = options.networks
    if names is None:
        command = [sys.executable, "-c", "import tiny_networks; print(*tiny_networks.rows(), sep='\\n')"]
        done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
        names = done.stdout.splitlines()
    if not names:
        return []
    processes = 1 if options.cpu else max(2, (os.cpu_count() - 4) // 2)
    parts = [(policy, names[first::processes]) for first in range(processes) for policy in POLICIES]
    jobs = [[sys.executable, str(HERE / "tiny_networks.py"), policy, *part] for policy, part in parts if part]
    with open(ROOT / ".cache" / "gpu.log", "a") as log, concurrent.futures.ThreadPoolExecutor(2 * processes) as all_of:
        if options.cpu:
            outputs = [output(job, end, log) for job in jobs]
        else:
            outputs = all_of.map(lambda job: output(job, end, log), jobs)
        found = [json.loads(line) for lines in outputs for line in lines.splitlines() if line.endswith("}")]
    known = {(reply["network"], reply["policy"]) for reply in found}
    missing = [(name, policy) for policy in POLICIES for name in names if (name, policy) not in known]
    return found + [{"network": name, "policy": policy, "missing": True} for name, policy in missing]


def numeric_tests(folders, backend, end):
    """`{folder: last line of pytest}`; one process a folder."""
    if importlib.util.find_spec("pytest") is None:
        return dict.fromkeys(folders, "not run: pytest is not installed")
    # On a card a product of float32 may run in fewer bits.
    exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "NVIDIA_TF32_OVERRIDE": "0"}
    flags = ["-m", "pytest", "-m", MARKS[backend], "-p", "no:cacheprovider"]
    with concurrent.futures.ThreadPoolExecutor() as together:
        runs = {
            folder: together.submit(
                output, [sys.executable, *flags, folder], end, subprocess.DEVNULL, cwd=ROOT, env=os.environ | exact
            )
            for folder in folders
        }
        return {folder: last_line(run.result()) for folder, run in runs.items()}


def last_line(text):
    """What pytest says at its end, with the names of what failed."""
    lines = text.strip().splitlines() or ["no time was left"]
    failed = [line.split(" ")[1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return "; ".join([lines[-1].strip("= "), *failed])


def output(command, end, log, **options):
    """What a command prints until it ends, or is broken off when time has run out."""
    if time.monotonic() >= end:
        return ""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, **options)
    try:
        return process.communicate(timeout=max(0.1, end - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then says how far it came
    try:
        return process.communicate(timeout=8)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def table(result):
    """One table of everything."""
    lines = [("device", ", ".join(result["cards"]) or "CPU, everything small: no figure means anything")]
    backend = result["backend"]
    lines.append(("versions", f"{backend} {result[backend]}, keras {result['keras']}"))
    peak = result.get("peak_tflops")
    if peak or result.get("peak_error"):
        lines.append(("bf16 matrix product", f"{peak:.3g} TFLOP/s" if peak else result["peak_error"]))
    for name, peers in result["steps"].items():
        ours, theirs = peers["kvision"], peers.get("torchvision", {"error": "torchvision is not installed"})
        parts = [told(ours, peak), f"torchvision: {told(theirs)}"]
        if "median_ms" in ours and "median_ms" in theirs:
            parts.append(f"kvision / torchvision {ours['median_ms'] / theirs['median_ms']:.2f}")
        lines.append((f"{name}, mixed_bfloat16 step", "; ".join(parts)))
    for policy in POLICIES:
        rows = [row for row in result["training"] if row["policy"] == policy]
        if rows:
            fine = sum("loss" in row for row in rows)
            failed = [f"{row['network']}: {row['error']}" for row in rows if "error" in row]
            missing = [row["network"] for row in rows if "missing" in row]
            text = [f"{fine} of {len(rows)} networks train", *failed]
            lines.append((policy, "; ".join(text + ["not reached: " + ", ".join(missing)] * bool(missing))))
    lines += [(folder, line) for folder, line in result["tests"].items()]
    lines.append(("all", f"{result['minutes']} minutes"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def told(row, peak=None):
    if "error" in row:
        return row["error"]
    share = f", {row['tflops'] / peak:.0%} of the matrix product" if peak and "tflops" in row else ""
    return f"{row['median_ms']:.1f} ms, {row['images_s']:.0f} images/s{share}"


if __name__ == "__main__":
    sys.exit(main())
