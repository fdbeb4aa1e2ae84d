// Asking the gateway. Everything is relative to where this page is served, so that a proxy may put a prefix before it.

const BASE = new URL("..", document.baseURI);
const SLOT = "streamgw.key";
const TIMEOUT_MS = 10_000;
const SILENCE_MS = 60_000; // the gateway breaks a silence after 20 s: without a word for this long, nobody is there
const RETRY_MS = { least: 500, most: 15_000 };

let remembered = "";

/** An answer that is no success; `status` 0: nobody answered. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function key() {
  try {
    return sessionStorage.getItem(SLOT) ?? remembered;
  } catch {
    return remembered; // storage is switched off in this browser: the key lives as long as the page
  }
}

export function keep(newKey) {
  remembered = newKey;
  try {
    sessionStorage.setItem(SLOT, newKey);
  } catch {
    // as above
  }
}

/**
 * One request. `params` without a value are left out.
 *
 * Throws Refused: with the gateway's own words where it gave a reason.
 */
export async function ask(path, { method = "GET", params = {} } = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(params)) if (value) url.searchParams.append(name, value);
  let answer;
  try {
    answer = await fetch(url, {
      method,
      headers: key() ? { "X-API-KEY": key() } : {},
      cache: "no-store",
      redirect: "error",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    throw new Refused(
      0,
      error.name === "TimeoutError" ? "no answer within 10 s" : "the gateway does not answer",
    );
  }
  const text = await answer.text().catch(() => "");
  const body = parse(text);
  if (answer.ok) return body;
  throw new Refused(answer.status, words(body) || `HTTP ${answer.status}`);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const words = (body) => body?.error_msg ?? body?.error ?? body?.description ?? body?.message ?? "";

/** How long to wait before try number `failures` + 1. Spread, so that many pages do not come back at once. */
export function pause(failures) {
  const most = Math.min(RETRY_MS.most, RETRY_MS.least * 2 ** failures);
  return most * (0.5 + Math.random() / 2);
}

/** The live feed. Says when it is open; when it is lost somebody calls `open` again. */
export class Feed {
  #socket = null;
  #retryAt = 0;
  #failures = 0;
  #heardAt = 0;

  constructor({ kinds, onevent, onstate }) {
    this.kinds = kinds;
    this.onevent = onevent;
    this.onstate = onstate;
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Open it, unless it is open, being opened, or was lost a moment ago. Browsers send no headers: the key is in the address. */
  open() {
    if (this.isOpen && Date.now() - this.#heardAt > SILENCE_MS) this.close();
    if (this.#socket !== null || Date.now() < this.#retryAt) return;
    const url = new URL("streamgw/v1/events", BASE);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("kinds", this.kinds.join(","));
    if (key()) url.searchParams.set("api_key", key());
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.onopen = () => {
      this.#failures = 0;
      this.#heardAt = Date.now();
      this.onstate();
    };
    socket.onmessage = (message) => {
      this.#heardAt = Date.now();
      this.onevent(parse(message.data));
    };
    socket.onclose = () => this.#lost(socket);
  }

  close() {
    const socket = this.#socket;
    if (socket === null) return;
    this.#lost(socket);
    this.#retryAt = 0;
    socket.close();
  }

  #lost(socket) {
    if (socket !== this.#socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    this.#socket = null;
    this.#retryAt = Date.now() + pause(this.#failures);
    this.#failures += 1;
    this.onstate();
  }
}
