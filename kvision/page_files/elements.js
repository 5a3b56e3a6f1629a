"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
window.addEventListener("error", (event) => { root.dataset.error = event.message; });

// ---- Elements and words. Text from the run enters the page as text only. ----

function add(parent, tag, attributes = {}, text = null) {
  const node = tag === "svg" || parent.namespaceURI.endsWith("svg")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

const section = (name) => document.getElementById(name);
const words = (name) => name.replaceAll("_", " ");
const whole = (number) => number.toLocaleString("en-US");

function format(value) {
  if (!Number.isFinite(Number(value))) return String(value).replace("Infinity", "∞");
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return Number(value).toExponential(1).replace("e+", "e").replace(".0e", "e");
  return String(Number(Number(value).toPrecision(size >= 1000 ? 5 : 4)));
}

const gigabytes = (bytes) => `${(bytes / 1e9).toPrecision(2)} GB`;

function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function table(parent, heads, rows) {
  const made = add(add(parent, "div", { class: "scroll", tabindex: 0 }), "table");
  const numeric = heads.map((_, column) => rows.some((row) => typeof row[column] === "number"));
  const cell = (row, tag, column, text) => add(row, tag, numeric[column] ? { class: "number" } : {}, text);
  const head = add(add(made, "thead"), "tr");
  heads.forEach((text, column) => cell(head, "th", column, text).setAttribute("scope", "col"));
  const body = add(made, "tbody");
  for (const values of rows) {
    const row = add(body, "tr");
    values.forEach((value, column) => {
      const text = typeof value === "number" && !Number.isInteger(value) ? format(value)
        : typeof value === "number" ? whole(value) : value ?? "";
      cell(row, column ? "td" : "th", column, text);
    });
  }
}

function flat(value, path = "") {  // rows of a dotted name and its value; what is not set is left out
  if (value === null) return [];
  if (typeof value === "number") return [[path, String(Number(value.toPrecision(6)))]];
  if (typeof value !== "object") return [[path, String(value)]];
  if (Array.isArray(value) && value.every((each) => typeof each !== "object")) return [[path, value.join(", ")]];
  return Object.entries(value).flatMap(([key, each]) => flat(each, path ? `${path}.${key}` : key));
}

function folded(parent, title, fill) {
  const details = add(parent, "details");
  add(details, "summary", {}, title);
  details.addEventListener("toggle", () => fill(details), { once: true });
}
