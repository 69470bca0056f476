// Where the time of a request went: the server's own account (Server-Timing), and the rest, which is the network's.

import { element } from "./dom.js";
import { milliseconds } from "./format.js";

const STAGES = ["read", "decode", "queue", "infer", "encode"];
const WORDS = {
  read: "reading the body",
  decode: "decoding the image",
  queue: "waiting for a batch",
  infer: "running the model",
  encode: "writing the reply",
  other: "the rest on the server",
  network: "the way there and back",
  unknown: "server and network",
};
const LEAST_MS = 0.05; // of what is left over on the server, to be worth a line

export function parseServerTiming(header) {
  const found = {};
  for (const entry of (header ?? "").split(",")) {
    const [name, ...parameters] = entry.split(";").map((part) => part.trim());
    const duration = parameters.find((parameter) => parameter.startsWith("dur="));
    if (name && duration) found[name] = Number(duration.slice(4));
  }
  return found;
}

// Parts that add up to what the browser measured: [name, milliseconds].
export function split(header, measured) {
  const timing = parseServerTiming(header);
  const parts = STAGES.filter((name) => name in timing).map((name) => [name, timing[name]]);
  if (!parts.length) return [["unknown", measured]];
  const staged = parts.reduce((sum, [, value]) => sum + value, 0);
  const total = Math.max(timing.total ?? staged, staged);
  if (total - staged >= LEAST_MS) parts.push(["other", total - staged]);
  parts.push(["network", Math.max(measured - total, 0)]);
  return parts;
}

export function latencyView(header, measured) {
  const parts = split(header, measured);
  const bar = element("div", { class: "stack", "aria-hidden": "true" });
  const legend = element("dl", { class: "legend" });
  for (const [name, value] of parts) {
    const segment = element("span", { class: `stage-${name}`, title: `${name} ${milliseconds(value)}` });
    segment.style.flexGrow = String(value);
    if (value > 0) bar.append(segment);
    legend.append(
      element(
        "div",
        { title: WORDS[name], "data-stage": name, "data-ms": value },
        element("dt", {}, element("span", { class: `swatch stage-${name}` }), name === "unknown" ? WORDS[name] : name),
        element("dd", {}, milliseconds(value)),
      ),
    );
  }
  const head = element("p", { class: "latency-head" }, "Latency ", element("strong", {}, milliseconds(measured)));
  head.dataset.ms = measured;
  return element("div", { class: "latency" }, head, bar, legend);
}
