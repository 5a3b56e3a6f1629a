// Curves: small charts of one number each, over the steps of the run.

const margin = { left: 46, right: 10, top: 8, bottom: 20 };
const height = 170;
const value = (point) => (typeof point[2] === "number" ? point[2] : NaN);

function ticksOf(low, high, fewest) {
  const rough = (high - low) / fewest || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [5, 2, 1].map((factor) => factor * power).find((each) => each <= rough * 1.001);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9; tick++) ticks.push(tick * step);
  return ticks;
}

function verticalScale(values, healthy) {
  const low = Math.min(...values), high = Math.max(...values);
  const zero = low === 0 && healthy?.[0] > 0;  // no logarithm: it gets a line of its own, below the healthy range
  const logarithmic = zero || (healthy?.[0] !== 0 && low > 0 && high / low >= 100);
  const positive = zero ? [...healthy, ...values.filter((number) => number > 0)] : values;
  const floor = zero ? Math.floor(Math.log10(Math.min(...positive))) - 1 : -Infinity;
  const [from, to] = !logarithmic ? [low, high]
    : [zero ? floor : Math.log10(low), Math.log10(Math.max(...positive))];
  const room = (to - from || Math.abs(to) || 1) * 0.06;
  const bottom = height - margin.bottom;
  const place = (number) => bottom - (number - from + room) / (to - from + 2 * room) * (bottom - margin.top);
  const ticks = logarithmic
    ? ticksOf(from, to, Math.min(2, to - from)).filter((power) => Number.isInteger(power) && power > floor)
      .map((power) => [place(power), 10 ** power])
    : ticksOf(from - room, to + room, 2).map((tick) => [place(tick), Number(tick.toPrecision(12))]);
  if (zero) ticks.unshift([place(floor), 0]);
  return { logarithmic, ticks, at: (number) => place(logarithmic ? Math.max(Math.log10(number), floor) : number) };
}

function epochTicks(points, width) {  // rows of [step, epoch from 1]; between two points the step is a guess
  const last = points.at(-1)[1] + 1, first = Math.min(points[0][1] + 1, last);
  const ticks = first === last ? [last] : ticksOf(first, last, Math.max(1, Math.floor(width / 150)));
  return ticks.filter(Number.isInteger).map((epoch) => {
    const before = points.findLast((point) => point[1] + 1 <= epoch) ?? points[0];
    const after = points.find((point) => point[1] + 1 >= epoch) ?? before;
    const fraction = after[1] === before[1] ? 0 : (epoch - before[1] - 1) / (after[1] - before[1]);
    return [before[0] + fraction * (after[0] - before[0]), epoch];
  });
}

function sample(parent, kind) {
  const svg = add(parent, "svg", { "aria-hidden": "true", viewBox: "0 0 26 10" });
  add(svg, "line", { class: `line ${kind}`, x1: 1, x2: 18, y1: 5, y2: 5 });
  add(svg, "circle", { class: `dot ${kind}`, cx: 21, cy: 5, r: 3 });
}

function nearest(points, step) {
  return points.reduce((best, point) => (Math.abs(point[0] - step) <= Math.abs(best[0] - step) ? point : best));
}

// series: rows of {label, kind: "validation" or "train", points: rows of [step, epoch, value]}
function chart(parent, title, series, healthy) {
  const figure = add(parent, "figure");
  const caption = add(figure, "figcaption");
  const head = add(caption, "div", { class: "row" });
  add(head, "h3", {}, title);
  const note = add(head, "span", { class: "quiet" });
  const readout = add(caption, "div", { class: "readout" });
  const longest = series.reduce((best, each) => (each.points.length > best.points.length ? each : best)).points;
  const finite = series.flatMap((each) => each.points.map(value)).filter(Number.isFinite);
  const scale = verticalScale(finite.length ? finite : [0, 1], healthy);
  const range = healthy ? `healthy ${format(healthy[0])} to ${format(healthy[1])}` : "";
  note.textContent = [range, scale.logarithmic ? "log scale" : ""].filter(Boolean).join(", ");
  const first = Math.min(...series.map((each) => each.points[0][0]));
  const last = Math.max(...series.map((each) => each.points.at(-1)[0]));
  const about = series.map(({ label, points }) => `${label} ${format(points[0][2])} to ${format(points.at(-1)[2])}`);
  const svg = add(figure, "svg", { role: "img", tabindex: 0, height, "aria-label": `${title}: ${about.join("; ")}` });
  let width = 0, cursor = null;

  const across = (step) => (last === first ? 0.5 : (step - first) / (last - first)) *
    (width - margin.left - margin.right) + margin.left;

  function read(step) {
    readout.replaceChildren();
    const place = nearest(longest, step);
    add(readout, "span", {}, `epoch ${place[1] + 1}`);
    cursor.replaceChildren();
    const x = across(place[0]);
    const foot = height - margin.bottom;
    if (step !== last) add(cursor, "line", { class: "cross", x1: x, x2: x, y1: margin.top, y2: foot });
    for (const { label, kind, points } of series) {
      const point = nearest(points, place[0]);
      const entry = add(readout, "span");
      sample(entry, kind);
      entry.append(`${label} `);
      add(entry, "b", Number.isFinite(value(point)) ? {} : { class: "alarm" }, format(point[2]));
      if (Number.isFinite(value(point))) {
        add(cursor, "circle", { class: `dot ${kind}`, cx: across(point[0]), cy: scale.at(value(point)), r: 3.5 });
      }
    }
  }

  function draw() {
    if (figure.clientWidth === 0 || svg.clientWidth === width) return;
    width = svg.clientWidth;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (healthy) {
      const inside = (y) => Math.max(margin.top, Math.min(height - margin.bottom, y));
      const [low, high] = healthy.map((number) => inside(scale.at(number)));
      add(svg, "rect", { class: "healthy", x: margin.left, width: width - margin.left - margin.right,
        y: high, height: low - high });
    }
    for (const [y, tick] of scale.ticks) {
      add(svg, "line", { class: "gridline", x1: margin.left, x2: width - margin.right, y1: y, y2: y });
      add(svg, "text", { x: margin.left - 6, y: y + 4, "text-anchor": "end" }, format(tick));
    }
    for (const [step, epoch] of epochTicks(longest, width)) {
      add(svg, "text", { x: across(step), y: height - 5, "text-anchor": "middle" }, epoch);
    }
    for (const { kind, points } of series) {
      let path = "", pen = "M";
      for (const point of points) {
        if (Number.isFinite(value(point))) {
          path += `${pen}${across(point[0]).toFixed(1)} ${scale.at(value(point)).toFixed(1)}`;
          pen = "L";
        } else {
          pen = "M";
          add(svg, "text", { class: "broken", x: across(point[0]), y: margin.top + 10, "text-anchor": "middle" }, "×");
        }
      }
      add(svg, "path", { class: `line ${kind}`, d: path });
    }
    cursor = add(svg, "g");
    read(last);
  }

  const stepAt = (event) => first + (event.clientX - svg.getBoundingClientRect().left - margin.left) /
    (width - margin.left - margin.right) * (last - first);
  svg.addEventListener("pointermove", (event) => read(stepAt(event)));
  svg.addEventListener("pointerleave", () => read(last));
  let index = longest.length - 1;
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    index = Math.max(0, Math.min(longest.length - 1, index + move));
    read(longest[index][0]);
    event.preventDefault();
  });
  draw();
  window.addEventListener("resize", draw);
}

function chartOf(parent, name) {
  const series = [["val_", "validation", "validation"], ["", "training", "train"]]
    .filter(([prefix]) => data.curves[prefix + name])
    .map(([prefix, label, kind]) => ({ label, kind, points: data.curves[prefix + name] }));
  if (series.length === 1) series[0].kind = "validation";
  if (series.length === 1 && !data.curves["val_" + name]) series[0].label = "";
  chart(parent, words(name), series, data.grids[name]?.healthy);
}
