// A chat for useChat with Vercel's AI SDK: the route POST /api/chat, and a fake model.
import { createServer } from "node:http";
import { json } from "node:stream/consumers";
import { convertToModelMessages, pipeUIMessageStreamToResponse, simulateReadableStream, streamText, toUIMessageStream } from "ai";
import { MockLanguageModelV4 } from "ai/test";

const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };

/** Says what it was told, word by word. */
const model = new MockLanguageModelV4({
  doStream: async ({ prompt }) => ({
    stream: simulateReadableStream({
      chunkDelayInMs: 500,
      chunks: [
        { type: "text-start", id: "1" },
        ...`You said: ${prompt.at(-1).content[0].text}`.split(" ").map((word) => ({ type: "text-delta", id: "1", delta: `${word} ` })),
        { type: "text-end", id: "1" },
        { type: "finish", finishReason: { unified: "stop" }, usage },
      ],
    }),
  }),
});

createServer(async (request, response) => {
  if (request.url !== "/api/chat") return response.writeHead(404).end();
  const { id, messages } = await json(request);
  const text = messages.at(-1).parts[0].text;
  // The log is the proof that no two turns of a chat overlap.
  console.log(`${id} begins: ${text}`);
  const result = streamText({ model, messages: await convertToModelMessages(messages) });
  const stream = toUIMessageStream({ stream: result.stream, onEnd: () => console.log(`${id} ends: ${text}`) });
  pipeUIMessageStreamToResponse({ response, stream });
}).listen(8000, "127.0.0.1");
