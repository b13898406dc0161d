// The page of resuming_browser.js: a chat as the AI SDK's guide "Chatbot Resume Streams" writes it.

import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { createElement } from "react";
import { createRoot } from "react-dom/client";

const query = new URL(location.href).searchParams;
const [id, api] = [query.get("chat"), query.get("api")];
const transport = new DefaultChatTransport({ api });

function Chat() {
  const chat = useChat({ id, resume: true, transport });
  const answers = chat.messages.filter((message) => message.role === "assistant");
  const texts = answers.map(({ parts }) => parts.map((part) => part.text ?? "").join(""));
  const stop = () => {
    window.stopped = fetch(`${api}/${encodeURIComponent(id)}/stop`, { method: "POST" }).then((answer) => answer.json());
    void chat.stop();
  };
  return createElement(
    "main",
    null,
    createElement("p", { id: "shows" }, JSON.stringify(texts)),
    createElement("p", { id: "status" }, chat.status),
    createElement("button", { id: "send", onClick: () => chat.sendMessage({ text: "hi" }) }),
    createElement("button", { id: "stop", onClick: stop }),
    createElement("button", { id: "again", onClick: () => chat.regenerate() }),
  );
}

createRoot(document.getElementById("root")).render(createElement(Chat));
