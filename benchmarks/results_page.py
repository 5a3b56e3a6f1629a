"""RESULTS.md: a section a comparison, a table for each kind of machine."""

import growth
from plans import COMPARISONS


def page(store):
    """RESULTS.md from all that has been measured."""
    machines = store["machines"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Times are medians in milliseconds; a ratio is kvision's time over the peer's, taken",
        "round by round in one interleaved run: below 1 kvision is faster. Ratios carry over to other machines only in",
        "part, times do not: each kind of machine, told by the speed of its matrix product, has a table of its own.",
        *_machines(machines),
    ]
    for comparison in COMPARISONS:
        measured = {
            kind: rows["results"][comparison.name]
            for kind, rows in machines.items()
            if comparison.name in rows.get("results", {})
        }
        if measured:
            lines += ["", f"## {comparison.title}"]
        for kind, result in measured.items():
            lines += ["", *_table(comparison, kind, result)]
    lines += growth.section({kind: rows["growth"] for kind, rows in machines.items() if "growth" in rows})
    return "\n".join(lines) + "\n"


def _machines(machines):
    """A line a kind of machine and set of versions, with the names of its rows where the kind has several."""
    for kind, rows in machines.items():
        found = {}
        for name, result in rows.get("results", {}).items():
            found.setdefault(_told(result["machine"]), []).append(name)
        for told, names in found.items():
            yield ""
            yield f"**{kind}**: {told}{'.' if len(found) == 1 else ': ' + ', '.join(names) + '.'}"


def _told(facts):
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['processor']}; {versions}; `torchopt`: {facts['torchopt']}"


def by_part(parts):
    return ", ".join(f"{name} {ms:.0f} ms" for name, ms in sorted(parts.items(), key=lambda part: -part[1]))


def _table(comparison, kind, result):
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
        target = f"{target:.2f} {mark(row.get('ratio', 9) <= target)}" if target else ""
        if label == "kvision" and comparison.most_ms:
            target = f"at most {comparison.most_ms} ms {mark(row['median_ms'] <= comparison.most_ms)}"
        memory = f"{row['peak_mb']:,}"
        if (limit := comparison.memory.get(label)) and "peak_mb" in ours:
            fraction = ours["peak_mb"] / row["peak_mb"]
            memory += f" ({fraction:.2f}, target {limit:.2f} {mark(fraction <= limit)})"
        span = f"{row['low_ms']:.0f} … {row['high_ms']:.0f}"
        first = "" if row["first_s"] is None else f"{row['first_s']:.1f}"
        yield f"| {label} | {row['median_ms']:.0f} | {span} | {ratio} | {target} | {memory} | {first} |"
    yield ""
    yield " ".join([*_sentences(comparison, kind, result), comparison.note]).strip()


def _sentences(comparison, kind, result):
    """What stands below a table."""
    rows = {label: row for label, row in result["rows"].items() if "error" not in row}
    ours = rows.get("kvision", {})
    yield f"{kind}; {result['date']}, {result['rounds']} rounds, other processes used at most {result['foreign']:.0%}."
    if "flop" in ours:
        speed = ours["flop"] / ours["median_ms"] / 1e6
        yield f"kvision reaches {speed:.0f} GFLOP/s (two a multiply-add){_share(speed, ours)}."
    if "parts" in ours:
        yield f"Its parts, timed one by one: {by_part(ours['parts'])}."
    if comparison.throughput:
        speeds = (f"{label} {1e3 * row['images'] / row['median_ms']:.0f}" for label, row in rows.items())
        yield f"Images a second: {', '.join(speeds)}."
    told = {name: None for row in rows.values() for name in row.get("told", {})}
    for name in told:
        values = {label: row["told"][name] for label, row in rows.items() if name in row.get("told", {})}
        shown = ", ".join(f"{label} {_value(value)}" for label, value in values.items())
        yield f"{name.capitalize()}: {shown}{agreement(values, comparison.agree.get(name))}."


def _value(value):
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def agreement(values, most):
    """Whether numbers that the cases tell differ from ours by at most this fraction, as the page says it."""
    if most is None or "kvision" not in values:
        return ""
    ours = values["kvision"]
    largest = max(abs(value - ours) for value in values.values()) / max(abs(ours), 1e-12)
    return f" (equal {mark(largest == 0)})" if most == 0 else f" (within {most:.0%} of ours {mark(largest <= most)})"


def mark(reached):
    return "✓" if reached else "✗"


def _share(speed, ours):
    peak = ours.get("peak_gflops")
    return f", {speed / peak:.0%} of the {peak:.0f} of a matrix product" if peak else ""
