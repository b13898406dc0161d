"""Microsoft's Agent Framework served over AG-UI, as its documentation serves an agent."""

import os

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient
from agent_framework_ag_ui import add_agent_framework_fastapi_endpoint
from fastapi import FastAPI

client = OpenAIChatCompletionClient(model="fake", api_key="none", base_url=os.environ["MODEL_URL"])
app = FastAPI()
add_agent_framework_fastapi_endpoint(app, Agent(client, name="agent"), "/agent", single_user=True)
