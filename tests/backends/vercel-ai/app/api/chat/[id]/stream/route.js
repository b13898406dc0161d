// Resumes the stream of a chat.
import { UI_MESSAGE_STREAM_HEADERS } from "ai";
import { after } from "next/server";
import { readChat } from "../../../../chats.js";
import { context } from "../../../../streams.js";

export async function GET(_, { params }) {
  const chat = await readChat((await params).id);
  if (chat.activeStreamId == null) return new Response(null, { status: 204 });
  return new Response(await context(after).resumeExistingStream(chat.activeStreamId), { headers: UI_MESSAGE_STREAM_HEADERS });
}
