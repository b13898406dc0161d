// Checks the site in target/site, which `.ci/site` has built: each link leads to a page, an anchor or a file of the repository that is
// there; each error code has its section; and the search finds what it should, also in Chinese. It runs in the repository's folder.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const top = process.cwd();
const site = join(top, "target/site");
const { default: config, repository, slugify } = await import(pathToFileURL("docs/.vitepress/config.mjs"));
const { default: MiniSearch } = await import(pathToFileURL("target/site-node/node_modules/minisearch/dist/es/index.js"));
const wrong = [];
const read = (...path) => readFileSync(join(...path), "utf8");

const unescape = (text) => text.replaceAll("&quot;", '"').replaceAll("&#39;", "'").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
const attributes = (html, pattern) => [...html.matchAll(pattern)].map(([, value]) => unescape(value));
const ids = new Map();
const anchorsOf = (file) => {
  if (!ids.has(file)) ids.set(file, new Set(attributes(read(site, file), /\sid="([^"]*)"/g)));
  return ids.get(file);
};
/** The anchors of a page of the repository. */
const headings = (file) => new Set([...read(file).replace(/^```[^]*?^```/gm, "").matchAll(/^#+ (.+)$/gm)].map(([, text]) => slugify(text)));

const pages = readdirSync(site, { recursive: true }).filter((file) => file.endsWith(".html"));
let links = 0;
for (const page of pages) {
  for (const link of attributes(read(site, page), /\s(?:href|src)="([^"]*)"/g)) {
    links += 1;
    const here = new URL(`http://site${config.base}${page}`);
    const url = new URL(link, here);
    const anchor = decodeURIComponent(url.hash.slice(1));
    if (link.startsWith(`${repository}/blob/main/`)) {
      const path = link.slice(`${repository}/blob/main/`.length).replace(/#.*/, "");
      if (!existsSync(join(top, path))) wrong.push(`${page}: ${link}: the repository has no ${path}`);
      else if (anchor && !headings(join(top, path)).has(anchor)) wrong.push(`${page}: ${link}: no such heading`);
    } else if (url.host === here.host) {
      const path = decodeURIComponent(url.pathname);
      const file = path.slice(config.base.length) || "index.html";
      const there = [file, `${file}index.html`].find((name) => name && !name.endsWith("/") && existsSync(join(site, name)));
      if (!path.startsWith(config.base) || !there) wrong.push(`${page}: ${link}: no such page`);
      else if (anchor && !anchorsOf(there).has(anchor)) wrong.push(`${page}: ${link}: no such anchor`);
    }
  }
}

// The chart names its icon by its address on the site.
const icon = /^icon: (.+)$/m.exec(read(top, "helm/seriatim/Chart.yaml"))[1].replace("https://seriatim.example.com/", "");
if (!existsSync(join(site, icon))) wrong.push(`Chart.yaml: the site has no icon ${icon}`);

// The reasons of the reference, which the tests of the program hold against it, and those that occur only inside a stream.
const codes = [
  ...attributes(read(top, "docs/error-responses.md"), /^\| `([a-z_]+)` \| [^|]+ \| [^|]+ \|/gm),
  "upstream_error", "not_an_event_stream", "upstream_aborted", "idle_timeout",
];
for (const page of ["troubleshooting.html", "zh/troubleshooting.html"])
  for (const code of codes) if (!anchorsOf(page).has(code)) wrong.push(`${page} has no section ${code}`);
if (codes.length < 30) wrong.push(`only ${codes.length} codes were found`);

// The search of the page, with its own index and its own words.
async function find(locale, words) {
  const [file] = readdirSync(join(site, "assets/chunks")).filter((name) => name.startsWith(`@localSearchIndex${locale}.`));
  const { default: index } = await import(`data:text/javascript,${encodeURIComponent(read(site, "assets/chunks", file))}`);
  const { tokenize } = config.themeConfig.search.options.miniSearch.options;
  const options = { fields: ["title", "titles", "text"], storeFields: ["title", "titles"], tokenize };
  const boost = { title: 4, text: 2, titles: 1 };
  return MiniSearch.loadJSON(index, { ...options, searchOptions: { fuzzy: 0.2, prefix: true, boost } }).search(words);
}
for (const [locale, words, expected] of [
  ["root", "session_busy", /troubleshooting.html#session_busy$/],
  ["root", "nginx", /ingress.html#nginx$/],
  ["zh", "会话", /^\/.*zh\/sessions.html/],
  ["zh", "故障转移", /zh\/troubleshooting.html#(store_unavailable|lock_lost)$/],
]) {
  const [first] = await find(locale, words);
  if (!expected.test(first?.id)) wrong.push(`the search for ${words} finds ${first?.id} first, not ${expected}`);
}

console.log(wrong.join("\n") || `${pages.length} pages, ${links} links, ${codes.length} codes`);
process.exitCode = wrong.length ? 1 : 0;
