// Pages in a browser whose users come back, before two replicas at URL and OTHER. Prints what they saw, as JSON.
//
// Usage: node resuming_browser.js URL OTHER. SERIATIM_TEST_CHROMIUM is the browser. Between the browser and the replicas
// is a load balancer that sends each turn to the first replica, and what belongs to it to the second one.

const http = require("node:http");
const path = require("node:path");

const esbuild = require("esbuild");
const { chromium } = require("playwright-core");

const [url, other] = process.argv.slice(2);
const HTML = '<!doctype html><meta charset="utf-8"><title>A chat</title><div id=root></div><script src=/app.js></script>';
const CHAT = "/api/chat";
const STOPPABLE = "/stoppable/api/chat";

// The load balancer. It serves the page, too.
class Front {
  constructor(script) {
    this.script = script;
    this.streams = new Set();
    // The requests that went to the second replica, and the id of the last event that each of them has.
    this.back = [];
    this.server = http.createServer((request, response) => this.serve(request, response));
  }

  async listen() {
    await new Promise((next) => this.server.listen(0, "127.0.0.1", next));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
  }

  serve(request, response) {
    const { pathname } = new URL(request.url, this.url);
    if (pathname === "/empty") return response.end();
    if (pathname === "/") return response.setHeader("content-type", "text/html"), response.end(HTML);
    if (pathname === "/app.js") return response.end(this.script);
    const comesBack = /\/(stream|stop)$/.test(pathname);
    const { method, headers } = request;
    const options = { method, headers, agent: false };
    const forwarded = http.request(new URL(request.url, comesBack ? other : url), options, (answer) => {
      if (comesBack) this.back.push([method, answer.statusCode, headers["last-event-id"] ?? null]);
      response.writeHead(answer.statusCode, answer.headers);
      response.flushHeaders();
      answer.on("data", (bytes) => response.write(bytes));
      answer.on("end", () => response.end());
      // An answer that broke off must not look whole.
      answer.on("close", () => answer.complete || response.destroy());
    });
    forwarded.on("error", () => response.destroy());
    if (comesBack) this.streams.add(response);
    response.on("close", () => {
      this.streams.delete(response);
      forwarded.destroy();
    });
    request.pipe(forwarded);
  }

  cut() {
    for (const response of this.streams) response.destroy();
  }

  // What has come back since the last call.
  came() {
    return this.back.splice(0);
  }
}

const call = async (path, method) => (await fetch(`${url}${path}`, { method })).json();
const go = (session) => call(`/go/${session}`, "POST");
const seen = (session) => call(`/seen/${session}`, "GET");

async function until(condition) {
  for (const end = Date.now() + 20_000; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`waited in vain until ${condition}`);
    await new Promise((next) => setTimeout(next, 10));
  }
}

// A page that has asked for an answer to go on with.
async function open(context, front, api, session) {
  const page = await context.newPage();
  const asked = page.waitForResponse((response) => response.url().endsWith("/stream"));
  await page.goto(`${front.url}/?chat=${session}&api=${api}`);
  await asked;
  return page;
}

const shown = async (page) => JSON.parse(await page.textContent("#shows"));
const status = (page) => page.textContent("#status");
const shows = (page, ...texts) =>
  until(async () => JSON.stringify(await shown(page)) === JSON.stringify(texts));
const ends = (page) => until(async () => ["ready", "error"].includes(await status(page)));

// Lets the rest of the turn come, until the pages show its end.
async function finish(session, pages) {
  for (let piece = 0; piece < 3; piece++) await go(session);
  await Promise.all(pages.map(ends));
}

async function undisturbed(context, front) {
  const page = await open(context, front, CHAT, "alone");
  await page.click("#send");
  await shows(page, "Hel");
  await go("alone");
  await finish("alone", [page]);
  return { shows: await shown(page), came: front.came() };
}

async function reloaded(context, front) {
  const page = await open(context, front, CHAT, "reloaded");
  await page.click("#send");
  await shows(page, "Hel");
  await go("reloaded");
  await shows(page, "Hello, ");
  await page.reload();
  await shows(page, "Hello, ");
  await finish("reloaded", [page]);
  const saw = { shows: await shown(page), status: await status(page), turns: await seen("reloaded") };
  // By now the page would have the answer with the history of the chat.
  const asked = page.waitForResponse((response) => response.url().endsWith("/stream"));
  await page.reload();
  await asked;
  return { ...saw, after: await shown(page), came: front.came() };
}

async function twoTabs(context, front) {
  const one = await open(context, front, CHAT, "tabs");
  await one.click("#send");
  await shows(one, "Hel");
  const two = await open(context, front, CHAT, "tabs");
  await shows(two, "Hel");
  await go("tabs");
  await Promise.all([one, two].map((page) => shows(page, "Hello, ")));
  await finish("tabs", [one, two]);
  return { one: await shown(one), two: await shown(two), turns: await seen("tabs"), came: front.came() };
}

// A stop in the second tab, whose replica isn't that of the turn.
async function stopped(context, front) {
  const one = await open(context, front, STOPPABLE, "stopped");
  await one.click("#send");
  await shows(one, "Hel");
  const two = await open(context, front, STOPPABLE, "stopped");
  await shows(two, "Hel");
  await two.click("#stop");
  const saw = { response: await two.evaluate(() => window.stopped) };
  await Promise.all([one, two].map(ends));
  await until(async () => (await seen("stopped"))[0].end === "left");
  saw.status = [await status(one), await status(two)];
  saw.shows = [await shown(one), await shown(two)];
  saw.came = front.came();
  // The chat goes on in the tab that was stopped by the other one.
  await one.click("#send");
  await shows(one, "Hel", "Hel");
  await go("stopped");
  await finish("stopped", [one]);
  return { ...saw, next: await shown(one), turns: await seen("stopped") };
}

// Each new answer to one message is a turn, though the bodies of the last two requests are the same.
async function regenerated(context, front) {
  const page = await open(context, front, CHAT, "again");
  for (const button of ["#send", "#again", "#again"]) {
    await page.click(button);
    await shows(page, "Hel");
    await go("again");
    await finish("again", [page]);
  }
  return { shows: await shown(page), turns: await seen("again"), came: front.came() };
}

async function eventSource(context, front) {
  const page = await context.newPage();
  await page.goto(`${front.url}/empty`);
  const turn = fetch(`${url}/agent`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ session_id: "events" }),
  });
  await until(async () => (await seen("events")).length === 1);
  await page.evaluate(() => {
    window.got = [];
    window.source = new EventSource("/agent/events/stream");
    window.source.onmessage = ({ lastEventId, data }) => window.got.push([lastEventId, data]);
  });
  const got = (count) => until(async () => (await page.evaluate(() => window.got.length)) === count);
  await got(1);
  await go("events");
  await got(2);
  front.cut();
  await go("events");
  await got(3);
  front.cut();
  await go("events");
  await got(4);
  await go("events");
  await (await turn).text();
  await until(() => page.evaluate(() => window.source.readyState === EventSource.CLOSED));
  return { got: await page.evaluate(() => window.got), came: front.came(), turns: await seen("events") };
}

async function main() {
  const bundle = await esbuild.build({
    entryPoints: [path.join(__dirname, "resuming_page.js")],
    bundle: true,
    write: false,
    define: { "process.env.NODE_ENV": '"production"' },
    nodePaths: [process.env.NODE_PATH],
    logLevel: "error",
  });
  const front = new Front(bundle.outputFiles[0].text);
  await front.listen();
  // Its sandbox is not to be had as root, which is what builds in containers run as.
  const executablePath = process.env.SERIATIM_TEST_CHROMIUM;
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const saw = {};
  for (const scene of [undisturbed, reloaded, twoTabs, stopped, regenerated, eventSource]) {
    const context = await browser.newContext();
    saw[scene.name] = await scene(context, front);
    await context.close();
  }
  await browser.close();
  console.log(JSON.stringify(saw));
  process.exit();
}

main();
