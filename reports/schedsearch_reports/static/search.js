"use strict";
// How the search went: hypervolume and best at the budget against what was spent, everything tried, importance of genes.

const quality = metricOf.get(data.metric);
const qualityUnit = quality && quality.unit ? ` (${quality.unit})` : "";

function progressPlot(width, key, label) {
  const steps = data.search.progress.filter((step) => step[key] !== null);
  return Plot.plot({
    width, height: 240, marginLeft: 46, marginRight: 16, marginTop: 30, marginBottom: 40, style: { fontSize: "12px" },
    ariaLabel: `${label} against denoiser evaluations`, ariaDescription: "The same numbers stand in the table below the plots.",
    x: { label: "denoiser evaluations spent", labelAnchor: "center", labelArrow: "none", ticks: 5, tickFormat: (n) => n.toLocaleString("en") },
    y: { label: `${label}${qualityUnit}`, grid: true, ticks: 5, nice: true, zero: false, reverse: key === "best" && quality && quality.better === "min" },
    marks: [
      Plot.line(steps, { x: "evals", y: key, curve: "step-after", stroke: "var(--accent)", strokeWidth: 2 }),
      Plot.tip(steps, Plot.pointerX({ x: "evals", y: key, title: (step) => `${step.evals.toLocaleString("en")} evaluations, measurement ${step.ask}\n${step[key].toPrecision(4)}${quality ? ` ${quality.unit}` : ""}`, fontSize: 12.5, lineHeight: 1.35, stroke: "var(--line)" })),
    ],
  });
}

const ORIGIN_SYMBOLS = ["circle", "triangle", "square", "diamond", "cross", "star", "wye", "times"];
const originStyle = new Map(data.search.origins.map((origin, i) => [origin.name, { symbol: ORIGIN_SYMBOLS[i % 8], colour: `var(--f${[2, 3, 4, 5, 6, 1, 7][i % 7]})` }]));

function triedPlot(width) {
  const tried = data.search.tried;
  const best = data.search.tried.filter((one) => one.is_best).sort((a, b) => a.speed - b.speed);
  const lowest = best.length ? Math.min(...best.map((one) => one.quality)) : 0;
  const isMax = !quality || quality.better === "max";
  // Far outliers would press everything worth seeing into a corner.
  const shown = tried.filter((one) => one.speed > 1.02 && (isMax ? one.quality >= lowest - Math.abs(lowest) * 0.4 : true));
  const what = (one) => `${one.speed.toFixed(2)}× · ${quality ? withUnit(quality, one.quality) : one.quality.toPrecision(4)}\nmeasurement ${one.ask + 1}, ${one.origin}`;
  return Plot.plot({
    width, height: Math.round(Math.min(420, Math.max(280, width * 0.42))), marginLeft: 52, marginRight: 20, marginTop: 26, marginBottom: 42, style: { fontSize: "12px" },
    ariaLabel: "Everything measured in full: predicted speed-up against quality on the calibration prompts",
    x: { type: "log", label: "predicted speed-up", labelArrow: "right", tickFormat: (v) => `${Number(v.toPrecision(3))}×`, ticks: width < 520 ? 4 : 8, grid: true },
    y: { label: quality ? axisTitle(quality) : "quality", labelArrow: "up", grid: true, reverse: !isMax, nice: true },
    marks: [
      Plot.line(best.filter((one) => one.speed > 1.02), { x: "speed", y: "quality", stroke: "var(--ink)", strokeOpacity: 0.35, strokeWidth: 1.5 }),
      ...[...originStyle].map(([name, { symbol, colour }]) => Plot.dot(shown.filter((one) => one.origin === name), { x: "speed", y: "quality", symbol, r: 3.5, stroke: colour, fill: (one) => (one.is_best ? colour : "none"), strokeWidth: 1.4 })),
      Plot.tip(shown, Plot.pointer({ x: "speed", y: "quality", title: what, maxRadius: 24, fontSize: 12.5, lineHeight: 1.35, stroke: "var(--line)" })),
    ],
  });
}

function genesPlot(width) {
  const genes = data.search.genes.slice(0, 8);
  return Plot.plot({
    width, height: 38 * genes.length + 4, marginLeft: 2, marginRight: 44, marginTop: 2, marginBottom: 2, style: { fontSize: "12px" },
    ariaLabel: "Importance of decisions", ariaDescription: "The same numbers stand in the table below.",
    x: { axis: null, domain: [0, Math.max(...genes.map((gene) => gene.share))] }, y: { axis: null, domain: genes.map((gene) => gene.label), padding: 0 },
    marks: [
      Plot.barX(genes, { x: "share", y: "label", fill: "var(--f1)", insetTop: 21, insetBottom: 8, rx: 2 }),
      Plot.text(genes, { x: 0, y: "label", text: "label", textAnchor: "start", dy: -8, fill: "var(--ink)" }),
      Plot.text(genes, { x: "share", y: "label", text: (gene) => `${Math.round(100 * gene.share)} %`, textAnchor: "start", dx: 6, dy: 6, fill: "var(--muted)" }),
    ],
  });
}

function startSearch() {
  drawn("best-plot", (width) => progressPlot(width, "best", "best, predicted"));
  drawn("volume-plot", (width) => progressPlot(width, "volume", "hypervolume"));
  drawn("tried-plot", triedPlot);
  drawn("genes-plot", genesPlot);
  const legend = byId("tried-legend");
  if (legend) {
    legend.append(...[...originStyle].map(([name, { symbol, colour }]) => element("span", {}, mark(symbol, colour), name)));
    legend.append(element("span", {}, "filled: on the search's frontier"));
  }
}
