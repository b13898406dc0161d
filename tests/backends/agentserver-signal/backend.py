"""The same server with an agent that looks at its signal, and the options that the docs name for it."""

from responses_calls import AgentServer


class WithSignal(AgentServer):
    options = 'on_disconnect = "cancel"\nsettle_cancelled = "700ms"'
    leaves = "cancels"
    interrupts = True


backend = WithSignal()
