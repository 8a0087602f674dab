"use strict";
// Pictures of the same prompts from the same noise: the strip at the top, and the viewer with its slider and difference.

const gallery = data.gallery;
const picturesOf = new Map(gallery ? gallery.runs.map((entry) => [entry.run, entry]) : []);
let prompt = 0;

const nameOf = (run) => (run.kind === "full" ? "full run" : run.kind === "schedule" ? spelled(run.name) : run.name);

/** The full run, the plain run nearest in speed to `run`, and `run` itself. */
function stripRuns(run) {
  const full = data.runs.find((other) => other.kind === "full");
  const speed = (other) => measured(other, "speedup").value;
  const plain = data.runs.filter((other) => other.kind === "fewer steps" && picturesOf.has(other.key));
  plain.sort((a, b) => Math.abs(speed(a) - speed(run)) - Math.abs(speed(b) - speed(run)));
  return [full, run, plain[0]].filter((other) => other && picturesOf.has(other.key));
}

function picture(run, index) {
  const entry = picturesOf.get(run.key);
  const alt = `${gallery.prompts[index]} (${nameOf(run)})`;
  return element("img", { src: entry.images[index], alt, class: gallery.shown <= 128 ? "small" : false, decoding: "async" });
}

function fillStrip() {
  const run = runOf.get(data.chosen);
  const strip = byId("strip");
  if (!run || !strip) return;
  for (const shown of stripRuns(run)) {
    const speed = measured(shown, "speedup");
    const label = element("span", {}, element("b", {}, shown.kind === "full" ? "full run" : shown === run ? spelled(shown.name) : "plain run"));
    label.append(shown.kind === "full" ? `${shown.steps} steps` : shown === run ? "searched" : `${shown.name}, ${withUnit(metricOf.get("speedup"), speed.value)}`);
    strip.append(element("div", { class: `strip-row${shown === run ? " ours" : ""}` }, label, ...gallery.prompts.map((_, index) => picture(shown, index))));
  }
}

/** The prompt whose picture is of middling quality, so that the first one looked at is neither luck nor bad luck. */
function typicalPrompt() {
  const entry = picturesOf.get(data.chosen);
  if (!entry) return 0;
  const order = entry.scores.map((value, index) => [value, index]).sort((a, b) => a[0] - b[0]);
  return order[Math.floor(order.length / 2)][1];
}

function score(run, index) {
  const metric = metricOf.get(gallery.metric);
  const entry = picturesOf.get(run.key);
  if (!metric || !entry || run.kind === "full") return "";
  return withUnit(metric, entry.scores[index]);
}

function showPicture() {
  if (!selected) return;
  const other = runOf.get(byId("other").value);
  const has = picturesOf.has(selected.key);
  byId("stage").hidden = !has;
  if (!has) {
    byId("picture-caption").textContent = "No pictures of this schedule were kept.";
    return;
  }
  for (const [id, name, run] of [["image-a", "name-a", other], ["image-b", "name-b", selected]]) {
    const image = byId(id);
    image.src = picturesOf.get(run.key).images[prompt];
    image.alt = `${gallery.prompts[prompt]} (${nameOf(run)})`;
    image.className = gallery.shown <= 128 ? "small" : "";
    byId(name).textContent = nameOf(run);
  }
  const scores = [selected, other].filter((run) => run.kind !== "full").map((run) => `${nameOf(run)} ${score(run, prompt)}`);
  byId("picture-caption").replaceChildren(gallery.prompts[prompt], element("span", {}, ` — ${scores.join(", ")} from the full run`));
  for (const [index, button] of [...byId("thumbs").children].entries()) button.setAttribute("aria-pressed", String(index === prompt));
}

function fillThumbs() {
  if (!picturesOf.has(selected.key)) {
    byId("thumbs").replaceChildren();
    return;
  }
  byId("thumbs").replaceChildren(...gallery.prompts.map((text, index) => {
    const button = element("button", { type: "button", "aria-pressed": "false", title: text }, picture(selected, index), score(selected, index));
    button.addEventListener("click", () => {
      prompt = index;
      showPicture();
    });
    return button;
  }));
}

function fillOther(run) {
  const choice = byId("other");
  const before = choice.value;
  const others = data.runs.filter((other) => other !== run && picturesOf.has(other.key));
  const label = (other) => (other.kind === "schedule" ? `schedule ${spelled(other.name)}` : other.kind === "full" ? "full run" : `plain run, ${other.name}`);
  choice.replaceChildren(...others.map((other) => element("option", { value: other.key }, label(other))));
  if (others.some((other) => other.key === before)) choice.value = before;
}

function startPictures() {
  if (!gallery || !byId("stage")) return;
  const root = document.documentElement.style;
  root.setProperty("--ratio", `${gallery.width} / ${gallery.height}`);
  root.setProperty("--ratio-number", String(gallery.width / gallery.height));
  root.setProperty("--n", String(gallery.prompts.length));
  prompt = typicalPrompt();
  fillStrip();
  const stage = byId("stage");
  byId("split").addEventListener("input", (event) => stage.style.setProperty("--split", event.target.value));
  byId("gain").addEventListener("input", (event) => {
    stage.style.setProperty("--gain", event.target.value);
    byId("gain-out").textContent = `${event.target.value}×`;
  });
  for (const radio of document.querySelectorAll('input[name="mode"]')) {
    radio.addEventListener("change", () => {
      stage.dataset.mode = radio.value;
      byId("gain-line").hidden = radio.value !== "difference";
    });
  }
  byId("other").addEventListener("change", showPicture);
  onSelect((run) => {
    fillOther(run);
    fillThumbs();
    showPicture();
  });
}
