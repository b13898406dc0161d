// Hono on Node: JSON where it is declared, or else the form. Argument: the port.
"use strict";
const { Hono } = require("hono");
const { getCookie } = require("hono/cookie");
const { HTTPException } = require("hono/http-exception");
const { serve } = require("@hono/node-server");
const { ran } = require("./record.js");

const app = new Hono();

// Of a request that is no turn.
const NONE = Symbol();
const turn = (route, session, more) => async (context) => {
  const read = await session(context);
  if (read === NONE) return context.body(null, 204);
  if (Number.isNaN(read)) throw new HTTPException(400);
  const request = { headers: { "x-case": context.req.header("x-case") } };
  return context.json(ran(request, route, read, more?.(context)));
};
const json = (context) => context.req.json();
const form = (context) => context.req.parseBody();
const either = (context) => (context.req.header("content-type")?.startsWith("application/json") ? json : form)(context);
const session = (body) => async (context) => (await body(context))?.session_id;
const kind = (context) => (context.req.header("content-type") ?? "").split(";")[0].trim();
const acting = (body, isTurn) => async (context) => {
  const read = await body(context);
  return isTurn(read?.action) ? read?.session_id : NONE;
};
const query = (context) => context.req.query("session_id");
const param = (context) => context.req.param("id");
const uuid = (text) => (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toLowerCase() : NaN);

app.post("/chat", turn("chat", session(either)));
app.post("/both", turn("both", session(either)));
app.post("/json", turn("json", session(json)));
app.post("/form", turn("form", session(form)));
app.get("/query", turn("query", query));
app.put("/put", turn("put", query));
app.post("/header", turn("header", (context) => context.req.header("x-session-id"), (context) => ({
  user: context.req.header("x-user-id") ?? null,
  forwarded: context.req.header("x-forwarded-for") ?? null,
})));
app.post("/cookie", turn("cookie", (context) => getCookie(context, "session_id")));
app.all("/thread/:id", turn("thread", param));
app.post("/path/:id/runs", turn("runs", param));
app.post("/mode/:id", turn("mode", (context) => (context.req.header("x-mode") === "chat" ? param(context) : NONE)));
app.post("/halt/:id", turn("halt", (context) => (context.req.header("x-mode") !== "stop" ? param(context) : NONE)));
app.post("/kind/:id", turn("kind", (context) => (kind(context) === "application/json" ? param(context) : NONE)));
app.post("/action", turn("action", acting(either, (action) => action === "chat")));
app.post("/command", turn("command", acting(json, (action) => action !== "stop")));
app.post("/submit", turn("submit", acting(form, (action) => action === "chat")));
app.post("/uuid", turn("uuid", async (context) => uuid((await json(context))?.session_id)));
app.get("/uuid/:id", turn("uuid-path", (context) => uuid(param(context))));
app.get("/uuidq", turn("uuid-query", (context) => uuid(query(context))));
app.post("/int", turn("int", async (context) => parseInt((await json(context))?.session_id, 10)));
app.get("/int/:id", turn("int-path", (context) => parseInt(param(context), 10)));
app.get("/intq", turn("int-query", (context) => Number(query(context))));
app.get("/lower", turn("lower", (context) => String(query(context) ?? "").toLowerCase()));
app.onError((error, context) => context.text("", error.status ?? 500));

serve({ fetch: app.fetch, port: Number(process.argv[2]), hostname: "127.0.0.1" });
