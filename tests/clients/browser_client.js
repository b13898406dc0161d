// A browser's `EventSource`, `fetch` and `WebSocket` at URL, driven by playwright. Prints what they saw, as JSON.
//
// Usage: node browser_client.js URL observe|contend. `observe` is the same with the proxy between and
// without; `contend` is what a session's lock makes of two turns at once. SERIATIM_TEST_CHROMIUM is
// the browser.

const { chromium } = require("playwright-core");

const [url, what] = process.argv.slice(2);

// What the page itself runs: it knows its own origin only.
function inPage() {
  window.go = (session) => fetch(`/go/${session}`, { method: "POST" });
  window.seen = async (session) => (await fetch(`/seen/${session}`)).json();
  window.until = async (condition) => {
    for (const end = Date.now() + 20_000; !(await condition()); ) {
      if (Date.now() > end) throw new Error(`waited in vain until ${condition}`);
      await new Promise((next) => setTimeout(next, 10));
    }
  };
  window.left = async (session) => (await seen(session)).turns[0].end === "left";
  window.turn = (session, options) =>
    fetch("/chat", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ session_id: session }),
      ...options,
    });
  // Reads an answer to its end, each piece let go by the one before.
  window.read = async (answer, session) => {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const pieces = [];
    for (let next; !(next = await reader.read()).done; await go(session)) pieces.push(next.value);
    return pieces;
  };
}

async function observe(page) {
  const saw = { title: await page.title() };
  saw.events = await page.evaluate(
    () =>
      new Promise((done) => {
        const source = new EventSource("/events?session=events");
        const told = [];
        const tell = async (event) => {
          told.push([event.type, event.lastEventId, event.data]);
          await go("events");
        };
        source.onopen = () => told.push("open");
        source.onmessage = tell;
        source.addEventListener("tick", tell);
        source.onerror = () => {
          told.push(source.readyState === EventSource.CLOSED ? "closed" : "reconnecting");
          if (source.readyState === EventSource.CLOSED) done(told);
        };
      }),
  );
  saw.fetch = await page.evaluate(async () => {
    const answer = await turn("fetch");
    return [answer.status, answer.headers.get("x-custom"), await read(answer, "fetch")];
  });
  saw.aborted = await page.evaluate(async () => {
    const abort = new AbortController();
    const answer = await turn("aborted", { signal: abort.signal });
    const reader = answer.body.getReader();
    const { value } = await reader.read();
    abort.abort();
    const end = await reader.read().catch((error) => error.name);
    await until(() => left("aborted"));
    return [new TextDecoder().decode(value), end];
  });
  saw.socket = await page.evaluate(
    () =>
      new Promise((done) => {
        const socket = new WebSocket("/ws/socket", ["chat.v2", "chat.v1"]);
        const told = [];
        socket.onopen = () => {
          told.push(socket.protocol, socket.extensions);
          socket.send("你好");
        };
        socket.onmessage = (event) => {
          told.push(event.data);
          socket.send("close");
        };
        socket.onclose = ({ code, reason, wasClean }) => done([...told, code, reason, wasClean]);
      }),
  );
  saw.seen = await page.evaluate(async () => [
    await seen("events"),
    await seen("fetch"),
    await seen("aborted"),
  ]);
  return saw;
}

async function contend(page, context) {
  const saw = {};
  saw.protocol = await page.evaluate(
    () => performance.getEntriesByType("navigation")[0].nextHopProtocol,
  );
  saw.second = await page.evaluate(async () => {
    const first = await turn("s");
    const second = await turn("s");
    const { status, headers } = second;
    const refused = [status, headers.get("x-seriatim-error"), headers.get("retry-after")];
    const busy = await second.json();
    const pieces = await read(first, "s");
    // Who has read the end finds the session free.
    const third = await turn("s");
    return { refused, busy, pieces, third: [third.status, await read(third, "s")], seen: await seen("s") };
  });
  saw.aborted = await page.evaluate(async () => {
    const abort = new AbortController();
    await turn("a", { signal: abort.signal });
    abort.abort();
    await until(() => left("a"));
    let next;
    await until(async () => (next = await turn("a")).status === 200);
    return [await read(next, "a"), await seen("a")];
  });
  // A tab that is closed in the middle of a turn frees its session for the next one.
  const tab = await context.newPage();
  await tab.goto(url);
  await tab.evaluate(() => turn("tab").then((answer) => answer.status));
  await tab.close();
  saw.closed = await page.evaluate(async () => {
    await until(() => left("tab"));
    let next;
    await until(async () => (next = await turn("tab")).status === 200);
    return [await read(next, "tab"), await seen("tab")];
  });
  return saw;
}

async function main() {
  // Its sandbox is not to be had as root, which is what builds in containers run as.
  const executablePath = process.env.SERIATIM_TEST_CHROMIUM;
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  // The certificate of the tests is nobody's but theirs.
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  await context.addInitScript(inPage);
  const page = await context.newPage();
  await page.goto(url);
  const saw = await { observe, contend }[what](page, context);
  await browser.close();
  console.log(JSON.stringify(saw));
}

main();
