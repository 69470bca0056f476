// What the service does now: /stats once a second while somebody looks, and a minute of it as lines.

import { byId, element } from "./dom.js";
import { milliseconds } from "./format.js";
import { phaseOf } from "./service.js";

const EVERY_MS = 1000;
const MOST_MS = 30_000;
const TROUBLE = 2; // polls in a row without an answer that are no hiccup any more
const WINDOW_MS = 60_000;
const SVG = "http://www.w3.org/2000/svg";
const WORDS = {
  connecting: "Connecting",
  starting: "Starting: the model is loading",
  draining: "Draining: it takes no more",
  unreachable: "Not reachable",
  failed: "Not usable",
  key: "Needs a key",
  ready: "Ready",
};

// A number that may have no value: then it is not shown, as a zero would be a lie.
class Tile {
  #value = element("dd");
  #history = [];
  #line = null;

  constructor(name, title, hasLine) {
    this.node = element("div", { title, "data-tile": name }, element("dt", {}, name), this.#value);
    this.node.hidden = true;
    if (hasLine) {
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("class", "spark");
      svg.setAttribute("viewBox", "0 0 60 20");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true");
      this.#line = svg.appendChild(document.createElementNS(SVG, "path"));
      this.node.append(svg);
    }
  }

  show(number, text) {
    this.node.hidden = number == null;
    this.#value.textContent = number == null ? "" : text(number);
    if (this.#line) this.#draw(number);
  }

  #draw(number) {
    const now = performance.now();
    this.#history.push([now, number]);
    this.#history = this.#history.filter(([time]) => now - time <= WINDOW_MS);
    const known = this.#history.map(([, value]) => value).filter((value) => value != null);
    const top = Math.max(...known, 1e-9);
    let pen = "M"; // lifted over what is not known
    let path = "";
    for (const [time, value] of this.#history) {
      if (value == null) {
        pen = "M";
        continue;
      }
      path += `${pen}${(60 - (60 * (now - time)) / WINDOW_MS).toFixed(2)} ${(18.5 - (17 * value) / top).toFixed(2)}`;
      pen = "L";
    }
    this.#line.setAttribute("d", path);
    this.#line.parentNode.toggleAttribute("hidden", known.length < 2);
  }
}

export class Live {
  #service;
  #timer = 0;
  #turn = 0; // of the poll that goes on
  #failures = 0;
  #trouble = ""; // the phase that the last failure tells of
  #stats = null;
  #gone = false; // the service has no /stats
  #tiles = {
    queue: new Tile("Queue", "images that wait for the model", true),
    batch: new Tile("Batch", "mean images of a run in the last minute", false),
    rate: new Tile("Requests", "answered each second in the last minute", false),
    p50: new Tile("p50", "half of the requests take no longer", true),
    p99: new Tile("p99", "99 of 100 requests take no longer", false),
  };

  constructor(service) {
    this.#service = service;
    byId("live-tiles").append(...Object.values(this.#tiles).map((tile) => tile.node));
    service.addEventListener("change", () => {
      this.#failures = 0;
      this.#showState();
      this.#poll();
    });
    service.addEventListener("model", () => this.#stats && this.#showStats());
    document.addEventListener("visibilitychange", () => this.#poll());
    this.#showState();
  }

  async #poll() {
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    if (document.hidden || this.#gone || this.#service.phase !== "ready") return;
    try {
      const response = await this.#service.request("stats", { signal: AbortSignal.timeout(5000) });
      this.#stats = await response.json();
      // It was away, and may have come back as another.
      if (this.#failures >= TROUBLE) this.#service.connect();
      this.#failures = 0;
    } catch (error) {
      this.#gone = error.status === 404;
      if (!this.#gone) this.#failures += 1;
      if (this.#gone || this.#failures >= TROUBLE) this.#stats = null;
      [this.#trouble] = phaseOf(error);
    }
    if (turn !== this.#turn) return; // another has taken over
    this.#showState();
    this.#showStats();
    this.#timer = setTimeout(() => this.#poll(), Math.min(EVERY_MS * 2 ** this.#failures, MOST_MS));
  }

  #showState() {
    let { phase } = this.#service;
    let text = phase === "failed" ? `${WORDS.failed}: ${this.#service.detail}` : WORDS[phase];
    if (phase === "ready" && !this.#gone) {
      if (this.#failures >= TROUBLE) [phase, text] = [this.#trouble, WORDS[this.#trouble]];
      else if (this.#stats?.draining) [phase, text] = ["draining", WORDS.draining];
      else if (this.#stats && !this.#stats.ready) [phase, text] = ["starting", "Not ready"];
      else if (this.#stats && !this.#stats.requests.latency_ms) text = "Ready, idle for a minute";
    }
    byId("live").dataset.phase = phase;
    if (byId("live-text").textContent !== text) byId("live-text").textContent = text;
  }

  #showStats() {
    byId("live-tiles").hidden = !this.#stats;
    if (!this.#stats) return;
    const { requests, models } = this.#stats;
    const model = models.find((one) => one.name === this.#service.model.name);
    const latency = requests.latency_ms;
    this.#tiles.queue.show(model?.queue_images, (value) => (value === 1 ? "1 image" : `${value} images`));
    this.#tiles.batch.show(model?.batch_images, (value) => value.toFixed(1));
    this.#tiles.rate.show(latency && requests.per_second, (value) => `${value.toFixed(value < 1 ? 2 : value < 10 ? 1 : 0)}/s`);
    this.#tiles.p50.show(latency?.p50, milliseconds);
    this.#tiles.p99.show(latency?.p99, milliseconds);
  }
}
