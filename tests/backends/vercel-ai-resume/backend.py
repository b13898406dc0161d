"""The route of vercel-ai-abort, whose answers Seriatim keeps: it isn't told that a client leaves."""

from vercel_calls import VercelAi


class Resume(VercelAi):
    preset = "vercel-ai-resume"
    ways = {"stopping": True}
    leaves = "continues"
    interrupts = True


backend = Resume()
