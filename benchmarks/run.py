"""Time kvision beside its peers, interleaved, and write RESULTS.md.

    make bench                        every comparison of plans.py
    make bench ONLY="resnet50 vitals" some of them; the other rows of RESULTS.md stay as they are
    python benchmarks/run.py --list

One process a case; the cases of a comparison run in turn, A B C A B C …; a round counts when other processes left the
cores alone. Ratios are taken round by round, then their median. The `torchopt` peer is stock torch in an environment
that mends two faults of it on some machines: the allocator gives memory back to the system after each step, and MKL
takes its slow path on processors of other makers. The second needs a C compiler; without one its row says so.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from harness import THREADS, busy_seconds
from plans import COMPARISONS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
STORE, PAGE = HERE / "results.json", HERE / "RESULTS.md"
MOST_FOREIGN = 0.08  # fraction of the cores that others may use in a round that counts
ROUND_MS = 1500  # a case is repeated within a round until about this much time has passed

MALLOC = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
SHIM = "int mkl_serv_intel_cpu_true(void){return 1;}\nint mkl_serv_intel_cpu(void){return 1;}\n"


class Worker:
    """A process that has built one case and runs it on demand."""

    def __init__(self, case, log):
        python, environment = ENVIRONMENTS[case.environment]()
        self.process = subprocess.Popen(
            [python, str(HERE / case.file)],
            env=os.environ | environment,
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.built = self.ask(build=case.case)
        self.repetitions = max(1, min(60, int(ROUND_MS / max(self.built.get("best_ms", ROUND_MS), 1e-3))))

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": f"the process ended with code {self.process.wait()}"}

    def close(self):
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


def compare(comparison, log):
    """Run one comparison; returns its rows for the store."""
    cases = {"kvision": comparison.ours, **comparison.peers}
    workers, rows = {}, {}
    for label, case in cases.items():
        print(f"  building {label} ({case.file} {case.case})", flush=True)
        worker = Worker(case, log)
        if "error" in worker.built:
            rows[label] = {"error": worker.built["error"]}
            print(f"    failed: {worker.built['error']}", flush=True)
            worker.close()
        else:
            workers[label] = worker
    rounds = _rounds(workers, comparison.rounds)
    for label, worker in workers.items():
        times = [time for replies in rounds for time in replies[label]["times"]]
        rows[label] = {
            "median_ms": statistics.median(times),
            "low_ms": min(times),
            "high_ms": max(times),
            "peak_mb": rounds[-1][label]["peak_mb"],
            "first_s": worker.built["first_ms"] / 1e3,
            **{fact: worker.built[fact] for fact in ("flop", "images") if fact in worker.built},
        }
        if label != "kvision" and "kvision" in workers:
            pairs = [(_median(replies["kvision"]), _median(replies[label])) for replies in rounds]
            rows[label]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
        if label == "kvision" and (parts := worker.ask(parts=5).get("parts")):
            rows[label]["parts"] = parts
            print("    by part: " + _by_part(parts), flush=True)
        worker.close()
    if peak_case := workers["kvision"].built.get("peak_case") if "kvision" in workers else None:
        rows["kvision"]["peak_gflops"] = peak(dataclasses.replace(comparison.ours, case=peak_case), log)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rounds": len(rounds),
        "foreign": max(reply["foreign"] for replies in rounds for reply in replies.values()),
        "rows": rows,
    }


def peak(case, log):
    """GFLOP/s of the fastest run of a matrix product."""
    worker = Worker(case, log)
    best = min(worker.ask(run=10)["times"])
    worker.close()
    return worker.built["flop"] / best / 1e6


def _rounds(workers, number):
    """The rounds that ran undisturbed, or, where there are too few, the two least disturbed."""
    rounds = []
    for attempt in range(2 * number):
        wait_until_quiet(60 if attempt < number else 10)
        replies = {label: worker.ask(run=worker.repetitions) for label, worker in workers.items()}
        foreign = max(reply["foreign"] for reply in replies.values())
        rounds.append((foreign, replies))
        shown = "  ".join(f"{label} {_median(reply):.0f}" for label, reply in replies.items())
        print(f"    round {attempt + 1}: {shown} ms, others used {foreign:.0%} of the cores", flush=True)
        if sum(foreign <= MOST_FOREIGN for foreign, _ in rounds) >= number:
            break
    quiet = [replies for foreign, replies in rounds if foreign <= MOST_FOREIGN]
    return quiet if len(quiet) >= 2 else [replies for _, replies in sorted(rounds, key=lambda pair: pair[0])[:2]]


def _median(reply):
    return statistics.median(reply["times"])


def machine():
    """What the numbers were taken on."""
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    theirs = "import importlib.metadata as m; print(m.version('torch'), m.version('torchvision'))"
    done = subprocess.run([torch_environment()[0], "-c", theirs], capture_output=True, text=True, check=False)
    versions |= dict(zip(("torch", "torchvision"), done.stdout.split(), strict=False))
    shim = "with" if _shim() else "without (no C compiler)"
    return {
        "processor": model,
        "threads": THREADS,
        "versions": versions,
        "torchopt": f"allocator tuned, {shim} MKL's fast path",
    }


def page(store):
    """RESULTS.md from all that has been measured."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Times are medians in milliseconds; a ratio is kvision's time over the peer's, taken",
        "round by round in one interleaved run: below 1 kvision is faster. Ratios carry over to other machines,",
        "times do not.",
        *_machines(store["results"]),
    ]
    for comparison in COMPARISONS:
        if result := store["results"].get(comparison.name):
            lines += ["", f"## {comparison.title}", "", *_table(comparison, result)]
    return "\n".join(lines) + "\n"


def _machines(results):
    """What the rows were taken on: a line a machine, with the names of its rows where there are several."""
    rows = {}
    for name, result in results.items():
        facts = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        told = f"{facts['processor']}, {facts['threads']} threads; {versions}; `torchopt`: {facts['torchopt']}"
        rows.setdefault(told, []).append(name)
    for told, names in rows.items():
        yield ""
        yield f"{told}." if len(rows) == 1 else f"{told}: {', '.join(names)}."


def _by_part(parts):
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in sorted(parts.items(), key=lambda part: -part[1]))


def _table(comparison, result):
    rows = result["rows"]
    yield "| | median ms | lowest … highest | kvision / peer | target | peak MB | first call s |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    ours = rows["kvision"]
    for label, row in rows.items():
        if "error" in row:
            yield f"| {label} | failed: {row['error']} | | | | | |"
            continue
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        target = comparison.targets.get(label)
        target = f"{target:.2f} {'✓' if row.get('ratio', 9) <= target else '✗'}" if target else ""
        if label == "kvision" and comparison.most_ms:
            target = f"at most {comparison.most_ms} ms {'✓' if row['median_ms'] <= comparison.most_ms else '✗'}"
        memory = f"{row['peak_mb']:,}"
        if (limit := comparison.memory.get(label)) and "peak_mb" in ours:
            fraction = ours["peak_mb"] / row["peak_mb"]
            memory += f" ({fraction:.2f}, target {limit:.2f} {'✓' if fraction <= limit else '✗'})"
        span = f"{row['low_ms']:.0f} … {row['high_ms']:.0f}"
        yield f"| {label} | {row['median_ms']:.0f} | {span} | {ratio} | {target} | {memory} | {row['first_s']:.1f} |"
    yield ""
    told = [f"{result['date']}, {result['rounds']} rounds, other processes used at most {result['foreign']:.0%}."]
    if "flop" in ours:
        speed = ours["flop"] / ours["median_ms"] / 1e6
        told.append(f"kvision reaches {speed:.0f} GFLOP/s (two a multiply-add){_share(speed, ours)}.")
    if "parts" in ours:
        told.append(f"Its parts, timed one by one: {_by_part(ours['parts'])}.")
    yield " ".join([*told, comparison.note]).strip()


def _share(speed, ours):
    peak = ours.get("peak_gflops")
    return f", {speed / peak:.0%} of the {peak:.0f} of a matrix product" if peak else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="comparisons to run; all of them without any")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page-only", action="store_true", help="write RESULTS.md again from what was measured")
    options = parser.parse_args()
    known = {comparison.name: comparison for comparison in COMPARISONS}
    if options.list:
        print("\n".join(f"{name:20s} {comparison.title}" for name, comparison in known.items()))
        return
    if unknown := set(options.names) - set(known):
        raise SystemExit(f"Unknown comparison {sorted(unknown)}; there are: {', '.join(known)}")
    store = json.loads(STORE.read_text()) if STORE.exists() else {"results": {}}
    if not options.page_only:
        (ROOT / ".cache").mkdir(exist_ok=True)
        with open(ROOT / ".cache" / "bench.log", "a") as log:
            for name in options.names or known:
                print(f"{known[name].title}", flush=True)
                store["results"][name] = compare(known[name], log)
                STORE.write_text(json.dumps(store, indent=1) + "\n")
    PAGE.write_text(page(store))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
