// The request of a card as a command for a POSIX shell. It never holds the key itself.

import { announce, element } from "./dom.js";

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// curl reads , and ; in a file's name as its own syntax unless the name is in double quotes; - would be its input.
function fileArgument(name) {
  const path = name === "-" ? "./-" : name;
  return /[,;"\\]|^\s|\s$/.test(path) ? `"${path.replace(/[\\"]/g, "\\$&")}"` : path;
}

export function curlCommand(fileName, url, keyed) {
  const key = keyed ? '-H "Authorization: Bearer $KEY" ' : "";
  return `curl ${key}-F ${shellQuoted(`images=@${fileArgument(fileName)}`)} ${shellQuoted(url)}`;
}

// Copy, or where the page may not (it was not loaded over https, or permission is refused), show what to copy.
export async function copyCommand(command, trigger, place) {
  place.replaceChildren();
  try {
    await navigator.clipboard.writeText(command);
  } catch {
    const field = element("textarea", { class: "command", readonly: true, rows: 3, "aria-label": "curl command" });
    field.value = command;
    place.append(element("p", { class: "note" }, "Copying is not allowed here; the command is selected."), field);
    field.focus();
    field.select();
    return;
  }
  announce("The curl command is copied.");
  const text = trigger.dataset.text ?? trigger.textContent;
  trigger.dataset.text = text;
  trigger.textContent = "Copied";
  clearTimeout(Number(trigger.dataset.timer));
  trigger.dataset.timer = setTimeout(() => (trigger.textContent = text), 2000);
}
