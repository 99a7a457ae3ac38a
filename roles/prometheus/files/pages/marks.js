// SPDX-License-Identifier: GPL-3.0-or-later

/**
 * When a value of the label appears that was not there before: [{time, value}].
 *
 * A time without any value (the host was down, the monitor too) says nothing: what comes after it is compared with what came before.
 * So a restart is no deploy, and of a deploy that goes from node to node the first node counts.
 */
export function changes(series, label, { start, end, step }) {
  const found = [];
  let before = null;
  for (let time = start; time <= end; time += step) {
    const present = new Set(series.filter((item) => item.values.has(time)).map((item) => item.labels[label]));
    if (present.size === 0) continue;
    if (before !== null) {
      for (const value of present) if (!before.has(value)) found.push({ time, value });
    }
    before = present;
  }
  return found;
}
