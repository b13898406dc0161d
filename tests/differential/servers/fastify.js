// Fastify, with its own plugins for forms and cookies. Argument: the port.
"use strict";
const app = require("fastify")();
const { ran } = require("./record.js");

app.register(require("@fastify/cookie"));

// Of a request that is no turn.
const NONE = Symbol();
const turn = (route, session, more) => async (request, reply) => {
  const read = session(request);
  if (read === NONE) return reply.code(204).send();
  if (Number.isNaN(read)) return reply.code(400).send();
  return ran(request, route, read, more?.(request));
};
const body = (request) => {
  const text = request.body;
  return typeof text === "string" ? JSON.parse(text) : text;
};
const session = (request) => body(request)?.session_id;
const action = (request) => body(request)?.action;
const kind = (request) => (request.headers["content-type"] ?? "").split(";")[0].trim();
const query = (request) => request.query.session_id;
const uuid = (text) => (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toLowerCase() : NaN);
// The framework's own check of a body that is typed; it turns "05" into 5.
const typed = (type) => ({ schema: { body: { type: "object", properties: { session_id: { type } } } } });

app.register(async (app) => {
  app.register(require("@fastify/formbody"));
  app.register(require("@fastify/multipart"), { attachFieldsToBody: "keyValues" });
  app.post("/chat", turn("chat", session));
  app.post("/both", turn("both", session));
  app.post("/form", turn("form", session));
  app.post("/action", turn("action", (request) => (action(request) === "chat" ? session(request) : NONE)));
  app.post("/submit", turn("submit", (request) => (action(request) === "chat" ? session(request) : NONE)));
});
app.register(async (app) => {
  app.post("/json", turn("json", session));
  app.get("/query", turn("query", query));
  app.put("/put", turn("put", query));
  app.post("/header", turn("header", (request) => request.headers["x-session-id"], (request) => ({
    user: request.headers["x-user-id"] ?? null,
    forwarded: request.headers["x-forwarded-for"] ?? null,
  })));
  app.post("/cookie", turn("cookie", (request) => request.cookies.session_id));
  app.all("/thread/:id", turn("thread", (request) => request.params.id));
  app.post("/path/:id/runs", turn("runs", (request) => request.params.id));
  app.post("/mode/:id", turn("mode", (request) => (request.headers["x-mode"] === "chat" ? request.params.id : NONE)));
  app.post("/halt/:id", turn("halt", (request) => (request.headers["x-mode"] !== "stop" ? request.params.id : NONE)));
  app.post("/kind/:id", turn("kind", (request) => (kind(request) === "application/json" ? request.params.id : NONE)));
  app.post("/command", turn("command", (request) => (action(request) !== "stop" ? session(request) : NONE)));
  app.post("/uuid", turn("uuid", (request) => uuid(session(request))));
  app.get("/uuid/:id", turn("uuid-path", (request) => uuid(request.params.id)));
  app.get("/uuidq", turn("uuid-query", (request) => uuid(query(request))));
  app.post("/int", typed("integer"), turn("int", session));
  app.get("/int/:id", turn("int-path", (request) => parseInt(request.params.id, 10)));
  app.get("/intq", turn("int-query", (request) => Number(query(request))));
  app.get("/lower", turn("lower", (request) => String(query(request) ?? "").toLowerCase()));
});

app.listen({ port: Number(process.argv[2]), host: "127.0.0.1" });
