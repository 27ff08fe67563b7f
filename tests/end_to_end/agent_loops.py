"""Agents with tools, as their SDKs run them, against the server in WS_CHAT_URL: run with the Python of .venv/agents.

Prints one JSON object: for each loop, what its tools were called with, and the final output.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from agents import Agent, OpenAIProvider, RunConfig, Runner, function_tool, set_tracing_disabled
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider as PydanticProvider

URL = os.environ["WS_CHAT_URL"] + "/v1"
called: list[Any] = []


def get_weather(city: str, unit: str) -> str:
    """Return the weather in a city."""
    called.append(["get_weather", city, unit])
    return "sunny"


def get_time(zone: str) -> str:
    """Return the time in a zone."""
    called.append(["get_time", zone])
    return "noon"


async def openai_agents(*, websocket: bool, stream: bool) -> Any:
    tools = [function_tool(get_weather), function_tool(get_time)]
    agent = Agent(name="demo", model="demo-tools", tools=tools, instructions="Be brief.")
    provider = OpenAIProvider(base_url=URL, api_key="none", use_responses=True, use_responses_websocket=websocket)
    config = RunConfig(model_provider=provider)
    if not stream:
        return (await Runner.run(agent, "How is the weather?", run_config=config)).final_output
    result = Runner.run_streamed(agent, "How is the weather?", run_config=config)
    async for _ in result.stream_events():
        pass
    return result.final_output


async def pydantic_ai() -> Any:
    model = OpenAIResponsesModel("demo-tools", provider=PydanticProvider(base_url=URL, api_key="none"))
    agent = PydanticAgent(model, tools=[get_weather, get_time], instructions="Be brief.")
    async with agent.run_stream("How is the weather?") as result:
        return await result.get_output()


async def main() -> None:
    set_tracing_disabled(True)
    loops = {
        "openai-agents over HTTP": lambda: openai_agents(websocket=False, stream=False),
        "openai-agents over HTTP, streamed": lambda: openai_agents(websocket=False, stream=True),
        "openai-agents over WebSocket": lambda: openai_agents(websocket=True, stream=True),
        "pydantic-ai": pydantic_ai,
    }
    found = {}
    for name, loop in loops.items():
        called.clear()
        output = await loop()
        found[name] = {"called": sorted(called), "output": output}
    print(json.dumps(found))


asyncio.run(main())
