// What stands in routes.d: the routes in the order in which they are asked, and where each leads.

import { h, say, Table } from "./dom.js";
import { count, place } from "./format.js";
import { has, withField } from "./model.js";

const STEP = 200;

export function makeRoutes({ model, ask, redraw, failed }) {
  const filter = h("input", {
    type: "search",
    class: "filter",
    "aria-label": "Filter routes",
    placeholder: "id, address, name, node, file…",
    autocomplete: "off",
    spellcheck: "false",
  });
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
  let routes = [];
  let revision = null;
  let limit = STEP;
  let loading = false;

  const table = new Table({
    caption: "Routes, in the order in which they are asked",
    empty: "No route. Put a file into routes.d, or type: streamgw route add",
    key: (route) => route.id,
    decorate: (row, route) => row.classList.toggle("off", route.off),
    columns: [
      { id: "rank", title: "#", numeric: true, text: ({ rank, off }) => (off ? "–" : String(rank)) },
      { id: "id", title: "Route", text: ({ id, name }) => `${id} ${name}`, node: (route) => named(route) },
      {
        id: "match",
        title: "Asks for",
        wide: true,
        text: ({ match }) => JSON.stringify(match),
        node: ({ match }) => conditions(match),
      },
      {
        id: "leads",
        title: "Leads to",
        wide: true,
        text: ({ target }) => JSON.stringify(target),
        node: ({ target }) => leads(target),
      },
      { id: "source", title: "File", mono: true, text: ({ source }) => source },
      {
        id: "live",
        title: "Sessions",
        numeric: true,
        text: ({ id }) => liveOf(id),
        node: ({ id }) =>
          h("a", { href: `#sessions?filter=${encodeURIComponent(withField("", "route", id))}` }, liveOf(id)),
      },
    ],
  });

  // Only while every session is known here is a count per route true.
  const liveOf = (id) => {
    if (model.total > model.sessions.size) return "show";
    let found = 0;
    for (const { row } of model.sessions.values()) if (row.route === id) found += 1;
    return found ? count(found) : "–";
  };

  filter.oninput = () => {
    limit = STEP;
    redraw();
  };

  async function load() {
    const wanted = model.status?.config.revision ?? null;
    if (loading || wanted === null || wanted === revision) return;
    loading = true;
    try {
      routes = await fetchRoutes(ask);
      revision = wanted;
      redraw();
    } catch (error) {
      failed(error);
    } finally {
      loading = false;
    }
  }

  return {
    element: h(
      "section",
      { "aria-labelledby": "routes-h" },
      h("div", { class: "toolbar" }, h("h1", { id: "routes-h" }, "Routes"), filter, note),
      table.element,
      h("div", { class: "after" }, more),
    ),
    wantsSessions: true,
    enter(params) {
      if (params.has("filter")) filter.value = params.get("filter");
      model.setFilter("");
    },
    render() {
      void load();
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fitting = routes.filter(({ id, name, match, target, source }) =>
        has(words, id, name, match.flat().join(" "), target.text, source),
      );
      table.show(fitting.slice(0, limit));
      more.hidden = fitting.length <= limit;
      say(
        note,
        `${count(fitting.length)}${words.length ? ` of ${count(routes.length)}` : ""} route${routes.length === 1 ? "" : "s"}, the first that fits wins`,
      );
    },
  };
}

const named = ({ id, name, off, desc }) =>
  h(
    "span",
    { title: desc || null },
    h("strong", {}, id),
    name && name !== id ? h("span", { class: "faint" }, ` ${name}`) : null,
    off ? h("span", { class: "tag" }, "off") : null,
  );

const conditions = (match) =>
  match.length
    ? h(
        "span",
        { class: "chips" },
        match.map(([what, value]) =>
          h("span", { class: "chip" }, h("span", { class: "faint" }, `${what} `), value),
        ),
      )
    : h("span", { class: "faint" }, "everybody");

function leads(target) {
  if (!target.known) return h("span", { class: "warn" }, "no upstream");
  return h(
    "span",
    { class: "chips" },
    target.via ? h("span", { class: "faint" }, `${target.via}: `) : null,
    target.nodes
      .slice(0, 8)
      .map(({ node, weight }) =>
        h(
          "span",
          { class: weight === 0 ? "chip off" : "chip" },
          node,
          weight === 1 ? null : h("span", { class: "faint" }, ` ×${weight}`),
        ),
      ),
    target.nodes.length > 8 ? h("span", { class: "faint" }, ` and ${target.nodes.length - 8} more`) : null,
    target.notes.map((text) => h("span", { class: "tag" }, text)),
  );
}

/** The objects as they run: stream routes in the order in which they are asked, those that are switched off last. */
async function fetchRoutes(ask) {
  const [routes, upstreams, services] = await Promise.all(
    ["stream_routes", "upstreams", "services"].map((kind) => dump(ask, kind)),
  );
  const byId = (list) => new Map(list.map((each) => [String(each.value.id), each.value]));
  const known = { upstreams: byId(upstreams), services: byId(services) };
  return routes.map((each, index) => describe(each.value, index + 1, place(each), known));
}

/** As APISIX's control API dumps them, with `file` and `line`: `[{key, value, file, line}]`. */
const dump = async (ask, kind) => (await ask(`streamgw/v1/${kind}`)) ?? [];

function describe(route, rank, source, { upstreams, services }) {
  const service = route.service_id === undefined ? null : services.get(String(route.service_id));
  const upstreamId = route.upstream_id ?? service?.upstream_id;
  const upstream =
    route.upstream ??
    (route.upstream_id === undefined ? service?.upstream : undefined) ??
    upstreams.get(String(upstreamId));
  const nodes = upstream?.service_name
    ? [{ node: `DNS: ${upstream.service_name}`, weight: 1 }]
    : nodesOf(upstream?.nodes);
  const via = route.upstream
    ? ""
    : service
      ? `service ${route.service_id}`
      : upstreamId === undefined
        ? ""
        : `upstream ${upstreamId}`;
  const notes = [
    upstream?.type && upstream.type !== "roundrobin" ? upstream.type : null,
    upstream?.scheme && !["tcp", "http"].includes(upstream.scheme) ? upstream.scheme : null,
    route.tls_passthrough ? "TLS passthrough" : null,
    ...Object.keys(route.plugins ?? {}),
  ].filter(Boolean);
  return {
    id: String(route.id),
    rank,
    name: route.name ?? "",
    desc: route.desc ?? "",
    off: route.status === 0,
    source,
    match: whatItAsks(route),
    target: {
      known: upstream !== undefined,
      via,
      nodes,
      notes,
      text: [via, ...nodes.map(({ node }) => node), ...notes].join(" "),
    },
  };
}

function nodesOf(nodes) {
  if (Array.isArray(nodes))
    return nodes.map(({ host, port, weight }) => ({
      node: port ? `${host}:${port}` : host,
      weight: weight ?? 1,
    }));
  return Object.entries(nodes ?? {}).map(([node, weight]) => ({ node, weight }));
}

function whatItAsks(route) {
  const all = (...values) =>
    values
      .flat()
      .filter((value) => value !== undefined && value !== null)
      .join(", ");
  return [
    ["from", all(route.remote_addr, route.remote_addrs)],
    ["to", all(route.server_addr, route.server_addrs)],
    ["port", all(route.server_port, route.server_ports)],
    ["name", all(route.sni, route.snis)],
    ["ALPN", all(route.alpn)],
    ["protocol", all(route.protocol?.name)],
    ["where", route.vars === undefined ? "" : JSON.stringify(route.vars)],
    ["priority", route.priority ? String(route.priority) : ""],
  ].filter(([, value]) => value);
}
