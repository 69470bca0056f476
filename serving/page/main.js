// The page: images come in, each becomes a card with a request of its own, a few at a time.

import { Card } from "./card.js";
import { Comparison } from "./compare.js";
import { byId, element } from "./dom.js";
import { count } from "./format.js";
import { takeImages } from "./intake.js";
import { Live } from "./live.js";
import { Service } from "./service.js";

const AT_A_TIME = 4;

const service = new Service();
const comparison = new Comparison(service);
let cards = []; // as they are shown
let waiting = [];
let running = 0;

function sendNext() {
  while (service.phase === "ready" && running < AT_A_TIME && waiting.length) {
    const card = waiting.shift();
    running += 1;
    card.run().then(() => {
      running -= 1;
      if (card.state === "waiting" && cards.includes(card) && !waiting.includes(card)) waiting.unshift(card);
      showResults();
      sendNext();
    });
  }
}

function whyItWaits() {
  if (service.phase === "key") return "Waiting for a key";
  return service.phase === "ready" ? "Waiting for its turn" : "Waiting for the service";
}

function enqueue(some) {
  waiting = waiting.filter((card) => !some.includes(card)).concat(some);
  for (const card of some) {
    card.stop();
    card.wait(whyItWaits());
  }
  showResults();
  sendNext();
}

function remove(some) {
  waiting = waiting.filter((card) => !some.includes(card));
  const next = cards[cards.indexOf(some[0]) + 1] ?? cards[cards.indexOf(some[0]) - 1];
  const hadFocus = some.some((card) => card.node.contains(document.activeElement));
  cards = cards.filter((card) => !some.includes(card));
  for (const card of some) {
    comparison.drop(card);
    card.remove();
  }
  showResults();
  if (hadFocus || !cards.length) (cards.includes(next) ? next.removeButton : byId("files")).focus();
}

function showResults() {
  byId("empty").hidden = cards.length > 0;
  byId("clear-all").hidden = cards.length === 0;
  byId("results-count").hidden = cards.length === 0;
  byId("results-count").textContent = count(cards.length, "image");
  byId("retry-all").hidden = retryable().length < 2;
}

const retryable = () => cards.filter((card) => card.mayRetry);

function showService() {
  const { phase, model, models } = service;
  byId("key-form").hidden = phase !== "key";
  byId("key-refused").hidden = !service.keyRefused;
  byId("model").hidden = !model;
  if (!model) return;
  const several = models.length > 1;
  byId("model-name").hidden = several;
  byId("model-name").textContent = model.name;
  byId("model-picker").hidden = !several;
  byId("model-select").replaceChildren(...models.map((one) => element("option", { value: one.name }, one.name)));
  byId("model-select").value = model.name;
  const facts = [
    ["precision", model.precision],
    ["runtime", model.runtime],
    ["image", model.image_size.join(" × ")],
    ["classes", model.num_classes > 0 ? model.num_classes : "none, it only embeds"],
    ["artifact", element("code", { class: "hash", title: model.artifact_sha256 }, model.artifact_sha256)],
  ];
  byId("model-facts").replaceChildren(
    ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

takeImages((files) => {
  const added = files.map(
    (file) =>
      new Card(file, service, {
        onRemove: (card) => remove([card]),
        onRetry: (card) => enqueue([card]),
        onCompare: (card) => comparison.toggle(card),
        onMayRetry: showResults,
      }),
  );
  cards = [...added, ...cards]; // the newest first
  byId("cards").prepend(...added.map((card) => card.node));
  enqueue(added);
});

service.addEventListener("change", () => {
  showService();
  for (const card of waiting) card.wait(whyItWaits());
  if (service.phase === "ready") {
    sendNext();
    comparison.again();
  } else if (service.phase === "key") {
    byId("key-input").focus();
  }
});
service.addEventListener("model", () => {
  showService();
  enqueue([...cards]);
  comparison.again();
});

byId("model-select").addEventListener("change", (event) => service.choose(event.target.value));
byId("clear-all").addEventListener("click", () => remove([...cards]));
byId("retry-all").addEventListener("click", () => enqueue(retryable()));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key-input").value.trim();
  byId("key-input").value = "";
  if (key) service.useKey(key);
});

new Live(service);
service.connect();
