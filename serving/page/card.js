// One image: its request, and what came of it.

import { announce, button, element } from "./dom.js";
import { fileSize, percent, seconds } from "./format.js";
import { copyCommand, curlCommand } from "./curl.js";
import { Problem } from "./service.js";
import { latencyView } from "./timing.js";

const TOP_K = 5;
const SHOWN_VALUES = 12;
const PATIENCE_MS = 4000;
const SMALL_PIXELS = 64; // an image below this is shown pixel by pixel

// States: waiting (not sent yet), sent, done, failed.
export class Card {
  state = "waiting";
  problem = null;
  #service;
  #abort = null;
  #began = 0;
  #ticker = 0;
  #retryAt = 0;

  constructor(file, service, { onRemove, onRetry, onCompare, onMayRetry }) {
    this.file = file;
    this.#service = service;
    this.thumbnailUrl = URL.createObjectURL(file);
    this.body = element("div", { class: "card-body" });
    this.modelName = element("span", { class: "card-model" });
    this.commandPlace = element("div", { class: "command-place" });
    this.compareButton = button("Compare", () => onCompare(this), { "aria-pressed": "false" });
    const copy = button("Copy curl", () => copyCommand(this.#command(), copy, this.commandPlace));
    this.removeButton = button("Remove", () => onRemove(this), { class: "quiet" });
    const name = element("bdi", { class: "card-name", title: file.name }, file.name);
    for (const node of [this.compareButton, copy, this.removeButton]) {
      node.setAttribute("aria-label", `${node.textContent}: ${file.name}`);
    }
    this.onRetry = () => onRetry(this);
    this.onMayRetry = onMayRetry;
    this.node = element(
      "li",
      { class: "card" },
      thumbnail(this.thumbnailUrl, file),
      element(
        "div",
        { class: "card-main" },
        element(
          "div",
          { class: "card-head" },
          element("h3", {}, name),
          element("p", { class: "card-facts" }, fileSize(file.size), this.modelName),
        ),
        this.body,
        element("div", { class: "card-actions" }, this.compareButton, copy, this.removeButton),
        this.commandPlace,
      ),
    );
    this.wait("");
  }

  wait(text) {
    this.#enter("waiting", element("p", { class: "pending-text" }, text));
  }

  // Send the image and show what comes back. Never raises: a failure is a state. Resolves when it is over.
  async run() {
    const service = this.#service;
    const model = service.model;
    const classifies = service.classifies;
    const { signal } = (this.#abort = new AbortController());
    this.#showSent();
    this.modelName.textContent = service.models.length > 1 ? model.name : "";
    try {
      const [path, query] = this.#target();
      const response = await service.request(path, {
        query,
        method: "POST",
        // The service tells a format by its bytes: what the system does not know as an image it may still know.
        headers: { "content-type": this.file.type.startsWith("image/") ? this.file.type : "application/octet-stream" },
        body: this.file,
        signal,
      });
      const reply = await response.json();
      if (signal.aborted) return;
      const measured = performance.now() - this.#began;
      if (reply.model.artifact !== model.artifact) service.connect(); // it was replaced since we asked
      const latency = latencyView(response.headers.get("server-timing"), measured);
      const result = reply.results[0];
      this.#enter("done", classifies ? predictionsView(result.predictions) : embeddingView(reply, result), latency);
      const best = result.predictions?.[0];
      announce(`${this.file.name}: ${best ? `${best.label}, ${percent(best.score)}` : "embedded"}`);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401) this.wait("Waiting for a key");
      else this.#fail(error instanceof Problem ? error : new Problem({ title: "No answer", detail: String(error) }));
    }
  }

  // Whether to ask again makes sense, and the time that the service asked for is over.
  get mayRetry() {
    return this.state === "failed" && this.problem.retryable && performance.now() >= this.#retryAt;
  }

  stop() {
    this.#abort?.abort();
    clearInterval(this.#ticker);
  }

  remove() {
    this.stop();
    URL.revokeObjectURL(this.thumbnailUrl);
    this.node.remove();
  }

  set compared(on) {
    this.compareButton.setAttribute("aria-pressed", String(on));
    this.node.classList.toggle("chosen", on);
  }

  #target() {
    const query = this.#service.classifies ? { top_k: TOP_K } : {};
    return [this.#service.classifies ? "classify" : "embed", { ...query, ...this.#service.modelQuery }];
  }

  #command() {
    return curlCommand(this.file.name, this.#service.address(...this.#target()), this.#service.keyed);
  }

  #enter(state, ...content) {
    clearInterval(this.#ticker);
    this.state = state;
    this.node.dataset.state = state;
    this.node.setAttribute("aria-busy", String(state === "sent"));
    this.body.replaceChildren(...content);
  }

  #showSent() {
    const elapsed = element("span", { class: "elapsed" }, seconds(0));
    const text = element("p", { class: "pending-text" }, element("span", {}, "Waiting for the answer"), elapsed);
    const more = element("p", { class: "note" });
    this.#enter("sent", text, element("div", { class: "pending-bar" }), more);
    this.#began = performance.now();
    this.#ticker = setInterval(() => {
      const passed = performance.now() - this.#began;
      elapsed.textContent = seconds(passed / 1000);
      if (passed > PATIENCE_MS) more.textContent = "A slow model or a long queue. The answer appears here.";
    }, 100);
  }

  #fail(problem) {
    this.problem = problem;
    const retry = problem.retryable ? button("Retry", () => this.mayRetry && this.onRetry()) : null;
    this.#enter(
      "failed",
      element(
        "div",
        { class: "problem" },
        element("p", { class: "problem-title" }, problem.status ? `${problem.status} ${problem.title}` : problem.title),
        element("p", { class: "problem-detail" }, problem.detail),
        problem.requestId ? element("p", { class: "problem-id" }, "Request ", element("code", {}, problem.requestId)) : null,
        retry,
      ),
    );
    announce(`${this.file.name}: ${problem.detail}`);
    this.#retryAt = performance.now() + 1000 * (problem.retryAfter ?? 0);
    if (retry && !this.mayRetry) {
      const tick = () => {
        const left = Math.ceil((this.#retryAt - performance.now()) / 1000);
        retry.textContent = left > 0 ? `Retry in ${left} s` : "Retry";
        retry.setAttribute("aria-disabled", String(left > 0));
        if (left > 0) return;
        clearInterval(this.#ticker);
        this.onMayRetry();
      };
      this.#ticker = setInterval(tick, 200);
      tick();
    }
  }
}

function thumbnail(url, file) {
  const image = element("img", { class: "thumb-image", alt: "", decoding: "async", loading: "lazy", src: url });
  const kind = file.name.includes(".") ? file.name.split(".").pop().slice(0, 5) : "file";
  const frame = element("div", { class: "thumb" }, image);
  image.addEventListener("load", () => frame.classList.toggle("tiny", image.naturalWidth < SMALL_PIXELS));
  image.addEventListener("error", () => frame.replaceChildren(element("span", { class: "thumb-none" }, kind)));
  return frame;
}

function predictionsView(predictions) {
  const list = element("ol", { class: "predictions" });
  for (const { label, index, score } of predictions) {
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("span"));
    bar.firstChild.style.width = `${100 * Math.min(Math.max(score, 0), 1)}%`;
    list.append(
      element(
        "li",
        { title: `class ${index}, score ${score}`, "data-index": index, "data-score": score },
        element("bdi", { class: "label" }, label),
        element("span", { class: "score" }, percent(score)),
        bar,
      ),
    );
  }
  return list;
}

function embeddingView(reply, result) {
  const values = result.embedding.slice(0, SHOWN_VALUES).map((value) => value.toFixed(4));
  return element(
    "div",
    { class: "embedding" },
    element("p", {}, "This model only embeds. The embedding has ", element("strong", {}, `${reply.dim} numbers`), `, of which the first ${values.length} are:`),
    element("p", { class: "values" }, ...values.map((value) => element("span", {}, value))),
  );
}
