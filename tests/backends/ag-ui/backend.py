"""AG-UI's adapter for LangGraph, in a FastAPI app as its quickstart serves it."""

from __future__ import annotations

from ag_ui_calls import AgUi


class LangGraphAdapter(AgUi):
    preset = "ag-ui"
    leaves = "continues"


backend = LangGraphAdapter()
