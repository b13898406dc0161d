"""Microsoft's Agent Framework over AG-UI."""

from __future__ import annotations

from ag_ui_calls import AgUi


class AgentFramework(AgUi):
    preset = "ag-ui-cancel"
    leaves = "cancels"
    interrupts = True
    needs_model = True
    # Its ids.
    differs = (*AgUi.differs, r"chatcmpl-[\w-]+")

    def env(self) -> dict[str, str]:
        return {"MODEL_URL": self.model_url}


backend = AgentFramework()
