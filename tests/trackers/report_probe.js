// Added to a copy of the report's page by a test: says what the page's own scripts have drawn.
const seen = {};
document.querySelectorAll("details").forEach((each) => { each.open = true; });

function point(node, share, y) {
  const box = node.getBoundingClientRect();
  const place = { clientX: box.left + share * box.width, clientY: box.top + y };
  node.dispatchEvent(new PointerEvent("pointermove", place));
  return node.closest("figure").querySelector(".readout").textContent;
}

function press(node, key) {
  node.dispatchEvent(new KeyboardEvent("keydown", { key }));
  return node.closest("figure").querySelector(".readout").textContent;
}

setTimeout(() => {
  const svgs = [...document.querySelectorAll("svg[role=img]")];
  seen.charts = svgs.map((svg) => [
    svg.closest("figure").querySelector("h3").textContent,
    [...svg.querySelectorAll("path.line")].map((path) => (path.getAttribute("d").match(/[ML]/g) ?? []).length),
    svg.querySelectorAll("text.broken").length,
  ]);
  seen.labels = svgs.map((svg) => svg.getAttribute("aria-label"));
  if (svgs.length) seen.hover = point(svgs[0], 0.2, 50);
  if (svgs.length) seen.arrow = press(svgs[0], "ArrowLeft");
  const canvas = document.querySelector("canvas");
  if (canvas) {
    seen.cell = point(canvas, 0.99, 5);
    seen.below = press(canvas, "ArrowDown");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    seen.colours = new Set(new Uint32Array(pixels.buffer)).size;
  }
  const edge = document.body.getBoundingClientRect().right + 1;
  seen.wide = [...document.querySelectorAll("body *")].filter((each) => !each.closest(".scroll"))
    .filter((each) => each.getBoundingClientRect().right > edge).map((each) => each.outerHTML.slice(0, 80));
  seen.texts = Object.fromEntries([...document.querySelectorAll("h1, #status, #headline, #advice")]
    .map((each) => [each.id, each.textContent]));
  seen.elements = document.querySelectorAll("b").length - document.querySelectorAll(".readout b").length;
  seen.rows = document.querySelectorAll("#numbers tbody tr").length;
  seen.paper = getComputedStyle(document.body).backgroundColor;
  seen.error = document.documentElement.dataset.error ?? null;
  document.body.textContent = JSON.stringify(seen);
}, 300);
