"""A graph of LangGraph with a fake model, served over AG-UI."""

from ag_ui_langgraph import LangGraphAgent, add_langgraph_fastapi_endpoint
from fastapi import FastAPI
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import START, MessagesState, StateGraph

import turn


class FakeModel(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "fake"

    async def _astream(self, messages, stop=None, run_manager=None, owner=None, **_):
        async for piece in turn.stream(str(messages[-1].content), owner):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))

    def _generate(self, messages, stop=None, run_manager=None, owner=None, **_) -> ChatResult:
        text = turn.answer_blocking(str(messages[-1].content), owner)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=text))])


async def chat(state: MessagesState, config: RunnableConfig) -> MessagesState:
    owner = config["configurable"]["thread_id"]
    return {"messages": [await FakeModel().bind(owner=owner).ainvoke(state["messages"], config)]}


graph = StateGraph(MessagesState).add_node(chat).add_edge(START, "chat").compile(checkpointer=MemorySaver())
app = FastAPI()
add_langgraph_fastapi_endpoint(app, LangGraphAgent(name="agent", graph=graph), "/agent")
