// What all views share: texts, elements, requests, and the question whether one is sure.

const texts = JSON.parse(document.getElementById("texts").textContent);
export const VERDICTS = { normal: "ok", anomalous: "nok", unusable: "unusable" };
const SIGNS = {
  normal: "M8 0a8 8 0 1 0 0 16A8 8 0 1 0 8 0Z",
  anomalous: "M8 0 16 16H0Z",
  unusable: "M0 0H16V16H0Z",
};

/** A text of the page by its name, with what stands for {…} filled in. */
export function text(name, values = {}) {
  return texts[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

export const $ = (id) => document.getElementById(id);

/** An element with attributes, properties (on…) and children; texts are never taken for HTML. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An SVG element. */
export function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** The shape of a verdict. */
export function sign(verdict) {
  const options = { viewBox: "0 0 16 16", class: "sign", "aria-hidden": "true" };
  return drawn("svg", options, drawn("path", { d: SIGNS[verdict] }));
}

/** Ask the service, with plain values or an image's bytes; what it refuses is thrown, in its words. */
export async function ask(path, { method, body, image } = {}) {
  const type = image ? "application/octet-stream" : "application/json";
  let answer, said;
  try {
    answer = await fetch(path, {
      method: method ?? (body ? "POST" : "GET"),
      headers: { "content-type": type },
      body: image ?? (body && JSON.stringify(body)),
    });
    said = await answer.json(); // which only the service gives, not what stands before it
  } catch {
    throw new Error(text("no_answer"));
  }
  if (!answer.ok) throw Object.assign(new Error(said.error), { status: answer.status });
  return said;
}

/** A path with a query. */
export const path = (base, query) => `${base}?${new URLSearchParams(query)}`;

/** Who does something, for the record. */
export const who = () => $("who").value.trim() || null;

/** Whether somebody who was asked says yes. */
export function sure(title, words) {
  const dialog = $("sure");
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = words;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Four digits or fewer, without an exponent where that can be. */
export function number(value, digits = 4) {
  return value >= 1000 && value < 1e7 ? value.toFixed(0) : String(+value.toPrecision(digits));
}

/** How many there are. */
export const count = (value) => new Intl.NumberFormat(texts.language).format(value);

/** A share as a percentage, on one line. */
export const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)}\u00a0%`);

/** A time of day; with its date where that is another than today's. */
export function clock(iso, timeStyle = "medium") {
  const time = new Date(iso);
  const isToday = time.toDateString() === new Date().toDateString();
  const options = { timeStyle, dateStyle: isToday ? undefined : "medium", hourCycle: "h23" };
  return new Intl.DateTimeFormat(texts.language, options).format(time);
}

/** Terms and what is said of each. */
export function facts(pairs) {
  const rows = pairs.flatMap(([term, said]) => [element("dt", {}, term), element("dd", {}, said)]);
  return element("dl", { class: "facts" }, ...rows);
}

/** A table of a head and rows; a cell is a text or an element. */
export function table(head, rows) {
  const cells = (tag, row) => row.map((cell) => (cell instanceof HTMLElement && /^T[DH]$/.test(cell.tagName) ? cell : element(tag, {}, cell)));
  const made = element("table", {},
    element("thead", {}, element("tr", {}, ...cells("th", head))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row)))));
  return element("div", { class: "scroll", tabindex: "0", role: "group" }, made);
}

/** Do what a button is for, once at a time, and say below it what was refused. */
export function guarded(wrong, act) {
  return async (event) => {
    const button = event?.currentTarget;
    if (button) button.disabled = true;
    wrong.textContent = "";
    try {
      await act(event);
    } catch (error) {
      wrong.textContent = error.message;
    } finally {
      if (button) button.disabled = false;
    }
  };
}
