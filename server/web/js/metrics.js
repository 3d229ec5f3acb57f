/** Prometheus text, read: as much of it as the page shows. */

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export function parseMetrics(text) {
  const samples = new Map(); // name -> [{labels, value}]
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (match === null) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: Number(match[3].replace("Inf", "Infinity")) });
  }
  const find = (name, wanted = {}) =>
    (samples.get(name) ?? []).filter(({ labels }) => Object.entries(wanted).every(([key, value]) => labels[key] === value));
  return {
    find,
    value: (name, wanted) => find(name, wanted)[0]?.value ?? null,
    sum: (name) => find(name).reduce((total, { value }) => total + value, 0),
    /** Of a histogram, interpolated within its bucket; null if it is empty. */
    quantile(name, wanted, q) {
      const buckets = find(`${name}_bucket`, wanted).map(({ labels, value }) => [Number(labels.le.replace("+Inf", "Infinity")), value]);
      const total = buckets.at(-1)?.[1] ?? 0;
      const at = buckets.findIndex(([, below]) => below >= q * total);
      if (total === 0 || at < 0) return null;
      const [low, before] = at > 0 ? buckets[at - 1] : [0, 0];
      const [high, below] = buckets[at];
      return Number.isFinite(high) ? low + ((high - low) * (q * total - before)) / Math.max(below - before, 1) : low;
    },
  };
}
