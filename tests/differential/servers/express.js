// Express, with the parsers that its guide names. Arguments: the package (express4 or express5), the port.
"use strict";
const [, , name, port] = process.argv;
const express = require(name);
const cookies = require("cookie-parser");
const multer = require("multer");
const override = require("method-override");
const { ran } = require("./record.js");

const app = express();
app.set("query parser", "extended");
app.use(override("X-HTTP-Method-Override"));
app.use(cookies());

// Of a request that is no turn.
const NONE = Symbol();
const turn = (route, session, more) => (request, response) => {
  const read = session(request);
  if (read === NONE) return response.end();
  if (Number.isNaN(read)) return response.sendStatus(400);
  response.json(ran(request, route, read, more?.(request)));
};
const json = express.json();
const all = [json, express.urlencoded({ extended: true }), express.text(), multer().none()];
const body = (request) => {
  const text = request.body;
  return typeof text === "string" ? JSON.parse(text) : text;
};
const session = (request) => body(request)?.session_id;
const action = (request) => body(request)?.action;
const query = (request) => request.query.session_id;
const uuid = (text) => (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toLowerCase() : NaN);

app.post("/chat", all, turn("chat", session));
app.post("/both", all, turn("both", session));
app.post("/json", json, turn("json", session));
app.post("/form", all.slice(1), turn("form", session));
app.get("/query", turn("query", query));
app.put("/put", turn("put", query));
app.post("/header", turn("header", (request) => request.get("x-session-id"), (request) => ({
  user: request.get("x-user-id") ?? null,
  forwarded: request.get("x-forwarded-for") ?? null,
})));
app.post("/cookie", turn("cookie", (request) => request.cookies.session_id));
app.all("/thread/:id", turn("thread", (request) => request.params.id));
app.post("/path/:id/runs", turn("runs", (request) => request.params.id));
app.post("/mode/:id", turn("mode", (request) => (request.get("x-mode") === "chat" ? request.params.id : NONE)));
app.post("/halt/:id", turn("halt", (request) => (request.get("x-mode") !== "stop" ? request.params.id : NONE)));
app.post("/kind/:id", turn("kind", (request) => (request.is("application/json") ? request.params.id : NONE)));
app.post("/action", all, turn("action", (request) => (action(request) === "chat" ? session(request) : NONE)));
app.post("/command", json, turn("command", (request) => (action(request) !== "stop" ? session(request) : NONE)));
app.post("/submit", all.slice(1), turn("submit", (request) => (action(request) === "chat" ? session(request) : NONE)));
app.post("/uuid", json, turn("uuid", (request) => uuid(session(request))));
app.get("/uuid/:id", turn("uuid-path", (request) => uuid(request.params.id)));
app.get("/uuidq", turn("uuid-query", (request) => uuid(query(request))));
app.post("/int", json, turn("int", (request) => parseInt(session(request), 10)));
app.get("/int/:id", turn("int-path", (request) => parseInt(request.params.id, 10)));
app.get("/intq", turn("int-query", (request) => Number(query(request))));
app.get("/lower", turn("lower", (request) => String(query(request) ?? "").toLowerCase()));
// Stack traces say nothing here.
app.use((error, request, response, next) => response.sendStatus(error.status ?? 500));

app.listen(Number(port), "127.0.0.1");
