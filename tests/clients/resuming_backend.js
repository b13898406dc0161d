// An agent whose clients come back: the server route of the AI SDK's quickstart, chat completions, and events with ids.
//
// POST /go/{session} lets the session's turn send its next piece; GET /seen/{session} says how its turns ended.

const { createServer } = require("node:http");
const { Readable } = require("node:stream");
const { json } = require("node:stream/consumers");

const { convertToModelMessages, createUIMessageStreamResponse, streamText, toUIMessageStream } = require("ai");
const { MockLanguageModelV4 } = require("ai/test");

const PIECES = ["Hel", "lo, ", "世界", " 👋"];

// Of each session: its turns, and who waits for a piece.
const sessions = new Map();

function sessionOf(id) {
  if (!sessions.has(id)) sessions.set(id, { turns: [], free: 0, waiting: [] });
  return sessions.get(id);
}

// Waits for a `POST /go/{session}`; false if the caller leaves before.
async function gate(id, signal) {
  const session = sessionOf(id);
  if (session.free > 0) return (session.free -= 1), !signal?.aborted;
  return new Promise((next) => {
    session.waiting.push(next);
    signal?.addEventListener("abort", () => {
      session.waiting = session.waiting.filter((other) => other !== next);
      next(false);
    });
  });
}

function go(id) {
  const next = sessionOf(id).waiting.shift();
  if (next) next(true);
  else sessionOf(id).free += 1;
}

// The pieces of a turn's answer, each when it may be sent. A turn is `left` if its caller went before its end.
async function* turn(id, what, signal) {
  const record = { ...what, end: "running" };
  sessionOf(id).turns.push(record);
  for (const piece of PIECES) {
    yield piece;
    if (!(await gate(id, signal))) {
      record.end = "left";
      return;
    }
  }
  record.end = "whole";
}

function model(id) {
  async function* parts(signal) {
    yield { type: "stream-start", warnings: [] };
    yield { type: "text-start", id: "t" };
    for await (const delta of turn(id, {}, signal)) yield { type: "text-delta", id: "t", delta };
    yield { type: "text-end", id: "t" };
    const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };
    yield { type: "finish", finishReason: { unified: "stop", raw: "stop" }, usage };
  }
  const doStream = async ({ abortSignal }) => ({ stream: ReadableStream.from(parts(abortSignal)) });
  return new MockLanguageModelV4({ doStream });
}

// The route of the quickstart "Next.js App Router", which reads no id. Only the model of the test needs it.
async function quickstart(req) {
  const { messages, id } = await req.json();

  const result = streamText({
    model: model(id),
    messages: await convertToModelMessages(messages),
  });

  return createUIMessageStreamResponse({
    stream: toUIMessageStream({ stream: result.stream }),
  });
}

// The same with the abort signal of the guide "Stopping Streams".
async function stoppable(req) {
  const { messages, id } = await req.json();

  const result = streamText({
    model: model(id),
    messages: await convertToModelMessages(messages),
    abortSignal: req.signal,
  });

  return createUIMessageStreamResponse({
    stream: toUIMessageStream({ stream: result.stream }),
  });
}

// Serves a route that is written for the web's Request and Response, as Next.js does.
async function asOnTheWeb(route, request, response) {
  const left = new AbortController();
  response.on("close", () => left.abort());
  const options = { method: "POST", body: Readable.toWeb(request), duplex: "half", signal: left.signal };
  const answer = await route(new Request("http://localhost/api/chat", options));
  response.writeHead(answer.status, Object.fromEntries(answer.headers));
  try {
    for await (const bytes of answer.body) response.write(bytes);
  } catch (error) {
    // The route has nobody to answer any more.
    if (!left.signal.aborted) throw error;
  }
  response.end();
}

async function completions(request, response) {
  const { stream } = await json(request);
  const what = { retry: request.headers["x-stainless-retry-count"] };
  const whole = { id: "chat_1", created: 1, model: "test" };
  const pieces = turn(request.headers["x-session-id"], what);
  if (stream) {
    response.writeHead(200, { "content-type": "text/event-stream" });
    const chunk = (delta, finish_reason) => {
      const choices = [{ index: 0, delta, finish_reason }];
      response.write(`data: ${JSON.stringify({ ...whole, object: "chat.completion.chunk", choices })}\n\n`);
    };
    for await (const content of pieces) chunk({ content }, null);
    chunk({}, "stop");
    response.end("data: [DONE]\n\n");
    return;
  }
  // The head goes out while the agent works.
  response.writeHead(200, { "content-type": "application/json" });
  response.write("{");
  let content = "";
  for await (const piece of pieces) content += piece;
  const choices = [{ index: 0, message: { role: "assistant", content }, finish_reason: "stop" }];
  response.end(JSON.stringify({ ...whole, object: "chat.completion", choices }).slice(1));
}

// A client that lost its connection is back soon.
async function agent(request, response) {
  const { session_id: id } = await json(request);
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write("retry: 20\n\n");
  let number = 0;
  for await (const piece of turn(id, {})) response.write(`id: ${number++}\ndata: ${piece}\n\n`);
  response.end();
}

async function serve(request, response) {
  const { pathname } = new URL(request.url, "http://localhost");
  const [, first, id] = pathname.split("/");
  if (first === "go") {
    go(id);
    response.end("{}");
  } else if (first === "seen") {
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(sessionOf(id).turns));
  } else if (pathname === "/v1/chat/completions") await completions(request, response);
  else if (pathname === "/agent") await agent(request, response);
  else if (pathname === "/api/chat") await asOnTheWeb(quickstart, request, response);
  else if (pathname === "/stoppable/api/chat") await asOnTheWeb(stoppable, request, response);
  else response.writeHead(404).end();
}

const server = createServer(serve);
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
