"""AgentOS with an agent, a team and a workflow, with sessions in memory, as its quickstart serves it. The model is a fake."""

import os
from collections.abc import AsyncIterator

from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.base import Model
from agno.models.response import ModelResponse
from agno.os import AgentOS
from agno.team import Team
from agno.workflow import Step, Workflow

import turn


class FakeModel(Model):
    async def ainvoke_stream(self, messages, run_response=None, **_) -> AsyncIterator[ModelResponse]:
        async for piece in turn.stream(messages[-1].content, run_response and run_response.session_id):
            yield ModelResponse(role="assistant", content=piece)

    async def ainvoke(self, messages, run_response=None, **_) -> ModelResponse:
        return ModelResponse(role="assistant", content=await turn.answer(messages[-1].content, run_response and run_response.session_id))

    def invoke(self, *_, **__):
        raise NotImplementedError

    def invoke_stream(self, *_, **__):
        raise NotImplementedError

    def _parse_provider_response(self, response, **_):
        return response

    def _parse_provider_response_delta(self, response):
        return response


db = InMemoryDb()


def agent(name: str) -> Agent:
    return Agent(id=name, name=name, model=FakeModel(id="fake"), db=db, add_history_to_context=True, telemetry=False)


team = Team(id="team", name="team", model=FakeModel(id="fake"), members=[agent("member")], db=db, telemetry=False)
workflow = Workflow(id="workflow", name="workflow", steps=[Step(name="step", agent=agent("worker"))], db=db, telemetry=False)
agent_os = AgentOS(agents=[agent("agent"), agent("other")], teams=[team], workflows=[workflow], db=db, telemetry=False)
app = agent_os.get_app()

if __name__ == "__main__":
    agent_os.serve(app=app, host="127.0.0.1", port=int(os.environ["PORT"]))
