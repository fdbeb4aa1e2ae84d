// Live sessions, and those that have ended since this page was opened.

import { byId, h, say, Table } from "./dom.js";
import { age, clock, count, duration, host, port, rate, size } from "./format.js";
import { has, LIMITS, parseFilter, withField } from "./model.js";

const STEP = 200; // rows in the page; more on request, never more than the model knows

/** A link that narrows the list to one value. */
const narrow = (view, name, value, shown = value) =>
  value
    ? h(
        "a",
        {
          href: `#${view}?filter=${encodeURIComponent(withField("", name, value))}`,
          title: `only ${name} ${value}`,
        },
        shown,
      )
    : "";

const upstreamName = (key) => key.replace(/^upstreams\//, "").replace(/\/upstream$/, "");

const isTLS = (row) => row.tls || row.server_name;

export function makeSessions({ model, now, kill, redraw, wake }) {
  const filter = filterBox(
    "sessions",
    "Filter sessions",
    "route:mysql  client:10.0.0.0/8  node:…  or any text",
  );
  const pause = h(
    "button",
    { type: "button", class: "quiet", "aria-pressed": "false", onclick: toggle },
    "Pause",
  );
  const note = h("p", { class: "note", role: "status" });
  const more = h(
    "button",
    {
      type: "button",
      class: "quiet",
      onclick: () => {
        limit += STEP;
        redraw();
      },
    },
    "Show more",
  );
  let limit = STEP;
  let frozen = null;

  const table = new Table({
    caption: "Live sessions",
    empty: "No session. They appear here the moment a client connects.",
    key: (session) => session.id,
    sort: { id: "age", down: false },
    onsort: redraw,
    columns: [
      {
        id: "client",
        title: "Client",
        mono: true,
        by: ({ row }) => row.client,
        text: ({ row }) => row.client,
        node: ({ row }) => details(row, row.client),
      },
      {
        id: "listener",
        title: "Listener",
        by: ({ row }) => row.listener,
        text: ({ row }) => row.listener,
        node: ({ row }) => narrow("sessions", "listener", row.listener),
      },
      {
        id: "route",
        title: "Route",
        by: ({ row }) => row.route,
        text: ({ row }) => row.route || row.phase,
        node: ({ row }) => narrow("sessions", "route", row.route) || phase(row),
      },
      {
        id: "node",
        title: "Node",
        mono: true,
        by: ({ row }) => row.node,
        text: ({ row }) => row.node || row.phase,
        node: ({ row }) => narrow("sessions", "node", row.node) || (row.route ? phase(row) : ""),
      },
      {
        id: "name",
        title: "Server name",
        by: ({ row }) => row.server_name,
        text: ({ row }) => `${row.server_name ?? ""} ${row.tls ?? ""}`.trim(),
        node: ({ row }) => serverName(row),
      },
      {
        id: "age",
        title: "Age",
        numeric: true,
        by: (session) => now() - session.began,
        text: (session) => age(now() - session.began),
      },
      {
        id: "up",
        title: "Up",
        numeric: true,
        by: ({ row }) => row.bytes_up,
        text: ({ row }) => size(row.bytes_up),
      },
      {
        id: "down",
        title: "Down",
        numeric: true,
        by: ({ row }) => row.bytes_down,
        text: ({ row }) => size(row.bytes_down),
      },
      {
        id: "rate",
        title: "Rate",
        numeric: true,
        by: (session) => session.rate,
        text: (session) => rate(session.rate),
      },
      {
        id: "kill",
        title: h("span", { class: "unseen" }, "End it"),
        text: ({ id }) => id,
        node: ({ row }) =>
          h(
            "button",
            {
              type: "button",
              class: "danger small",
              "aria-label": `Kill the session of ${row.client}`,
              onclick: () => ask(row, true),
            },
            "Kill",
          ),
      },
    ],
  });

  function details(row, text) {
    return h(
      "button",
      {
        type: "button",
        class: "linklike",
        title: "All about this session",
        onclick: () => ask(latest(row), false),
      },
      text,
    );
  }
  const latest = (row) => model.sessions.get(row.id)?.row ?? row;
  const phase = (row) => h("span", { class: "faint" }, `${row.phase}…`);
  const serverName = (row) =>
    [
      row.server_name || (isTLS(row) ? h("span", { class: "faint" }, "no name") : ""),
      row.tls ? h("span", { class: "tag" }, row.tls) : null,
    ]
      .filter(Boolean)
      .reduce((all, each) => (all.append(each, " "), all), h("span"));

  const ask = (row, killing) => askAbout(row, killing, kill);

  function toggle() {
    frozen = frozen ? null : [...model.sessions.values()];
    pause.setAttribute("aria-pressed", String(frozen !== null));
    say(pause, frozen ? "Resume" : "Pause");
    redraw();
  }

  filter.oninput = () => {
    limit = STEP;
    model.setFilter(filter.value);
    wake();
    redraw();
  };

  const element = h(
    "section",
    { "aria-labelledby": "sessions-h" },
    h("div", { class: "toolbar" }, h("h1", { id: "sessions-h" }, "Sessions"), filter, pause, note),
    table.element,
    h("div", { class: "after" }, more),
  );

  return {
    element,
    wantsSessions: true,
    enter(params) {
      if (params.has("filter")) filter.value = params.get("filter");
      model.setFilter(filter.value);
    },
    render() {
      const known = frozen ?? [...model.sessions.values()];
      const words = model.filter.words;
      const fitting = known.filter(({ row }) => has(words, ...Object.values(row)));
      table.show(table.sorted(fitting).slice(0, limit));
      more.hidden = fitting.length <= limit;
      say(note, sentence(fitting.length, known.length));
    },
  };

  function sentence(fitting, known) {
    if (frozen) return `Paused at ${count(fitting)} sessions`;
    const all = model.filter.words.length ? `${count(fitting)} of ${count(known)}` : count(model.total);
    const beyond =
      model.total > known
        ? `: the oldest ${count(known)} are here, a filter by route:, client:, node: or listener: finds the others`
        : "";
    return `${all} session${model.total === 1 && !words() ? "" : "s"}${beyond}`;
  }
  function words() {
    return model.filter.words.length > 0;
  }
}

export function makeCloses({ model, redraw }) {
  const filter = filterBox(
    "closes",
    "Filter closed sessions",
    "reason, fault, route, client, node, or any text",
  );
  const note = h("p", { class: "note" });
  const pause = h(
    "button",
    { type: "button", class: "quiet", "aria-pressed": "false", onclick: toggle },
    "Pause",
  );
  let frozen = null;
  const table = closesTable("Closed sessions, the latest first");

  function toggle() {
    frozen = frozen ? null : [...model.closes];
    pause.setAttribute("aria-pressed", String(frozen !== null));
    say(pause, frozen ? "Resume" : "Pause");
    redraw();
  }
  filter.oninput = redraw;

  return {
    element: h(
      "section",
      { "aria-labelledby": "closes-h" },
      h("div", { class: "toolbar" }, h("h1", { id: "closes-h" }, "Closes"), filter, pause, note),
      table.element,
    ),
    enter(params) {
      if (params.has("filter")) filter.value = params.get("filter");
    },
    render() {
      const { fields, words } = parseFilter(filter.value);
      const fitting = (frozen ?? model.closes).filter(
        (row) =>
          has(words, ...Object.values(row)) &&
          Object.entries(fields).every(([name, value]) => String(row[name]).includes(value)),
      );
      table.show(fitting.slice(0, STEP));
      const older = model.closed > LIMITS.closes ? `, the latest ${LIMITS.closes} are here` : "";
      const lost = model.lost ? `; ${count(model.lost)} events were lost on the way` : "";
      say(note, frozen ? "Paused" : `${count(model.closed)} since this page was opened${older}${lost}`);
    },
  };
}

/** Also a part of the overview. */
export function closesTable(caption) {
  return new Table({
    caption,
    empty: "None since this page was opened. Each will show its reason and whose fault it was.",
    key: (row) => row.number,
    columns: [
      { id: "at", title: "Time", mono: true, text: (row) => clock(row.at) },
      { id: "reason", title: "Reason", text: (row) => row.reason, node: (row) => reason(row) },
      {
        id: "fault",
        title: "Fault",
        text: (row) => row.fault,
        node: (row) => h("span", { class: row.fault === "none" ? "faint" : "" }, row.fault),
      },
      { id: "client", title: "Client", mono: true, text: (row) => row.client },
      {
        id: "route",
        title: "Route",
        text: (row) => row.route,
        node: (row) => narrow("closes", "route", row.route),
      },
      { id: "node", title: "Node", mono: true, text: (row) => row.node },
      {
        id: "lasted",
        title: "Lasted",
        numeric: true,
        text: (row) => duration(row.duration_s ?? row.age_s ?? 0),
      },
      { id: "up", title: "Up", numeric: true, text: (row) => size(row.bytes_up) },
      { id: "down", title: "Down", numeric: true, text: (row) => size(row.bytes_down) },
      { id: "detail", title: "Detail", wide: true, text: (row) => row.detail ?? "" },
    ],
  });
}

export const reason = (row) => h("span", { class: `reason fault-${row.fault}` }, row.reason);

function filterBox(name, label, placeholder) {
  return h("input", {
    type: "search",
    id: `${name}-filter`,
    class: "filter",
    "aria-label": label,
    placeholder,
    autocomplete: "off",
    spellcheck: "false",
  });
}

/** The dialog about one session: all that is known, and the way to end it. */
function askAbout(row, killing, kill) {
  const dialog = byId("session-dialog");
  const facts = [
    ["Client", row.client],
    ["Peer", row.peer !== row.client ? row.peer : ""],
    ["Connected to", row.server],
    ["Listener", row.listener],
    ["Server name", row.server_name],
    ["TLS", row.tls],
    ["Route", row.route],
    ["Upstream", upstreamName(row.upstream)],
    ["Node", row.node],
    ["Phase", row.phase],
    ["Age", duration(row.age_s)],
    ["Up", size(row.bytes_up)],
    ["Down", size(row.bytes_down)],
    ["Revision", row.revision.slice(0, 8)],
    ["Id", row.id],
  ].filter(([, value]) => value);
  const query = new URLSearchParams({
    remote_addr: host(row.client),
    server_addr: host(row.server),
    server_port: port(row.server),
    transport: row.transport,
    ...(row.server_name ? { sni: row.server_name } : {}),
  });
  const close = () => dialog.close();
  const end = async () => {
    close();
    await kill(row);
  };
  const explain = h(
    "a",
    { href: `#explain?${query}`, class: "button quiet", onclick: close },
    "Explain its route",
  );
  const cancel = h(
    "button",
    { type: "button", class: "quiet", onclick: close },
    killing ? "Keep it" : "Close",
  );
  dialog.replaceChildren(
    h("h2", { id: "session-title" }, killing ? "Kill this session?" : "Session"),
    killing
      ? h("p", {}, "Both sides are reset at once. What is on its way is lost; the client may well come back.")
      : "",
    h(
      "dl",
      {},
      facts.map(([name, value]) => [h("dt", {}, name), h("dd", { class: "mono" }, value)]),
    ),
    h(
      "div",
      { class: "actions" },
      killing ? null : explain,
      cancel,
      h(
        "button",
        { type: "button", class: killing ? "danger sure" : "danger", onclick: end },
        killing ? "Kill it" : "Kill",
      ),
    ),
  );
  dialog.showModal();
  cancel.focus();
}
