// The pages work without this script. It keeps [data-live] up to date, leaves the focus where a form was sent from, and
// takes files that are dropped on [data-drop].
"use strict";

// -- live parts

const nameOf = (node) =>
  node.nodeType !== Node.ELEMENT_NODE
    ? ""
    : node.id || node.getAttribute("action") || node.getAttribute("href") ||
      (node.querySelector("[action], [href]")?.outerHTML.match(/(?:action|href)="[^"]*"/) ?? [""])[0];

const isSame = (a, b) => a.nodeName === b.nodeName && nameOf(a) === nameOf(b);

// Makes an element like another, and leaves what is there already: focus, selection, scrolling, and what is open.
function update(old, wanted) {
  for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) if (!wanted.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  updateInside(old, wanted);
}

function updateInside(old, wanted) {
  let place = old.firstChild;
  for (const child of [...wanted.childNodes]) {
    let found = place;
    while (found && !isSame(found, child)) found = found.nextSibling;
    if (!found) {
      old.insertBefore(child, place);
      continue;
    }
    while (place !== found) place = removed(place);
    if (found.nodeType === Node.ELEMENT_NODE) update(found, child);
    else if (found.nodeValue !== child.nodeValue) found.nodeValue = child.nodeValue;
    place = found.nextSibling;
  }
  while (place) place = removed(place);
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

for (const part of document.querySelectorAll("[data-live]")) {
  const source = new EventSource(part.dataset.live);
  source.onmessage = (event) => {
    const wanted = document.createElement("template"), had = part.contains(document.activeElement);
    wanted.innerHTML = JSON.parse(event.data);
    updateInside(part, wanted.content);
    if (had && !part.contains(document.activeElement)) part.focus({ preventScroll: true }); // what had it is gone
  };
  addEventListener("pagehide", () => source.close());
}

// -- the focus after a form: at its button, else at that of the form beside it, else at what is said (autofocus)

const formsOf = () => [...document.querySelectorAll("main form")];
const placeOf = (form) => location.pathname + (form.method === "post" ? location.search : "");

function remember(form, label) {
  if (form.method !== "post" && form.dataset.stay === undefined) return;
  const forms = formsOf(), at = forms.indexOf(form);
  const near = [at, at + 1, at - 1].map((i) => forms[i]?.getAttribute("action") ?? "");
  sessionStorage.setItem("sent", JSON.stringify({ place: placeOf(form), near, label }));
}

addEventListener("submit", (event) => remember(event.target, event.submitter?.textContent));

const sent = JSON.parse(sessionStorage.getItem("sent") ?? "null");
sessionStorage.removeItem("sent");
for (const action of sent?.near ?? []) {
  const forms = formsOf().filter((each) => each.getAttribute("action") === action && placeOf(each) === sent.place);
  const buttons = forms.flatMap((each) => [...each.querySelectorAll("button")]);
  const button = buttons.find((each) => each.textContent === sent.label) ?? buttons[0];
  if (!button) continue;
  (button.closest("details:not([open])")?.querySelector("summary") ?? button).focus();
  break;
}

// -- files

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
      if (request.status < 400) {
        remember(form);
        location.reload();
      } else progress.textContent = request.responseText || `refused: ${request.status}`;
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
