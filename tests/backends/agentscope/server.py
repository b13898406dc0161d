"""AgentScope's runtime with an agent that is a fake, as its quickstart deploys one."""

import os

from agentscope.message import Msg, TextBlock
from agentscope_runtime.engine.app import AgentApp
from agentscope_runtime.engine.schemas.agent_schemas import AgentRequest

import turn

app = AgentApp(app_name="agent", app_description="A fake.")


@app.query(framework="agentscope")
async def query(self, msgs, request: AgentRequest = None, **kwargs):
    message, said = Msg(name="agent", content=[], role="assistant"), ""
    async for piece in turn.stream(msgs[-1].get_text_content(), f"{request.user_id}/{request.session_id}"):
        said += piece
        message.content = [TextBlock(type="text", text=said)]
        yield message, False
    yield message, True


app.run(host="127.0.0.1", port=int(os.environ["PORT"]))
