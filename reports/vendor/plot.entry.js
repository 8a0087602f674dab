// What the report's pages draw with; see README.md for how plot.min.js is made of it.
export { plot, dot, line, link, ruleX, ruleY, text, tip, pointer, pointerX, barX, gridX, gridY } from "@observablehq/plot";
