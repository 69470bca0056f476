// Two images by the cosine of their embeddings.

import { announce, button, byId, element } from "./dom.js";

export class Comparison {
  #service;
  #cards = [];
  #abort = null;

  constructor(service) {
    this.#service = service;
    byId("compare-end").addEventListener("click", () => this.clear());
  }

  // Choose a card, or give it up. A third takes the place of the first.
  toggle(card) {
    const others = this.#cards.filter((other) => other !== card);
    this.#choose(others.length < this.#cards.length ? others : [...others.slice(-1), card]);
  }

  drop(card) {
    if (this.#cards.includes(card)) this.toggle(card);
  }

  clear() {
    const last = this.#cards.at(-1);
    this.#choose([]);
    last?.compareButton.focus();
  }

  // The model is another, or there is a key now.
  again() {
    if (this.#cards.length) this.#choose(this.#cards);
  }

  #choose(cards) {
    this.#abort?.abort();
    for (const card of this.#cards) card.compared = false;
    this.#cards = cards;
    for (const card of cards) card.compared = true;
    byId("compare").hidden = cards.length === 0;
    byId("compare-pair").replaceChildren(...cards.map(chosenView), ...(cards.length === 1 ? [openPlace()] : []));
    this.#show("idle");
    if (cards.length === 2) this.#compare(...cards);
  }

  async #compare(first, second) {
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    if (this.#service.phase !== "ready") return this.#wait("Waiting for the service");
    this.#wait("Comparing", element("div", { class: "pending-bar" }));
    const form = new FormData();
    form.append("images", first.file);
    form.append("images", second.file);
    // One bad image is to be named, not to hide the other.
    const query = { encoding: "base64", on_error: "item", ...this.#service.modelQuery };
    try {
      const response = await this.#service.request("embed", { query, method: "POST", body: form, signal });
      const { results } = await response.json();
      if (signal.aborted) return;
      const bad = results.findIndex((result) => "error" in result);
      if (bad >= 0) this.#fail([first, second][bad].file.name, results[bad].error.detail);
      else this.#showSimilarity(cosine(...results.map((result) => floats(result.embedding))));
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) this.#wait("Waiting for a key");
      else this.#fail("", error.detail ?? String(error));
    }
  }

  #wait(text, ...more) {
    this.#show("pending", element("p", { class: "pending-text" }, text), ...more);
  }

  #showSimilarity(value) {
    const text = value.toFixed(4);
    const meter = element("div", {
      class: "meter", role: "meter", "aria-label": "Cosine similarity",
      "aria-valuemin": -1, "aria-valuemax": 1, "aria-valuenow": text,
    });
    const fill = element("span");
    fill.style.left = `${50 + 50 * Math.min(value, 0)}%`;
    fill.style.width = `${50 * Math.min(Math.abs(value), 1)}%`;
    meter.append(fill);
    const scale = element("div", { class: "meter-scale", "aria-hidden": "true" });
    scale.append(...["−1", "0", "1"].map((mark) => element("span", {}, mark)));
    this.#show(
      "done",
      element("p", { class: "similarity" }, element("strong", { "data-value": value }, text), " cosine similarity"),
      element("div", {}, meter, scale),
    );
    announce(`Cosine similarity ${text}`);
  }

  #fail(name, detail) {
    this.#show(
      "failed",
      element(
        "div",
        { class: "problem" },
        element("p", { class: "problem-title" }, name ? "No comparison with " : "No comparison", element("bdi", {}, name)),
        element("p", { class: "problem-detail" }, detail),
        button("Try again", () => this.again()),
      ),
    );
  }

  #show(state, ...content) {
    const outcome = byId("compare-outcome");
    outcome.dataset.state = state;
    outcome.replaceChildren(...content);
  }
}

function chosenView(card) {
  const image = element("img", { src: card.thumbnailUrl, alt: "" });
  image.addEventListener("error", () => image.replaceWith(element("span", { class: "no-image" })));
  return element("figure", {}, image, element("figcaption", {}, element("bdi", {}, card.file.name)));
}

function openPlace() {
  return element("p", { class: "open-place" }, "Choose Compare on a second image.");
}

// Little-endian float32, as the service sends them.
function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}
