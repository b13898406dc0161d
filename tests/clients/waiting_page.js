// What runs in the page of waiting_browser.js: `useChat`, an `EventSource`, and `fetch` with a reader written by hand.

import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { createElement, useEffect, useRef } from "react";
import { createRoot } from "react-dom/client";

// Shows the text of the chat, or its error, as a page would.
window.viaUseChat = (session, noteHead) =>
  new Promise((done) => {
    const own = async (...request) => {
      const response = await fetch(...request);
      noteHead();
      return response;
    };
    const transport = new DefaultChatTransport({ fetch: own });
    function Chat() {
      const { messages, sendMessage, status, error } = useChat({ id: session, transport });
      const began = useRef(false);
      const texts = messages.filter((message) => message.role === "assistant").flatMap((message) => message.parts);
      const shows = texts.map((part) => part.text ?? "").join("");
      useEffect(() => {
        if (!began.current) sendMessage({ text: "hi" });
        began.current = true;
      }, []);
      useEffect(() => {
        if (status === "error") done({ shows, error: [error.name, error.message] });
        if (status === "ready" && shows) done({ shows });
      }, [status]);
      return createElement("p", null, error ? error.message : shows);
    }
    createRoot(document.getElementById("root")).render(createElement(Chat));
  });

window.viaEventSource = (session, noteHead) =>
  new Promise((done) => {
    const source = new EventSource(`/events?session=${session}`);
    const saw = { shows: "" };
    const end = () => {
      source.close();
      done(saw);
    };
    source.onopen = noteHead;
    source.onmessage = ({ data }) => (saw.shows += JSON.parse(data));
    source.addEventListener("end", end);
    source.addEventListener("error", (event) => {
      // One of the connection has no data.
      saw.error = event.data ? [JSON.parse(event.data).error, source.readyState] : ["no connection"];
      end();
    });
  });

window.viaFetch = async (session, noteHead) => {
  const response = await fetch("/chat", {
    method: "POST",
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    body: JSON.stringify({ session_id: session }),
  });
  noteHead();
  const saw = { shows: "", comments: 0 };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let next; !(next = await reader.read()).done; ) {
    text += next.value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("event") === "error") {
        const { error, status_code } = JSON.parse(field("data"));
        saw.error = [error, status_code];
      } else if (field("data") && !field("event")) saw.shows += JSON.parse(field("data"));
      else saw.comments += lines.filter((line) => line.startsWith(":")).length;
    }
  }
  return saw;
};

// Runs one of them with the other turn of its session. If that ends, it does after the head of the response has come.
window.behindAnother = async (client, what, session) => {
  if (what === "plain") return window[client](session, () => {});
  const held = await fetch(`/hold/${session}`, { method: "POST" });
  const reader = held.body.getReader();
  await reader.read();
  let noteHead;
  const came = new Promise((done) => (noteHead = done));
  const running = window[client](session, noteHead);
  let before;
  if (what === "wait") {
    await came;
    const { turns } = await (await fetch(`/seen/${session}`)).json();
    before = turns.map((turn) => turn.kind);
    await fetch(`/go/${session}`, { method: "POST" });
  }
  const saw = await running;
  await reader.cancel();
  return { ...saw, before };
};
