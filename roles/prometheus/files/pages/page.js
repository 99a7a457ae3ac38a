// SPDX-License-Identifier: GPL-3.0-or-later
// Draws the page that the address names, from panels.json, and keeps it fresh.

import { Chart } from "/pages/chart.js";
import { filled, moment, parts, written } from "/pages/format.js";
import { changes } from "/pages/marks.js";
import { NoAnswer, alerts, grid, now, past } from "/pages/prometheus.js";

const RANGES = { "15m": 900, "1h": 3600, "6h": 21600, "24h": 86400, "7d": 604800 };
const POINTS = 240; // of a line
const MARK_POINTS = 960; // marks are looked for closer, so that what lasted a short time is found
const SEVERITIES = ["critical", "warning"];

const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const data = await (await fetch(new URL("/pages/panels.json", location.origin))).json();
const pages = data.pages.filter((page) => !page.tier || data.tiers[page.tier] > 0);
const page = pages.find((item) => `/${item.name}` === location.pathname) ?? pages[0];
const overview = page === pages[0];
const path = (item) => (item === pages[0] ? "/" : `/${item.name}`);

let range = new URLSearchParams(location.search).get("range");
if (!(range in RANGES)) range = "1h";
let limits = {};
let answered = null; // when the figures on the page were asked for

function limitOf(panel) {
  if (panel.limit === undefined) return null;
  if (typeof panel.limit === "number") return panel.limit;
  const value = limits[panel.limit.name];
  return value === undefined ? null : value * (panel.limit.times ?? 1);
}

function windowed(query, step) {
  return query.replaceAll("$window", `${Math.max(4 * data.interval, step)}s`);
}

// -- what stands still ------------------------------------------------------------------------------------------------

function links() {
  $("pages").replaceChildren(...pages.map((item) => {
    const link = element("a", { textContent: item.title, href: path(item) + (range === "1h" ? "" : `?range=${range}`) });
    if (item === page) link.setAttribute("aria-current", "page");
    return element("li", {}, link);
  }));
}

function frame() {
  for (const [title, name] of [["Alerts", "alerts"], ["Query", "graph"], ["Targets", "targets"]]) {
    $("own").append(element("li", {}, element("a", { textContent: title, href: "/prometheus/" + name })));
  }
  document.title = `${page.title} · ${data.site}`;
  $("site").textContent = data.site;
  $("title").textContent = page.title;
  links();
  for (const name of Object.keys(RANGES)) {
    const choice = element("input", { type: "radio", name: "range", value: name, id: `range-${name}`, checked: name === range });
    choice.addEventListener("change", () => {
      range = name;
      history.replaceState(null, "", name === "1h" ? location.pathname : `?range=${name}`);
      links();
      refresh();
    });
    $("ranges").append(choice, element("label", { htmlFor: choice.id, textContent: name }));
  }
}

class Tile {
  constructor(tile) {
    this.tile = tile;
    this.value = element("p", { className: "value", textContent: "…" });
    this.more = element("p", { className: "more" });
    this.item = element("li", { className: "tile" }, element("h2", { textContent: tile.title }), this.value, this.more);
  }

  async ask() {
    const { tile } = this;
    const [found, further] = await Promise.all([
      now(windowed(tile.query, 0)),
      tile.more ? now(windowed(tile.more.query, 0)) : [],
    ]);
    const limit = limitOf(tile);
    const value = found[0]?.value ?? null;
    const names = tile.label ? [...new Set(found.map((item) => item.labels[tile.label]))].sort() : [];
    let bad = "";
    if (tile.one && found.length !== 1) bad = found.length === 0 ? "there is none" : `${found.length} at once`;
    else if (limit !== null && value !== null && !tile.label && (tile.worse === "below" ? value < limit : value > limit)) {
      bad = `${tile.worse === "below" ? "less" : "more"} than ${written(limit, tile.unit)}`;
    }
    return () => {
      const [number, unit] = tile.label ? [names.join(", ") || "none", ""] : parts(value, tile.unit);
      this.value.replaceChildren(number, ...(unit ? [element("span", { className: "unit", textContent: unit })] : []));
      this.value.classList.toggle("name", Boolean(tile.label));
      this.value.classList.toggle("long", number.length > 14);
      const known = further[0] && further[0].value !== null;
      const text = known ? filled(tile.more.text, further[0].labels, written(further[0].value, tile.more.unit)) : "";
      this.more.textContent = [bad, text].filter(Boolean).join("; ") || (found.length === 0 || (!tile.label && value === null) ? "no data" : "");
      this.item.dataset.state = bad ? "bad" : found.length === 0 || (!tile.label && value === null) ? "none" : "good";
    };
  }

  failed(text) {
    this.value.textContent = "–";
    this.more.textContent = text;
    this.item.dataset.state = "none";
  }
}

// -- what is asked again and again ------------------------------------------------------------------------------------

async function askTiers() {
  const [up, hosts] = await Promise.all([now(data.answers.up), now(data.answers.hosts)]);
  const answering = Object.fromEntries(up.map((item) => [item.labels.tier, item.value]));
  const all = Object.fromEntries(hosts.map((item) => [item.labels.tier, item.value]));
  return () => {
    const shown = pages.filter((item) => item.tier);
    $("tiers").hidden = false;
    $("tiers").replaceChildren(...shown.map((item) => {
      const [have, want] = [answering[item.tier] ?? 0, all[item.tier] ?? data.tiers[item.tier]];
      const link = element("a", { href: path(item) + location.search },
        element("span", { className: "tier", textContent: item.title }),
        element("span", { className: "servers", textContent: `${have}/${want}` }),
        element("span", { className: "state", textContent: have >= want ? "up" : have > 0 ? "some are down" : "down" }));
      link.dataset.state = have >= want ? "good" : have > 0 ? "poor" : "bad";
      return element("li", {}, link);
    }));
  };
}

function showAlerts(state, title, items) {
  const section = $("alerts");
  section.hidden = false;
  section.dataset.state = state;
  $("alerts-title").textContent = title;
  section.querySelector("ul").replaceChildren(...items);
}

async function askAlerts() {
  let found;
  try {
    found = await alerts();
  } catch (error) {
    // The figures are Prometheus': they are there all the same.
    return () => showAlerts("bad", `Alertmanager does not answer (${error.message}): nobody would be told.`, []);
  }
  const heard = found.some(({ labels }) => labels.alertname === "Watchdog");
  const bad = found
    .filter(({ labels }) => labels.severity !== "none")
    .sort((one, other) => SEVERITIES.indexOf(one.labels.severity) - SEVERITIES.indexOf(other.labels.severity) || one.since - other.since);
  return () => {
    const critical = bad.some(({ labels }) => labels.severity === "critical");
    const items = bad.map(({ labels, annotations, since }) =>
      element("li", {},
        element("span", { className: `severity ${labels.severity}`, textContent: labels.severity }),
        element("strong", { textContent: annotations.summary ?? labels.alertname }),
        element("span", { className: "since", textContent: `since ${moment(since, Date.now() / 1000 - since + 3600)}` }),
        element("span", { className: "action", textContent: annotations.action ?? "" })));
    if (!heard) items.unshift(element("li", {}, element("strong", { textContent: "The watchdog's alert does not arrive: nobody would be told." })));
    showAlerts(!heard || critical ? "bad" : bad.length ? "poor" : "good",
      bad.length ? `${bad.length} ${bad.length === 1 ? "alert" : "alerts"}` : heard ? "No alert" : "No watchdog", items);
  };
}

async function askMarks() {
  const times = grid(RANGES[range], MARK_POINTS, data.interval);
  const found = await Promise.all(data.marks.map(async (mark) =>
    changes(await past(mark.query, times), mark.label, times).map((change) => ({ ...change, letter: mark.letter, title: mark.title }))));
  return found.flat().sort((one, other) => other.time - one.time);
}

function showMarks(marks) {
  $("marks").querySelector("ul").replaceChildren(...(marks.length
    ? marks.slice(0, 20).map((mark) => element("li", {},
      element("span", { className: `letter mark-${mark.letter}`, textContent: mark.letter }),
      element("time", { dateTime: new Date(mark.time * 1000).toISOString(), textContent: moment(mark.time, RANGES[range]) }),
      element("span", { textContent: `${mark.title}: ${mark.value}` })))
    : [element("li", { textContent: "No deploy, and neither the primary nor the Redis master has moved." })]));
}

function trouble(error) {
  $("trouble").hidden = error === null;
  document.body.classList.toggle("stale", error !== null);
  if (error === null) return;
  const since = answered === null ? "There are no figures." : `The figures are those of ${answered.toLocaleTimeString("en-GB")}.`;
  $("trouble").textContent = `Prometheus does not answer (${error.message}). ${since}`;
}

/** Asks for one panel. The page's own trouble goes up, that of one query stays with its panel. */
async function panel(task, failed) {
  try {
    return await task();
  } catch (error) {
    if (error instanceof NoAnswer) throw error;
    return () => failed(error.message);
  }
}

frame();
const tiles = page.tiles.map((item) => new Tile(item));
const charts = page.charts
  .filter((item) => !item.several || data.tiers[item.several] > 1)
  .map((item, index) => new Chart(item, `chart-${index}`));
$("tiles").dataset.count = tiles.length;
$("tiles").append(...tiles.map((tile) => tile.item));
$("charts").append(...charts.map((chart) => chart.section));

let timer = 0;
let round = 0;

async function refresh() {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  try {
    limits = Object.fromEntries((await now("flotilla_limit")).map((item) => [item.labels.limit, item.value]));
    const chosen = RANGES[range];
    const times = grid(chosen, POINTS, data.interval);
    const marks = await askMarks();
    const drawn = await Promise.all([
      ...(overview ? [panel(askTiers, () => {}), panel(askAlerts, () => {})] : []),
      ...tiles.map((tile) => panel(() => tile.ask(), (text) => tile.failed(text))),
      ...charts.map((chart) => panel(async () => {
        const query = windowed(chart.panel.query, times.step);
        const series = await past(query, times);
        return () => chart.draw(series, times, chosen, limitOf(chart.panel), marks, query);
      }, (text) => chart.failed(text))),
    ]);
    if (mine !== round) return; // another time was chosen meanwhile
    showMarks(marks);
    for (const draw of drawn) draw();
    answered = new Date();
    $("updated").textContent = `at ${answered.toLocaleTimeString("en-GB")}`;
    trouble(null);
    document.body.dataset.round = mine;
  } catch (error) {
    if (mine !== round) return;
    trouble(error);
    if (!(error instanceof NoAnswer)) throw error;
  } finally {
    // Nobody looks at a page that is hidden: it is drawn when it is seen again.
    if (mine === round && !document.hidden) timer = setTimeout(refresh, (RANGES[range] <= 3600 ? 15 : 30) * 1000);
  }
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
refresh();
