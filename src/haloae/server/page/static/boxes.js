// What all boxes have stored of this shift, as their common database has it.

import { $, VERDICTS, ask, clock, count, element, percent, text } from "./common.js";

const section = $("boxes");
const PAUSE = 2000; // milliseconds between two looks
let looked = 0;

function tile(kind, name, value) {
  return element("div", { class: kind }, element("dt", {}, text(name)), element("dd", {}, value));
}

function card(one, isThis) {
  return element("div", { class: "card" },
    element("h2", {}, one.box, isThis ? ` (${text("this_box")})` : "", " – ", text("last_image", { time: clock(one.last) })),
    element("dl", { class: "tiles" },
      ...Object.entries(VERDICTS).map(([verdict, name]) => tile(verdict, name, count(one[verdict]))),
      tile(null, "rate", percent(one.rate)),
      one.lost ? tile("lost", "lost", count(one.lost)) : null));
}

function draw(found) {
  const read = found.read ? text("boxes_read", { time: clock(found.read) }) : text("boxes_unread");
  const said = JSON.stringify([found.since, found.boxes]);
  if (section.dataset.said !== said) {
    section.dataset.said = said;
    section.replaceChildren(
      element("h1", {}, found.since ? text("boxes_title", { time: clock(found.since, "short") }) : text("tab_boxes")),
      element("p", { class: "quiet" }),
      ...found.boxes.map((one) => card(one, one.box === found.box)));
  }
  section.querySelector("p").textContent = read;
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
