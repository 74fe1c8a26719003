// The review queue: one image after the other, confirmed or overruled, with tags.

import { $, VERDICTS, ask, clock, element, facts, guarded, number, path, sign, text, who } from "./common.js";

let recipe = null;
let role = null;
let queue = [];
let place = 0;
let kind = "heat";
let isLoading = false;
const known = new Set(JSON.parse(localStorage.getItem("tags") ?? "[]"));

const section = $("review");

function tagsOf(field) {
  const tags = [...new Set(field.value.split(",").map((tag) => tag.trim()).filter(Boolean))];
  tags.forEach((tag) => known.add(tag));
  localStorage.setItem("tags", JSON.stringify([...known].slice(-30)));
  return tags;
}

function draw() {
  const one = queue[place];
  const link = element("a", { class: "button", href: path("/page/disagreements.zip", { recipe }), download: true }, text("export"));
  if (!one) {
    section.replaceChildren(
      element("h1", {}, text("review_title")),
      element("p", {}, text("review_none")),
      element("div", { class: "actions" }, link));
    return;
  }
  const wrong = element("p", { class: "wrong", role: "alert" });
  const done = element("p", { class: "done", role: "status" });
  const picture = element("img", {
    src: `/page/inspections/${one.id}/${kind}.jpg`,
    alt: text(kind === "heat" ? "picture_of" : "picture_plain"),
  });
  picture.onerror = () => picture.replaceWith(element("p", {}, text("no_picture")));
  const field = element("input", { id: "tags", list: "known-tags", maxlength: "200", autocomplete: "off" });
  const say = (word) => guarded(wrong, async () => {
    await ask(`/page/inspections/${one.id}/review`, { body: { word, tags: tagsOf(field), who: who() } });
    queue.splice(place, 1);
    place = Math.min(place, Math.max(0, queue.length - 1));
    draw();
  });
  const step = (by) => () => {
    place = (place + by + queue.length) % queue.length;
    draw();
  };
  const button = (id, key, name, act, main) => element(
    "button", { type: "button", id, "data-key": key, class: main ? "main" : null, onclick: act, "aria-keyshortcuts": key },
    text(name), element("kbd", { "aria-hidden": "true" }, key));
  const add = guarded(wrong, async () => {
    const said = await ask(`/page/inspections/${one.id}/good`, { body: { who: who() } });
    done.textContent = text("added_good", { count: said.good });
  });
  const heat = button("heat", "H", "heat", () => {
    kind = kind === "heat" ? "plain" : "heat";
    draw();
  });
  heat.setAttribute("aria-pressed", String(kind === "heat"));
  section.replaceChildren(
    element("h1", {}, text("review_title"), " ", element("span", { class: "quiet" }, text("of_many", { number: place + 1, count: queue.length }))),
    element("p", { class: "quiet" }, text("review_words")),
    element("div", { class: "columns" },
      element("div", { class: "stage" }, picture),
      element("div", { class: "card" },
        element("p", { class: `badge ${one.verdict}` }, sign(one.verdict), text(VERDICTS[one.verdict])),
        one.reason ? element("p", {}, one.reason) : null,
        facts([
          [text("score"), number(one.score)],
          [text("threshold"), number(one.threshold)],
          [text("p_value"), number(one.p_value, 2)],
          [text("source"), one.source],
          [text("time"), clock(one.time)],
        ]),
        element("div", { class: "words" },
          button("confirm", "C", "confirm", say("confirm"), true),
          button("overrule", "O", "overrule", say("overrule"), true)),
        element("label", { class: "field tags" }, element("span", {}, `${text("tags")} – ${text("tags_words")}`), field),
        element("datalist", { id: "known-tags" }, ...[...known].map((tag) => element("option", { value: tag }))),
        element("div", { class: "actions" },
          button("back", "B", "back_one", step(-1)),
          button("later", "L", "skip_one", step(1)),
          heat,
          role === "engineer" ? button("good", "G", "add_good", add) : null,
          link),
        wrong,
        done)));
}

export async function open(chosen, asked) {
  recipe = chosen;
  role = asked;
  place = 0;
  queue = [];
  section.replaceChildren();
  await load();
}

/** Drawn once: a second drawing would take away what somebody has begun to write. */
async function load() {
  isLoading = true;
  try {
    const wanted = recipe;
    const found = await ask(path("/page/review", { recipe: wanted }));
    if (wanted !== recipe) return;
    queue = found;
    draw();
  } finally {
    isLoading = false;
  }
}

/** What comes while nobody looks at the queue is put before it. */
export async function update(state) {
  if (isLoading || state.recipe !== recipe || queue.length > 0 || !state.to_review) return;
  await load();
}

document.addEventListener("keydown", (event) => {
  if (section.hidden || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input, select, textarea")) return;
  section.querySelector(`[data-key="${CSS.escape(event.key.toUpperCase())}"]`)?.click();
});
