// Koa, with koa-body and koa-router. Argument: the port.
"use strict";
const Koa = require("koa");
const Router = require("koa-router");
const { koaBody } = require("koa-body");
const { ran } = require("./record.js");

const app = new Koa();
const router = new Router();

const turn = (route, session, more) => (context) => {
  const read = session(context);
  if (Number.isNaN(read)) return context.throw(400);
  context.body = ran(context, route, read, more?.(context));
};
const all = koaBody({ multipart: true });
const json = koaBody({ urlencoded: false, text: false });
const body = (context) => {
  const text = context.request.body;
  return (typeof text === "string" ? JSON.parse(text) : text)?.session_id;
};
const query = (context) => context.query.session_id;
const uuid = (text) => (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toLowerCase() : NaN);

router.post("/chat", all, turn("chat", body));
router.post("/both", all, turn("both", body));
router.post("/json", json, turn("json", body));
router.post("/form", koaBody({ multipart: true, json: false }), turn("form", body));
router.get("/query", turn("query", query));
router.put("/put", turn("put", query));
router.post("/header", turn("header", (context) => context.get("x-session-id"), (context) => ({
  user: context.get("x-user-id") || null,
  forwarded: context.get("x-forwarded-for") || null,
})));
router.post("/cookie", turn("cookie", (context) => context.cookies.get("session_id")));
router.all("/thread/:id", turn("thread", (context) => context.params.id));
router.post("/path/:id/runs", turn("runs", (context) => context.params.id));
router.post("/uuid", json, turn("uuid", (context) => uuid(body(context))));
router.get("/uuid/:id", turn("uuid-path", (context) => uuid(context.params.id)));
router.get("/uuidq", turn("uuid-query", (context) => uuid(query(context))));
router.post("/int", json, turn("int", (context) => parseInt(body(context), 10)));
router.get("/int/:id", turn("int-path", (context) => parseInt(context.params.id, 10)));
router.get("/intq", turn("int-query", (context) => Number(query(context))));
router.get("/lower", turn("lower", (context) => String(query(context) ?? "").toLowerCase()));

// A part's head may throw where nobody catches it (formidable, Content-Transfer-Encoding: 7bit).
process.on("uncaughtException", () => {});

app.silent = true;
app.use(router.routes());
app.listen(Number(process.argv[2]), "127.0.0.1");
