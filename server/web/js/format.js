/** Numbers and times for people. */

export const count = (number) => number.toLocaleString("en");

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

export function rate(value) {
  return value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} fps`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const time = (iso) => new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const clockTime = (iso) => new Date(iso).toLocaleTimeString();

const CODECS = { h264: "H.264", hevc: "H.265", mjpeg: "MJPEG", av1: "AV1" };

/** "H.264, 1920 × 1080, 25 fps", as much of it as is known. */
export function video({ codec, width, height, fps }) {
  return [codec && (CODECS[codec] ?? codec), width && `${width} × ${height}`, fps && rate(fps)].filter(Boolean).join(", ");
}

/** The name of a reason or state, as words. */
export const words = (name) => name.replaceAll("_", " ");

const REASONS = {
  auth: "user name or password is wrong",
  not_found: "the camera has no such address",
  refused: "the camera refuses the connection",
  timeout: "the camera does not answer",
  stalled: "the camera stopped sending",
  ended: "the end is reached",
  codec: "its video cannot be decoded",
  decode: "no clean picture",
  process_lost: "its process ended",
  removed: "it was removed",
};

export const reason = (name) => REASONS[name] ?? words(name ?? "");

/** Frames dropped, in total, of a ledger. */
export function dropped({ dropped: stages }) {
  return Object.values(stages).flatMap((reasons) => Object.values(reasons)).reduce((sum, n) => sum + n, 0);
}

/** The ledger's drops as [{stage, reason, frames}], most first. */
export function drops({ dropped: stages }) {
  return Object.entries(stages)
    .flatMap(([stage, reasons]) => Object.entries(reasons).map(([why, frames]) => ({ stage, reason: why, frames })))
    .sort((a, b) => b.frames - a.frames);
}
