// A page at URL that calls an agent of another origin, PROXY, in Chromium. Prints what it could read, as JSON.
//
// Usage: node cors_browser.js URL PROXY learned|configured. With `learned`, the proxy says what the backend
// says; with `configured`, its configuration allows the origin of URL. SERIATIM_TEST_CHROMIUM is the browser.

const { chromium } = require("playwright-core");

const [url, proxy, what] = process.argv.slice(2);

// What the page itself runs.
function inPage() {
  window.go = (session) => fetch(`${agent}/go/${session}`, { method: "POST" });
  window.turn = (session, credentials) =>
    fetch(`${agent}/chat`, {
      method: "POST",
      credentials,
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ session_id: session }),
    });
  window.events = (session, credentials) =>
    fetch(`${agent}/events?session=${session}`, { credentials });
  // What a page can read of an error response.
  window.read = async (answer) => {
    const { status, headers } = answer;
    const { error } = await answer.json();
    const times = ["retry-after", "retry-after-ms", "x-seriatim-busy-since", "x-seriatim-queue"];
    const readable = times.filter((name) => headers.has(name));
    return [status, headers.get("x-seriatim-error"), readable, error];
  };
  window.failure = (call) => call.then(() => "was read", (error) => error.name);
}

async function open(context, at) {
  const page = await context.newPage();
  await page.goto(at);
  await page.evaluate((agent) => (window.agent = agent), proxy);
  return page;
}

async function learned(context) {
  const saw = {};
  for (const credentials of ["omit", "include"]) {
    const page = await open(context, url);
    saw[credentials] = await page.evaluate(async (credentials) => {
      const first = await turn(`s-${credentials}`, credentials);
      return { served: first.status, refused: await read(await turn(`s-${credentials}`, credentials)) };
    }, credentials);
  }
  const page = await open(context, url);
  // Node is no page: its turn tells the proxy nothing.
  const abort = new AbortController();
  await fetch(`${proxy}/events?session=first`, { signal: abort.signal });
  saw.first = await page.evaluate(async () => {
    // A method that needs a preflight.
    const headers = { "content-type": "application/json" };
    return read(await fetch(`${agent}/events?session=first`, { method: "POST", headers, body: "{}" }));
  });
  const stranger = await open(context, url.replace("127.0.0.1", "localhost"));
  saw.stranger = await stranger.evaluate(async () => [
    await failure(events("another", "omit")),
    await failure(events("first", "omit")),
  ]);
  abort.abort();
  return saw;
}

async function configured(context) {
  const saw = {};
  const abort = new AbortController();
  await fetch(`${proxy}/events?session=cold`, { signal: abort.signal });
  const page = await open(context, url);
  saw.cold = await page.evaluate(async () => read(await events("cold", "include")));
  const stranger = await open(context, url.replace("127.0.0.1", "localhost"));
  saw.stranger = await stranger.evaluate(() => failure(events("cold", "omit")));
  abort.abort();
  return saw;
}

async function main() {
  // Its sandbox is not to be had as root, which is what builds in containers run as.
  const executablePath = process.env.SERIATIM_TEST_CHROMIUM;
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const context = await browser.newContext();
  await context.addInitScript(inPage);
  const saw = await { learned, configured }[what](context);
  await browser.close();
  console.log(JSON.stringify(saw));
}

main();
