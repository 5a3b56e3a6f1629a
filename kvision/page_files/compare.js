// Several runs on one page, from top to bottom.

const kindOf = (index) => `run run${index % 8}${index >= 8 ? " again" : ""}`;

function fillRuns() {
  const count = data.runs.length;
  section("title").textContent = `${count} run${count === 1 ? "" : "s"} compared`;
  const best = [...new Set(data.runs.flatMap((run) => Object.keys(run.best)))];
  const rows = data.runs.map((run) => [run.name, run.epochs, run.images_per_second,
    ...best.map((name) => (run.best[name] ? `${format(run.best[name][0])} (epoch ${run.best[name][1] + 1})` : ""))]);
  table(section("runs"), ["run", "epochs", "images/s", ...best.map((name) => `best ${words(name)}`)], rows);
}

function fillCurves() {
  const charts = add(section("curves"), "div", { class: "charts" });
  for (const [name, lines] of Object.entries(data.curves)) {
    chart(charts, words(name), lines.map(({ run, points }) => ({
      label: data.runs[run].name, kind: kindOf(run), points,
    })));
  }
}

function fillDifferences() {
  const tables = data.runs.map((run) => new Map(flat(run.config)));
  const known = tables.filter((each) => each.size);  // a run without a page of its own tells nothing
  const keys = [...new Set(known.flatMap((each) => [...each.keys()]))]
    .filter((key) => key !== "optimizer.name" && new Set(known.map((each) => each.get(key))).size > 1);
  if (!keys.length) return section("differences").remove();
  table(section("differences"), ["", ...data.runs.map((run) => run.name)],
    keys.map((key) => [key, ...tables.map((each) => each.get(key) ?? "")]));
}

for (const fill of [fillRuns, fillCurves, fillDifferences]) fill();
root.dataset.drawn = "yes";
