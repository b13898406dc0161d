// The server routes of the SDK's guides, one for each value of ?guide=. The client sends the last message only.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { convertToModelMessages, createUIMessageStreamResponse, generateId, streamText, toUIMessageStream } from "ai";
import { after } from "next/server";
import { readChat, saveChat } from "../../chats.js";
import { context } from "../../streams.js";

const model = createOpenAICompatible({ name: "fake", baseURL: process.env.MODEL, apiKey: "none" })("fake");

/** "Chatbot" with "Chatbot Message Persistence". */
async function persistence(id, messages) {
  const result = streamText({ model, messages: await convertToModelMessages(messages) });
  return createUIMessageStreamResponse({
    stream: toUIMessageStream({
      stream: result.stream,
      originalMessages: messages,
      generateMessageId: generateId,
      onEnd: ({ messages }) => {
        saveChat({ id, messages });
      },
    }),
  });
}

/** "Handling client disconnects". */
async function disconnects(id, messages) {
  const result = streamText({ model, messages: await convertToModelMessages(messages) });
  result.consumeStream(); // no await
  return createUIMessageStreamResponse({
    stream: toUIMessageStream({
      stream: result.stream,
      originalMessages: messages,
      generateMessageId: generateId,
      onEnd: ({ messages }) => {
        saveChat({ id, messages });
      },
    }),
  });
}

/** "Chatbot Resume Streams". */
async function resumable(id, messages) {
  saveChat({ id, messages, activeStreamId: null });
  const result = streamText({ model, messages: await convertToModelMessages(messages) });
  return createUIMessageStreamResponse({
    stream: toUIMessageStream({
      stream: result.stream,
      originalMessages: messages,
      generateMessageId: generateId,
      onEnd: ({ messages }) => {
        saveChat({ id, messages, activeStreamId: null });
      },
    }),
    async consumeSseStream({ stream }) {
      const streamId = generateId();
      await context(after).createNewResumableStream(streamId, () => stream);
      saveChat({ id, activeStreamId: streamId });
    },
  });
}

const GUIDES = { persistence, disconnects, resumable };

export async function POST(req) {
  const { message, id } = await req.json();
  const chat = await readChat(id);
  return GUIDES[new URL(req.url).searchParams.get("guide")](id, [...chat.messages, message]);
}
