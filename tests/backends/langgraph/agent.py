"""The quickstart's graph: one node with a model, which is a fake."""

from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph

import turn


async def chat(state: MessagesState, config: RunnableConfig) -> MessagesState:
    said, write = "", get_stream_writer()
    async for piece in turn.stream(str(state["messages"][-1].content), str(config["configurable"]["thread_id"])):
        write(piece)
        said += piece
    return {"messages": [AIMessageChunk(content=said)]}


graph = StateGraph(MessagesState).add_node(chat).add_edge(START, "chat").compile()
