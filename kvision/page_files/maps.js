// Heat maps: a row a layer, a column a stretch of steps. Cells hold hundredths of a decade, or thousandths (linear).

const MISSING = -10000, ZERO = -9999, NOT_FINITE = 9999;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const cssColor = (name) => getComputedStyle(root).getPropertyValue(name);

function shade(fraction) {  // lightness falls (in dark mode: rises) with the number, so it reads in black and white
  const t = Math.max(0, Math.min(1, fraction));
  const lightness = dark.matches ? 0.24 + 0.7 * t : 0.97 - 0.7 * t;
  return `oklch(${lightness} ${0.02 + 0.11 * Math.sin(Math.PI * t)} ${95 + 165 * (dark.matches ? 1 - t : t)})`;
}

function scaleOf(grid) {
  const linear = grid.scale === "linear";
  const decode = (code) => {
    if (code === ZERO) return 0;
    if (code === NOT_FINITE) return Infinity;
    return linear ? code / 1000 : 10 ** (code / 100);
  };
  let from = 0, to = 1000;
  if (!linear) {
    const codes = grid.cells.flat().filter((code) => Math.abs(code) < NOT_FINITE);
    const [low, high] = grid.healthy ? grid.healthy.map((number) => 100 * Math.log10(number))
      : [codes.reduce((a, b) => Math.min(a, b), 0), codes.reduce((a, b) => Math.max(a, b), 0)];
    from = Math.floor(low / 100 - (grid.healthy ? 2 : 0)) * 100;
    to = Math.ceil(high / 100 + (grid.healthy ? 1 : 0)) * 100;
    if (from === to) to += 100;
  }
  const encode = (number) => (linear ? 1000 * number : 100 * Math.log10(number));
  return { linear, decode, from, to, fraction: (code) => (code - from) / (to - from), encode };
}

function side(grid, number, low) {  // -1 below, 1 above, 0 inside the healthy range
  if (typeof number === "string" || number === Infinity) return 1;
  return grid.healthy ? (number > grid.healthy[1]) - (number < low) : 0;
}

// The lower end of the healthy range, by column: once the median has been healthy, the end sinks as the median does,
// since an annealed learning rate makes all updates small.
function lowerEnds(grid, rows, scale) {
  let most = 0;
  return grid.steps.map((_, column) => {
    const low = grid.healthy?.[0] ?? 0;
    const numbers = rows.map((row) => grid.cells[row][column])
      .filter((code) => code !== MISSING && code !== NOT_FINITE).map(scale.decode).sort((one, two) => one - two);
    const median = numbers[numbers.length >> 1] ?? 0;
    most = Math.max(most, median);
    return most >= low && most > 0 ? low * median / most : low;
  });
}

function legend(parent, grid, scale) {
  const box = add(parent, "div", { class: "legend", "aria-hidden": "true" });
  const bar = add(box, "div", { class: "bar" });
  const marks = add(box, "div", { class: "marks" });
  const paint = () => {
    const stops = Array.from({ length: 17 }, (_, index) => shade(index / 16));
    bar.style.background = `linear-gradient(90deg, ${stops.join()})`;
  };
  paint();
  dark.addEventListener("change", paint);
  const mark = (fraction, text) => { add(marks, "span", {}, text).style.left = `${100 * fraction}%`; };
  const decades = (scale.to - scale.from) / 100;
  const every = scale.linear ? 1 : Math.ceil(decades / 5);
  for (let index = 0; index <= (scale.linear ? 4 : decades); index += every) {
    const fraction = scale.linear ? index / 4 : index / decades;
    mark(fraction, scale.linear ? `${25 * index} %` : `1e${scale.from / 100 + index}`);
  }
  if (!grid.healthy) return;
  const [low, high] = grid.healthy.map((number) => (number ? scale.fraction(scale.encode(number)) : 0));
  const range = add(box, "div", { class: "range" });
  range.style.left = `${100 * low}%`;
  range.style.width = `${100 * (high - low)}%`;
}

function outside(parent, grid, names, low) {
  const found = names.map((name) => [name, grid.latest[name]])
    .filter(([, number]) => number !== undefined && side(grid, number, low))
    .map(([name, number]) => `${name} ${format(number)} (${side(grid, number, low) > 0 ? "above" : "below"})`);
  const shrunk = names.some((name) => grid.latest[name] < grid.healthy[0]);
  const shown = found.slice(0, 8).join(", ") + (found.length > 8 ? ` and ${found.length - 8} more` : "");
  add(parent, "p", { class: "list" }, found.length ? `Outside at the last measurement: ${shown}.`
    : shrunk ? "Small at the last measurement, after a healthy run and all together: right where the rate was annealed, else the training stands still."
    : `All ${names.length} inside the healthy range at the last measurement.`);
}

function shorten(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let kept = text.length - 1;
  while (kept > 1 && context.measureText(`…${text.slice(-kept)}`).width > room) kept--;
  return `…${text.slice(-kept)}`;
}

const contrast = (fraction) => ((fraction > 0.5) !== dark.matches ? "#fff" : "#000");

// Where the rows and columns of a map lie on its canvas.
function layoutOf(map, width) {
  const count = map.rows.length;
  const rowHeight = count <= 14 ? 20 : count <= 45 ? 14 : Math.max(3, Math.floor(640 / count));
  const labels = Math.min(230, Math.round(width * 0.34));
  return { width, rowHeight, labels, cell: (width - labels) / map.grid.steps.length, height: count * rowHeight + 20 };
}

function paint(map) {
  const { canvas, grid, scale, rows } = map;
  const figure = canvas.parentElement;
  const width = Math.floor(figure.clientWidth - 2 * parseFloat(getComputedStyle(figure).paddingLeft));
  if (width <= 0) return;
  map.layout = layoutOf(map, width);
  const { rowHeight, labels, cell, height } = map.layout;
  const ratio = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";

  const shades = Array.from({ length: 129 }, (_, index) => shade(index / 128));
  const [quiet, alarm] = [cssColor("--quiet"), cssColor("--alarm")];
  const gap = rowHeight > 6 ? 1 : 0;
  const every = Math.ceil(13 / rowHeight);  // rows to a label
  const suffix = rows.every((row) => grid.rows[row].endsWith("/kernel")) ? "/kernel" : "";
  rows.forEach((row, place) => {
    const y = place * rowHeight;
    if (place % every === 0) {
      context.fillStyle = quiet;
      context.textAlign = "right";
      const label = grid.rows[row].slice(0, grid.rows[row].length - suffix.length);
      context.fillText(shorten(context, label, labels - 10), labels - 8, y + Math.max(rowHeight, 12) / 2);
    }
    grid.cells[row].forEach((code, column) => {
      if (code === MISSING) return;
      const x = labels + column * cell, fraction = Math.max(0, Math.min(1, scale.fraction(code)));
      context.fillStyle = code === NOT_FINITE ? alarm : shades[Math.round(128 * fraction)];
      context.fillRect(x, y, cell + (gap ? -Math.min(1, cell / 8) : 0.5), rowHeight - gap);
      const out = side(grid, scale.decode(code), map.low[column]);
      if (out) mark(context, x, y, out, map.layout, contrast(fraction));
    });
  });
  context.fillStyle = quiet;
  context.textAlign = "left";
  context.fillText(`step ${whole(grid.steps[0][0])}`, labels, height - 8);
  context.textAlign = "right";
  if (grid.steps.length > 1) context.fillText(whole(grid.steps.at(-1)[1]), width, height - 8);
}

function mark(context, x, y, direction, { rowHeight, cell }, colour) {  // outside the healthy range: up or down
  context.fillStyle = colour;
  if (rowHeight < 12 || cell < 7) {
    context.fillRect(x, direction > 0 ? y : y + rowHeight - 1, cell / 2, 1);
    return;
  }
  const [across, down] = [x + cell / 2, y + rowHeight / 2];
  context.beginPath();
  context.moveTo(across - 3, down + 2 * direction);
  context.lineTo(across + 3, down + 2 * direction);
  context.lineTo(across, down - 3 * direction);
  context.fill();
}

function readCell(map, readout, place, column) {
  const { grid, scale, rows } = map;
  const inside = (index, length) => Math.max(0, Math.min(length - 1, index));
  map.chosen = [inside(place, rows.length), inside(column, grid.steps.length)];
  const row = rows[map.chosen[0]], [first, last] = grid.steps[map.chosen[1]];
  const code = grid.cells[row][map.chosen[1]], number = scale.decode(code);
  let text = format(Number(number.toPrecision(2))), out = 0;
  if (code === MISSING) text = "not measured";
  else if (code === NOT_FINITE) text = "not finite";
  else out = side(grid, number, map.low[map.chosen[1]]);
  const alarm = out || code === NOT_FINITE;
  readout.replaceChildren();
  add(readout, "b", {}, grid.rows[row]);
  add(readout, "span", {}, first === last ? `step ${whole(first)}` : `steps ${whole(first)} to ${whole(last)}`);
  add(readout, "b", alarm ? { class: "alarm" } : {}, text + [", below healthy", "", ", above healthy"][out + 1]);
}

function heatMap(parent, name, grid, meaning) {
  const figure = add(parent, "figure", { class: "map" });
  const caption = add(figure, "figcaption");
  const head = add(caption, "div", { class: "row" });
  add(head, "h3", {}, words(name));
  const [low, high] = (grid.healthy ?? []).map(format);
  const range = grid.healthy ? ` Healthy is ${low} to ${high}, bracketed below.` : "";
  add(caption, "p", { class: "quiet" }, meaning + range);
  const scale = scaleOf(grid);
  legend(figure, grid, scale);
  const rest = "Point at a cell, or use the arrow keys.";
  const readout = add(figure, "div", { class: "readout", "aria-live": "polite" }, rest);
  const canvas = add(figure, "canvas", { role: "img", tabindex: 0 });
  const every = grid.rows.map((_, row) => row);
  const vectors = new Set(data.vectors);
  const kernels = every.filter((row) => !vectors.has(grid.rows[row]));
  const rows = kernels.length ? kernels : every;
  const map = { canvas, grid, scale, rows, low: lowerEnds(grid, rows, scale), chosen: [0, grid.steps.length - 1] };
  const label = `${words(name)} of ${map.rows.length} layers over the steps; the last as a table below`;
  canvas.setAttribute("aria-label", label);
  if (grid.healthy) outside(figure, grid, map.rows.map((row) => grid.rows[row]), map.low.at(-1));
  folded(figure, "Last measured, as a table", (details) =>
    table(details, ["", words(name)], Object.entries(grid.latest)));

  if (kernels.length && kernels.length < every.length) {
    const box = add(add(head, "label"), "input", { type: "checkbox" });
    box.after(" biases and scales too");
    box.addEventListener("change", () => {
      map.rows = box.checked ? every : kernels;
      paint(map);
    });
  }
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), { labels, cell, rowHeight } = map.layout;
    readCell(map, readout, Math.floor((event.clientY - box.top) / rowHeight),
      Math.floor((event.clientX - box.left - labels) / cell));
  });
  canvas.addEventListener("pointerleave", () => { readout.textContent = rest; });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    readCell(map, readout, map.chosen[0] + move[0], map.chosen[1] + move[1]);
    event.preventDefault();
  });
  paint(map);
  window.addEventListener("resize", () => paint(map));
  dark.addEventListener("change", () => paint(map));
}
