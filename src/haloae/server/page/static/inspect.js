// What the operator sees all day: the verdict, the image, the shift; and images inspected by hand.

import { $, VERDICTS, ask, clock, count, element, guarded, number, path, percent, sign, text } from "./common.js";

let newest = null; // inspection that is shown, unless one is held
let held = null;
let listed = "";
let stream = null;
let isWaiting = false; // for the verdict on an image that was given by hand

const inspections = (id, kind) => `/page/inspections/${id}/${kind}.jpg`;

function draw() {
  const one = held ?? newest;
  const verdict = $("verdict");
  if (isWaiting) return;
  $("live").hidden = held === null;
  if (verdict.dataset.id === (one?.id ?? "none")) return;
  verdict.dataset.id = one?.id ?? "none";
  verdict.className = `verdict ${one?.verdict ?? "none"}`;
  if (!one) {
    verdict.replaceChildren(element("strong", {}, text("nothing_yet")));
    $("picture").hidden = true;
    $("no-picture").hidden = stream !== null;
    return;
  }
  const numbers = [
    `${text("score")} ${number(one.score)}`,
    `${text("threshold")} ${number(one.threshold)}`,
    `${text("p_value")} ${number(one.p_value, 2)}`,
    `${one.source}, ${clock(one.time)}`,
  ].map((words) => element("span", {}, words));
  verdict.replaceChildren(
    element("strong", {}, sign(one.verdict), text(VERDICTS[one.verdict])),
    ...(one.reason ? [element("p", { class: "why" }, one.reason)] : []),
    element("p", { class: "numbers" }, ...numbers),
  );
  const picture = $("picture");
  picture.alt = text("picture_of");
  picture.onload = () => { picture.hidden = stream !== null; $("no-picture").hidden = true; };
  picture.onerror = () => {
    picture.hidden = true;
    $("no-picture").hidden = stream !== null;
    $("no-picture").textContent = text("no_picture");
  };
  picture.src = inspections(one.id, "heat");
}

function item(one) {
  const words = `${text(VERDICTS[one.verdict])}, ${clock(one.time)}`;
  const image = element("img", { src: inspections(one.id, "small"), alt: "" });
  image.onerror = () => image.replaceWith(element("span", { class: "blank" }));
  const hold = () => {
    held = one;
    draw();
    mark();
  };
  return element("li", {}, element("button", { type: "button", "data-id": one.id, "aria-label": words, onclick: hold },
    image,
    element("span", { class: `mark ${one.verdict}` }, sign(one.verdict), text(VERDICTS[one.verdict]))));
}

function mark() {
  for (const button of $("last").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.id === held?.id));
  }
}

export function open() {
  held = newest = null;
  listed = "";
}

export function update(state) {
  const last = state.last[0] ?? null;
  if (newest === null || last === null || last.time >= newest.time) newest = last;
  draw();
  const ids = state.last.map((one) => one.id).join();
  if (ids !== listed) {
    listed = ids;
    const known = new Map([...$("last").children].map((li) => [li.firstChild.dataset.id, li]));
    $("last").replaceChildren(...state.last.map((one) => known.get(one.id) ?? item(one)));
    mark();
  }
  $("since").textContent = text("shift", { time: clock(state.since, "short") });
  for (const verdict of Object.keys(VERDICTS)) {
    $(`count-${verdict}`).textContent = state.counts ? count(state.counts[verdict]) : "–";
  }
  $("rate").textContent = percent(state.counts?.rate ?? null);
  drawGaps(state.waiting, state.gaps);
}

/** What is not stored: what waits at the moment, and what is lost. */
function drawGaps(waiting, gaps) {
  const all = waiting ? [waiting, ...gaps] : gaps;
  $("gaps").hidden = all.length === 0;
  const said = JSON.stringify(all);
  if ($("gaps").dataset.said === said) return;
  $("gaps").dataset.said = said;
  const rows = all.map(({ first, last, images, reason }) => element("li", {},
    element("strong", {}, last === null
      ? text("gap_waiting", { from: clock(first), count: count(images) })
      : text("gap_lost", { from: clock(first), to: clock(last), count: count(images) })),
    element("p", {}, reason)));
  $("gaps").classList.toggle("now", waiting !== null);
  const sum = all.reduce((before, one) => before + one.images, 0);
  $("gaps").replaceChildren(
    element("summary", {}, text("not_stored", { count: count(sum) })),
    element("ul", {}, ...rows));
}

async function inspectOne(image) {
  held = null;
  isWaiting = true;
  $("verdict").className = "verdict none";
  $("verdict").dataset.id = "waiting";
  $("verdict").replaceChildren(element("strong", {}, text("waiting")));
  try {
    const recipe = $("recipe").value; // as it stands there, even if it was chosen this moment
    newest = await ask(path("/v1/predict", { recipe }), { method: "POST", image });
  } finally {
    isWaiting = false;
    draw();
  }
}

async function inspectAll(files) {
  for (const file of files) await inspectOne(file);
}

const wrong = $("inspect-wrong");
$("upload").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", guarded(wrong, async () => {
  await inspectAll([...$("file").files]);
  $("file").value = "";
}));
$("live").addEventListener("click", () => {
  held = null;
  draw();
  mark();
});
$("stage").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
});
$("stage").addEventListener("dragleave", () => $("stage").classList.remove("over"));
$("stage").addEventListener("drop", guarded(wrong, async (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  await inspectAll([...event.dataTransfer.files]);
}));

// The camera

async function openCamera() {
  if (!navigator.mediaDevices) throw new Error(text("no_camera"));
  const video = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
  stream = await navigator.mediaDevices.getUserMedia({ video });
  $("video").srcObject = stream;
  await $("video").play();
}

function closeCamera() {
  stream.getTracks().forEach((track) => track.stop());
  stream = $("video").srcObject = null;
}

$("camera").addEventListener("click", guarded(wrong, async () => {
  if (stream) closeCamera();
  else await openCamera();
  const isOpen = stream !== null;
  $("video").hidden = $("take").hidden = !isOpen;
  $("camera").textContent = text(isOpen ? "close_camera" : "camera");
  $("picture").hidden = isOpen || !(held ?? newest);
  $("no-picture").hidden = isOpen || !$("picture").hidden;
}));
$("take").addEventListener("click", guarded(wrong, async () => {
  const video = $("video");
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const image = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  await inspectOne(image);
}));
