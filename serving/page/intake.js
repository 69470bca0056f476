// Ways in for images: dropped anywhere on the page, pasted, or chosen.

import { byId } from "./dom.js";

export function takeImages(onFiles) {
  const drop = byId("drop");
  const input = byId("files");
  const notice = byId("intake-notice");
  let pasted = 0;

  function take(files, otherwise) {
    notice.hidden = files.length > 0;
    notice.textContent = files.length ? "" : otherwise;
    if (files.length) onFiles(files);
  }

  input.addEventListener("change", () => {
    const files = [...input.files];
    input.value = ""; // so that the same file may be chosen again
    if (files.length) take(files);
  });

  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (on) => drop.classList.toggle("over", on);

  window.addEventListener("dragover", (event) => {
    event.preventDefault(); // or the browser would leave this page for what is dropped
    event.dataTransfer.dropEffect = holdsFiles(event) ? "copy" : "none";
    mark(holdsFiles(event));
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) mark(false);
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    const items = [...event.dataTransfer.items].filter((item) => item.kind === "file");
    const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
    take(
      files.filter((file) => file !== null),
      items.length ? "Folders are not taken. Drop the images in it." : "There was no image file in that.",
    );
  });

  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length && event.target.closest?.("input, textarea")) return;
    event.preventDefault();
    // A pasted picture is always called image.png: give each a name of its own.
    const named = files.map((file) =>
      file.name === "image.png" ? new File([file], `pasted-${++pasted}.png`, { type: file.type }) : file,
    );
    take(named, "There is no image in the clipboard.");
  });
}
