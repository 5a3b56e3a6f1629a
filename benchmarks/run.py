"""Time kvision beside its peers, interleaved, and write RESULTS.md.

    make bench                        the rows of `plans.SHORT`, within 15 minutes
    make bench ALL=1                  every row, and how cost grows: hours
    make bench ONLY="resnet50 vitals" some of them; the other rows of RESULTS.md stay as they are
    make bench QUICK=1                everything small and once, to see that it runs; nothing is written
    python benchmarks/run.py --list

One process a case; the cases of a comparison run in turn, A B C A B C …; a round counts when other processes left the
cores alone. Ratios are taken round by round, then their median. At the end stands what is more than a tenth worse than
the committed row of the same kind of machine. The `torchopt` peer is stock torch in an environment that mends two
faults of it on some machines: the allocator gives memory back to the system after each step, and MKL takes its slow
path on processors of other makers. The second needs a C compiler; without one its row says so.
"""

import argparse
import dataclasses
import datetime
import os
import statistics
import time

if __name__ == "__main__":  # before the harness is imported, here and in the workers
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="comparisons to run; the short set without any")
    parser.add_argument("--all", action="store_true", help="run every comparison")
    parser.add_argument("--quick", action="store_true", help="everything small and once; nothing is written")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page-only", action="store_true", help="write RESULTS.md again from what was measured")
    options = parser.parse_args()
    if options.quick:
        os.environ["BENCH_QUICK"] = "1"

import growth
import results_store
from harness import QUICK
from plans import COMPARISONS, SHORT
from results_page import by_part, page
from workers import HERE, MOST_FOREIGN, ROOT, Worker, machine, peak, wait_until_quiet

PAGE = HERE / "RESULTS.md"
KNOWN = {comparison.name: comparison for comparison in COMPARISONS}


def compare(comparison, facts, log):
    """Run one comparison; returns its rows for the store."""
    begin = time.perf_counter()
    cases = {"kvision": comparison.ours, **comparison.peers}
    workers, rows = {}, {}
    for label, case in cases.items():
        print(f"  building {label} ({case.file} {case.case})", flush=True)
        worker = Worker(case, log)
        if "error" in worker.built:
            rows[label] = failed(worker, worker.built)
        else:
            workers[label] = worker
    rounds = _rounds(workers, rows, 1 if QUICK else comparison.rounds)
    for label, worker in workers.items():
        times = [time for replies in rounds for time in replies[label]["times"]]
        first = worker.built["first_ms"]
        rows[label] = {
            "median_ms": statistics.median(times),
            "low_ms": min(times),
            "high_ms": max(times),
            "peak_mb": rounds[-1][label]["peak_mb"],
            "first_s": first and first / 1e3,
            **{fact: worker.built[fact] for fact in ("flop", "images") if fact in worker.built},
        }
        if label != "kvision" and "kvision" in workers:
            pairs = [(_median(replies["kvision"]), _median(replies[label])) for replies in rounds]
            rows[label]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
        if told := worker.ask(told=True).get("told"):
            rows[label]["told"] = told
            print(f"    {label}: {', '.join(f'{name} {value}' for name, value in told.items())}", flush=True)
        if label == "kvision" and (parts := worker.ask(parts=5).get("parts")):
            rows[label]["parts"] = parts
            print("    by part: " + by_part(parts), flush=True)
        worker.close()
    if peak_case := workers["kvision"].built.get("peak_case") if "kvision" in workers else None:
        rows["kvision"]["peak_gflops"] = peak(dataclasses.replace(comparison.ours, case=peak_case), log)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": facts,
        "rounds": len(rounds),
        "foreign": max((reply["foreign"] for replies in rounds for reply in replies.values()), default=0.0),
        "seconds": time.perf_counter() - begin,
        "rows": {label: rows[label] for label in cases},
    }


def failed(worker, reply):
    """The row of a case that failed; its process ends."""
    print(f"    failed: {reply['error']}", flush=True)
    worker.close()
    return {"error": reply["error"]}


def _rounds(workers, rows, number):
    """The rounds that ran undisturbed, or, where there are too few, the two least disturbed.

    A case that fails meanwhile leaves `workers`, and its row is `rows`'.
    """
    rounds = []
    for attempt in range(2 * number):
        if not QUICK:
            wait_until_quiet(60 if attempt < number else 10)
        replies = {label: worker.ask(run=worker.repetitions) for label, worker in workers.items()}
        for label in [label for label, reply in replies.items() if "error" in reply]:
            rows[label] = failed(workers.pop(label), replies.pop(label))
        if not replies:
            return []
        foreign = max(reply["foreign"] for reply in replies.values())
        rounds.append((foreign, replies))
        shown = "  ".join(f"{label} {_median(reply):.0f}" for label, reply in replies.items())
        print(f"    round {attempt + 1}: {shown} ms, others used {foreign:.0%} of the cores", flush=True)
        if QUICK or sum(foreign <= MOST_FOREIGN for foreign, _ in rounds) >= number:
            break
    quiet = [replies for foreign, replies in rounds if foreign <= MOST_FOREIGN]
    return quiet if len(quiet) >= 2 else [replies for _, replies in sorted(rounds, key=lambda pair: pair[0])[:2]]


def _median(reply):
    return statistics.median(reply["times"])


def measure(names, store, log):
    """Run comparisons one by one, each saved when it is done; returns what became worse."""
    before, worse = results_store.committed(), []
    facts = machine(log)
    kind = results_store.kind_of(facts, store["machines"])
    print(f"{facts['processor']}: {facts['gflops']:.0f} GFLOP/s; its rows are those of {kind!r}", flush=True)
    for name in names:
        if name == growth.NAME:
            store["machines"].setdefault(kind, {})["growth"] = growth.measure(facts, log)
        else:
            print(KNOWN[name].title, flush=True)
            result = results_store.results(store, kind)[name] = compare(KNOWN[name], facts, log)
            if (old := results_store.results(before, kind).get(name)) and not QUICK:
                worse += results_store.regressions(name, result, old)
        if not QUICK:
            results_store.save(store)
    return worse


def listing(store):
    """A line a comparison: its name, `*` for those of the short set, the seconds of its last run, its title."""
    seconds = {
        name: f"{result['seconds']:.0f} s"
        for machine in store["machines"].values()
        for name, result in machine.get("results", {}).items()
        if "seconds" in result
    }
    for name, comparison in KNOWN.items():
        yield f"{'*' if name in SHORT else ' '} {name:26s} {seconds.get(name, ''):>7s}  {comparison.title}"
    yield f"  {growth.NAME:26s} {'':>7s}  {growth.TITLE}"


def main(options):
    store = results_store.load()
    if options.list:
        print("\n".join(listing(store)))
        return
    every = [*KNOWN, growth.NAME]
    if unknown := set(options.names) - set(every):
        raise SystemExit(f"Unknown comparison {sorted(unknown)}; there are: {', '.join(every)}")
    if options.names and options.all:
        raise SystemExit("Some rows by name, or --all of them: not both.")
    if not options.page_only:
        begin = time.perf_counter()
        (ROOT / ".cache").mkdir(exist_ok=True)
        with open(ROOT / ".cache" / "bench.log", "a") as log:
            worse = measure(options.names or (every if options.all else SHORT), store, log)
        print(f"took {(time.perf_counter() - begin) / 60:.1f} minutes")
        if worse:
            print("More than a tenth worse than the committed rows of this kind of machine:")
            print("\n".join(f"  {sentence}" for sentence in worse))
    if QUICK:
        return
    growth.draw(store)
    PAGE.write_text(page(store))
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main(options)
