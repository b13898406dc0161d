"""pydantic-ai's adapter for AG-UI, in an app as its documentation writes it."""

from __future__ import annotations

from ag_ui_calls import AgUi


class PydanticAi(AgUi):
    preset = "ag-ui-cancel"
    leaves = "cancels"
    interrupts = True


backend = PydanticAi()
