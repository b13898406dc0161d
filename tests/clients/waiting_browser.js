// Clients in a browser whose turn waits behind another one at URL. Prints what each of them shows, as JSON.
//
// Usage: node waiting_browser.js URL plain|wait|fail [URL plain|wait|fail]... `plain`: no other turn; `wait`: the other
// turn ends while the client waits; `fail`: it doesn't. SERIATIM_TEST_CHROMIUM is the browser. The line has a list of
// what was seen at each URL.

const { randomUUID } = require("node:crypto");
const path = require("node:path");

const esbuild = require("esbuild");
const { chromium } = require("playwright-core");

const [, , ...runs] = process.argv;
const CLIENTS = ["viaUseChat", "viaEventSource", "viaFetch"];

async function main() {
  const bundle = await esbuild.build({
    entryPoints: [path.join(__dirname, "waiting_page.js")],
    bundle: true,
    write: false,
    define: { "process.env.NODE_ENV": '"production"' },
    nodePaths: [process.env.NODE_PATH],
    logLevel: "error",
  });
  // Its sandbox is not to be had as root, which is what builds in containers run as.
  const executablePath = process.env.SERIATIM_TEST_CHROMIUM;
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const all = [];
  while (runs.length > 0) {
    const [url, what] = runs.splice(0, 2);
    const page = await browser.newPage();
    await page.goto(url);
    await page.addScriptTag({ content: bundle.outputFiles[0].text });
    const saw = {};
    for (const client of CLIENTS) {
      const run = ([client, what, session]) => window.behindAnother(client, what, session);
      saw[client] = await page.evaluate(run, [client, what, randomUUID()]);
    }
    saw.viaUseChat.page = await page.textContent("#root");
    await page.close();
    all.push(saw);
  }
  await browser.close();
  console.log(JSON.stringify(all));
}

main();
