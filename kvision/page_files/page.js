// The sections of the page, from top to bottom.

const VITALS = {
  update_ratio: "Size of each update beside the weights it changes.",
  dead_relu: "Fraction of each layer's units that are dead: their ReLU is never active.",
  gradient_norm: "Size of each weight's gradient.",
};

function names(chosen) {  // of curves, without the prefix of validation: the loss first, the rate last
  const all = Object.keys(data.curves).map((name) => name.replace(/^val_/, ""));
  return [...new Set(["loss", ...all.filter((name) => name !== "learning_rate"), "learning_rate"])]
    .filter((name) => all.includes(name) && chosen(name));
}
const isVital = (name) => name in VITALS || name in data.grids;
const isMetric = (name) => !isVital(name) && name !== "learning_rate";

function fillHead() {
  section("run").textContent = `Training report of ${data.run}`;
  section("title").textContent = data.model;
  const done = data.epoch === null ? 0 : data.epoch + 1;
  const said = [];
  const planned = data.epochs && data.epochs !== done ? ` of ${data.epochs}` : "";
  if (data.status === "finished") said.push(`Finished after ${done}${planned} epoch${done === 1 ? "" : "s"}`);
  else said.push(done ? `Running: ${done} of ${data.epochs ?? "?"} epochs` : "Running: no epoch has ended yet");
  if (data.seconds_per_epoch) {
    said.push(`${duration(data.seconds_per_epoch)} an epoch`);
    const left = (data.epochs - done) * data.seconds_per_epoch;
    if (data.status === "running" && left > 0) said.push(`about ${duration(left)} left`);
  }
  const written = new Date(data.written * 1000);
  said.push(`written ${written.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}`);
  section("status").textContent = said.join(" · ");
  const silent = Date.now() / 1000 - data.written;
  if (data.status === "running" && silent > Math.max(600, 3 * (data.seconds_per_epoch ?? 0))) {
    add(section("status"), "strong", { class: "alarm" }, ` · no news for ${duration(silent)}: was it stopped?`);
  }
  const { parameters, optimizer, versions, source } = data.config;
  const facts = [];
  if (data.images_per_second) facts.push(`${whole(Math.round(data.images_per_second))} images/s`);
  if (data.memory.process) facts.push(`${gigabytes(data.memory.process)} of memory at most`);
  if (data.memory.device) facts.push(`${gigabytes(data.memory.device)} on the accelerator`);
  if (parameters) facts.push(`${whole(parameters)} parameters`);
  if (optimizer) facts.push(optimizer.class_name);
  if (versions) facts.push(`Keras ${versions.keras} on ${versions.backend}`, `kvision ${versions.kvision}`);
  if (source?.commit) facts.push(`commit ${source.commit.replace(/^(.{10})\w*/, "$1")}`);
  section("facts").textContent = facts.join(" · ");
}

function fillHeadline() {
  for (const name of names(isMetric).slice(0, 8)) {
    const validation = data.curves["val_" + name], training = data.curves[name];
    const points = validation ?? training;
    const tile = add(section("headline"), "div", { class: "tile" });
    add(tile, "p", {}, words(name) + (validation ? ", validation" : ""));
    const latest = points.at(-1)[2];
    add(tile, "p", { class: typeof latest === "number" ? "value" : "value alarm" }, format(latest));
    const down = /loss|error|mse|mae/i.test(name);
    const finite = points.filter((point) => typeof point[2] === "number");
    if (finite.length > 1) {
      const best = finite.reduce((one, two) => ((down ? two[2] < one[2] : two[2] > one[2]) ? two : one));
      add(tile, "p", {}, `${down ? "lowest" : "highest"} ${format(best[2])}, epoch ${best[1] + 1}`);
    }
    if (validation && training) add(tile, "p", {}, `training ${format(training.at(-1)[2])}`);
  }
}

function fillAdvice() {
  const parent = section("advice");
  if (!data.advice.length) {
    const measured = Object.keys(data.grids).length;
    add(parent, "p", { class: "quiet" }, measured ? "None so far: nothing unhealthy was measured."
      : "None: add kvision.callbacks.Vitals() to measure update ratios, dead ReLUs and gradients.");
    return;
  }
  const list = (where, sentences) => {
    const made = add(where, "ul");
    for (const { vital, step, epoch, text } of sentences) {
      const item = add(made, "li", {}, text);
      add(item, "p", {}, `${words(vital)} · epoch ${epoch + 1} · step ${whole(step)}`);
    }
  };
  const newest = data.advice.toReversed();
  list(parent, newest.slice(0, 5));
  if (newest.length > 5) folded(parent, `${newest.length - 5} earlier`, (details) => list(details, newest.slice(5)));
}

function fillCurves() {
  const charts = add(section("curves"), "div", { class: "charts" });
  for (const name of names((each) => !isVital(each))) chartOf(charts, name);
  for (const [name, points] of Object.entries(data.within)) {
    chart(charts, `${words(name)} within epochs`, [{ label: "", kind: "within", points }]);
  }
  if (!charts.children.length) charts.replaceWith("They begin with the second step.");
}

function fillVitals() {
  const parent = section("vitals");
  const curves = names(isVital);
  if (!curves.length && !Object.keys(data.grids).length) return parent.remove();
  if (curves.length) {
    const charts = add(parent, "div", { class: "charts" });
    for (const name of curves) chartOf(charts, name);
  }
  for (const [name, grid] of Object.entries(data.grids)) heatMap(parent, name, grid, VITALS[name] ?? "");
}

function fillImages() {
  if (!data.images.length) return section("images").remove();
  const charts = add(section("images"), "div", { class: "charts" });
  for (const { name, step, source, width, height } of data.images) {
    const figure = add(charts, "figure");
    const caption = add(figure, "figcaption", {});
    add(caption, "h3", {}, name);
    add(caption, "p", { class: "quiet" }, `step ${whole(step)}`);
    add(figure, "img", { src: source, width, height, alt: `${name}, step ${step}` });
  }
}

function fillModel() {
  const parent = section("model");
  if (!data.layers.length) return parent.remove();
  const { parameters, trainable_parameters: trainable } = data.config;
  const sizes = parameters ? `, ${whole(parameters)} parameters, ${whole(trainable ?? 0)} of them trainable` : "";
  folded(parent, `${data.layers.length} layers${sizes}`, (details) =>
    table(details, ["layer", "type", "output shape", "parameters"],
      data.layers.map(([depth, name, type, shape, count]) => ["\u2003".repeat(depth) + name, type, shape, count])));
}

function fillConfiguration() {
  const groups = Object.entries(data.config).filter(([, value]) => value !== null && typeof value === "object");
  if (!groups.length) return section("configuration").remove();
  for (const [name, group] of groups) {
    folded(section("configuration"), words(name), (details) => table(details, ["", ""], flat(group)));
  }
}

function fillNumbers() {
  const columns = Object.keys(data.curves);
  if (!columns.length) return section("numbers").remove();
  const rows = new Map();
  for (const name of columns) {
    for (const [step, epoch, number] of data.curves[name]) {
      const key = `${step} ${epoch}`;
      if (!rows.has(key)) rows.set(key, { epoch, step });
      rows.get(key)[name] = typeof number === "number" ? number : format(number);
    }
  }
  const ordered = [...rows.values()].sort((one, two) => two.step - one.step || two.epoch - one.epoch);
  folded(section("numbers"), `${whole(ordered.length)} epochs as a table`, (details) =>
    table(details, ["epoch", "step", ...columns.map(words)],
      ordered.map((row) => [row.epoch + 1, row.step, ...columns.map((name) => row[name])])));
}

for (const fill of [fillHead, fillHeadline, fillAdvice, fillCurves, fillVitals, fillImages, fillModel,
  fillConfiguration, fillNumbers]) fill();
root.dataset.drawn = "yes";
