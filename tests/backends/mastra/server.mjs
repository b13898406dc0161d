// A Mastra server with two agents, whose memory is in LibSQL, as its guide to server adapters sets it up.
import { serve } from "@hono/node-server";
import { Agent } from "@mastra/core/agent";
import { Mastra } from "@mastra/core/mastra";
import { MastraServer } from "@mastra/hono";
import { LibSQLStore } from "@mastra/libsql";
import { Memory } from "@mastra/memory";
import { Hono } from "hono";

const agent = (id) =>
  new Agent({
    id,
    name: id,
    instructions: "Answer.",
    model: { id: "custom/fake", url: process.env.MODEL, apiKey: "none" },
    memory: new Memory(),
  });
const mastra = new Mastra({
  agents: { chat: agent("chat"), other: agent("other") },
  storage: new LibSQLStore({ id: "store", url: "file:memory.db" }),
});
const app = new Hono();
await new MastraServer({ app, mastra }).init();
serve({ fetch: app.fetch, hostname: "127.0.0.1", port: Number(process.env.PORT) });
