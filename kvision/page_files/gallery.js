// Sections of images, each with what it shows and what it does not.

section("run").textContent = data.run;
section("title").textContent = data.title;
section("status").textContent = data.lead;
for (const { title, shows, shows_not, images, heads, rows } of data.sections) {
  const part = add(section("gallery"), "section");
  add(part, "h2", {}, title);
  add(part, "p", {}, shows);
  if (shows_not) add(part, "p", { class: "quiet" }, shows_not);
  if (rows) table(part, heads, rows);
  const row = add(part, "div", { class: "images" });
  for (const { name, source, width, height } of images) {
    const figure = add(row, "figure");
    add(add(figure, "figcaption", {}), "h3", {}, name);
    add(figure, "img", { src: source, width, height, alt: name });
  }
}
root.dataset.drawn = "yes";
