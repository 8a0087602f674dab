"use strict";
// The selected schedule: how it runs, what was measured of it, its file and the code that uses it.

const OPS = {
  C: "computed",
  R: "reused from an earlier step",
  1: "forecast to order 1",
  2: "forecast to order 2",
  3: "forecast to order 3",
  S: "skipped",
};

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function aboutText(run, view) {
  const parts = [plural(view.sigma.length - 1, "step")];
  if (run.calls !== null) parts.push(`${plural(run.calls, "denoiser call")} per picture`);
  const y = metricOf.get(data.metric);
  const value = y && measured(run, y.name);
  if (value) parts.push(`${withUnit(y, value.value)} ${y.short}`);
  return `${parts.join(" · ")}. `;
}

// ---- the op map

function opCell(op, own) {
  return element("td", { class: `op op-${op}${own === "0" ? " covered" : ""}`, title: OPS[op] }, op);
}

/** A part of a block stands below it, so its own name is enough. */
const shortLabel = (row) => (row.level === 2 ? row.label.replace(/^.*?\.\d+(–\d+)?\./, "") : row.label);

function mapRow(row, hasFormats) {
  const cells = [...row.ops].map((op, step) => (row.is_pruned ? element("td", { class: "op op-S", title: "removed" }, "×") : opCell(op, row.own[step])));
  const tail = [element("td", { class: "count" }, row.is_pruned ? "removed" : `${row.computed}/${row.ops.length}`)];
  if (hasFormats) tail.push(element("td", { class: "fmt" }, row.formats));
  const classes = `level-${row.level}${row.is_pruned ? " is-pruned" : ""}`;
  return element("tr", { class: classes }, element("th", { scope: "row", title: row.label }, shortLabel(row), row.count > 1 ? element("small", {}, ` ×${row.count}`) : ""), ...cells, ...tail);
}

function fillMap(view) {
  const rows = byId("unfold").checked ? view.rows : view.folded;
  const hasFormats = rows.some((row) => row.formats);
  const steps = view.sigma.length - 1;
  const line = (label, cells, end = "") => element("tr", {}, element("th", { scope: "row" }, label), ...cells.map((text) => element("td", {}, text)), element("td", { class: "count" }, end), ...(hasFormats ? [element("td", { class: "fmt" }, label === "step" ? "formats" : "")] : []));
  const head = element("thead", {},
    line("step", Array.from({ length: steps }, (_, i) => String(i + 1)), "computed"),
    line("noise level", view.sigma.slice(0, -1).map((level) => level.toPrecision(2).replace(/^0\./, "."))),
    line("solver", view.solvers));
  if (view.guidance.length) head.append(line("guidance", view.guidance.map((scale) => scale || "–")));
  const caption = element("caption", { class: "visually-hidden" }, "One row per module, one column per step: what happens there");
  byId("map").replaceChildren(caption, head, element("tbody", {}, ...rows.map((row) => mapRow(row, hasFormats))));
  const used = new Set(view.rows.flatMap((row) => [...row.ops]));
  byId("map-legend").replaceChildren(
    ...Object.entries(OPS).filter(([op]) => used.has(op)).map(([op, words]) => element("span", {}, element("span", { class: `swatch op-${op}`, "aria-hidden": "true" }, op), words)),
    ...view.solver_names.map(([letter, words]) => element("span", {}, element("span", { class: "swatch", "aria-hidden": "true" }, letter), words)));
  byId("unfold-line").hidden = view.rows.length === view.folded.length;
  const notes = [];
  if (view.pruned.length) notes.push(`Removed for the whole run: ${view.pruned.join(", ")}.`);
  for (const [pattern, format] of view.formats) notes.push(`Layers ${pattern}: ${format}.`);
  byId("map-notes").replaceChildren(...notes.map((text) => element("p", {}, text)));
}

/** Where along the noise the steps lie, beside those of the full run. */
function sigmaPlot(view, width) {
  const rows = [["this schedule", view.sigma, true], ["full run", data.plain_sigma, false]].filter(([, levels]) => levels.length);
  const marks = rows.flatMap(([label, levels, ours]) => {
    const points = [...levels].map((level) => ({ level, label }));
    const colour = ours ? "var(--accent)" : "var(--f1)";
    return [
      Plot.line(points, { x: "level", y: "label", stroke: colour, strokeOpacity: 0.4 }),
      Plot.dot(points, { x: "level", y: "label", r: ours ? 4.5 : 2.5, symbol: ours ? "circle" : "square", fill: colour }),
    ];
  });
  return Plot.plot({
    width, height: 44 + 26 * rows.length, marginLeft: 96, marginRight: 16, marginTop: 6, marginBottom: 36, style: { fontSize: "12px" },
    ariaLabel: "Noise levels of the steps", ariaDescription: view.sigma.map((level) => level.toPrecision(3)).join(", "),
    x: { reverse: true, label: "noise level", labelAnchor: "center", labelArrow: "none", ticks: 6 }, y: { label: null, domain: rows.map(([label]) => label), tickSize: 0 },
    marks,
  });
}

function mapText(view) {
  const model = view.rows[0];
  const [computed, steps] = [model.computed, model.ops.length];
  const full = data.plain_sigma.length - 1;
  const beginning = full > 0 ? `${plural(steps, "step")} in place of ${full}` : plural(steps, "step");
  const rest = computed === steps ? "the denoiser is called at every one of them" : `the denoiser is called at ${computed} of them`;
  const quiet = view.rows.slice(1).every((row) => row.ops === model.ops && !row.formats && !row.is_pruned);
  return `${beginning}; ${rest}${quiet && computed === steps ? ", with all its blocks" : ""}.`;
}

// ---- numbers, files, code

function fillMeasured(run) {
  const full = data.runs.find((other) => other.kind === "full");
  const rows = data.metrics.filter((metric) => measured(run, metric.name)).map((metric) => {
    const value = measured(run, metric.name);
    const whole = full && measured(full, metric.name);
    const interval = value.n > 1 && value.low !== value.high ? `${bare(metric, value.low)} – ${bare(metric, value.high)}` : "";
    return element("tr", {},
      element("th", { scope: "row" }, metric.label), element("td", {}, withUnit(metric, value.value)), element("td", {}, interval),
      element("td", {}, value.n > 1 ? String(value.n) : ""), element("td", {}, whole && !metric.is_relative ? withUnit(metric, whole.value) : ""));
  });
  const head = ["", "value", "interval", "n", "full run"].map((word) => element("th", { scope: "col" }, word));
  byId("measured").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

let urls = [];

function download(name, parts, type) {
  const url = URL.createObjectURL(new Blob(parts, { type }));
  urls.push(url);
  return element("a", { href: url, download: name }, `↓ ${name}`);
}

function fillUse(view) {
  byId("code").textContent = view.code;
  for (const url of urls) URL.revokeObjectURL(url);
  urls = [];
  const links = [];
  if (view.text) links.push(download(view.file, [view.text], "application/json"));
  if (view.side) links.push(download(view.side_file, [bytesOf(view.side)], "application/octet-stream"));
  byId("downloads").replaceChildren(...links);
  const words = [];
  if (view.text && view.side) words.push("Keep the two files beside each other: the second holds the fitted numbers.");
  if (view.side_file && view.text && !view.side) words.push(`The numbers it needs lie in ${view.side_file} beside ${view.path}; they are too large for this page.`);
  if (!view.text) words.push(view.path ? `The file lies at ${view.path}.` : "It has no file yet: its steps are fitted when the search ends.");
  else if (view.path) words.push(`Also at ${view.path} in the run's folder.`);
  byId("use-about").textContent = words.join(" ");
  byId("origin").replaceChildren(...[...view.origin, ["Id", view.id]].map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value))));
}

function startSchedule() {
  if (!byId("selected")) return;
  const view = () => viewOf.get(selected.schedule);
  byId("unfold").addEventListener("change", () => fillMap(view()));
  byId("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(byId("code").textContent);
      byId("copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(byId("code"));
    }
  });
  let redraw = null;
  onSelect((run) => {
    byId("selected-title").textContent = `Schedule ${spelled(run.name)}`;
    byId("selected-about").textContent = aboutText(run, view());
    byId("map-about").textContent = mapText(view());
    byId("copy").textContent = "Copy";
    fillMap(view());
    fillMeasured(run);
    fillUse(view());
    if (redraw) redraw();
  });
  redraw = drawn("sigma-plot", (width) => sigmaPlot(view(), width));
}
