// The first look: how much, how it ends, where it listens, where it goes.

import { h, say, sparkline, Table } from "./dom.js";
import { count, perSecond, rate, size } from "./format.js";
import { withField } from "./model.js";
import { closesTable } from "./sessions.js";

const LATEST = 8;
const LEAST_POINTS = 30; // fewer than these do not fill the picture
const HEALTH_S = 10; // changes come with the feed
const FAULTS = {
  closed: "none",
  idle_timeout: "none",
  max_duration: "none",
  drain: "none",
  killed: "none",
  evicted: "none",
  moved: "none",
  no_route: "client",
  bad_preface: "client",
  preread_timeout: "client",
  preread_limit: "client",
  rejected: "client",
  no_node: "upstream",
  connect_failed: "upstream",
  no_upstream: "operator",
  exhausted: "gateway",
  bug: "gateway",
};

export function makeOverview({ model, redraw, ask, now }) {
  const tiles = [
    tile(
      "Sessions",
      () => count(model.latest.active),
      () => `${count(model.status.sessions.total)} in all`,
      (point) => point.active,
    ),
    tile(
      "New per second",
      () => perSecond(model.latest.opened),
      () =>
        model.points.length
          ? `at most ${perSecond(Math.max(...model.points.map(({ opened }) => opened)))}`
          : "",
      (point) => point.opened,
    ),
    tile(
      "Up",
      () => rate(model.latest.up),
      () => `${size(model.status.sessions.bytes_up)} in all`,
      (point) => point.up,
    ),
    tile(
      "Down",
      () => rate(model.latest.down),
      () => `${size(model.status.sessions.bytes_down)} in all`,
      (point) => point.down,
    ),
  ];
  const listeners = new Table({
    caption: "Listeners",
    empty: "conf/config.yaml has no listener: apisix.stream_proxy.",
    key: (listener) => listener.name,
    columns: [
      { id: "name", title: "Listener", text: ({ name }) => name, node: ({ name }) => link("listener", name) },
      {
        id: "state",
        title: "State",
        text: ({ state }) => state,
        node: ({ state }) => h("span", { class: `state ${state}` }, state),
      },
      { id: "sessions", title: "Sessions", numeric: true, text: ({ sessions }) => count(sessions) },
      { id: "accepted", title: "Accepted", numeric: true, text: ({ accepted }) => count(accepted) },
      {
        id: "rate",
        title: "New/s",
        numeric: true,
        text: ({ name }) => perSecond(model.listenerRates.get(name) ?? 0),
      },
      {
        id: "dropped",
        title: "Dropped",
        numeric: true,
        text: (listener) => dropped(listener),
        node: (listener) => h("span", { title: whyDropped(listener) || null }, dropped(listener)),
      },
    ],
  });
  const nodes = new Table({
    caption: "Nodes in use",
    empty: "No session has a node.",
    key: ({ node }) => node,
    sort: { id: "sessions", down: true },
    columns: [
      {
        id: "node",
        title: "Node",
        mono: true,
        text: ({ node }) => node,
        node: ({ node }) => link("node", node),
      },
      {
        id: "status",
        title: "Health",
        text: ({ status }) => status || "–",
        node: ({ status }) =>
          h(
            "span",
            { class: status.includes("unhealthy") ? "bad" : status ? "good" : "faint" },
            status || "–",
          ),
      },
      {
        id: "sessions",
        title: "Sessions",
        numeric: true,
        by: ({ sessions }) => sessions,
        text: ({ sessions }) => count(sessions),
      },
      {
        id: "rate",
        title: "Rate",
        numeric: true,
        by: ({ rate: each }) => each,
        text: ({ rate: each }) => rate(each),
      },
      {
        id: "failures",
        title: "Failed",
        numeric: true,
        by: ({ failures }) => failures,
        text: ({ failures }) => (failures ? count(failures) : "–"),
      },
    ],
    onsort: () => redraw(),
  });
  let healthAt = -HEALTH_S;
  const closes = closesTable("Latest closes");
  const reasons = h("div", { class: "reasons" });
  const panel = (id, title, content, more = null) =>
    h(
      "section",
      { class: "panel", "aria-labelledby": id },
      h("div", { class: "panel-head" }, h("h2", { id }, title), more),
      content,
    );

  return {
    element: h(
      "div",
      { class: "overview" },
      h("h1", { class: "unseen" }, "Overview"),
      h(
        "div",
        { class: "tiles" },
        tiles.map(({ element }) => element),
      ),
      panel("o-listeners", "Listeners", listeners.element),
      panel("o-nodes", "Nodes in use", nodes.element),
      panel("o-reasons", "How sessions ended", reasons),
      panel("o-closes", "Latest closes", closes.element, h("a", { href: "#closes" }, "All")),
    ),
    wantsSessions: true,
    enter: () => model.setFilter(""),
    async poll() {
      if (now() - healthAt < HEALTH_S) return;
      healthAt = now();
      model.takeHealth(await ask("streamgw/v1/healthcheck"));
    },
    render() {
      if (model.status === null) return;
      for (const each of tiles) each.render();
      listeners.show(model.status.listeners);
      nodes.show(nodes.sorted(model.nodes()).slice(0, 50));
      closes.show(model.closes.slice(0, LATEST));
      showReasons();
    },
  };

  function tile(title, figure, below, of) {
    const number = h("div", { class: "figure" });
    const under = h("div", { class: "under" });
    const picture = h("div", { class: "picture" });
    let drawn = null;
    const render = () => {
      say(number, figure());
      say(under, below());
      if (drawn === model.points.at(-1)) return;
      drawn = model.points.at(-1);
      picture.replaceChildren(sparkline(model.points.map(of), Math.max(LEAST_POINTS, model.points.length)));
    };
    return {
      element: h(
        "section",
        { class: "tile", "aria-label": title },
        h("h2", {}, title),
        number,
        under,
        picture,
      ),
      render,
    };
  }

  function showReasons() {
    const ended = Object.entries(model.status.sessions.by_reason)
      .filter(([, times]) => times)
      .sort(([, one], [, other]) => other - one);
    const text = JSON.stringify(ended);
    if (reasons.dataset.shown === text) return;
    reasons.dataset.shown = text;
    const most = Math.max(...ended.map(([, times]) => times), 1);
    const all = ended.reduce((sum, [, times]) => sum + times, 0);
    const rows = ended.map(([reason, times]) => {
      const bar = h("span", { class: `bar-fill fault-${FAULTS[reason] ?? "other"}` });
      bar.style.width = `${Math.max((times / most) * 100, 0.5)}%`;
      return h(
        "li",
        {},
        h("a", { href: `#closes?filter=${reason}` }, reason),
        h("span", { class: "bar-ground" }, bar),
        h("span", { class: "number" }, count(times)),
        h(
          "span",
          { class: "number faint" },
          `${((times / all) * 100).toFixed(times / all < 0.01 ? 2 : 0)} %`,
        ),
      );
    });
    reasons.replaceChildren(
      rows.length ? h("ul", {}, rows) : h("p", { class: "nothing" }, "None has ended yet."),
    );
  }
}

/** Datagrams of UDP that no session got. */
const dropped = ({ dropped: reasons }) => {
  const all = Object.values(reasons ?? {}).reduce((sum, times) => sum + times, 0);
  return all ? count(all) : "–";
};

const whyDropped = ({ dropped: reasons }) =>
  Object.entries(reasons ?? {})
    .map(([reason, times]) => `${reason}: ${count(times)}`)
    .join(", ");

const link = (name, value) =>
  h("a", { href: `#sessions?filter=${encodeURIComponent(withField("", name, value))}` }, value);
