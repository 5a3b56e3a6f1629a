"""results.json: `{"machines": {kind: {"results": {name: result}, "growth": …}}}`, and what became slower."""

import json
import subprocess

from workers import HERE, MOST_FOREIGN, ROOT

STORE = HERE / "results.json"
SAME = 1.25  # matrix products of one kind of machine differ by at most this factor
WORSE = 1.10  # a regression is more than this factor


def load():
    return json.loads(STORE.read_text()) if STORE.exists() else {"machines": {}}


def save(store):
    STORE.write_text(json.dumps(store, indent=1, ensure_ascii=False) + "\n")


def committed():
    """The store of the last commit, so that a second run is held against it too; without git, the file."""
    path = STORE.relative_to(ROOT).as_posix()
    done = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    store = json.loads(done.stdout) if done.returncode == 0 else load()
    return store if "machines" in store else {"machines": {}}


def kind_of(facts, known):
    """The kind of machine: that of `known` whose matrix product by as many threads is as fast, or a new one.

    Args:
        facts: Of `workers.machine`.
        known: Names of kinds.
    """
    gflops, threads = facts["gflops"], facts["threads"]
    for kind in known:
        speed, found, *_ = _numbers(kind)
        if found == threads and max(speed / gflops, gflops / speed) < SAME:
            return kind
    return f"{gflops:.0f} GFLOP/s, {threads} threads"


def _numbers(kind):
    """Speed and threads in the name of a kind; 0 where it has none."""
    numbers = [int(word) for word in kind.split() if word.isdigit()]
    return numbers if len(numbers) == 2 else (1e-9, 0)


def results(store, kind):
    """The rows of one kind of machine."""
    return store["machines"].setdefault(kind, {}).setdefault("results", {})


def regressions(name, new, old):
    """What a new result is more than a tenth worse in than an old one, in sentences.

    Held against each other are the ratios to the peers, which machines of one kind share; without a peer in both, the
    time; and the peak of memory.
    """
    pairs = [
        (
            f"{new['rows'][label]['ratio']:.2f}x {label}",
            row["ratio"],
            new["rows"][label]["ratio"],
            f"{row['ratio']:.2f}x",
        )
        for label, row in old["rows"].items()
        if "ratio" in row and "ratio" in new["rows"].get(label, {})
    ]
    ours, theirs = new["rows"]["kvision"], old["rows"]["kvision"]
    if "error" in ours and "error" not in theirs:
        return [f"{name}: fails, {ours['error']}; it ran on {old['date']}"]
    if "error" in theirs or "error" in ours:
        return []
    if not pairs:
        pairs.append(
            (f"{ours['median_ms']:.0f} ms", theirs["median_ms"], ours["median_ms"], f"{theirs['median_ms']:.0f} ms")
        )
    pairs.append((f"{ours['peak_mb']:,} MB", theirs["peak_mb"], ours["peak_mb"], f"{theirs['peak_mb']:,} MB"))
    disturbed = f"; others used {new['foreign']:.0%} of the cores" if new["foreign"] > MOST_FOREIGN else ""
    return [
        f"{name}: {now}, was {before} on {old['date']}{disturbed}"
        for now, was, is_, before in pairs
        if is_ > WORSE * was
    ]
