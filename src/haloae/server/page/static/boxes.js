// What all boxes have stored of this shift, as their common database has it.

import { $, ask, clock, element, percent, table, text } from "./common.js";

const section = $("boxes");
const PAUSE = 2000; // milliseconds between two looks
let looked = 0;

function draw(found) {
  const said = JSON.stringify([found.problem, found.since, found.boxes]);
  const read = found.read ? text("boxes_read", { time: clock(found.read) }) : text("boxes_unread");
  if (section.dataset.said === said) {
    section.querySelector("p").textContent = read;
    return;
  }
  section.dataset.said = said;
  const number = (value) => element("td", { class: "number" }, String(value));
  const rows = found.boxes.map((one) => [
    element("strong", {}, one.box, ...(one.box === found.box ? [" ", element("span", { class: "quiet" }, text("this_box"))] : [])),
    clock(one.last),
    ...[one.normal, one.anomalous, one.unusable].map(number),
    element("td", { class: "number" }, percent(one.rate)),
    number(one.lost),
  ]);
  const heads = ["ok", "nok", "unusable", "rate", "lost"].map((name) => element("th", { class: "number" }, text(name)));
  section.replaceChildren(
    element("h1", {}, found.since ? text("boxes_title", { time: clock(found.since, "short") }) : text("tab_boxes")),
    element("p", { class: "quiet" }, read),
    ...(found.problem ? [element("p", { class: "wrong", role: "alert" }, found.problem)] : []),
    ...(rows.length ? [element("div", { class: "card" }, table([text("box"), text("last_image"), ...heads], rows))] : []));
}

async function load() {
  looked = Date.now();
  try {
    draw(await ask("/page/boxes"));
  } catch (error) {
    section.dataset.said = "";
    section.replaceChildren(element("p", { class: "wrong", role: "alert" }, error.message));
  }
}

export const open = load;

export function update() {
  if (Date.now() - looked > PAUSE) load();
}
