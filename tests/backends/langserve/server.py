"""LangServe with a chain that keeps the history of a session, as its examples serve one. The model is a fake."""

from fastapi import FastAPI
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig, RunnableGenerator
from langchain_core.runnables.history import RunnableWithMessageHistory
from langserve import add_routes

import turn

histories: dict[str, InMemoryChatMessageHistory] = {}


async def chat(inputs, config: RunnableConfig):
    async for given in inputs:
        messages: list[BaseMessage] = given["messages"] if isinstance(given, dict) else given
        async for piece in turn.stream(str(messages[-1].content), config["configurable"]["session_id"]):
            yield piece


def history(session_id: str) -> InMemoryChatMessageHistory:
    return histories.setdefault(session_id, InMemoryChatMessageHistory())


app = FastAPI()
chain = RunnableWithMessageHistory(RunnableGenerator(chat), history, input_messages_key="messages")
for path in ("/chat", "/deep/other"):
    add_routes(app, chain.with_types(input_type=dict, output_type=str), path=path, config_keys=["configurable"])
