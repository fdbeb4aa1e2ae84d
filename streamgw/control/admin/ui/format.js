// Figures for people.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
  let value = bytes;
  for (const unit of SIZES) {
    if (value < 1024 || unit === "TiB")
      return unit === "B" ? `${Math.round(value)} B` : `${value.toFixed(value < 10 ? 2 : 1)} ${unit}`;
    value /= 1024;
  }
  return "";
}

export const rate = (bytesPerSecond) => (bytesPerSecond >= 1 ? `${size(bytesPerSecond)}/s` : "–");

export const count = (number) => Math.round(number).toLocaleString("en");

export const perSecond = (number) => (number >= 10 ? count(number) : number.toFixed(1));

/** `430 ms`, `12.3 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`. */
export function duration(seconds) {
  if (seconds < 0.0005) return "0 ms";
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.floor(seconds);
  const [unit, name, below, belowName] =
    whole < 3600 ? [60, "min", 1, "s"] : whole < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const rest = Math.floor((whole % unit) / below);
  return `${Math.floor(whole / unit)} ${name}${rest ? ` ${rest} ${belowName}` : ""}`;
}

/** For a column: whole seconds, no jumping about. */
export const age = (seconds) => (seconds < 60 ? `${Math.floor(Math.max(0, seconds))} s` : duration(seconds));

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");

export const moment = (value) =>
  new Date(typeof value === "number" ? value * 1000 : value).toLocaleString("en-GB", {
    dateStyle: "medium",
    timeStyle: "medium",
  });

export const place = (object) =>
  object.file
    ? `${object.file}${object.line ? `:${object.line}` : ""}${object.column ? `:${object.column}` : ""}`
    : "";

/** `10.1.2.3:5000` or `[::1]:5000` → `10.1.2.3`, `::1`; a text without a port stays. */
export function host(address) {
  const bracketed = /^\[(.*)\]:\d+$/.exec(address);
  if (bracketed) return bracketed[1];
  const plain = /^([^:]*):\d+$/.exec(address);
  return plain ? plain[1] : address;
}

export const port = (address) => /:(\d+)$/.exec(address)?.[1] ?? "";
