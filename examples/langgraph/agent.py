"""A graph with one node and a fake model. Its log is the proof that no two turns of a thread overlap."""

import asyncio

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph


async def chat(state: MessagesState, config: RunnableConfig) -> MessagesState:
    """Says what it was told, word by word."""
    thread, text, write = config["configurable"]["thread_id"], state["messages"][-1].content, get_stream_writer()
    print(f"{thread} begins: {text}", flush=True)
    words = f"You said: {text}".split()
    for word in words:
        await asyncio.sleep(0.5)
        write(word)
    print(f"{thread} ends: {text}", flush=True)
    return {"messages": [AIMessage(" ".join(words))]}


graph = StateGraph(MessagesState).add_node(chat).add_edge(START, "chat").compile()
