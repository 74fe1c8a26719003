// Models: retrain and compare, use the new one, go back to a former one, and who changed what.

import { $, ask, clock, element, facts, guarded, number, path, percent, sure, table, text, who } from "./common.js";

const section = $("models");
const BETTER = { image_auroc: 1, detection_rate: 1, false_alarm_rate: -1 };
let recipe = null;
let watched = "";

const brief = (sha256) => sha256.slice(0, 12);

/** Any value of the record of changes, short. */
function said(value) {
  if (value === null) return "–";
  if (typeof value === "string") return /^[0-9a-f]{64}$/.test(value) ? brief(value) : value;
  if (typeof value !== "object") return String(value);
  return Object.entries(value).filter(([, one]) => one !== null)
    .map(([name, one]) => `${name.replaceAll("_", " ")} ${typeof one === "number" ? number(one) : one}`).join(", ");
}

function action(id, name, act, wrong, options = {}) {
  const { words, done, ...rest } = options;
  const onclick = guarded(wrong, async () => {
    if (!await sure(text(name), words)) return;
    draw(await ask(path(`/page/${act}`, { recipe }), { body: { who: who(), ...rest.body } }), done && text(done));
  });
  return element("button", { type: "button", id, class: rest.main ? "main" : null, disabled: rest.disabled ?? false, onclick }, text(name));
}

function metric(name, [before, after]) {
  const shown = (value) => (value === null ? "–" : name === "image_auroc" ? value.toFixed(3) : percent(value));
  const gain = before === null || after === null ? 0 : (after - before) * BETTER[name];
  return [text(name),
    element("td", { class: gain < 0 ? "better" : null }, shown(before)),
    element("td", { class: gain > 0 ? "better" : null }, shown(after))];
}

function newModel(found, wrong) {
  const { good, defective, metrics, fitted_on: fitted, threshold } = found.new;
  const rows = [
    [text("fitted_on"), ...fitted.map((count) => text("images", { count }))],
    [text("threshold"), ...threshold.map((value) => number(value))],
    ...Object.keys(BETTER).filter((name) => name in metrics).map((name) => metric(name, metrics[name])),
  ];
  return element("div", { class: "card", id: "new-model" },
    element("h2", {}, text("new_title")),
    element("p", {}, good + defective ? text("compared_on", { good, defective }) : text("compared_on_none")),
    table(["", text("old"), text("new")], rows),
    element("div", { class: "actions" },
      action("promote", "promote", "promote", wrong, { main: true, words: text("promote_sure"), done: "promoted" }),
      action("discard", "discard", "discard", wrong, { words: text("discard_sure") })));
}

function inUse(found, wrong) {
  const running = found.retraining?.step ? found.retraining : null;
  const failed = found.retraining?.error && found.retraining.recipe === recipe ? found.retraining.error : null;
  const retrain = action("retrain", "retrain", "retrain", wrong, {
    main: true,
    words: text("retrain_sure", { count: found.good ?? 0 }),
    disabled: running !== null || found.missing !== null,
  });
  return element("div", { class: "card" },
    element("h2", {}, text("model_in_use")),
    facts([
      [text("file"), element("span", {}, found.file, " ", element("code", {}, brief(found.sha256)))],
      [text("fitted_on"), text("images", { count: found.fitted_on })],
      [text("good_now"), found.good === null ? text("cannot_read") : String(found.good)],
      [text("threshold"), `${number(found.threshold)}${found.set_by ? `, ${found.set_by}` : ""}`],
      [text("detector"), `${found.preset}, ${found.engine}`],
    ]),
    element("p", {}, text("retrain_words")),
    element("div", { class: "actions" }, retrain,
      running ? element("strong", { id: "step", role: "status" }, `${running.recipe}: ${text(`step_${running.step}`)}`) : null),
    found.missing ? element("p", { id: "missing" }, found.missing) : null,
    failed ? element("p", { class: "wrong" }, text("retrain_failed", { error: failed })) : null);
}

function former(found, wrong) {
  const rows = found.former.map((one) => [
    element("code", {}, brief(one.sha256)), clock(one.until), one.who,
    action(null, "roll_back", "roll-back", wrong, {
      words: text("roll_back_sure", { sha: brief(one.sha256) }), done: "rolled_back", body: { sha256: one.sha256 },
    }),
  ]);
  return element("div", { class: "card", id: "former" },
    element("h2", {}, text("former_title")),
    rows.length ? table(["sha256", text("until"), text("by"), ""], rows) : element("p", {}, text("former_none")));
}

function changes(found) {
  const rows = found.changes.map((one) => [clock(one.time), `${one.who} (${text(one.role).toLowerCase()})`, `${one.action}: ${one.subject}`, said(one.before), said(one.after)]);
  const seals = found.first_broken === null
    ? element("p", { class: "quiet" }, text("changes_whole"))
    : element("p", { class: "wrong" }, text("changes_broken", { number: found.first_broken }));
  return element("div", { class: "card", id: "changes" },
    element("h2", {}, text("changes_title")),
    ...(rows.length ? [table([text("time"), text("by"), text("what"), text("from"), text("to")], rows), seals] : [element("p", {}, text("changes_none"))]));
}

function draw(found, done = "") {
  watched = JSON.stringify(found.retraining);
  const wrong = element("p", { class: "wrong", role: "alert" });
  section.replaceChildren(
    element("h1", {}, text("models_title", { recipe })),
    element("p", { class: "done", role: "status" }, done),
    wrong,
    element("div", { class: "columns" },
      element("div", {}, inUse(found, wrong), found.new ? newModel(found, wrong) : null),
      former(found, wrong)),
    changes(found));
}

async function load() {
  try {
    draw(await ask(path("/page/models", { recipe })));
  } catch (error) {
    section.replaceChildren(element("p", { class: "wrong", role: "alert" }, error.message));
  }
}

export function open(chosen) {
  recipe = chosen;
  section.replaceChildren();
  return load();
}

/** A retraining that goes on is followed. */
export function update(state) {
  if (watched !== "" && JSON.stringify(state.retraining) !== watched) {
    watched = JSON.stringify(state.retraining);
    load();
  }
}
