"""The `mcp` package's own server, with the client's calls of mcp_calls.py."""

from mcp_calls import Mcp

backend = Mcp()
