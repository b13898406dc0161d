"""The Vercel AI SDK 6 in Node's own HTTP server."""

from vercel_calls import VercelAi

backend = VercelAi()
