// Koa, with koa-body and koa-router. Argument: the port.
"use strict";
const Koa = require("koa");
const Router = require("koa-router");
const { koaBody } = require("koa-body");
const { ran } = require("./record.js");

const app = new Koa();
const router = new Router();

// Of a request that is no turn.
const NONE = Symbol();
const turn = (route, session, more) => (context) => {
  const read = session(context);
  if (read === NONE) return void (context.status = 204);
  if (Number.isNaN(read)) return context.throw(400);
  context.body = ran(context, route, read, more?.(context));
};
const all = koaBody({ multipart: true });
const form = koaBody({ multipart: true, json: false });
const json = koaBody({ urlencoded: false, text: false });
const body = (context) => {
  const text = context.request.body;
  return typeof text === "string" ? JSON.parse(text) : text;
};
const session = (context) => body(context)?.session_id;
const action = (context) => body(context)?.action;
const query = (context) => context.query.session_id;
const uuid = (text) => (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toLowerCase() : NaN);

router.post("/chat", all, turn("chat", session));
router.post("/both", all, turn("both", session));
router.post("/json", json, turn("json", session));
router.post("/form", form, turn("form", session));
router.get("/query", turn("query", query));
router.put("/put", turn("put", query));
router.post("/header", turn("header", (context) => context.get("x-session-id"), (context) => ({
  user: context.get("x-user-id") || null,
  forwarded: context.get("x-forwarded-for") || null,
})));
router.post("/cookie", turn("cookie", (context) => context.cookies.get("session_id")));
router.all("/thread/:id", turn("thread", (context) => context.params.id));
router.post("/path/:id/runs", turn("runs", (context) => context.params.id));
router.post("/mode/:id", turn("mode", (context) => (context.get("x-mode") === "chat" ? context.params.id : NONE)));
router.post("/halt/:id", turn("halt", (context) => (context.get("x-mode") !== "stop" ? context.params.id : NONE)));
router.post("/kind/:id", turn("kind", (context) => (context.is("application/json") ? context.params.id : NONE)));
router.post("/action", all, turn("action", (context) => (action(context) === "chat" ? session(context) : NONE)));
router.post("/command", json, turn("command", (context) => (action(context) !== "stop" ? session(context) : NONE)));
router.post("/submit", form, turn("submit", (context) => (action(context) === "chat" ? session(context) : NONE)));
router.post("/uuid", json, turn("uuid", (context) => uuid(session(context))));
router.get("/uuid/:id", turn("uuid-path", (context) => uuid(context.params.id)));
router.get("/uuidq", turn("uuid-query", (context) => uuid(query(context))));
router.post("/int", json, turn("int", (context) => parseInt(session(context), 10)));
router.get("/int/:id", turn("int-path", (context) => parseInt(context.params.id, 10)));
router.get("/intq", turn("int-query", (context) => Number(query(context))));
router.get("/lower", turn("lower", (context) => String(query(context) ?? "").toLowerCase()));

// A part's head may throw where nobody catches it (formidable, Content-Transfer-Encoding: 7bit).
process.on("uncaughtException", () => {});

app.silent = true;
app.use(router.routes());
app.listen(Number(process.argv[2]), "127.0.0.1");
