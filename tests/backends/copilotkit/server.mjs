// CopilotKit's runtime with its built-in agent, as the quickstart sets it up: with many routes, and with a single one.
import { createOpenAI } from "@ai-sdk/openai";
import { BuiltInAgent, CopilotRuntime, InMemoryAgentRunner, createCopilotHonoHandler } from "@copilotkit/runtime/v2";
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const model = createOpenAI({ baseURL: process.env.MODEL, apiKey: "none" }).chat("fake");
const runtime = new CopilotRuntime({
  agents: { default: new BuiltInAgent({ model }), other: new BuiltInAgent({ model }) },
  runner: new InMemoryAgentRunner(),
});
const app = new Hono();
app.route("/", createCopilotHonoHandler({ runtime, basePath: "/api/copilotkit" }));
app.route("/", createCopilotHonoHandler({ runtime, basePath: "/copilot", mode: "single-route" }));
serve({ fetch: app.fetch, hostname: "127.0.0.1", port: Number(process.env.PORT) });
