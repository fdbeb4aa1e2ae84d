// Which route would a client get, and why not another one? The gateway answers; here it becomes steps.

import { h } from "./dom.js";
import { count, duration, moment, place } from "./format.js";

const FIELDS = [
  { name: "remote_addr", label: "Client's address", placeholder: "127.0.0.1", size: 18 },
  { name: "server_addr", label: "Connects to", placeholder: "the listener's", size: 18 },
  {
    name: "server_port",
    label: "Port",
    placeholder: "9100",
    size: 6,
    inputmode: "numeric",
    list: "explain-ports",
  },
  { name: "sni", label: "Server name (SNI)", placeholder: "none: no TLS", size: 22 },
  { name: "alpn", label: "Offers (ALPN)", placeholder: "h2 mqtt", size: 10 },
];
const CLOSEST = 12;
const MOST = 300;

export function makeExplain({ model, ask }) {
  const inputs = FIELDS.map((field) =>
    h(
      "label",
      { class: "field" },
      h("span", {}, field.label),
      h("input", {
        name: field.name,
        placeholder: field.placeholder,
        size: field.size,
        inputmode: field.inputmode,
        list: field.list,
        autocomplete: "off",
        spellcheck: "false",
        class: "mono",
      }),
    ),
  );
  const transport = h(
    "label",
    { class: "field" },
    h("span", {}, "Transport"),
    h(
      "select",
      { name: "transport" },
      h("option", { value: "tcp" }, "TCP"),
      h("option", { value: "udp" }, "UDP"),
    ),
  );
  const ports = h("datalist", { id: "explain-ports" });
  const answer = h("div", { class: "answer", "aria-live": "polite" });
  const form = h(
    "form",
    { class: "form", "aria-label": "A client to explain", onsubmit: submit },
    inputs,
    transport,
    ports,
    h("button", { class: "primary" }, "Explain"),
  );
  let number = 0;

  async function submit(event) {
    event?.preventDefault();
    const said = new FormData(form);
    const query = new URLSearchParams(
      [...said].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value),
    );
    // The address of the answer: it can be sent to somebody.
    history.replaceState(null, "", `#explain?${query}`);
    number += 1;
    const mine = number;
    const params = { remote_addr: "127.0.0.1", server_port: portsOf()[0], ...Object.fromEntries(query) };
    if (params.alpn) params.alpn = params.alpn.split(/[\s,]+/).join(",");
    try {
      const body = await ask("streamgw/v1/explain", { params });
      if (mine === number) answer.replaceChildren(...steps(body));
    } catch (error) {
      if (mine === number) answer.replaceChildren(h("p", { class: "warn" }, error.message));
    }
  }

  const portsOf = () => [
    ...new Set((model.status?.listeners ?? []).map(({ name }) => /:(\d+)$/.exec(name)?.[1]).filter(Boolean)),
  ];

  return {
    element: h(
      "section",
      { class: "explain", "aria-labelledby": "explain-h" },
      h(
        "div",
        { class: "toolbar" },
        h("h1", { id: "explain-h" }, "Explain"),
        h(
          "p",
          { class: "note" },
          "Describe a client. The code that decides for real ones says which route it gets, and why not another.",
        ),
      ),
      form,
      answer,
    ),
    enter(params) {
      for (const [name, value] of params) {
        const input = form.elements.namedItem(name);
        if (input) input.value = value;
      }
      if (params.size) void submit();
    },
    render() {
      const found = portsOf().join();
      if (ports.dataset.shown === found) return;
      ports.dataset.shown = found;
      ports.replaceChildren(...portsOf().map((port) => h("option", { value: port })));
    },
  };
}

function* steps(body) {
  const winner = (body.routes ?? []).find(({ wins }) => wins);
  yield h("p", { class: "verdict" }, sentence(body, winner));
  yield h(
    "ol",
    { class: "steps" },
    arrives(body),
    body.tls ? tls(body.tls) : null,
    asked(body, winner),
    outcome(body, winner),
    body.udp && winner ? datagrams(body.udp) : null,
  );
}

function sentence(body, winner) {
  if (!body.listener) return h("span", { class: "bad" }, `Nobody listens on ${body.server}.`);
  if (!winner) return h("span", { class: "bad" }, "No route: the connection is closed.");
  const refused = ["refuse", "close"].includes(body.tls?.does);
  return h(
    "span",
    {},
    "Route ",
    h("strong", {}, winner.id),
    refused ? h("span", { class: "bad" }, ", but its TLS is refused.") : " takes this client.",
  );
}

const step = (kind, title, ...content) => h("li", { class: kind }, h("h2", {}, title), ...content);

function arrives(body) {
  const where = [h("code", {}, body.client), " connects to ", h("code", {}, body.server), ...says(body)];
  if (!body.listener)
    return step(
      "bad",
      "Nobody listens there",
      h("p", {}, where),
      h(
        "p",
        { class: "faint" },
        "The client is refused before any route is asked. What follows is what a listener there would do.",
      ),
    );
  return step(
    "good",
    "The listener",
    h("p", {}, where),
    h("p", { class: "faint" }, `Accepted by ${body.listener}`),
  );
}

const says = ({ sni, alpn }) => [
  sni ? [", server name ", h("code", {}, sni)] : "",
  alpn?.length ? [", offers ", h("code", {}, alpn.join(", "))] : "",
];

function tls(said) {
  const kind = { refuse: "bad", close: "bad" }[said.does] ?? "good";
  const served = said.certificate;
  return step(
    kind,
    "TLS",
    h("p", {}, said.why),
    served
      ? h(
          "p",
          {},
          "Certificate ",
          h("strong", {}, served.id),
          h("span", { class: "faint" }, ` (${place(served)}), valid until ${moment(served.not_after)}`),
        )
      : null,
    served?.requires_client_certificate ? h("p", {}, "A client certificate is required.") : null,
    said.certificates?.length > 1
      ? verdicts(said.certificates.map((each) => ({ ...each, wins: each.serves })))
      : null,
  );
}

function asked(body, winner) {
  const routes = body.routes ?? [];
  if (!routes.length) return step("bad", "The routes", h("p", {}, "There is none."));
  const at = routes.indexOf(winner);
  const before = winner ? routes.slice(0, at + 1) : routes;
  const near = winner ? before.slice(-CLOSEST) : before.slice(0, CLOSEST);
  const rest = routes.filter((route) => !near.includes(route));
  const title = winner
    ? `Asked in order: number ${count(at + 1)} fits`
    : `Asked in order: none of ${count(routes.length)} fits`;
  return step(winner ? "good" : "bad", title, verdicts(near), rest.length ? others(rest) : null);
}

function others(rest) {
  const body = h("div");
  const fill = () => {
    if (body.childElementCount) return;
    const beyond =
      rest.length > MOST ? h("p", { class: "faint" }, `and ${count(rest.length - MOST)} more`) : "";
    body.append(verdicts(rest.slice(0, MOST)), beyond);
  };
  return h(
    "details",
    { ontoggle: fill },
    h("summary", {}, `${count(rest.length)} other route${rest.length === 1 ? "" : "s"}`),
    body,
  );
}

const verdicts = (list) =>
  h(
    "div",
    { class: "table verdicts" },
    h(
      "table",
      {},
      h(
        "thead",
        { class: "unseen" },
        h(
          "tr",
          {},
          ["Fits", "Name", "File", "Why"].map((title) => h("th", { scope: "col" }, title)),
        ),
      ),
      h(
        "tbody",
        {},
        list.map((each) =>
          h(
            "tr",
            { class: each.wins ? "wins" : null },
            h("td", { class: "mark", "aria-label": each.wins ? "yes" : "no" }, each.wins ? "✓" : "✗"),
            h("td", {}, h("strong", {}, each.id)),
            h("td", { class: "mono faint" }, place(each)),
            h("td", { class: "wide" }, each.why),
          ),
        ),
      ),
    ),
  );

function outcome(body, winner) {
  if (!winner)
    return step(
      "bad",
      "The connection is closed",
      h("p", {}, "Reason ", h("code", {}, "no_route"), ", fault ", h("code", {}, "client"), "."),
    );
  const link = h("a", { href: `#routes?filter=${encodeURIComponent(winner.id)}` }, winner.id);
  return step(
    body.listener ? "good" : "",
    "The route",
    h(
      "p",
      {},
      "Route ",
      h("strong", {}, link),
      " wins",
      h("span", { class: "faint" }, ` (${place(winner)})`),
    ),
  );
}

function datagrams({ idle_s: idle, responses, requests, amplification }) {
  const rules = [
    idle === null || idle === undefined ? "" : `over after ${duration(idle)} without a datagram`,
    responses === 0
      ? "no answer is waited for"
      : responses
        ? `over after ${count(responses)} answer${responses === 1 ? "" : "s"} to each datagram`
        : "",
    requests ? `${count(requests)} datagram${requests === 1 ? "" : "s"}, then another session` : "",
    amplification ? `at most ${amplification} bytes back for each byte, until the client has answered` : "",
  ].filter(Boolean);
  return step(
    "good",
    "Its datagrams",
    h("p", {}, rules.length ? rules.join("; ") : "One session until it is idle."),
  );
}
