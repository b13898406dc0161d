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

const turn = (route, session, more) => (request, response) => {
  const read = session(request);
  if (Number.isNaN(read)) return response.sendStatus(400);
  response.json(ran(request, route, read, more?.(request)));
};
const json = express.json();
const all = [json, express.urlencoded({ extended: true }), express.text(), multer().none()];
const body = (request) => {
  const text = request.body;
  return (typeof text === "string" ? JSON.parse(text) : text)?.session_id;
};
const query = (request) => request.query.session_id;
const uuid = (text) => (/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) ? text.toLowerCase() : NaN);

app.post("/chat", all, turn("chat", body));
app.post("/both", all, turn("both", body));
app.post("/json", json, turn("json", body));
app.post("/form", all.slice(1), turn("form", body));
app.get("/query", turn("query", query));
app.put("/put", turn("put", query));
app.post("/header", turn("header", (request) => request.get("x-session-id"), (request) => ({
  user: request.get("x-user-id") ?? null,
  forwarded: request.get("x-forwarded-for") ?? null,
})));
app.post("/cookie", turn("cookie", (request) => request.cookies.session_id));
app.all("/thread/:id", turn("thread", (request) => request.params.id));
app.post("/path/:id/runs", turn("runs", (request) => request.params.id));
app.post("/uuid", json, turn("uuid", (request) => uuid(body(request))));
app.get("/uuid/:id", turn("uuid-path", (request) => uuid(request.params.id)));
app.get("/uuidq", turn("uuid-query", (request) => uuid(query(request))));
app.post("/int", json, turn("int", (request) => parseInt(body(request), 10)));
app.get("/int/:id", turn("int-path", (request) => parseInt(request.params.id, 10)));
app.get("/intq", turn("int-query", (request) => Number(query(request))));
app.get("/lower", turn("lower", (request) => String(query(request) ?? "").toLowerCase()));
// Stack traces say nothing here.
app.use((error, request, response, next) => response.sendStatus(error.status ?? 500));

app.listen(Number(port), "127.0.0.1");
