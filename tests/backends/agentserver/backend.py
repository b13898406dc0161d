"""Microsoft's server for agents with the Responses API: the quickstart's agent doesn't look at its signal."""

from responses_calls import AgentServer

backend = AgentServer()
