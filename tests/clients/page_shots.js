// Takes the pictures of the admin interface's page that people look at: the real program with real Redis, 30 held
// sessions, 5 turns in line, a few refusals; light and dark, 1280 and 360 pixels wide. Not a test: nothing is asserted.
//
// Usage: node page_shots.js FOLDER, after `cargo build`. NODE_PATH and SERIATIM_TEST_CHROMIUM as in the tests.
// For charts with something in them it goes on for SECONDS (default 30), of which each 10 are a bar.

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const http = require("node:http");
const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const { chromium } = require("playwright-core");

const folder = process.argv[2];
const seconds = Number(process.env.SECONDS ?? 30);
const binary = path.join(__dirname, "../../target/debug/seriatim");
const running = [];
const tokens = { plain: "", secret: "a-token" };

const wait = (ms) => new Promise((next) => setTimeout(next, ms));
async function until(condition) {
  for (const end = Date.now() + 20_000; !(await condition().catch(() => false)); await wait(50)) {
    if (Date.now() > end) throw new Error(`waited in vain until ${condition}`);
  }
}
const freePort = () =>
  new Promise((done) => {
    const server = net.createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
function start(command, args) {
  const child = spawn(command, args, { stdio: "ignore" });
  running.push(child);
  return child;
}

/** An agent whose answers begin at once; those of `x-quick` also end. */
async function agent() {
  const server = http.createServer((request, answer) => {
    answer.writeHead(200, { "content-type": "text/event-stream" });
    answer.write("data: thinking\n\n");
    request.resume();
    if (request.headers["x-quick"]) setTimeout(() => answer.end(), Number(request.headers["x-quick"]));
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  server.unref();
  return server.address().port;
}

async function replica(name, store, upstream, token) {
  const [front, admin] = [await freePort(), await freePort()];
  const file = path.join(os.tmpdir(), `${name}-${process.pid}.toml`);
  const secret = path.join(os.tmpdir(), `${name}-${process.pid}.token`);
  fs.writeFileSync(secret, token || "unused");
  const ids = 'session_id = ["{body:/thread}"]\nuser_id = ["{body:/user}"]\nmethods = ["POST"]\n';
  fs.writeFileSync(
    file,
    `listen = "127.0.0.1:${front}"\nupstream = "http://127.0.0.1:${upstream}"\n` +
      `[admin]\nlisten = "127.0.0.1:${admin}"\n${token ? `token_file = "${secret}"\n` : ""}` +
      `[store]\nurl = "${store}"\ninstance = "${name}"\n` +
      `[lock]\nextend_lock_interval = 20\nlock_timeout = 300\n` +
      `[[routes]]\nname = "chat"\npath = "/chat"\n${ids}[[routes]]\nname = "queue"\npath = "/queue"\nblocking = true\n${ids}`,
  );
  start(binary, ["--config", file]);
  await until(async () => (await fetch(`http://127.0.0.1:${admin}/readyz`)).ok);
  return { front: `http://127.0.0.1:${front}`, admin: `http://127.0.0.1:${admin}/` };
}

function turn(of, way, user, thread, headers = {}) {
  const body = JSON.stringify({ user, thread });
  const request = { method: "POST", headers: { "content-type": "application/json", ...headers }, body };
  // An answer that nobody reads is given up sooner or later, and its turn with it.
  return fetch(of.front + way, request).then((answer) => answer.text()).catch(() => {});
}

const THREADS = ["refund", "onboarding", "weekly-report", "trip-osaka", "sql-review", "合同审阅", "incident", "roadmap", "tax", "resume"];
const thread = (number) => `${THREADS[number % THREADS.length]}-${((number + 11) * 2654435761 % 4294967296).toString(16).padStart(8, "0")}`;
const user = (number) => ["ana", "li.wei", "tom", "priya", "王芳", "jonas", "mei", "omar"][(number * 5) % 8];

async function shoot(browser, name, url, prepare = async () => {}) {
  for (const colorScheme of ["light", "dark"]) {
    for (const width of [1280, 360]) {
      const context = await browser.newContext({ viewport: { width, height: 860 }, colorScheme, locale: process.env.SHOTS_LOCALE ?? "en-US", deviceScaleFactor: width > 600 ? 1 : 2 });
      const page = await context.newPage();
      await page.goto(url);
      await page.waitForFunction(() => document.getElementById("loading").hidden);
      await prepare(page, context);
      await wait(400);
      await page.screenshot({ path: path.join(folder, `${name}-${colorScheme}-${width}.png`) });
      await context.close();
    }
  }
}

async function main() {
  const redis = await freePort();
  start("redis-server", ["--port", redis, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]);
  const upstream = await agent(), store = `redis://127.0.0.1:${redis}/0`;
  await wait(500);
  const first = await replica("agent-7d9f8b6c5d-x2v8q", store, upstream, tokens.plain);
  const others = [await replica("agent-7d9f8b6c5d-k9m4t", store, upstream, tokens.plain), await replica("agent-7d9f8b6c5d-p5w7z", store, upstream, tokens.secret)];
  const browser = await chromium.launch({ executablePath: process.env.SERIATIM_TEST_CHROMIUM, args: ["--no-sandbox", "--host-resolver-rules=MAP elsewhere.test 127.0.0.1"] });
  await shoot(browser, "empty", first.admin);

  const all = [first, ...others];
  for (let number = 0; number < 30; number += 1) {
    turn(all[number % 3], number % 4 === 3 ? "/queue" : "/chat", user(number), thread(number));
    // Ages that differ, while turns come and go.
    for (let burst = 0; burst < 1 + (number % 5); burst += 1) turn(first, "/queue", "quick", `q${number % 7}`, { "x-quick": 40 * (1 + (number % 9)) });
    if (number % 3 === 2) turn(first, "/chat", user(number - 2), thread(number - 2));
    await wait((seconds * 1000) / 30);
  }
  for (const [number, times] of [[3, 2], [10, 1], [21, 2]]) for (let time = 0; time < times; time += 1) turn(first, "/queue", user(number), thread(number));
  await until(async () => (await (await fetch(`${first.admin}locks?limit=1000`)).json()).locks.reduce((sum, lock) => sum + lock.waiters, 0) === 5);

  await shoot(browser, "page", first.admin);
  await shoot(browser, "detail", first.admin, async (page) => {
    await page.locator("#rows tr", { has: page.locator(".pill.some") }).first().click();
    await page.locator("#waiters li").first().waitFor();
  });
  await shoot(browser, "confirm", first.admin, async (page) => {
    await page.locator("#rows tr").first().click();
    await page.click("#release");
  });
  await shoot(browser, "recent", first.admin, async (page) => {
    if (await page.locator("#view-recent").isVisible()) await page.click("#view-recent");
    await page.locator("#events button").first().click();
  });
  await shoot(browser, "not-found", first.admin, async (page) => {
    await page.fill("#search", "nobody-i-know");
    await page.locator("#empty").waitFor();
  });
  await shoot(browser, "token", others[1].admin, async (page) => {
    await page.fill("#token", "another");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("token-wrong").textContent !== "");
  });
  await shoot(browser, "refused", first.admin.replace("127.0.0.1", "elsewhere.test"));
  await shoot(browser, "lost", first.admin, async (page, context) => {
    await context.setOffline(true);
    await page.locator("#banner").waitFor();
  });
  await browser.close();
}

async function run() {
  try {
    await main();
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  }
  for (const child of running) child.kill();
  process.exit(); // its turns would go on for ever
}

run();
