// The threshold: what it would have meant for images that were inspected, while it is moved.

import { $, ask, drawn, element, guarded, number, path, percent, sure, text, who } from "./common.js";

const STEPS = 1000;
const BARS = 60;
const section = $("threshold");
let recipe = null;

const above = (scores, limit) => scores.filter((score) => score > limit).length;

/** Where the chart and the slider end: beyond the highest score that is not far away. */
function end(found) {
  const scores = [...found.stored, ...found.good].sort((a, b) => a - b);
  const high = scores[Math.floor(0.995 * (scores.length - 1))] ?? 0;
  const most = Math.max(high, 2 * found.threshold, ...found.reviewed_defective.slice(0, 1));
  return most > 0 ? 1.05 * most : 1;
}

function chart(found, last) {
  const counts = new Array(BARS).fill(0);
  for (const score of found.stored) counts[Math.min(BARS - 1, Math.floor((score / last) * BARS))] += 1;
  const most = Math.max(1, ...counts);
  const bars = counts.map((count, place) => {
    const height = count ? Math.max(2, (130 * Math.sqrt(count)) / Math.sqrt(most)) : 0;
    return drawn("rect", { class: "bar", x: place * 10 + 1, width: 8, y: 140 - height, height });
  });
  const defects = found.reviewed_defective.map((score) => drawn("circle", { class: "defect", cx: Math.min(598, (score / last) * 600), cy: 148, r: 5 }));
  const at = (found.threshold / last) * 600;
  const old = drawn("line", { class: "old", x1: at, x2: at, y1: 0, y2: 158 });
  const cut = drawn("line", { class: "cut", x1: at, x2: at, y1: 0, y2: 158 });
  const options = { class: "chart", viewBox: "0 0 600 158", preserveAspectRatio: "none", role: "img", "aria-label": text("chart_words") };
  return { svg: drawn("svg", options, ...bars, ...defects, old, cut), bars, cut };
}

function counted(found, limit) {
  const of = (scores) => {
    const nok = above(scores, limit);
    return scores.length ? text("nok_of", { nok, count: scores.length, rate: percent(nok / scores.length) }) : text("none");
  };
  const part = (scores) => (scores.length ? text("of", { part: above(scores, limit), count: scores.length }) : text("none"));
  return [of(found.stored), of(found.good), part(found.reviewed_defective), part(found.reviewed_good)];
}

function draw(found, said = "") {
  const last = end(found);
  const { svg, bars, cut } = chart(found, last);
  const wrong = element("p", { class: "wrong", role: "alert" });
  const slider = element("input", { type: "range", id: "slider", min: 0, max: STEPS, value: (found.threshold / last) * STEPS, "aria-label": text("chosen") });
  const exact = element("input", { type: "number", id: "exact", min: 0, step: "any", value: number(found.threshold) });
  const cells = [0, 1, 2, 3].map((row) => element("td", { id: `chosen-${row}` }));
  const rows = [
    text("stored_images", { count: found.stored.length }),
    text("good_images", { count: found.good.length }),
    text("reviewed_defective"),
    text("reviewed_good"),
  ].map((name, row) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, counted(found, found.threshold)[row]), cells[row]));
  const save = element("button", { type: "button", class: "main", id: "save" }, text("save_threshold"));
  let chosen = found.threshold;

  function choose(value) {
    chosen = value;
    counted(found, chosen).forEach((words, row) => { cells[row].textContent = words; });
    const at = Math.min(600, (chosen / last) * 600);
    cut.setAttribute("x1", at);
    cut.setAttribute("x2", at);
    bars.forEach((bar, place) => bar.classList.toggle("above", ((place + 0.5) / BARS) * last > chosen));
    slider.setAttribute("aria-valuetext", `${number(chosen)}: ${cells[0].textContent}`);
    save.disabled = chosen === found.threshold;
  }

  slider.addEventListener("input", () => {
    choose((slider.value / STEPS) * last);
    exact.value = number(chosen);
  });
  exact.addEventListener("input", () => {
    if (!exact.checkValidity() || exact.value === "") return;
    choose(Number(exact.value));
    slider.value = (chosen / last) * STEPS;
  });
  save.addEventListener("click", guarded(wrong, async () => {
    if (!await sure(text("save_threshold"), text("threshold_sure", { value: number(chosen) }))) return;
    const now = await ask(path("/page/threshold", { recipe }), { body: { threshold: chosen, who: who() } });
    draw(now, text("threshold_saved", { value: number(now.threshold) }));
  }));
  const back = guarded(wrong, async () => {
    if (!await sure(text("as_fitted"), text("as_fitted_sure"))) return;
    draw(await ask(path("/page/threshold/as-fitted", { recipe }), { body: { who: who() } }));
  });
  section.replaceChildren(
    element("h1", {}, text("threshold_title", { recipe })),
    element("p", {}, text("threshold_words")),
    element("p", { class: "quiet" }, found.set_by ? text("set_by", { words: found.set_by }) : text("fitted_by")),
    element("p", { class: "done", role: "status" }, said),
    element("div", { class: "card" },
      svg,
      slider,
      element("label", { class: "field" }, element("span", {}, text("chosen")), exact),
      element("div", { class: "scroll", tabindex: "0", role: "group" }, element("table", {},
        element("thead", {}, element("tr", {}, element("td", {}), element("th", { scope: "col" }, `${text("in_use")}: ${number(found.threshold)}`), element("th", { scope: "col" }, text("chosen")))),
        element("tbody", {}, ...rows))),
      element("div", { class: "actions" }, save,
        found.set_by ? element("button", { type: "button", id: "as-fitted", onclick: back }, text("as_fitted")) : null),
      wrong));
  choose(found.threshold);
}

export async function open(chosen) {
  recipe = chosen;
  section.replaceChildren();
  try {
    draw(await ask(path("/page/threshold", { recipe })));
  } catch (error) {
    section.replaceChildren(element("p", { class: "wrong", role: "alert" }, error.message));
  }
}
