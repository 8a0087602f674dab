// What the report's pages draw with; see README.md for how plot.min.js is made of it.
export { plot, barX, dot, line, pointer, pointerX, ruleX, ruleY, text, tip } from "@observablehq/plot";
