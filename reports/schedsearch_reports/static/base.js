"use strict";
// The report's data, and what every part of the page needs: numbers in words, elements, and which schedule is selected.

const data = JSON.parse(document.getElementById("data").textContent);

const byId = (id) => document.getElementById(id);
const runOf = new Map(data.runs.map((run) => [run.key, run]));
const viewOf = new Map(data.schedules.map((view) => [view.id, view]));
const metricOf = new Map(data.metrics.map((metric) => [metric.name, metric]));
const familyOf = new Map(data.families.map((family) => [family.name, family]));
const colourOf = (family) => `var(--f${familyOf.get(family).colour})`;

/** An element with attributes and children; text is always text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined || value === null) continue;
    made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const spelled = (name) => name.replace(/(\d)x/, "$1×");

const measured = (run, name) => run.values.find((value) => value.metric === name);

function digitsOf(metric, value) {
  return Math.abs(value * metric.scale) >= 1000 ? 0 : metric.digits;
}

/** A number as people read it, without its unit. */
function bare(metric, value) {
  const shown = value * metric.scale;
  return shown.toLocaleString("en", { minimumFractionDigits: digitsOf(metric, value), maximumFractionDigits: digitsOf(metric, value) });
}

function withUnit(metric, value) {
  const gap = metric.unit === "" || metric.unit === "×" ? "" : "\u202f";
  return `${bare(metric, value)}${gap}${metric.unit}`;
}

const axisTitle = (metric) => `${metric.label}${metric.unit && metric.unit !== "×" ? ` (${metric.unit})` : ""}`;

/** Whether `a` is better than `b` in `metric`. */
const better = (metric, a, b) => (metric.better === "max" ? a > b : a < b);

// ---- which schedule is selected

const listeners = [];
let selected = null;

/** Calls `listener` with the selected run now and whenever it changes. */
function onSelect(listener) {
  listeners.push(listener);
  if (selected) listener(selected);
}

function select(key) {
  const run = runOf.get(key);
  if (!run || !run.schedule || run === selected) return;
  selected = run;
  const radio = document.querySelector(`#pick input[value="${CSS.escape(key)}"]`);
  if (radio) radio.checked = true;
  for (const row of document.querySelectorAll("#pick tbody tr")) row.classList.toggle("is-selected", row.dataset.key === key);
  try {
    history.replaceState(null, "", `#run=${encodeURIComponent(run.name)}`);
  } catch {
    // some places a page can be shown in have no address to change
  }
  for (const listener of listeners) listener(run);
}

/** The run the address asks for, else the one for the budget. */
function firstRun() {
  const asked = /#run=([^&]+)/.exec(location.hash);
  const name = asked ? decodeURIComponent(asked[1]) : null;
  const found = data.runs.find((run) => run.schedule && run.name === name);
  return found ? found.key : data.chosen;
}

// ---- plots are drawn as wide as they can be

const drawings = [];

/** Draws into the element `id` now, and again when its width changes; returns a function that draws anew. */
function drawn(id, draw) {
  const place = byId(id);
  if (!place) return () => {};
  const again = () => {
    const width = Math.floor(place.clientWidth);
    if (width > 0) place.replaceChildren(draw(width));
  };
  let last = 0;
  new ResizeObserver(() => {
    const width = Math.floor(place.clientWidth);
    if (width !== last) {
      last = width;
      again();
    }
  }).observe(place);
  drawings.push(again);
  return again;
}

/** A mark of the legend. */
function mark(symbol, colour, filled = true) {
  const plot = Plot.plot({
    width: 14, height: 14, margin: 0, x: { axis: null, domain: [-1, 1], range: [0, 14] }, y: { axis: null, domain: [-1, 1], range: [14, 0] },
    marks: [Plot.dot([0], { x: 0, y: 0, r: 4.5, symbol, stroke: colour, fill: filled ? colour : "none", strokeWidth: 1.5 })],
  });
  plot.setAttribute("aria-hidden", "true");
  return plot;
}
