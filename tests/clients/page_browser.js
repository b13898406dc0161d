// An operator's browser at the page of the admin interface, driven by playwright. Prints what it saw, as JSON.
//
// Usage: node page_browser.js ADMIN PROXY WHAT [TOKEN]. ADMIN is a replica's admin interface, PROXY its front,
// with the agent of page_backend.py behind; WHAT is one of the functions below. SERIATIM_TEST_CHROMIUM is the
// browser. Every wait is for a condition.

const { chromium } = require("playwright-core");

const [admin, proxy, what, token] = process.argv.slice(2);

// === The turns that there is something to see of ===

const BUSY = "does not wait";

/** A turn whose answer goes on until it is let go. Resolves when its head is there. */
async function turn(session, user = "u1", way = "waits", named = {}) {
  const answer = await fetch(`${proxy}/chat`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-way": way === BUSY ? "refuse" : "wait", ...named },
    body: JSON.stringify({ session_id: session, user_id: user }),
    signal: AbortSignal.timeout(60_000), // more than a scene takes
  });
  if (answer.status === 409) return { status: 409, error: [answer.status, answer.headers.get("x-seriatim-error"), (await answer.json()).error] };
  const text = answer.text().then(
    (text) => ({ end: "whole", pieces: text.split("data: ").length - 1 }),
    () => ({ end: "cut" }),
  );
  return { status: answer.status, end: text };
}

/** Lets a session's turn come to its end. */
async function letGo(session) {
  for (let piece = 0; piece < 3; piece += 1) {
    await fetch(`${proxy}/go/${encodeURIComponent(session)}`, { method: "POST" });
  }
}

async function until(condition, of) {
  for (const end = Date.now() + 20_000; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`waited in vain until ${of ?? condition}`);
    await new Promise((next) => setTimeout(next, 10));
  }
}

// === The page ===

const row = (page, session) => page.locator("#rows tr", { hasText: session });
const isThere = (page, session) => row(page, session).waitFor({ timeout: 20_000 });
const isGone = (page, session) => row(page, session).waitFor({ state: "detached", timeout: 20_000 });
const texts = (locator) => locator.allInnerTexts();
const focused = (page) =>
  page.evaluate(() => document.activeElement.id || document.activeElement.closest("tr")?.innerText.split(/\s/)[0] || document.activeElement.tagName);

/** A page that has been let in. */
async function letIn(page) {
  await page.goto(admin);
  if (token) {
    await page.fill("#token", token);
    await page.keyboard.press("Enter");
  }
  await page.locator("#data").waitFor();
}

const SCENES = {
  /** Whoever has no token is asked for it. */
  async token(page) {
    const saw = {};
    const asked = () => page.locator("#token-form").waitFor();
    const stored = () => page.evaluate(() => [{ ...sessionStorage }, { ...localStorage }, location.href, document.cookie]);
    await page.goto(admin);
    await asked();
    saw.without = [await page.locator("#data").isVisible(), await focused(page), await page.locator("#token-wrong").innerText()];
    await page.fill("#token", "another");
    await page.keyboard.press("Enter");
    await page.locator("#token-wrong", { hasText: "accepted" }).waitFor();
    saw.wrong_token = [await page.locator("#data").isVisible(), await stored()];
    await page.fill("#token", "schön");
    await page.keyboard.press("Enter");
    await page.locator("#token-wrong", { hasText: "ASCII" }).waitFor();
    await page.fill("#token", token);
    await page.keyboard.press("Enter");
    await page.locator("#data").waitFor();
    saw.right = await stored();
    await page.reload();
    await page.locator("#data").waitFor();
    saw.reloaded = await page.locator("#token-form").isVisible();
    await page.click("#forget");
    await asked();
    saw.forgotten = [await page.locator("#data").isVisible(), await stored()];
    return saw;
  },

  /** A turn appears, its queue, and what is refused; and all goes when it is over. */
  async watch(page) {
    const saw = {};
    await letIn(page);
    await page.locator("#empty").waitFor();
    saw.empty = await page.locator("#empty-title").innerText();
    // Any answer will do: the request names no session, and takes no lock.
    const unnamed = await fetch(`${proxy}/chat`, { method: "POST", headers: { "x-way": "refuse" }, body: "{}" });
    await unnamed.text();
    const first = await turn("watched");
    await isThere(page, "watched");
    const second = turn("watched");
    await row(page, "watched").locator(".pill.some", { hasText: "1" }).waitFor();
    const refused = await turn("watched", "u1", BUSY);
    await page.locator("#events li", { hasText: "session_busy" }).waitFor();
    const another = await turn("another", "u2");
    await isThere(page, "another");
    saw.rows = await page.locator("#rows tr").count();
    saw.cells = (await texts(row(page, "watched").locator("th, td"))).map((text) => text.replace(/\s+/g, " ").trim());
    saw.instance = await page.locator("#instance").innerText();
    saw.store = await page.locator("#store").innerText();
    const age = () => row(page, "watched").locator("td").first().innerText();
    const before = await age();
    await until(async () => (await age()) !== before, "its age goes on");

    await page.fill("#search", "ANOTH");
    await isGone(page, "watched");
    saw.found = await texts(page.locator("#rows .session"));
    saw.foundEvents = await page.locator("#no-events-title").innerText();
    // As it stands in the refusal's own text.
    await page.fill("#search", "[lock:session:u1:watched] 锁已被占用");
    await isThere(page, "watched");
    saw.foundByKey = await texts(page.locator("#rows .session"));
    await page.locator("#events li", { hasText: "session_busy" }).waitFor();
    await page.fill("#search", "nobody");
    await page.locator("#empty").waitFor();
    saw.notFound = await page.locator("#empty-title").innerText();
    await page.fill("#search", "");
    await isThere(page, "another");

    await page.locator("#events button").first().click();
    saw.event = [await page.locator("#event-title").innerText(), await page.locator("#event-why").innerText()];
    await page.click("#event-session");
    await page.locator("#waiters li").waitFor();
    saw.queue = await texts(page.locator("#waiters li > :nth-child(3)"));
    saw.detail = await texts(page.locator("#detail-pairs dd > :first-child"));
    await page.locator("#detail-pairs button").first().click();
    saw.copied = await page.evaluate(() => navigator.clipboard.readText());
    await page.keyboard.press("Escape");

    await letGo("watched");
    saw.first = [first.status, await first.end, refused.status];
    await row(page, "watched").locator(".pill.none").waitFor();
    await letGo("watched");
    saw.second = await (await second).end;
    await isGone(page, "watched");
    await letGo("another");
    await another.end;
    await page.locator("#empty").waitFor();
    await page.locator("#charts output", { hasText: "1 more without a session" }).waitFor();
    return saw;
  },

  /** A held session is released by force, and another turn interrupted, each after a question. */
  async act(page) {
    const saw = {};
    await letIn(page);
    const held = await turn("held");
    await row(page, "held").click();
    await page.click("#release");
    saw.question = [await page.locator("#confirm-title").innerText(), (await texts(page.locator("#confirm-pairs dd")))[0], await focused(page)];
    await page.click("#cancel");
    saw.afterCancel = [await page.locator("#detail-state").innerText(), await focused(page)];
    await page.click("#release");
    await page.click("#go");
    await page.locator("#said", { hasText: "Released" }).waitFor();
    await page.locator("#detail-state", { hasText: "free" }).waitFor();
    saw.released = [await held.end, await page.locator("#release").isDisabled()];
    await page.keyboard.press("Escape");
    await isGone(page, "held");
    const next = await turn("held", "u1", BUSY);
    await letGo("held");
    saw.next = [next.status, await next.end];

    const running = await turn("running");
    await row(page, "running").click();
    await page.click("#interrupt");
    saw.interruptQuestion = await page.locator("#confirm-title").innerText();
    await page.click("#go");
    await page.locator("#said", { hasText: "Interrupted" }).waitFor();
    saw.interrupted = await running.end;
    await page.keyboard.press("Escape");
    await isGone(page, "running");
    const after = await turn("running", "u1", BUSY);
    await letGo("running");
    saw.after = [after.status, await after.end];
    return saw;
  },

  /** A waiter is seen with its place and taken out after a question, and its client is told. */
  async dequeue(page) {
    const saw = {};
    await letIn(page);
    const held = await turn("held");
    await row(page, "held").click();
    const waiters = [];
    for (const id of ["first", "second", ".."]) {
      waiters.push(turn("held", "u1", "waits", { "x-request-id": id }));
      await page.locator("#waiters li", { hasText: id }).waitFor();
    }
    const button = (id) => page.locator("#waiters li", { hasText: id }).getByRole("button");
    const isOut = (id) => page.locator("#waiters li", { hasText: id }).waitFor({ state: "detached" });
    const queue = () => page.evaluate(() => [...document.querySelectorAll("#waiters li")].map((one) => [".place", ".request"].map((part) => one.querySelector(part).textContent)));
    saw.queue = await queue();
    await button("second").click();
    saw.question = [await page.locator("#confirm-title").innerText(), await texts(page.locator("#confirm-pairs dd")), await focused(page)];
    await page.click("#cancel");
    saw.afterCancel = (await queue()).length;
    await button("second").click();
    await page.click("#go");
    await page.locator("#said", { hasText: "Taken out" }).waitFor();
    saw.out = (await waiters[1]).error;
    await isOut("second");
    await button("..").click();
    await page.click("#go");
    saw.outToo = (await waiters[2]).error;
    await isOut("..");
    saw.left = await queue();
    saw.event = await page.locator("#own-list li", { hasText: "dequeued" }).first().innerText().then((text) => text.match(/409|dequeued/g).slice(0, 2).join(" "));
    // While somebody thinks about the question, the waiter gets the lock.
    await button("first").click();
    await letGo("held");
    saw.held = [held.status, await held.end];
    const first = await waiters[0];
    await page.click("#go");
    await page.locator("#said", { hasText: "no longer waits" }).waitFor();
    saw.late = await page.locator("#said").innerText();
    await letGo("held");
    saw.first = [first.status, await first.end];
    return saw;
  },

  /** The same with the keyboard alone. */
  async keyboard(page) {
    const saw = {};
    await letIn(page);
    await Promise.all([turn("left-alone"), turn("by-hand"), turn("by-hand-too")]);
    await isThere(page, "by-hand-too");
    const press = (key) => page.keyboard.press(key);
    await press("/");
    saw.search = await focused(page);
    await page.keyboard.type("by-hand");
    await isGone(page, "left-alone");
    saw.typed = await page.inputValue("#search");
    await press("ArrowDown");
    await press("End");
    await press("Home");
    await page.waitForFunction(() => document.activeElement.closest("#rows tr"));
    saw.visible = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    const session = await page.evaluate(() => document.activeElement.querySelector(".session").textContent);
    // While the times go on and the rows are filled anew, the focus stays.
    await page.waitForResponse(/\/locks\?/);
    await page.waitForResponse(/\/locks\?/);
    saw.stays = await page.evaluate((session) => document.activeElement.textContent.includes(session), session);
    await press("Enter");
    await page.locator("#detail").waitFor();
    // The way round stays within the dialog, and what is behind it can't be reached.
    const round = new Set();
    for (let step = 0; step < 12; step += 1) {
      await press("Tab");
      round.add(await page.evaluate(() => document.activeElement === document.body || document.activeElement.closest("dialog")?.id));
    }
    saw.round = [...round].filter((place) => place !== true);
    const to = async (id) => {
      for (let step = 0; step < 12 && (await focused(page)) !== id; step += 1) await press("Tab");
    };
    await to("release");
    await press("Enter");
    saw.question = await focused(page);
    await press("Escape");
    saw.back = await focused(page);
    await press("Enter");
    await to("go");
    await press("Enter");
    await page.locator("#said", { hasText: "Released" }).waitFor();
    await press("Escape");
    await until(() => page.locator("#detail").isHidden());
    await page.waitForFunction((session) => ![...document.querySelectorAll("#rows .session")].some((own) => own.textContent === session), session);
    // The page hears of the closed dialog a moment later.
    const isBack = page.waitForFunction(() => document.activeElement.closest("#rows") !== null, null, { timeout: 10_000 });
    saw.after = await isBack.then(() => true, () => focused(page));
    for (const own of ["left-alone", "by-hand", "by-hand-too"]) await letGo(own);
    return saw;
  },

  /** Ids that would be markup, turn the writing round, break lines or are very long. */
  async hostile(page) {
    const saw = {};
    const ids = ["<img src=x onerror=document.title='pwned'>", "\u202egnp.exe\u2028second line", "长".repeat(170), "..", "a/b?c#d%2e", "😀👩‍👩‍👧"];
    await letIn(page);
    await Promise.all(ids.map((id) => turn(id, "<script>document.title='pwned'</script>")));
    await turn(ids[0], "<script>document.title='pwned'</script>", BUSY);
    await page.waitForFunction((count) => document.querySelectorAll("#rows tr").length === count, ids.length);
    await page.locator("#events li").waitFor();
    saw.shown = (await page.locator("#rows .session").allTextContents()).sort();
    saw.details = [];
    for (const id of await page.locator("#rows button").all()) {
      await Promise.all([page.waitForResponse(/\/locks\/[^?]+\?/), id.click()]);
      await page.waitForFunction(() => document.querySelector("#queue-title").textContent === "Nobody waits for this session.");
      saw.details.push(await page.locator("#detail-state").innerText());
      await page.keyboard.press("Escape");
    }
    await page.locator("#events button").first().click();
    saw.markup = await page.evaluate(() => [document.querySelectorAll("main img, main script, dialog img, dialog script").length, document.title.includes("pwned")]);
    await page.keyboard.press("Escape");
    saw.overflow = [];
    for (const width of [1280, 400, 360]) {
      await page.setViewportSize({ width, height: 800 });
      saw.overflow.push(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth));
    }
    return saw;
  },

  /** Languages, themes, and a replica that is out of reach. */
  async looks(page, context) {
    const saw = {};
    await letIn(page);
    const look = () => page.evaluate(() => [document.documentElement.lang, document.querySelector("#sessions-title").textContent, getComputedStyle(document.body).backgroundColor]);
    saw.zh = await look();
    await page.emulateMedia({ colorScheme: "dark" });
    saw.dark = (await look())[2];
    await page.click("#theme");
    saw.light = (await look())[2];
    await page.click("#theme");
    await page.emulateMedia({ colorScheme: "light" });
    saw.chosenDark = (await look())[2];
    await page.click("#language");
    saw.en = await look();
    await page.reload();
    await page.locator("#data").waitFor();
    saw.remembered = await look();
    saw.codes = await page.evaluate(() => ["en", "zh"].map((language) => ({ why: Object.keys(WORDS[language].why), code: Object.keys(WORDS[language].code), reason: Object.keys(WORDS[language].reason) })));
    saw.words = await page.evaluate(() => {
      const names = (language) => [...Object.keys(WORDS[language]), ...Object.keys(WORDS[language].why)].sort().join();
      const used = ["t", "t-label", "t-placeholder"].flatMap((kind) => [...document.querySelectorAll(`[data-${kind}]`)].map((one) => one.getAttribute(`data-${kind}`)));
      const places = (text) => [...new Set(String(text).match(/\{\w+\}/g) ?? [])].sort().join();
      const differing = Object.keys(WORDS.en).filter((name) => places(WORDS.en[name]) !== places(WORDS.zh[name]));
      return [names("en") === names("zh"), used.filter((name) => !(name in WORDS.en)), differing];
    });
    saw.unnamed = await page.evaluate(() =>
      [...document.querySelectorAll("button, input, select, [role=slider]")].filter((one) => !one.closest("dialog") && one.checkVisibility() && !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length)).map((one) => one.outerHTML),
    );
    await context.setOffline(true);
    await page.locator("#banner", { hasText: "No connection since" }).waitFor();
    saw.offline = [await page.locator("#live").innerText(), await page.evaluate(() => document.body.className)];
    await context.setOffline(false);
    await page.click("#live");
    await page.locator("#banner").waitFor({ state: "hidden" });
    saw.online = await page.locator("#live").innerText();
    await page.click("#live");
    await page.locator("#banner", { hasText: "Paused" }).waitFor();
    await page.click("#live");
    await page.locator("#banner").waitFor({ state: "hidden" });
    return saw;
  },

  /** A refusal on a small Chinese phone, in a zone that is not UTC. */
  async phone(page) {
    const saw = { wide: [] };
    // What is wider than the screen, on the page and in a dialog.
    const wide = async (where) => saw.wide.push(...(await page.evaluate((where) => {
      const boxes = [document.documentElement, ...document.querySelectorAll("header, .controls, .controls button:not([hidden]), .chart, dialog[open], dialog[open] .body")];
      return boxes.filter((box) => box.scrollWidth > box.clientWidth + 1 || box.getBoundingClientRect().right > innerWidth).map((box) => `${where}: ${box.outerHTML.slice(0, 80)}`);
    }, where)));
    await page.setViewportSize({ width: 360, height: 740 });
    await letIn(page);
    const held = await turn("a-session-with-a-long-name-".repeat(4));
    await isThere(page, "a-session");
    turn("a-session-with-a-long-name-".repeat(4));
    await page.locator("#rows .pill.some", { hasText: "1" }).waitFor();
    await turn("a-session-with-a-long-name-".repeat(4), "u1", BUSY);
    for (const language of ["zh", "en"]) {
      await wide(`sessions ${language}`);
      await page.locator("#rows tr").first().click();
      await page.locator("#waiters li").waitFor();
      await wide(`detail ${language}`);
      if (language === "zh") saw.since = await page.locator("#detail-pairs dd", { hasText: "GMT" }).count();
      await page.click("#release");
      await wide(`confirm ${language}`);
      await page.keyboard.press("Escape");
      await page.locator("#waiters button").click();
      await wide(`dequeue ${language}`);
      await page.keyboard.press("Escape");
      await page.keyboard.press("Escape");
      await page.click("#view-recent");
      await page.locator("#events li").first().waitFor();
      await wide(`recent ${language}`);
      if (language === "zh") {
        saw.listed = await page.locator("#events li .event span:nth-child(3)").first().innerText();
        saw.caption = await page.locator("#charts-title").innerText();
      }
      await page.locator("#events button").first().click();
      await wide(`event ${language}`);
      if (language === "zh") {
        saw.title = await page.locator("#event-title").innerText();
        saw.time = await page.locator("#event-pairs dd").first().innerText();
      }
      await page.keyboard.press("Escape");
      await page.click("#view-sessions");
      await page.click("#language");
    }
    return saw;
  },

  /** Whoever comes under another name is told why there is nothing to see. */
  async stranger(page) {
    const there = new URL(admin);
    there.hostname = "elsewhere.test";
    await page.goto(there.href);
    await page.locator("#refused-gate").waitFor();
    return { said: await page.locator("#refused-gate").innerText(), data: await page.locator("#data").isVisible() };
  },

  /** More sessions than anybody reads. */
  async many(page) {
    const saw = {};
    await letIn(page);
    await page.locator("#more-words", { hasText: "shown" }).waitFor();
    const counts = async () => [await page.locator("#rows tr").count(), await page.locator("#more-words").innerText(), await page.locator("#count").innerText()];
    saw.first = await counts();
    await page.click("#more-button");
    await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 200);
    saw.keys = await page.evaluate(() => new Set([...document.querySelectorAll("#rows .session")].map((one) => one.textContent)).size);
    await page.fill("#search", "s1100");
    await page.waitForFunction(() => document.querySelectorAll("#rows tr").length === 1);
    saw.found = await texts(page.locator("#rows .session"));
    saw.holder = await row(page, "s1100").locator("td").nth(3).innerText();
    await row(page, "s1100").click();
    saw.interrupt = await page.locator("#interrupt").isDisabled();
    return saw;
  },
};

async function main() {
  // Its sandbox is not to be had as root, which is what builds in containers run as.
  const args = ["--no-sandbox", "--host-resolver-rules=MAP elsewhere.test 127.0.0.1"];
  const browser = await chromium.launch({ executablePath: process.env.SERIATIM_TEST_CHROMIUM, args });
  const locale = what === "looks" || what === "phone" ? "zh-CN" : "en-US";
  const context = await browser.newContext({ locale, timezoneId: "Asia/Shanghai", colorScheme: "light", permissions: ["clipboard-read", "clipboard-write"] });
  const page = await context.newPage();
  const asked = new Set(), wrong = [];
  page.on("request", (request) => asked.add(new URL(request.url()).origin));
  page.on("request", (request) => token && request.url().includes(token) && wrong.push(`token in ${request.url()}`));
  // A refusal and a lost connection are told by the browser itself, too.
  const isExpected = (text) => /status of 40[134]|ERR_INTERNET_DISCONNECTED/.test(text);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && !isExpected(message.text()) && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(String(error)));
  const saw = await SCENES[what](page, context);
  await browser.close();
  saw.asked = [...asked].filter((origin) => !origin.startsWith("data"));
  saw.wrong = wrong;
  console.log(JSON.stringify(saw));
  process.exit(); // turns that nobody let go would keep it
}

main();
