"""The worker's side of a benchmark: builds cases, runs them when told to, and replies in JSON lines.

A file of cases defines `CASES = {name: factory}` and ends with `serve(CASES)`. `factory()` returns `step`, or `(step,
facts)`: `step()` runs one synchronous iteration, and may return its own `Milliseconds`; `facts` may hold `flop`
(floating-point operations of one iteration), `peak_case` (what to compare them with), `images`, `once` (true for
a step that is a whole run, which nothing warms up), and two functions that are asked when all is timed: `parts` gives
`{name: step}`, timed one by one, and `told` `{name: number or word}`, what the case found or how it ran, so that a
reader sees that all peers did the same. `run.py` starts one process a case and runs the cases of a comparison in turn.
"""

import contextlib
import glob
import json
import os
import statistics
import sys
import time
import traceback

THREADS = int(os.environ.get("BENCH_THREADS", "2"))
QUICK = bool(os.environ.get("BENCH_QUICK"))  # everything small and once: whether it runs, not how fast


class Milliseconds(float):
    """What a step has measured itself, where the clock around it would see too much."""


def serve(cases):
    """Reply to `{"build": name}`, `{"run": repetitions}`, `{"parts": repetitions}` and `{"told": true}`."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    step, parts, told = None, dict, dict
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "build" in request:
                start = time.perf_counter()
                built = cases[request["build"]]()
                step, facts = built if isinstance(built, tuple) else (built, {})
                parts, told = facts.pop("parts", dict), facts.pop("told", dict)
                first, best = (None, None) if facts.pop("once", False) else _warm_up(step)
                reply = {"first_ms": first, "best_ms": best, "build_s": time.perf_counter() - start, **facts}
            elif "parts" in request:
                reply = {"parts": {name: _part(part, request["parts"]) for name, part in parts().items()}}
            elif "told" in request:
                reply = {"told": told()}
            else:
                times, foreign = _timed(step, request["run"])
                reply = {"times": times, "foreign": foreign}
            reply["peak_mb"] = peak_megabytes()
        except Exception as error:  # a case that fails is a row of the table, not the end of the run
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
        replies.write(json.dumps(reply) + "\n")
    os._exit(0)  # some libraries hang in their own clean-up


def peak_megabytes():
    """The largest resident size this process has had."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


def busy_seconds():
    """Processor seconds that all processes of the machine have used so far."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, *rest = map(int, stat.readline().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own_seconds():
    """Processor seconds of this process and of those it started, also of workers that still run."""
    seconds, family = sum(os.times()[:4]), {os.getpid()}
    stats = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a process that has ended meanwhile
            with open(path) as stat:
                fields = stat.read().rpartition(")")[2].split()
            stats[int(path.split("/")[2])] = int(fields[1]), sum(map(int, fields[11:15]))
    while found := {pid for pid, (parent, _) in stats.items() if parent in family} - family:
        family |= found
        seconds += sum(stats[pid][1] for pid in found) / os.sysconf("SC_CLK_TCK")
    return seconds


def tensorflow():
    """TensorFlow with the benchmark's threads, without a GPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    return tf


def torch():
    """Torch with the benchmark's threads."""
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    import torch

    torch.set_num_threads(THREADS)
    return torch


def fastest(forms):
    """The quickest of several forms of one step, as `(name, step)`: `{name: factory}` → name and what it gave.

    A form that cannot be built or run, such as a compiled one without a C compiler, is left out and told in the log.
    """
    best = {}
    for name, build in forms.items():
        try:
            step = build()
            _, milliseconds = _warm_up(step)
        except Exception:
            traceback.print_exc()
            continue
        best[name] = milliseconds, step
        print(f"{name}: {milliseconds:.1f} ms", file=sys.stderr)
    if not best:
        raise RuntimeError(f"None of the forms {list(forms)} runs.")
    name = min(best, key=lambda form: best[form][0])
    return name, best[name][1]


def _warm_up(step):
    """Milliseconds of the first iteration (with tracing) and of the best of a few more."""
    (first,), _ = _timed(step, 1)
    times, end = [], time.perf_counter() + (0.0 if QUICK else 0.5)
    while len(times) < 2 - QUICK or (time.perf_counter() < end and len(times) < 30):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return first, min(times)


def _part(step, repetitions):
    """Milliseconds of a part, the median."""
    _warm_up(step)
    return statistics.median(_timed(step, repetitions)[0])


def _timed(step, repetitions):
    """Milliseconds of each iteration, and the fraction of the cores that other processes used meanwhile."""
    busy, own, wall = busy_seconds(), _own_seconds(), time.perf_counter()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        told = step()
        times.append(told if isinstance(told, Milliseconds) else (time.perf_counter() - start) * 1e3)
    busy, own, wall = busy_seconds() - busy, _own_seconds() - own, time.perf_counter() - wall
    return times, max(0.0, busy - own) / (wall * os.cpu_count())
