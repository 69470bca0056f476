// The service as the page sees it: its models, the key, and whether it answers.
//
// Every address is relative to the page, so that it also works behind a proxy that adds a prefix.

const KEY = "sovit-key";
const RETRY_FIRST = 1;
const RETRY_MOST = 15;

export class Problem extends Error {
  constructor({ status = 0, title = "", detail = "", requestId = "", retryAfter = null }) {
    super(detail);
    Object.assign(this, { status, title, detail, requestId, retryAfter });
  }

  // What may go better the next time: too busy, not ready, out of time, our side's fault, or no answer at all.
  get retryable() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

async function problemOf(response) {
  const requestId = response.headers.get("x-request-id") ?? "";
  const after = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const found = { status: response.status, requestId, retryAfter: Number.isNaN(after) ? null : after };
  try {
    const document = await response.json();
    // One image was sent: its own sentence says it better than one that counts images.
    const detail = document.errors?.length === 1 ? document.errors[0].detail : document.detail;
    return new Problem({ ...found, title: String(document.title), detail: String(detail) });
  } catch {
    const title = response.statusText || "Unexpected answer";
    return new Problem({ ...found, title, detail: "The answer was not of a form this page knows." });
  }
}

// Phases: connecting, starting, draining, unreachable, failed, key, ready. Fires `change` at every new one.
export class Service extends EventTarget {
  phase = "connecting";
  detail = "";
  models = [];
  model = null;
  keyRefused = false;
  #key = kept() ?? "";
  #connecting = false;

  get keyed() {
    return this.#key !== "";
  }

  address(path, query = {}) {
    const url = new URL(path, document.baseURI);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    return url.href;
  }

  // The query that names the model, where there is a choice.
  get modelQuery() {
    return this.models.length > 1 ? { model: this.model.name } : {};
  }

  get classifies() {
    return !this.model || this.model.num_classes > 0;
  }

  // Raises a Problem for anything but a good answer. Aborting raises what fetch raises.
  async request(path, { query, ...options } = {}) {
    const headers = { ...options.headers };
    const key = this.#key;
    if (key) headers.authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(this.address(path, query), { ...options, headers, credentials: "same-origin" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem({ title: "No answer", detail: "The service cannot be reached, or the file cannot be read." });
    }
    if (response.ok) return response;
    const problem = await problemOf(response);
    // A late answer to an older key says nothing about this one.
    if (problem.status === 401 && key === this.#key) this.#needKey(key !== "");
    throw problem;
  }

  useKey(key) {
    this.#key = key;
    keep(key);
    return this.connect();
  }

  choose(name) {
    this.model = this.models.find((model) => model.name === name) ?? this.models[0];
    this.dispatchEvent(new Event("model"));
  }

  // Ask for the models until there is an answer, or a key is needed.
  async connect() {
    if (this.#connecting) return;
    this.#connecting = true;
    for (let wait = RETRY_FIRST; ; wait = Math.min(2 * wait, RETRY_MOST)) {
      const key = this.#key;
      try {
        await this.#readModels();
        break;
      } catch (error) {
        if (error.status === 401 && key !== this.#key) continue; // another one was given meanwhile
        if (error.status === 401) break;
        this.#enter(...phaseOf(error));
        // A service that starts says when to come back; others are left alone for longer and longer.
        if (this.phase === "starting") wait = RETRY_FIRST;
        await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(error.retryAfter || wait, RETRY_MOST)));
      }
    }
    this.#connecting = false;
  }

  async #readModels() {
    const response = await this.request("models", { signal: AbortSignal.timeout(10_000) }).catch((error) => {
      throw error instanceof Problem ? error : new Problem({ title: "No answer" });
    });
    this.models = (await response.json()).models;
    const before = this.model;
    this.model = this.models.find((model) => model.name === before?.name) ?? this.models[0];
    this.keyRefused = false;
    this.#enter("ready");
  }

  #needKey(refused) {
    this.keyRefused = refused;
    this.#enter("key");
  }

  #enter(phase, detail = "") {
    this.phase = phase;
    this.detail = detail;
    this.dispatchEvent(new Event("change"));
  }
}

// A browser may refuse to store anything: then the key lasts until the page is loaded again.
function kept() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function keep(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // See above.
  }
}

// What an error says of the service as a whole: [phase, detail].
export function phaseOf(problem) {
  if (!problem.status) return ["unreachable"];
  if (problem.status === 503) return [problem.title === "Draining" ? "draining" : "starting"];
  return ["failed", `${problem.status} ${problem.detail}`];
}
