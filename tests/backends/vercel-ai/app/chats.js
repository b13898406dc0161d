// The store of chats of the SDK's guide to persistence: a file for each chat.
import { existsSync, mkdirSync } from "node:fs";
import { readFile, rename, writeFile } from "node:fs/promises";

const FOLDER = process.env.CHATS;
const EMPTY = { messages: [], activeStreamId: null };
// Next.js may load a module once for each route.
const saves = (globalThis.saves ??= new Map());

const file = (id) => {
  if (!/^[A-Za-z0-9_-]+$/.test(id)) throw new Error("Invalid chat ID");
  if (!existsSync(FOLDER)) mkdirSync(FOLDER, { recursive: true });
  return `${FOLDER}/${id}.json`;
};

export async function readChat(id) {
  return existsSync(file(id)) ? JSON.parse(await readFile(file(id), "utf8")) : EMPTY;
}

/** Changes a chat after all changes that began before, as a database would. */
export function saveChat({ id, ...changes }) {
  const save = async () => {
    const chat = { ...(await readChat(id)), ...changes };
    await writeFile(`${file(id)}.new`, JSON.stringify(chat, null, 2));
    await rename(`${file(id)}.new`, file(id));
  };
  const saved = (saves.get(id) ?? Promise.resolve()).then(save);
  saves.set(id, saved);
  return saved;
}
