"use strict";
// Speed against quality: the plot, its axes, its legend and the list beside it.

const hidden = new Set();
const axis = (which) => metricOf.get(byId(`${which}-metric`).value);

/** Runs that have a point on these axes; a run compared with itself has none. */
function pointsOn(x, y) {
  const points = [];
  for (const run of data.runs) {
    const [across, up] = [measured(run, x.name), measured(run, y.name)];
    if (!across || !up || hidden.has(run.family) || (run.kind === "full" && y.is_relative)) continue;
    points.push({ run, x: across.value * x.scale, y: up.value * y.scale });
  }
  return points;
}

/** Points that no other of them beats on both axes, in the order of x. */
function front(points, x, y) {
  const kept = points.filter((p) => !points.some((q) => q !== p && !better(x, p.x, q.x) && !better(y, p.y, q.y) && (better(x, q.x, p.x) || better(y, q.y, p.y))));
  return kept.sort((p, q) => p.x - q.x);
}

function describe(point, x, y) {
  const run = point.run;
  const lines = [`${run.kind === "fewer steps" ? "plain, " : ""}${spelled(run.name)}`, `${withUnit(x, measured(run, x.name).value)} · ${withUnit(y, measured(run, y.name).value)}`];
  if (run.calls !== null) lines.push(`${run.calls} denoiser calls`);
  if (run.note) lines.push(run.note);
  return lines.join("\n");
}

const scaleOf = (metric, log) => ({
  type: log ? "log" : "linear",
  reverse: metric.better === "min",
  nice: !log,
  grid: true,
  tickFormat: (value) => `${Number(value.toPrecision(4))}${metric.unit === "×" ? "×" : ""}`,
});

function frontierPlot(width) {
  const [x, y] = [axis("x"), axis("y")];
  const points = pointsOn(x, y);
  const narrow = width < 520;
  const ringed = points.filter((point) => point.run === selected);
  const spread = ringed.map(({ run }) => ({ across: measured(run, x.name), up: measured(run, y.name) }));
  const lines = data.families.filter((family) => family.name !== "full").flatMap((family) => {
    const own = front(points.filter((point) => point.run.family === family.name), x, y);
    const ours = family.colour === 0;
    return [
      Plot.line(own, { x: "x", y: "y", stroke: colourOf(family.name), strokeWidth: ours ? 2.5 : 1.25, strokeDasharray: ours ? null : "4 3", strokeOpacity: ours ? 0.9 : 0.7 }),
    ];
  });
  const dots = data.families.map((family) => Plot.dot(
    points.filter((point) => point.run.family === family.name),
    { x: "x", y: "y", symbol: family.symbol, r: family.colour === 0 ? 5 : 3.5, fill: (p) => (p.run.kind === "schedule" && !p.run.schedule ? "var(--card)" : colourOf(family.name)), stroke: colourOf(family.name), strokeWidth: 1.5, ariaLabel: (p) => describe(p, x, y).replaceAll("\n", ", ") },
  ));
  const plot = Plot.plot({
    width, height: Math.round(Math.min(500, Math.max(320, width * 0.64))),
    marginLeft: 52, marginRight: narrow ? 14 : 24, marginTop: 28, marginBottom: 44,
    style: { fontSize: "12px" },
    ariaLabel: `${y.label} against ${x.label}`,
    ariaDescription: "The same numbers stand in the table below the plot.",
    x: { ...scaleOf(x, byId("x-log").checked), label: axisTitle(x), labelArrow: "right", ticks: narrow ? 5 : 9 },
    y: { ...scaleOf(y, byId("y-log").checked), label: axisTitle(y), labelArrow: "up", ticks: 7 },
    marks: [
      ...lines,
      Plot.ruleX(spread, { x: (d) => d.across.value * x.scale, y1: (d) => d.up.low * y.scale, y2: (d) => d.up.high * y.scale, stroke: "var(--ink)", strokeOpacity: 0.55, strokeWidth: 1.25 }),
      Plot.ruleY(spread, { y: (d) => d.up.value * y.scale, x1: (d) => d.across.low * x.scale, x2: (d) => d.across.high * x.scale, stroke: "var(--ink)", strokeOpacity: 0.55, strokeWidth: 1.25 }),
      ...dots,
      Plot.dot(ringed, { x: "x", y: "y", r: 10, stroke: "var(--ink)", strokeWidth: 2 }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (point) => describe(point, x, y), maxRadius: 32, lineHeight: 1.35, fontSize: 12.5, stroke: "var(--line)" })),
    ],
  });
  plot.addEventListener("click", () => plot.value && select(plot.value.run.key));
  return plot;
}

// A schedule is called after its speed-up, so that column tells the interval instead of the name again.
const namesSpeed = (metric) => metric.name === "speedup";

function interval(metric, value) {
  return value.low === value.high ? withUnit(metric, value.value) : `${bare(metric, value.low)}–${bare(metric, value.high)}`;
}

function fillList() {
  const [x, y] = [axis("x"), axis("y")];
  byId("pick-x").textContent = namesSpeed(x) ? "interval" : x.short;
  byId("pick-y").textContent = y.unit ? `${y.short}, ${y.unit}` : y.short;
  for (const row of document.querySelectorAll("#pick tbody tr")) {
    const run = runOf.get(row.dataset.key);
    const [across, up] = [measured(run, x.name), measured(run, y.name)];
    row.querySelector("[data-x]").textContent = !across ? "" : namesSpeed(x) ? interval(x, across) : withUnit(x, across.value);
    row.querySelector("[data-y]").textContent = up ? bare(y, up.value) : "";
  }
}

function startFrontier() {
  if (!byId("frontier-plot")) return;
  const redraw = drawn("frontier-plot", frontierPlot);
  byId("axes").addEventListener("change", () => {
    fillList();
    redraw();
  });
  byId("axes").addEventListener("submit", (event) => event.preventDefault());
  byId("pick").addEventListener("change", (event) => select(event.target.value));
  byId("pick").addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) select(row.dataset.key);
  });
  byId("legend").append(...data.families.map((family) => {
    const box = element("input", { type: "checkbox", checked: true, "aria-label": `Show ${family.label}` });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(family.name);
      else hidden.add(family.name);
      redraw();
    });
    return element("label", {}, box, mark(family.symbol, colourOf(family.name)), family.label);
  }));
  if (data.runs.some((run) => run.kind === "schedule" && !run.schedule)) {
    byId("legend").append(element("span", {}, mark("circle", "var(--accent)", false), "hollow: beaten on fresh prompts, so not handed over"));
  }
  fillList();
  onSelect(redraw);
}
