// SPDX-License-Identifier: GPL-3.0-or-later
// One chart: Dygraph draws, this says what. The legend below it is a table of the lines' last and highest values, for who cannot see
// the lines; under the pointer it shows the values there.
/* global Dygraph */

import { filled, moment, parts, written } from "/pages/format.js";

const LINES = 8; // colours in page.css

// Its own legend writes style attributes, which the page's policy forbids; the table below is the legend.
Dygraph.PLUGINS = Dygraph.PLUGINS.filter((plugin) => plugin !== Dygraph.Plugins.Legend);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Series -> the rows of Dygraph, one for each time of the grid; null where there is no value. */
export function rows(series, { start, end, step }) {
  const found = [];
  for (let time = start; time <= end; time += step) {
    found.push([new Date(time * 1000), ...series.map((item) => item.values.get(time) ?? null)]);
  }
  return found;
}

/** How high the axis goes: a little above the highest value, or the highest sum. */
export function top(table, panel) {
  const highest = table.map(([, ...values]) =>
    panel.stacked ? values.reduce((sum, value) => sum + (value ?? 0), 0) : Math.max(0, ...values.map((value) => value ?? 0)));
  const peak = Math.max(panel.least ?? 0, ...highest);
  return peak > 0 ? peak * 1.15 : 1; // room for the marks' letters
}

export class Chart {
  constructor(panel, id) {
    this.panel = panel;
    this.canvas = element("div", { className: "canvas" });
    this.canvas.setAttribute("role", "img");
    this.nothing = element("p", { className: "nothing" });
    this.legend = element("tbody");
    this.when = element("th", { scope: "col", textContent: "now" });
    const head = element("tr", {}, element("th", { scope: "col", textContent: "" }), this.when,
      element("th", { scope: "col", textContent: "highest" }));
    head.firstChild.append(element("span", { className: "unseen", textContent: "line" }));
    this.ask = element("a", { className: "ask", textContent: "query", title: "Open the query in Prometheus" });
    this.ask.setAttribute("aria-label", `${panel.title}: open the query in Prometheus`);
    const heading = element("h2", { id, textContent: panel.title });
    this.section = element("section", { className: "chart" },
      element("div", { className: "head" }, heading, this.ask),
      element("p", { className: "about", textContent: panel.about ?? "" }),
      element("div", { className: "place" }, this.canvas, this.nothing),
      element("table", {}, element("thead", {}, head), this.legend));
    this.section.setAttribute("aria-labelledby", id);
    this.graph = null;
  }

  /** series: [{labels, values}]; limit: a number or null; marks: [{time, letter}]. */
  draw(series, times, range, limit, marks, query) {
    const named = series
      .map((item) => ({ ...item, name: filled(this.panel.series, item.labels) }))
      .sort((one, other) => one.name.localeCompare(other.name, "en", { numeric: true }));
    Object.assign(this, { named, range, limit, marks });
    this.table = rows(named, times);
    this.ask.href = `/prometheus/graph?${new URLSearchParams({ "g0.expr": query, "g0.tab": 0, "g0.range_input": `${range / 60}m` })}`;
    this.say(this.table.some(([, ...values]) => values.some((value) => value !== null)) ? "" : "No data in this time.");
    this.tell(null);
    if (this.nothing.hidden) this.paint();
    else this.forget();
  }

  /** In the place of the lines. */
  say(text) {
    this.nothing.textContent = text;
    this.nothing.hidden = text === "";
    this.section.dataset.state = text === "" ? "drawn" : "empty";
  }

  failed(text) {
    this.named = [];
    this.legend.replaceChildren();
    this.forget();
    this.say(text);
  }

  forget() {
    this.graph?.destroy();
    this.graph = null;
    this.canvas.setAttribute("aria-label", `${this.panel.title}: ${this.nothing.textContent}`);
  }

  paint() {
    const { panel, named } = this;
    const times = this.table.map(([date]) => date.getTime());
    const highest = top(this.table, panel);
    const whole = panel.unit === "count" || panel.unit === "yes_no";
    const axis = (value) => {
      if (panel.unit === "yes_no") return value === 0 || value === 1 ? written(value, panel.unit) : "";
      if (panel.unit === "ratio" && panel.least === 1 && value > 1) return "";
      return whole && !Number.isInteger(value) ? "" : written(value, panel.unit);
    };
    const options = {
      file: this.table,
      labels: ["time", ...named.map((item, index) => `${index} ${item.name}`)],
      colors: named.map((_, index) => colour(`--line-${index % LINES}`)),
      dateWindow: [times[0], times[times.length - 1]],
      valueRange: [-0.015 * highest, highest], // a line at 0 is seen whole
      axisLineColor: colour("--rule"),
      gridLineColor: colour("--rule"),
    };
    if (this.graph && this.lines === options.labels.join("\n") && this.colours === options.colors.join()) {
      this.graph.updateOptions(options);
    } else {
      this.graph?.destroy();
      const { file, ...rest } = options;
      this.graph = new Dygraph(this.canvas, file, {
        ...rest,
        legend: "never",
        strokeWidth: 2,
        stackedGraph: panel.stacked === true,
        fillGraph: panel.stacked === true || named.length === 1,
        fillAlpha: panel.stacked ? 0.35 : 0.12,
        stepPlot: panel.steps === true,
        highlightCircleSize: 4,
        gridLineWidth: 1,
        interactionModel: {}, // a finger on a chart scrolls the page
        axes: {
          x: { drawGrid: false, pixelsPerLabel: 64 },
          y: { axisLabelFormatter: axis, axisLabelWidth: 62, pixelsPerLabel: whole ? 40 : 32, labelsKMG2: panel.unit.startsWith("bytes") },
        },
        underlayCallback: (context, area, graph) => this.under(context, area, graph),
        highlightCallback: (_, time, __, row) => this.tell(row),
        unhighlightCallback: () => this.tell(null),
      });
    }
    this.lines = options.labels.join("\n");
    this.colours = options.colors.join();
    this.canvas.setAttribute("aria-label",
      `${panel.title}, ${moment(times[0] / 1000, this.range)} to ${moment(times[times.length - 1] / 1000, this.range)}; the table below has the figures`);
  }

  /** Below the lines: the limit, and the marks with their letters. */
  under(context, area, graph) {
    context.save();
    context.lineWidth = 1;
    if (this.limit !== null && this.limit <= graph.yAxisRange()[1]) {
      const y = Math.round(graph.toDomYCoord(this.limit)) + 0.5;
      context.strokeStyle = colour("--bad");
      context.setLineDash([2, 3]);
      context.strokeRect(area.x, y, area.w, 0);
    }
    context.font = "600 10px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const mark of this.marks) {
      const x = Math.round(graph.toDomXCoord(mark.time * 1000)) + 0.5;
      if (x < area.x || x > area.x + area.w) continue;
      context.strokeStyle = context.fillStyle = colour(`--mark-${mark.letter}`);
      context.setLineDash([4, 3]);
      context.beginPath();
      context.moveTo(x, area.y + 14);
      context.lineTo(x, area.y + area.h);
      context.stroke();
      context.fillRect(x - 7, area.y, 14, 14);
      context.fillStyle = colour("--card");
      context.fillText(mark.letter, x, area.y + 7.5);
    }
    context.restore();
  }

  /** The legend: of a row under the pointer, or of the last one that has values. */
  tell(row) {
    this.when.textContent = row === null ? "now" : moment(this.table[row][0].getTime() / 1000, this.range);
    const last = this.table.length - 1;
    this.legend.replaceChildren(...this.named.map((item, index) => {
      const values = this.table.map((line) => line[index + 1]).filter((value) => value !== null);
      // The newest point may not be there yet.
      const shown = row === null ? (this.table[last][index + 1] ?? this.table[last - 1]?.[index + 1] ?? null) : this.table[row][index + 1];
      const swatch = element("span", { className: `swatch line-${index % LINES}` });
      return element("tr", {}, element("th", { scope: "row" }, swatch, item.name),
        element("td", { textContent: parts(shown, this.panel.unit)[0] === "–" ? "–" : written(shown, this.panel.unit) }),
        element("td", { textContent: values.length ? written(Math.max(...values), this.panel.unit) : "–" }));
    }));
  }
}
