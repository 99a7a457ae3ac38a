// SPDX-License-Identifier: GPL-3.0-or-later
// Questions to Prometheus and Alertmanager, through the login that brought the page.

const PATIENCE = 15000; // milliseconds

/** Nobody answered, or not as Prometheus does: unlike an error of one query, it concerns the whole page. */
export class NoAnswer extends Error {}

async function ask(path, parameters) {
  // location.origin: without the password that somebody may have put into the address, which fetch() refuses.
  const url = new URL(`${path}?${new URLSearchParams(parameters)}`, location.origin);
  let answer;
  let body;
  try {
    answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    throw new NoAnswer(error.name === "TimeoutError" ? "no answer in time" : "no connection");
  }
  try {
    body = await answer.json();
  } catch {
    throw new NoAnswer(`answer ${answer.status}`);
  }
  if (!answer.ok && body.status !== "error") throw new NoAnswer(`answer ${answer.status}`);
  if (body.status === "error") throw new Error(body.error);
  return body;
}

function number(text) {
  const value = Number(text);
  return Number.isFinite(value) ? value : null; // 0/0 is no data
}

/** [{labels, value}] of this moment. */
export async function now(query) {
  const { data } = await ask("/prometheus/api/v1/query", { query });
  return data.result.map((item) => ({ labels: item.metric, value: number(item.value[1]) }));
}

/** [{labels, values: Map(seconds -> value)}] */
export async function past(query, { start, end, step }) {
  const { data } = await ask("/prometheus/api/v1/query_range", { query, start, end, step });
  return data.result.map((item) => ({
    labels: item.metric,
    values: new Map(item.values.map(([time, text]) => [time, number(text)])),
  }));
}

/** The alerts that people are told of: neither silenced nor explained by another one. */
export async function alerts() {
  const found = await ask("/alertmanager/api/v2/alerts", { active: true, silenced: false, inhibited: false });
  return found.map(({ labels, annotations, startsAt }) => ({ labels, annotations, since: Date.parse(startsAt) / 1000 }));
}

/** The times asked for: on a grid, so that points do not move from one refresh to the next. */
export function grid(range, points, least) {
  const step = Math.max(least, Math.ceil(range / points / least) * least);
  const end = Math.floor(Date.now() / 1000 / step) * step;
  return { start: end - Math.floor(range / step) * step, end, step };
}
