// The AI SDK 6 in Node's own HTTP server, with the server routes of its guides for useChat, one for each value of ?guide=.
import { createServer } from "node:http";
import { json } from "node:stream/consumers";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { consumeStream, convertToModelMessages, streamText } from "ai";

const model = createOpenAICompatible({ name: "fake", baseURL: process.env.MODEL, apiKey: "none" })("fake");

async function answer(request, response) {
  const { messages } = await json(request);
  const result = streamText({ model, messages: await convertToModelMessages(messages) });
  const guide = new URL(request.url, "http://localhost").searchParams.get("guide");
  if (guide === "disconnects") result.consumeStream(); // no await
  // "Chatbot Resume Streams" reads a copy of the stream to its end.
  const copy = guide === "resumable" ? { consumeSseStream: consumeStream } : {};
  result.pipeUIMessageStreamToResponse(response, copy);
}

createServer(answer).listen(Number(process.env.PORT), "127.0.0.1");
