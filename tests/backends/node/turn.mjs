// For fake agents and models in Node: a turn that works as long as its message says, and writes the record.
import { appendFileSync } from "node:fs";

const MESSAGE = /turn=([\w-]+) session=([\w-]+) work=([\d.]+)/g;
// Milliseconds between two pieces of a response.
const PACE = 100;
let runs = 0;

/** The turn that a message means: the last one in the text, which may hold a whole history. */
export function read(text) {
  const found = [...text.matchAll(MESSAGE)].at(-1);
  return found && { name: found[1], session: found[2], work: Number(found[3]) };
}

/**
 * The pieces of a turn as it works, and then its last words. If `signal` aborts, or the caller stops iterating, the
 * record says cancelled. `owner` is the backend's own name of the session.
 */
export async function* stream(text, { owner = null, signal } = {}) {
  const turn = read(text);
  if (!turn) {
    yield "no turn";
    return;
  }
  const run = `${process.pid}-${runs++}`;
  const write = (what) => {
    const entry = { what, run, turn: turn.name, session: turn.session, owner, time: Date.now() / 1000 };
    appendFileSync(process.env.RECORD, JSON.stringify(entry) + "\n");
  };
  write("begin");
  let ended = false;
  try {
    for (let n = 0; n < Math.round((turn.work * 1000) / PACE); n++) {
      signal?.throwIfAborted();
      yield `${turn.name} piece ${n} `;
      await pause(PACE, signal);
    }
    ended = true;
  } finally {
    write(ended ? "end" : "cancelled");
  }
  // The work is over; some callers don't ask for more after these words.
  yield `${turn.name} is done`;
}

/** The same as one text, at the end. */
export async function answer(text, options) {
  let said = "";
  for await (const piece of stream(text, options)) said += piece;
  return said;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", abort, { once: true });
  });
}
