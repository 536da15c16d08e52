// The pages work without this script. It keeps [data-live] up to date, and takes files that are dropped on [data-drop].
"use strict";

for (const part of document.querySelectorAll("[data-live]")) {
  const source = new EventSource(part.dataset.live);
  source.onmessage = (event) => {
    // What is being used is not replaced under the hand.
    const active = document.activeElement;
    if (part.contains(active) && active.matches("a, button, input, textarea, select, summary")) return;
    part.innerHTML = JSON.parse(event.data);
  };
  addEventListener("pagehide", () => source.close());
}

for (const form of document.querySelectorAll("form[data-drop]")) {
  const progress = form.querySelector(".progress");
  const send = (files) => {
    const body = new FormData();
    for (const field of form.querySelectorAll("input:not([type=file])")) body.append(field.name, field.value);
    for (const file of files) body.append("files", file, file.name);
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "text/plain");
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) progress.textContent = `${Math.floor((100 * event.loaded) / event.total)} % sent`;
    };
    request.onload = () => {
      if (request.status < 400) location.reload();
      else progress.textContent = request.responseText || `refused: ${request.status}`;
    };
    request.onerror = () => { progress.textContent = "the connection broke; nothing of the last file was kept"; };
    request.send(body);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form.querySelector("input[type=file]").files);
  });
  addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    document.body.classList.remove("dropping");
    send(event.dataTransfer.files);
  });
}
