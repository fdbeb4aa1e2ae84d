// The page: one view at a time, one loop of questions, one feed of events.

import { ask as request, Feed, keep, key, pause, Refused } from "./api.js";
import { byId, h, say } from "./dom.js";
import { makeExplain } from "./explain.js";
import { count, duration, place } from "./format.js";
import { LIMITS, Model } from "./model.js";
import { makeOverview } from "./overview.js";
import { makeRoutes } from "./routes.js";
import { makeCloses, makeSessions } from "./sessions.js";
import { makeCertificates, makeConfiguration } from "./settings.js";

const POLL_MS = 2000;
const DRAW_MS = 200;
const TOAST_MS = 6000;
const THEMES = ["auto", "light", "dark"];
const SHOWN_PROBLEMS = 5;

const model = new Model();
const now = () => performance.now() / 1000;

// ---- asking

let keyIsWanted = false;

/** As `request`, but a 401 asks the person for the key. */
async function ask(path, options) {
  try {
    return await request(path, options);
  } catch (error) {
    if (error instanceof Refused && error.status === 401) askForKey();
    throw error;
  }
}

function askForKey() {
  byId("key").hidden = false;
  if (keyIsWanted) return;
  keyIsWanted = true;
  feed.close();
  showKeyDialog(key() ? "This key is not accepted." : "");
}

function showKeyDialog(why) {
  const dialog = byId("key-dialog");
  if (why) say(byId("key-why"), why);
  byId("key-input").value = "";
  if (!dialog.open) dialog.showModal();
}

byId("key-dialog").addEventListener("close", () => {
  const typed = byId("key-input").value.trim();
  byId("key-input").value = "";
  if (byId("key-dialog").returnValue === "save" && typed) keep(typed);
  keyIsWanted = false;
  if (!typed) return;
  enter(); // what the view asked in vain, it asks again
  wake();
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close("cancel"));
byId("key").addEventListener("click", () => showKeyDialog(""));

async function kill(row) {
  try {
    await ask(`streamgw/v1/sessions/${encodeURIComponent(row.id)}`, { method: "DELETE" });
    toast(`The session of ${row.client} is killed.`);
  } catch (error) {
    if (error.status === 404) toast(`The session of ${row.client} had ended already.`);
    else failed(error);
  }
  wake();
}

// ---- the loop

let failures = 0;
let timer = 0;
let running = false;
let again = false;
let trouble = "";
let retryAt = 0;

/** Ask now, and not only when it is time. */
function wake() {
  again = true;
  clearTimeout(timer);
  void loop();
}

async function loop() {
  if (running) return;
  running = true;
  again = false;
  const began = now();
  try {
    const status = await ask("streamgw/v1/status");
    if (model.takeStatus(status, now())) toast("The gateway was restarted.");
    if (current.wantsSessions) await pollSessions();
    await current.poll?.();
    failures = 0;
    trouble = "";
    feed.open();
  } catch (error) {
    failures += 1;
    trouble = error.message;
    if (error.status === 401) trouble = "no key";
    if (!(error instanceof Refused)) throw error;
  } finally {
    running = false;
    // A gateway that takes long to answer is asked less often.
    const wait = again ? 0 : failures ? pause(failures) : Math.max(POLL_MS, (now() - began) * 10_000);
    retryAt = failures ? now() + wait / 1000 : 0;
    if (!document.hidden) timer = setTimeout(loop, wait);
    schedule();
  }
}

async function pollSessions() {
  const asked = model.beginSessions();
  const body = await ask("streamgw/v1/sessions", {
    params: { ...model.filter.fields, limit: String(LIMITS.sessions) },
  }).catch((error) => {
    // A filter that the gateway does not understand is a matter of this view.
    if (error.status !== 400) throw error;
    toast(error.message);
    return null;
  });
  if (body) model.takeSessions(asked, body.sessions, body.total, now());
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) wake();
});
window.addEventListener("online", wake);

const feed = new Feed({
  kinds: ["session_opened", "session_closed", "health", "reload"],
  onevent: (event) => {
    const kind = model.takeEvent(event, now());
    if (kind === "reload") wake();
    schedule();
  },
  onstate: schedule,
});

// ---- drawing

let drawing = 0;

/** Draw soon: what happens within a moment is drawn together. */
function schedule() {
  if (drawing) return;
  drawing = setTimeout(() => {
    drawing = 0;
    if (!document.hidden) requestAnimationFrame(draw);
  }, DRAW_MS);
}

/** Draw now: somebody has pressed something. */
const redraw = () => requestAnimationFrame(draw);

function draw() {
  showGateway();
  showLink();
  showBanner();
  showCounts();
  current.render();
}

function showGateway() {
  const status = model.status;
  if (status === null) return;
  const state = status.draining ? "draining" : status.ready ? "ready" : "not ready";
  const texts = [
    state,
    `${status.version}`,
    `up ${duration(status.uptime_s)}`,
    status.config.revision ? `revision ${status.config.revision.slice(0, 8)}` : "",
  ];
  const bar = byId("gateway");
  if (bar.dataset.shown === texts.join()) return;
  bar.dataset.shown = texts.join();
  bar.replaceChildren(
    h("span", { class: `state ${state.replace(" ", "-")}` }, state),
    ...texts
      .slice(1)
      .filter(Boolean)
      .map((text) => h("span", {}, text)),
  );
}

function showLink() {
  const link = byId("link");
  const [kind, text] = trouble
    ? ["lost", `${trouble}, next try in ${Math.max(1, Math.ceil(retryAt - now()))} s`]
    : model.status === null
      ? ["", "asking…"]
      : feed.isOpen
        ? ["live", "live"]
        : ["polling", "every 2 s, the feed is not open"];
  link.className = `link ${kind}`;
  // The seconds count down in the title only: a screen reader need not hear each.
  say(link, kind === "lost" ? trouble : text);
  link.title = text;
}

function showBanner() {
  const states = model.status
    ? [
        ["routes.d", model.status.config],
        ["conf/config.yaml", model.status.settings],
      ]
    : [];
  const rejected = states.filter(([, { state }]) => state === "rejected");
  const shown = JSON.stringify(rejected.map(([name, { problems }]) => [name, problems]));
  const banner = byId("banner");
  if (banner.dataset.shown === shown) return;
  banner.dataset.shown = shown;
  banner.replaceChildren(
    ...rejected.map(([name, { problems }]) =>
      h(
        "section",
        { class: "banner" },
        h(
          "p",
          {},
          h("strong", {}, `The last change of ${name} was rejected.`),
          " What ran before still runs. ",
          h(
            "a",
            { href: "#configuration" },
            `${count(problems.length)} problem${problems.length === 1 ? "" : "s"}`,
          ),
        ),
        h(
          "ul",
          {},
          problems
            .slice(0, SHOWN_PROBLEMS)
            .map((problem) =>
              h(
                "li",
                {},
                h("code", {}, place(problem)),
                ` ${[problem.pointer, problem.message].filter(Boolean).join(": ")}`,
              ),
            ),
        ),
      ),
    ),
  );
}

function showCounts() {
  const status = model.status;
  if (status === null) return;
  const { config, settings } = status;
  const problems = config.problems.length + settings.problems.length;
  const warnings = config.warnings.length + settings.warnings.length;
  badge("sessions", count(status.sessions.active));
  badge("closes", model.closed ? count(model.closed) : "");
  badge("routes", count(Object.keys(status.objects?.stream_routes ?? {}).length));
  badge("certificates", count(Object.keys(status.objects?.ssls ?? {}).length));
  badge(
    "configuration",
    problems
      ? `${count(problems)} wrong`
      : warnings
        ? `${count(warnings)} warning${warnings === 1 ? "" : "s"}`
        : "",
    problems ? "bad" : warnings ? "warn" : "",
  );
}

function badge(name, text, kind = "") {
  const element = byId(`count-${name}`);
  element.className = `badge ${kind}`;
  say(element, text);
}

let toastTimer = 0;

function toast(text) {
  clearTimeout(toastTimer);
  say(byId("toast"), text);
  toastTimer = setTimeout(() => say(byId("toast"), ""), TOAST_MS);
}

const failed = (error) => {
  if (error.status !== 401) toast(error.message);
};

// ---- views

const context = { model, now, ask, kill, toast, failed, redraw, wake };
const VIEWS = new Map([
  ["overview", ["Overview", makeOverview(context)]],
  ["sessions", ["Sessions", makeSessions(context)]],
  ["closes", ["Closes", makeCloses(context)]],
  ["routes", ["Routes", makeRoutes(context)]],
  ["explain", ["Explain", makeExplain(context)]],
  ["certificates", ["Certificates", makeCertificates(context)]],
  ["configuration", ["Configuration", makeConfiguration(context)]],
]);
let current = VIEWS.get("overview")[1];

byId("views").append(
  ...[...VIEWS].map(([name, [title]]) =>
    h(
      "a",
      { href: `#${name}`, id: `view-${name}` },
      title,
      " ",
      h("span", { id: `count-${name}`, class: "badge" }),
    ),
  ),
);

function enter() {
  const [name, query = ""] = location.hash.slice(1).split("?", 2);
  if (name === "main") return; // the link that skips the navigation
  const [title, view] = VIEWS.get(name) ?? VIEWS.get("overview");
  const first = !current.element.isConnected;
  if (view !== current || first) {
    current = view;
    byId("main").replaceChildren(view.element);
    document.title = `${title} · streamgw`;
    if (!first) byId("main").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
  for (const each of VIEWS.keys()) {
    if (VIEWS.get(each)[1] === view) byId(`view-${each}`).setAttribute("aria-current", "page");
    else byId(`view-${each}`).removeAttribute("aria-current");
  }
  view.enter(new URLSearchParams(query));
  if (view.wantsSessions) wake();
  draw();
}

window.addEventListener("hashchange", enter);
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const box = byId("main").querySelector("input");
  if (box) {
    event.preventDefault();
    box.focus();
    box.select();
  }
});

// ---- light and dark

function theme(chosen) {
  const next = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  document.documentElement.dataset.theme = chosen;
  say(byId("theme"), { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[chosen]);
  byId("theme").setAttribute("aria-label", `Colours: ${chosen}. Change to ${next}`);
}

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // switched off: automatic
  }
}

const known = stored("streamgw.theme");
theme(THEMES.includes(known) ? known : "auto");
byId("theme").addEventListener("click", () => {
  const chosen = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
  theme(chosen);
  try {
    localStorage.setItem("streamgw.theme", chosen);
  } catch {
    // as above
  }
});

byId("key").hidden = !key();
setInterval(schedule, 1000); // ages grow, also while nothing happens
enter();
void loop();
