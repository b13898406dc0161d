// Resumable streams as the SDK's guide sets them up, with a dictionary in place of Redis.
import { createResumableStreamContext } from "resumable-stream/generic";

// Next.js may load a module once for each route.
const shared = (globalThis.streams ??= { values: new Map(), listeners: new Map() });
const { values, listeners } = shared;

const publisher = {
  connect: async () => {},
  publish: async (channel, message) => listeners.get(channel)?.(message),
  set: async (key, value) => values.set(key, value) && "OK",
  get: async (key) => values.get(key) ?? null,
  incr: async (key) => {
    const value = Number(values.get(key) ?? 0) + 1;
    values.set(key, value);
    return value;
  },
};
const subscriber = {
  connect: async () => {},
  subscribe: async (channel, listener) => void listeners.set(channel, listener),
  unsubscribe: async (channel) => listeners.delete(channel),
};

export const context = (waitUntil) => createResumableStreamContext({ waitUntil, publisher, subscriber });
