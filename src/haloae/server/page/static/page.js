// The page's frame: who looks, which recipe and view are chosen, and how the service is.

import { $, ask, clock, element, guarded, path, text, who } from "./common.js";
import * as boxes from "./boxes.js";
import * as inspect from "./inspect.js";
import * as models from "./models.js";
import * as review from "./review.js";
import * as threshold from "./threshold.js";

const VIEWS = { inspect, review, boxes, threshold, models };
const PAUSE = 800; // milliseconds between two looks
let recipe = localStorage.getItem("recipe");
let shown = null; // view and recipe
let known = null; // how the service was at the last look

function show(view) {
  for (const name of ["login", ...Object.keys(VIEWS)]) $(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function chosenView(role) {
  const view = location.hash.slice(1);
  const isForEngineers = view === "threshold" || view === "models";
  return view in VIEWS && (role === "engineer" || !isForEngineers) ? view : "inspect";
}

function open(state) {
  const view = chosenView(state.role);
  if (shown !== `${view} ${state.recipe}`) {
    shown = `${view} ${state.recipe}`;
    show(view);
    VIEWS[view].open?.(state.recipe, state.role);
  }
  VIEWS[view].update?.(state);
}

function frame(state) {
  $("state").className = `state ${state.state}`;
  $("state").textContent = text(`state_${state.state}`);
  $("role").textContent = text(state.role);
  $("log-out").hidden = !state.has_tokens;
  $("to-boxes").hidden = !state.has_boxes;
  for (const link of document.querySelectorAll("nav .engineer")) link.hidden = state.role !== "engineer";
  const said = JSON.stringify([state.reason, state.problems, state.alarms]);
  if ($("problems").dataset.said !== said) {
    $("problems").dataset.said = said;
    const reason = state.reason ? [element("p", { class: "error" }, state.reason)] : [];
    const alarms = state.alarms.map((alarm) => drawnAlarm(alarm, state.role));
    $("problems").replaceChildren(...reason, ...state.problems.map((words) => element("p", {}, words)), ...alarms);
  }
  if (JSON.stringify([...$("recipe").options].map((one) => one.value)) !== JSON.stringify(state.recipes)) {
    $("recipe").replaceChildren(...state.recipes.map((name) => element("option", { value: name }, name)));
  }
  $("recipe").value = state.recipe;
  $("to-review").hidden = !state.to_review;
  $("to-review").textContent = state.to_review >= 100 ? "99+" : state.to_review;
}

/** What has changed, and for engineers what to say of it. */
function drawnAlarm({ recipe: of, words, time }, role) {
  const wrong = element("span", { class: "wrong" });
  const answer = (name, accept) => element("button", {
    type: "button",
    class: "small",
    onclick: guarded(wrong, () => ask(path("/page/alarms", { recipe: of }), { body: { accept, who: who() } })),
  }, text(name));
  const buttons = role === "engineer" ? [answer("put_right", false), answer("usual_now", true)] : [];
  return element("p", { class: "alarm" }, text("changed", { recipe: of, time: clock(time, "short"), words }), " ", ...buttons, wrong);
}

async function look() {
  const asked = recipe;
  try {
    const state = await ask(path("/page/state", asked === null ? {} : { recipe: asked }));
    if (asked !== recipe) return void look(); // another was chosen meanwhile
    known = state;
    frame(state);
    open(state);
  } catch (error) {
    if (error.status === 401) return logIn();
    $("state").className = "state error";
    $("state").textContent = text("state_error");
    $("problems").dataset.said = "";
    $("problems").replaceChildren(element("p", { class: "error" }, error.status ? error.message : text("no_connection")));
  }
  setTimeout(look, PAUSE);
}

function logIn() {
  shown = known = null;
  show("login");
  $("state").className = "state";
  $("state").textContent = "";
  $("token").focus();
}

$("login").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wrong = $("login").querySelector(".wrong");
  wrong.textContent = "";
  try {
    await ask("/v1/session", { body: { token: $("token").value } });
    $("token").value = "";
    look();
  } catch (error) {
    wrong.textContent = error.message;
  }
});
$("log-out").addEventListener("click", async () => {
  await ask("/v1/session", { method: "DELETE" });
  location.reload();
});
$("recipe").addEventListener("change", () => {
  recipe = $("recipe").value;
  localStorage.setItem("recipe", recipe);
});
addEventListener("hashchange", () => { if (known) open(known); });
$("who").value = localStorage.getItem("who") ?? "";
$("who").addEventListener("change", () => localStorage.setItem("who", $("who").value));
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
look();
