// Clients from npm whose turn waits behind another one at URL. Prints what each of them shows, as JSON.
//
// Usage: node waiting_client.js URL plain|wait|fail. `plain`: no other turn; `wait`: the other turn ends while the
// client waits; `fail`: it doesn't.

const { randomUUID } = require("node:crypto");

const { HttpAgent } = require("@ag-ui/client");
const OpenAI = require("openai");

const [url, what] = process.argv.slice(2);

// A fetch for a client, which notes when the head of a response has come.
function watched() {
  let note;
  const came = new Promise((done) => (note = done));
  const own = async (...request) => {
    const response = await fetch(...request);
    if ((response.headers.get("content-type") ?? "").includes("event-stream")) note();
    return response;
  };
  return { own, came };
}

// Runs the client with the other turn of its session. If that ends, it does after the client has the head of its
// response.
async function behindAnother(session, came, saw, client) {
  if (what === "plain") return client();
  const leave = new AbortController();
  const held = await fetch(`${url}/hold/${session}`, { method: "POST", signal: leave.signal });
  const reader = held.body.getReader();
  await reader.read();
  const end = async () => {
    await came;
    const { turns } = await (await fetch(`${url}/seen/${session}`)).json();
    saw.before = turns.map((turn) => turn.kind);
    await fetch(`${url}/go/${session}`, { method: "POST" });
    while (!(await reader.read()).done);
  };
  await Promise.all([client(), what === "wait" ? end() : undefined]);
  leave.abort();
}

async function openai() {
  const [session, saw, { own, came }] = [randomUUID(), {}, watched()];
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "k", fetch: own });
  await behindAnother(session, came, saw, async () => {
    try {
      const stream = await client.chat.completions.create(
        { model: "test", stream: true, messages: [{ role: "user", content: "hi" }] },
        { headers: { "x-session-id": session } },
      );
      saw.shows = "";
      for await (const chunk of stream) saw.shows += chunk.choices[0].delta.content ?? "";
    } catch (error) {
      saw.error = [error.constructor.name, error.message, error.code ?? null];
    }
  });
  return saw;
}

async function agUi() {
  const [session, saw, { own, came }] = [randomUUID(), {}, watched()];
  const agent = new HttpAgent({ url: `${url}/agent`, threadId: session, fetch: own });
  agent.messages = [{ id: "1", role: "user", content: "hi" }];
  await behindAnother(session, came, saw, async () => {
    try {
      const told = (saw.told = {});
      const { newMessages } = await agent.runAgent(
        {},
        {
          onRunErrorEvent: ({ event }) => void (told.runErrorEvent = [event.message, event.code]),
          onRunFailed: ({ error }) => void (told.runFailed = error.message),
        },
      );
      saw.shows = newMessages.map((message) => message.content).join("");
    } catch (error) {
      saw.error = [error.constructor.name, error.message];
    }
  });
  return saw;
}

async function main() {
  // A client that logs an error must not disturb the line of JSON.
  console.error = console.warn = () => {};
  const [one, other] = await Promise.all([openai(), agUi()]);
  process.stdout.write(JSON.stringify({ openai: one, ag_ui: other }));
  process.exit();
}

main();
