// SPDX-License-Identifier: GPL-3.0-or-later
// How figures are written. A unit of panels.yml is one of UNITS.

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toString();
  return size >= 10 ? value.toFixed(1) : size >= 0.01 || size === 0 ? value.toFixed(2) : value.toPrecision(1);
}

function scaled(value, base, names) {
  let power = 0;
  let rest = value;
  while (Math.abs(rest) >= base && power < names.length - 1) {
    rest /= base;
    power += 1;
  }
  return [digits(rest), names[power]];
}

function seconds(value) {
  if (value === 0) return ["0", "ms"];
  if (value < 1) return [digits(value * 1000), "ms"];
  if (value < 120) return [digits(value), "s"];
  if (value < 7200) return [digits(value / 60), "min"];
  return value < 172800 ? [digits(value / 3600), "h"] : [digits(value / 86400), "days"];
}

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const UNITS = {
  count: (value) => scaled(value, 10000, ["", "k", "M"]),
  per_second: (value) => [digits(value), "/s"],
  ratio: (value) => [digits(value * 100), "%"],
  seconds,
  bytes: (value) => scaled(value, 1024, SIZES),
  bytes_per_second: (value) => scaled(value, 1024, SIZES.map((name) => `${name}/s`)),
  yes_no: (value) => [value >= 0.5 ? "yes" : "no", ""],
};

/** The number and its unit, apart. Without a value: a dash. */
export function parts(value, unit) {
  return value === null || value === undefined || Number.isNaN(value) ? ["–", ""] : UNITS[unit](value);
}

export function written(value, unit) {
  const [number, name] = parts(value, unit);
  return name === "" || name === "/s" ? number + name : `${number} ${name}`;
}

/** Fills {label} and {}. */
export function filled(text, labels, value = "") {
  return text.replace(/\{(\w*)\}/g, (_, name) => (name ? (labels[name] ?? "?") : value));
}

const CLOCK = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const DAY = { day: "numeric", month: "short" };

/** With the day where the time shown is longer than a day. */
export function moment(seconds_, range) {
  const date = new Date(seconds_ * 1000);
  const clock = date.toLocaleTimeString("en-GB", CLOCK);
  return range > 86400 ? `${date.toLocaleDateString("en-GB", DAY)}, ${clock}` : clock;
}
