// Where a server notes which session a turn has read, past the proxy.
"use strict";
const { openSync, writeSync } = require("node:fs");
const records = openSync(process.env.RECORDS, "a");

// Notes a turn, and gives its answer. What is falsy is no session, as in `||`.
exports.ran = (request, route, session, more = {}) => {
  const text = typeof session === "string" || !session ? session || null : JSON.stringify(session);
  writeSync(records, JSON.stringify({ case: request.headers["x-case"] ?? null, route, session: text, ...more }) + "\n");
  return { ran: true, route };
};
