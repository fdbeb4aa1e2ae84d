// What the page knows: polls and events in, rows and rates out. Nothing here touches the page.

export const LIMITS = { sessions: 1000, closes: 500, points: 90, nodes: 500 };

const LEAST_S = 0.5;
const FIELDS = ["listener", "route", "upstream", "node", "client", "transport"];
const WORD = /(?:(\w+):)?(?:"([^"]*)"|(\S+))/g;

/** `route:mysql client:10.0.0.0/8 "some words"` → what the gateway filters by, and what is looked for here. */
export function parseFilter(text) {
  const fields = {};
  const words = [];
  for (const [all, name, quoted, plain] of text.matchAll(WORD)) {
    const value = quoted ?? plain;
    if (FIELDS.includes(name)) fields[name] = value;
    else words.push((name ? all : value).toLowerCase());
  }
  return { fields, words };
}

/** The filter with one field set; an empty value takes it away. */
export function withField(text, name, value) {
  const { fields, words } = parseFilter(text);
  const quote = (word) => (/\s/.test(word) ? `"${word}"` : word);
  const all = { ...fields, [name]: value };
  return [
    ...Object.entries(all)
      .filter(([, each]) => each)
      .map(([each, what]) => `${each}:${quote(what)}`),
    ...words.map(quote),
  ].join(" ");
}

export function has(words, ...texts) {
  if (!words.length) return true;
  const all = texts.join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}

export class Model {
  status = null;
  sessions = new Map();
  /** How many sessions pass the filter; at most LIMITS.sessions of them are known here. */
  total = 0;
  filter = parseFilter("");
  closes = [];
  closed = 0;
  lost = 0;
  points = [];
  listenerRates = new Map();
  health = new Map();
  #polled = null;
  #asked = null;
  #failures = new Map();

  /** A new answer of /status. `now` in seconds, of a clock that only goes forward. */
  takeStatus(status, now) {
    const last = this.#polled;
    const restarted =
      last !== null && (last.status.pid !== status.pid || status.uptime_s < last.status.uptime_s);
    if (restarted) {
      this.sessions.clear();
      this.points = [];
    }
    if (last !== null && !restarted && now > last.now) {
      const seconds = now - last.now;
      const grown = (name) => Math.max(0, status.sessions[name] - last.status.sessions[name]) / seconds;
      this.points.push({
        active: status.sessions.active,
        opened: grown("total"),
        up: grown("bytes_up"),
        down: grown("bytes_down"),
      });
      this.points.splice(0, this.points.length - LIMITS.points);
      const before = new Map(last.status.listeners.map((listener) => [listener.name, listener.accepted]));
      this.listenerRates = new Map(
        status.listeners.map(({ name, accepted }) => [
          name,
          Math.max(0, accepted - (before.get(name) ?? accepted)) / seconds,
        ]),
      );
    }
    this.#polled = { status, now };
    this.status = status;
    return restarted;
  }

  get latest() {
    return this.points.at(-1) ?? { active: this.status?.sessions.active ?? 0, opened: 0, up: 0, down: 0 };
  }

  /** Another filter: what is known was for the old one. */
  setFilter(text) {
    this.filter = parseFilter(text);
    this.sessions.clear();
    this.total = 0;
    this.#asked = null;
  }

  /** Before sessions are asked for: what events say from here on is newer than the answer. */
  beginSessions() {
    this.#asked = { opened: new Set(), closed: new Set(), filter: this.filter };
    return this.#asked;
  }

  /** The answer. False: it is for a filter that is no longer wanted. */
  takeSessions(asked, rows, total, now) {
    if (asked !== this.#asked || asked.filter !== this.filter) return false;
    const known = this.sessions;
    this.sessions = new Map();
    for (const row of rows) {
      if (asked.closed.has(row.id)) continue;
      this.sessions.set(row.id, measured(row, known.get(row.id), now));
    }
    for (const id of asked.opened) {
      if (!this.sessions.has(id) && known.has(id) && this.sessions.size < LIMITS.sessions)
        this.sessions.set(id, known.get(id));
    }
    this.total = Math.max(total, this.sessions.size);
    this.#asked = null;
    return true;
  }

  /** One event of the feed. Returns its kind. */
  takeEvent(event, now) {
    if (event?.kind === "session_opened") this.#opened(event, now);
    else if (event?.kind === "session_closed") this.#closed(event);
    else if (event?.kind === "lost") this.lost += event.count;
    else if (event?.kind === "health") this.health.set(event.node, event.status);
    return event?.kind;
  }

  /** The answer of /healthcheck, in APISIX's shape: a list of checkers with their nodes, or `{}` for none. */
  takeHealth(checkers) {
    if (!Array.isArray(checkers)) return;
    this.health = new Map(
      checkers
        .flatMap(({ nodes }) => nodes ?? [])
        .slice(0, LIMITS.nodes)
        .map(({ ip, port, status }) => [`${ip.includes(":") ? `[${ip}]` : ip}:${port}`, status]),
    );
  }

  #opened(row, now) {
    this.#asked?.opened.add(row.id);
    if (!this.#passes(row) || this.sessions.has(row.id)) return;
    this.total += 1;
    if (this.sessions.size < LIMITS.sessions) this.sessions.set(row.id, measured(row, null, now));
  }

  #closed(row) {
    this.#asked?.closed.add(row.id);
    if (this.sessions.delete(row.id)) this.total = Math.max(this.sessions.size, this.total - 1);
    this.closed += 1;
    this.closes.unshift({ ...row, number: this.closed });
    if (this.closes.length > LIMITS.closes) this.closes.length = LIMITS.closes;
    if (
      row.fault === "upstream" &&
      row.node &&
      (this.#failures.has(row.node) || this.#failures.size < LIMITS.nodes)
    ) {
      this.#failures.set(row.node, (this.#failures.get(row.node) ?? 0) + 1);
    }
  }

  #passes(row) {
    return Object.entries(this.filter.fields).every(([name, value]) => {
      if (name !== "client") return row[name] === value;
      // A network is the gateway's to judge: such a session shows up with the next answer.
      return (
        !value.includes("/") && (row.client.startsWith(`${value}:`) || row.client.startsWith(`[${value}]:`))
      );
    });
  }

  /** Live sessions and failures by node, as far as they are known here. */
  nodes() {
    const nodes = new Map();
    const of = (node) => {
      if (!nodes.has(node))
        nodes.set(node, {
          node,
          upstream: "",
          sessions: 0,
          rate: 0,
          failures: this.#failures.get(node) ?? 0,
          status: this.health.get(node) ?? "",
        });
      return nodes.get(node);
    };
    for (const session of this.sessions.values()) {
      if (!session.row.node) continue;
      const node = of(session.row.node);
      node.upstream = session.row.upstream;
      node.sessions += 1;
      node.rate += session.rate;
    }
    for (const node of this.#failures.keys()) of(node);
    for (const node of this.health.keys()) of(node);
    return [...nodes.values()];
  }
}

/** A row with its rate: over less than half a second nothing is measured (one write would be a flood), and it is smoothed. */
function measured(row, known, now) {
  const bytes = row.bytes_up + row.bytes_down;
  const session = { id: row.id, row, began: now - row.age_s };
  if (!known) return { ...session, bytes, at: now, rate: 0 };
  const seconds = now - known.at;
  if (seconds < LEAST_S) return { ...session, bytes: known.bytes, at: known.at, rate: known.rate };
  const rate = (0.6 * Math.max(0, bytes - known.bytes)) / seconds + 0.4 * known.rate;
  return { ...session, bytes, at: now, rate: rate < 1 ? 0 : rate };
}
