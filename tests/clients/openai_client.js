// The `openai` package for Node against URL. Prints what it saw, as JSON.
//
// Usage: node openai_client.js URL observe|contend. `observe` is the same with the proxy between and
// without; `contend` is what a session's lock makes of two turns at once.

const OpenAI = require("openai");

const [url, what] = process.argv.slice(2);
const options = { baseURL: `${url}/v1`, apiKey: "k" };
const client = new OpenAI(options);

const turn = (text = "hi") => ({ model: "test", messages: [{ role: "user", content: text }] });
const streamed = (text) => ({ ...turn(text), stream: true });
const session = (name) => ({ headers: { "x-session-id": name } });
const go = (name) => fetch(`${url}/go/${name}`, { method: "POST" });
const seen = async (name) => (await fetch(`${url}/seen/${name}`)).json();

async function until(condition) {
  for (const end = Date.now() + 20_000; !(await condition()); ) {
    if (Date.now() > end) throw new Error(`waited in vain until ${condition}`);
    await new Promise((next) => setTimeout(next, 10));
  }
}
const left = async (name) => (await seen(name)).turns[0].end === "left";

async function observe() {
  const saw = {};
  // Each event is let go by the one before: nothing in between may hold one back.
  const stream = await client.chat.completions.create(streamed(), session("chat")).withResponse();
  saw.type = stream.response.headers.get("content-type");
  saw.id = stream.request_id;
  saw.chat = [];
  for await (const chunk of stream.data) {
    saw.chat.push(chunk);
    await go("chat");
  }
  const answer = await client.chat.completions.create(turn("limited"), session("plain"));
  saw.retried = [answer, answer._request_id, await seen("plain")];
  const refused = client.chat.completions.create(turn("refused"), session("refused"));
  saw.refused = await refused.catch((error) => [error.message, error.code, error.requestID]);

  saw.responses = [];
  const responses = client.responses.stream({ model: "test", input: "hi", conversation: "conv" });
  for await (const event of responses) {
    saw.responses.push(event);
    await go("conv");
  }
  saw.final = (await responses.finalResponse()).output_text;
  const leaving = await client.chat.completions.create(streamed(), session("left"));
  for await (const chunk of leaving) {
    saw.first = chunk;
    break; // which aborts the request
  }
  await until(() => left("left"));
  saw.seen = [await seen("chat"), await seen("conv"), await seen("left")];
  return saw;
}

async function contend() {
  const saw = { statuses: [], asked: [], paused: [] };
  const told = async (...request) => {
    const answer = await fetch(...request);
    saw.statuses.push(answer.status);
    if (answer.status === 429) saw.asked.push(Number(answer.headers.get("retry-after-ms")));
    return answer;
  };
  // The package waits with this before it tries again. Its time-outs are not meant.
  const { setTimeout } = globalThis;
  globalThis.setTimeout = (call, after, ...rest) => {
    if (after === saw.asked.at(-1)) saw.paused.push(after);
    return setTimeout(call, after, ...rest);
  };
  const second = new OpenAI({ ...options, fetch: told });
  const stream = await client.chat.completions.create(streamed(), session("s"));
  const running = stream[Symbol.asyncIterator]();
  saw.first = (await running.next()).value.choices[0].delta.content;
  const busy = second.chat.completions.create(turn(), { ...session("s"), maxRetries: 0 });
  saw.busy = await busy.catch((error) => [
    error.constructor.name,
    error.status,
    error.message,
    error.headers.get("x-seriatim-error"),
    error.headers.get("retry-after"),
  ]);
  // The longer the first turn runs, the longer is the time. Below a second it would be a whole one.
  await until(async () => {
    await second.chat.completions.create(turn(), { ...session("s"), maxRetries: 0 }).catch(() => {});
    return saw.asked.at(-1) > 1000;
  });
  for (const noted of [saw.statuses, saw.asked, saw.paused]) noted.length = 0;
  // The package's own retries reach the session. On a busy machine the first turn may outlast one of them.
  const retrying = second.chat.completions.create(turn(), { ...session("s"), maxRetries: 20 });
  await until(() => saw.statuses.length === 1);
  for (let n = 0; n < 4; n += 1) await go("s");
  for (let next; !(next = await running.next()).done; )
    saw.first += next.value.choices[0].delta.content ?? "";
  saw.second = (await retrying).choices[0].message.content;
  saw.seen = await seen("s");
  // One that leaves frees its session; the next one's retries reach it.
  const leaving = await client.chat.completions.create(streamed(), session("gone"));
  for await (const _ of leaving) break;
  await until(() => left("gone"));
  const after = await client.chat.completions.create(turn(), session("gone"));
  saw.after = after.choices[0].message.content;
  saw.gone = await seen("gone");
  return saw;
}

({ observe, contend })[what]().then((saw) => {
  console.log(JSON.stringify(saw));
  // Kept connections would keep it alive.
  process.exit(0);
});
