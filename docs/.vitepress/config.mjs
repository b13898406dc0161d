// The site of the documentation: `.ci/site` builds it, from a copy of docs/ beside the packages, in the folder of the repository.
// The pages stay readable on a code host.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";

const docs = resolve("docs");
const copy = resolve("target/site-node/docs");
export const repository = process.env.REPOSITORY ?? "https://git.example.com/seriatim";
const site = process.env.SITE ?? "https://seriatim.example.com";

// File → page, where the names differ.
const rewrites = { "README.md": "questions.md", "why-not.zh-CN.md": "zh/why-not.md" };

// Every page has its place here. A path with `../` is a file of the repository.
const english = {
  Start: ["index", "install", "quick-start", "../examples/README", "README", "why-not"],
  "Which requests are turns": ["backends", "sessions", "configuration"],
  "When a session is busy": ["waiting", "resume", "repeats", "nested-calls", "error-responses", "troubleshooting", "cors"],
  Deployment: ["kubernetes", "gateway", "ingress", "security", "redis", "several-environments", "capacity", "costs"],
  Operation: ["admin", "command-line", "logs", "metrics", "tracing", "alerts", "failures", "http"],
  Versions: ["stability", "upgrading", "migration", "../CHANGELOG"],
  "The code": ["architecture", "development", "releasing", "../CONTRIBUTING", "../SECURITY"],
};
const chinese = {
  开始: ["zh/index", "zh/install", "zh/quick-start", "why-not.zh-CN"],
  使用: ["zh/sessions", "zh/waiting", "zh/troubleshooting", "zh/kubernetes"],
  "更多（英文）": ["README", "configuration", "backends", "ingress", "security", "error-responses"],
};

/** It throws if there is no such file. */
const titleOf = (file) => /^# (.+)$/m.exec(readFileSync(join(docs, file), "utf8"))[1];

function sidebar(groups, titles) {
  const entry = (name) => ({ text: titles[name] ?? titleOf(`${name}.md`), link: address(`${name}.md`) });
  return Object.entries(groups).map(([text, names]) => ({ text, items: names.map(entry) }));
}

/** Where a file is on the site, by its path from docs/; what is outside of docs/ is in the repository. */
function address(file) {
  return file.startsWith("../") ? `${repository}/blob/main/${file.slice(3)}` : `/${rewrites[file] ?? file}`;
}

const placed = Object.values({ ...english, ...chinese }).flat();
const homeless = readdirSync(docs, { recursive: true })
  .filter((file) => file.endsWith(".md") && !file.startsWith("."))
  .filter((file) => !placed.includes(file.slice(0, -".md".length)));
if (homeless.length) throw new Error(`docs/.vitepress/config.mjs has no place for ${homeless.join(", ")}`);

/** The anchors are those of code hosts: `#session_busy`. */
export const slugify = (heading) =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");

/** Relative links become addresses on the site or in the repository. */
function links(md) {
  md.core.ruler.push("addresses", ({ tokens, env }) => {
    const folder = dirname(env.realPath ?? env.path);
    for (const token of tokens.flatMap((block) => block.children ?? [])) {
      const [, target, anchor] = /^([^#:]+)(#.*)?$/.exec(token.type === "link_open" ? token.attrGet("href") : "") ?? [];
      if (target) token.attrSet("href", address(relative(copy, resolve(folder, decodeURI(target)))) + (anchor ?? ""));
    }
  });
}

/** Chinese has no spaces: each two signs are a word. A name such as `session_busy` is a word, and so are its parts. */
function tokenize(text) {
  const words = text.match(/\p{Script=Han}+|(?:(?!\p{Script=Han})[\p{L}\p{N}_])+/gu) ?? [];
  return words.flatMap((word) => {
    if (/\p{Script=Han}/u.test(word)) return [...word].map((sign, at, all) => sign + (all[at + 1] ?? ""));
    return word.includes("_") ? [word, ...word.split("_")] : [word];
  });
}

/** Languages of code blocks that have no colours. */
const languages = ["caddyfile", "haproxy"].map((name) => ({ name, scopeName: `text.${name}`, patterns: [] }));

/** The search in Chinese. */
const searching = {
  button: { buttonText: "搜索", buttonAriaLabel: "搜索" },
  modal: {
    displayDetails: "显示详情",
    resetButtonTitle: "清除",
    backButtonTitle: "关闭",
    noResultsText: "没有找到",
    footer: { selectText: "打开", navigateText: "选择", closeText: "关闭" },
  },
};

/** Tables have many columns, and the last one has sentences. */
const style = `
  :root { --vp-sidebar-width: 248px; }
  :root .vp-doc :is(th, td) { padding: 5px 10px; font-size: 13px; line-height: 20px; vertical-align: top; }
  :root .vp-doc td:last-child:not(:first-child) { min-width: 14em; }
  @media (min-width: 1280px) {
    :root .VPDoc .aside { max-width: 208px; padding-left: 24px; }
    :root .VPDoc.has-aside .content-container { max-width: 800px; }
    :root .VPDoc .content { padding-inline: 16px; }
  }
`;

export default {
  title: "Seriatim",
  description: "A sidecar reverse proxy for AI agents: one turn at a time for each chat session",
  base: new URL(site).pathname.replace(/\/*$/, "/"),
  outDir: resolve("target/site"),
  rewrites,
  head: [["style", {}, style]],
  markdown: { anchor: { slugify }, config: links, languages },
  themeConfig: {
    outline: [2, 3],
    externalLinkIcon: true,
    search: { provider: "local", options: { miniSearch: { options: { tokenize } }, locales: { zh: { translations: searching } } } },
  },
  locales: {
    root: {
      label: "English",
      lang: "en",
      // Few pages are in Chinese, so the switch of languages leads to the first one.
      themeConfig: { sidebar: sidebar(english, { README: "Questions", "../examples/README": "Examples" }), nav: [{ text: "Source", link: repository }], i18nRouting: false },
    },
    zh: {
      label: "简体中文",
      lang: "zh-Hans",
      description: "面向 AI 智能体的 sidecar 反向代理：同一会话的多轮对话逐轮执行",
      themeConfig: {
        // To the same page in English, if each has one.
        i18nRouting: readdirSync(join(docs, "zh")).every((file) => existsSync(join(docs, file))),
        sidebar: sidebar(chinese, {
          README: "文档目录",
          configuration: "配置参考",
          backends: "后端与预设",
          ingress: "部署在 ingress 之后",
          security: "安全",
          "error-responses": "错误响应",
        }),
        nav: [{ text: "源代码", link: repository }],
        outline: { level: [2, 3], label: "本页目录" },
        docFooter: { prev: "上一页", next: "下一页" },
        sidebarMenuLabel: "目录",
        returnToTopLabel: "回到顶部",
        langMenuLabel: "语言",
        darkModeSwitchLabel: "外观",
        lightModeSwitchTitle: "切换到浅色",
        darkModeSwitchTitle: "切换到深色",
        skipToContentLabel: "跳到正文",
      },
    },
  },
};
