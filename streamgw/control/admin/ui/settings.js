// What runs: the state of the two configurations, and the certificates.

import { h, say, Table } from "./dom.js";
import { count, moment, place } from "./format.js";

const DAY_S = 86_400;
const SOON_DAYS = 21;

const problemsTable = (caption) =>
  new Table({
    caption,
    empty: "",
    key: (problem) => JSON.stringify(problem),
    columns: [
      { id: "place", title: "Where", mono: true, text: (problem) => place(problem) },
      { id: "pointer", title: "What", mono: true, text: ({ pointer }) => pointer ?? "" },
      { id: "message", title: "Why", wide: true, text: ({ message }) => message },
    ],
  });

export function makeConfiguration({ model, ask, toast, failed, wake }) {
  const cards = [
    card("Routes", "routes.d", () => model.status.config),
    card("Settings", "conf/config.yaml", () => model.status.settings),
  ];
  const objects = h("p", { class: "note" });
  const reload = h("button", { type: "button", class: "quiet", onclick: again }, "Look at the files again");

  async function again() {
    reload.disabled = true;
    try {
      await ask("streamgw/v1/reload", { method: "POST" });
      toast("The gateway looks at its files.");
      wake();
    } catch (error) {
      failed(error);
    } finally {
      reload.disabled = false;
    }
  }

  return {
    element: h(
      "section",
      { "aria-labelledby": "configuration-h" },
      h("div", { class: "toolbar" }, h("h1", { id: "configuration-h" }, "Configuration"), reload, objects),
      cards.map(({ element }) => element),
    ),
    enter() {},
    render() {
      if (model.status === null) return;
      for (const each of cards) each.render();
      const kinds = Object.entries(model.status.objects ?? {}).map(
        ([kind, ids]) => `${kind}: ${count(Object.keys(ids).length)}`,
      );
      say(objects, kinds.join(", "));
    },
  };

  function card(title, file, state) {
    const line = h("p");
    const mark = h("span", { class: "state" });
    const problems = problemsTable(`Problems of ${file}`);
    const warnings = problemsTable(`Warnings about ${file}`);
    const problemsPart = h("div", { class: "part" }, h("h3", {}, "Problems"), problems.element);
    const warningsPart = h("div", { class: "part" }, h("h3", {}, "Warnings"), warnings.element);
    const render = () => {
      const {
        state: what,
        revision,
        applied_at: at,
        reloads,
        rejected,
        problems: wrong,
        warnings: doubtful,
      } = state();
      mark.className = `state ${what}`;
      say(mark, what);
      const runs = revision ? `Revision ${revision.slice(0, 8)} runs` : "It runs";
      const since = at ? `since ${moment(at)}` : "as read at the start";
      say(
        line,
        `${runs} ${since}. ${count(reloads)} change${reloads === 1 ? "" : "s"} applied, ${count(rejected)} rejected.`,
      );
      problems.show(wrong.slice(0, 200));
      warnings.show(doubtful.slice(0, 200));
      problemsPart.hidden = !wrong.length;
      warningsPart.hidden = !doubtful.length;
    };
    return {
      element: h(
        "section",
        { class: "panel", "aria-label": title },
        h(
          "div",
          { class: "panel-head" },
          h("h2", {}, title, h("span", { class: "faint mono" }, ` ${file}`)),
          mark,
        ),
        line,
        problemsPart,
        warningsPart,
      ),
      render,
    };
  }
}

export function makeCertificates({ model, ask, redraw, failed }) {
  const note = h("p", { class: "note" }, "The one that ends first stands first.");
  let list = [];
  let revision = null;
  let loading = false;
  const table = new Table({
    caption: "Certificates",
    empty: "No certificate: nothing in routes.d has ssls. streamgw ssl add makes one known.",
    key: ({ id }) => id,
    decorate: (row, { off }) => row.classList.toggle("off", off),
    columns: [
      {
        id: "id",
        title: "Certificate",
        text: ({ id, off }) => `${id} ${off}`,
        node: ({ id, off }) =>
          h("span", {}, h("strong", {}, id), off ? h("span", { class: "tag" }, "off") : null),
      },
      {
        id: "names",
        title: "Names",
        wide: true,
        text: ({ names }) => names.join(", "),
        node: ({ names }) =>
          h(
            "span",
            { class: "chips" },
            names.slice(0, 20).map((name) => h("span", { class: "chip" }, name)),
            names.length > 20 ? ` and ${names.length - 20} more` : null,
          ),
      },
      { id: "until", title: "Valid until", text: ({ until }) => (until === null ? "–" : moment(until)) },
      {
        id: "left",
        title: "Left",
        numeric: true,
        text: ({ until }) => left(until),
        node: ({ until }) => h("span", { class: urgency(until) }, left(until)),
      },
      { id: "client", title: "Clients show one", text: ({ mutual }) => (mutual ? "required" : "–") },
      { id: "issuer", title: "Issuer", wide: true, text: ({ issuer }) => issuer },
      { id: "source", title: "File", mono: true, text: ({ source }) => source },
    ],
  });

  async function load() {
    const wanted = model.status?.config.revision ?? null;
    if (loading || wanted === null || wanted === revision) return;
    loading = true;
    try {
      list = await fetchCertificates(ask, model.status);
      revision = wanted;
      redraw();
    } catch (error) {
      revision = wanted; // said once, not with every look
      failed(error);
    } finally {
      loading = false;
    }
  }

  return {
    element: h(
      "section",
      { "aria-labelledby": "certificates-h" },
      h("div", { class: "toolbar" }, h("h1", { id: "certificates-h" }, "Certificates"), note),
      table.element,
    ),
    enter() {},
    render() {
      void load();
      table.show(list);
    },
  };
}

const secondsLeft = (until) => until - Date.now() / 1000;

function left(until) {
  if (until === null) return "–";
  const days = Math.floor(secondsLeft(until) / DAY_S);
  return days < 0 ? "expired" : `${count(days)} day${days === 1 ? "" : "s"}`;
}

function urgency(until) {
  if (until === null) return "faint";
  const days = secondsLeft(until) / DAY_S;
  return days < 0 ? "bad" : days < SOON_DAYS ? "warn" : "";
}

/** What the gateway serves, with its dates; and what is written but switched off. */
async function fetchCertificates(ask, status) {
  const body = await ask("apisix/admin/ssls");
  const served = new Map((status.certificates ?? []).map((each) => [each.id, each]));
  const list = (body?.list ?? []).map(({ value }) => {
    const known = served.get(String(value.id));
    const mutual = known?.requires_client_certificate ?? Boolean(value.client?.ca);
    const names = known?.names ?? [value.sni, value.snis].flat().filter(Boolean);
    const until = known?.not_after ? new Date(known.not_after).getTime() / 1000 : null;
    return {
      id: String(value.id),
      names,
      until,
      off: value.status === 0,
      mutual,
      issuer: known?.issuer ?? "",
      source: known ? place(known) : "",
    };
  });
  return list.sort((one, other) => (one.until ?? Infinity) - (other.until ?? Infinity)).slice(0, 500);
}
