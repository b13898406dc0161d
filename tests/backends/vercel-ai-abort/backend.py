"""The Vercel AI SDK 7 in Hono, with a route that passes an abort signal."""

from vercel_calls import VercelAi


class Abort(VercelAi):
    ways = {"stopping": True}
    leaves = "cancels"
    interrupts = True
    # As the preset's text tells users of such a route.
    options = 'on_disconnect = "cancel"'


backend = Abort()
