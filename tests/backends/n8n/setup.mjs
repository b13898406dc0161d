// Writes the workflows and the credential that n8n imports: a chat trigger before an agent with memory, as its quickstart builds
// it. One workflow streams its responses, and one sends each as a whole.
import { mkdirSync, writeFileSync } from "node:fs";

const LANGCHAIN = "@n8n/n8n-nodes-langchain";

function workflow(id, responseMode) {
  const node = (name, type, typeVersion, parameters = {}, more = {}) => {
    return { id: `${id}-${name}`, name, type: `${LANGCHAIN}.${type}`, typeVersion, position: [0, 0], parameters, ...more };
  };
  const to = (kind) => ({ [kind]: [[{ node: "agent", type: kind, index: 0 }]] });
  return {
    id,
    name: id,
    active: false,
    settings: { executionOrder: "v1" },
    nodes: [
      node("trigger", "chatTrigger", 1.4, { public: true, mode: "webhook", options: { responseMode } }, { webhookId: id }),
      node("agent", "agent", 3, { options: {} }),
      node(
        "model",
        "lmChatOpenAi",
        1.3,
        { model: { __rl: true, mode: "id", value: "fake" }, responsesApiEnabled: false, options: {} },
        { credentials: { openAiApi: { id: "model", name: "model" } } },
      ),
      node("memory", "memoryBufferWindow", 1.3),
    ],
    connections: { trigger: to("main"), model: to("ai_languageModel"), memory: to("ai_memory") },
  };
}

mkdirSync("import", { recursive: true });
const write = (name, value) => writeFileSync(`import/${name}.json`, JSON.stringify(value));
write("workflows", [workflow("streamed", "streaming"), workflow("whole", "lastNode")]);
write("credentials", [{ id: "model", name: "model", type: "openAiApi", data: { apiKey: "none", url: process.env.MODEL } }]);
