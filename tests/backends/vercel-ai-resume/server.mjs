// The AI SDK 7 in Hono, with the server route of its guide "Stopping Streams".
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { serve } from "@hono/node-server";
import { convertToModelMessages, createUIMessageStreamResponse, streamText, toUIMessageStream } from "ai";
import { Hono } from "hono";

const model = createOpenAICompatible({ name: "fake", baseURL: process.env.MODEL, apiKey: "none" })("fake");
const app = new Hono();

app.post("/api/chat", async (context) => {
  const { messages } = await context.req.json();
  const result = streamText({
    model,
    messages: await convertToModelMessages(messages),
    // forward the abort signal:
    abortSignal: context.req.raw.signal,
  });
  return createUIMessageStreamResponse({ stream: toUIMessageStream({ stream: result.stream }) });
});

serve({ fetch: app.fetch, hostname: "127.0.0.1", port: Number(process.env.PORT) });
