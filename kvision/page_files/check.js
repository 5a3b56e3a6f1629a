// What the guard of a data set found, from top to bottom.

const splits = Object.keys(data.numbers);
const word = { error: "must be mended", warning: "look at it", note: "to know" };

function fillFindings() {
  const errors = data.findings.filter((each) => each.level === "error").length;
  section("title").textContent = errors ? `${errors} thing${errors === 1 ? "" : "s"} to mend before training`
    : data.findings.length ? "Nothing that must be mended" : "Nothing looks wrong";
  if (!data.findings.length) return add(section("advice"), "p", { class: "quiet" }, "None.");
  const list = add(section("advice"), "ul");
  for (const { level, text } of data.findings) {
    const item = add(list, "li", { class: level }, text);
    add(item, "p", {}, `${level}: ${word[level]}`);
  }
}

function fillNumbers() {
  const names = [...new Set(splits.flatMap((split) => Object.keys(data.numbers[split])))];
  table(section("numbers"), ["", ...splits],
    names.map((name) => [name, ...splits.map((split) => data.numbers[split][name])]));
  add(section("numbers"), "p", { class: "quiet" }, "smallest / median / largest; boxes in pixels of the training image");
}

function fillClasses() {
  const names = [...new Set(splits.flatMap((split) => Object.keys(data.counts[split])))];
  if (!names.length) return section("classes").remove();
  const made = (parent) => table(parent, ["class", ...splits],
    names.map((name) => [name, ...splits.map((split) => data.counts[split][name] ?? 0)]));
  if (names.length <= 30) made(section("classes"));
  else folded(section("classes"), `${names.length} classes`, made);
}

function fillImages() {
  if (!data.images.length) return section("images").remove();
  const charts = add(section("images"), "div", { class: "charts" });
  for (const { name, source, width, height } of data.images) {
    const figure = add(charts, "figure");
    add(add(figure, "figcaption", {}), "h3", {}, name);
    add(figure, "img", { src: source, width, height, alt: name });
  }
}

for (const fill of [fillFindings, fillNumbers, fillClasses, fillImages]) fill();
root.dataset.drawn = "yes";
