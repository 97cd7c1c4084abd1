"""The MCP server: the crew's tools with their schemas, the driver's, the roles as prompts, and what is recorded as resources.

On the SDK's low-level server: what a tool takes and gives is the tool's own pydantic model, and what is wrong with a call is said
in the words that the crew's models get. No call waits longer than `WAIT_S`: clients cut calls off.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from typing import Any, TypeVar

from anyio import CancelScope, sleep, to_thread
from mcp import McpError, types
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.session import ServerSession
from pydantic import AnyUrl, BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from core.errors import InputError, unknown_name
from core.words.commands import command
from experiments.campaign.steering import Waiting, approve
from experiments.vocabulary import readable_id
from multi_agent.agents.agent import AGENTS, AgentSpec, crew_members, read_prompt
from multi_agent.mcp import resources
from multi_agent.mcp.driver import Client, Driver
from multi_agent.mcp.mailbox import answer_to, client_name, open_turn
from multi_agent.mcp.values import (
    DRIVING,
    TOOL_AGAIN_S,
    CampaignArguments,
    FinishArguments,
    OpenArguments,
    Pending,
    Standing,
    Status,
)
from multi_agent.tools.tool import Tool, explain

T = TypeVar("T")
NAME = "ssm-metarl"
WAIT_S = 7.0
"""Seconds after which a call is answered, come what may."""
LOOK_S = 0.2
CREW = "crew"
SHORTENED = "Of a result that was too long: how much of what is here, and what gives the rest."
HOW = """You drive a research campaign on sequence models in meta-reinforcement learning: {who}. Code trains, selects, claims, confirms and
judges; you propose configurations, one change at a time, with the effect that you expect.
1. open_campaign with a goal, or next_turn to join the newest one. 2. next_turn until it says "your turn"; where it says again_s, ask again after so
many seconds. 3. Read the prompt, which holds all that is known; propose once for every arm; finish_turn with a sentence or two. 4. Go on with 2 until
it says "finished"; campaign_status has the verdict. Where you are silent, the optimizer goes on: nothing is lost."""


class CrewServer:
    """One MCP server for all clients of a driver; `server` is the SDK's."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.members = [AGENTS[name] for name in driver.agents] if driver.agents else crew_members()
        able = self.members if driver.agents else [AGENTS[name] for name in AGENTS]  # a campaign may have another crew
        self.tools: dict[str, Tool] = {tool.name: tool for member in able for tool in member.tools}
        self._asking: set[asyncio.Task[None]] = set()
        who = ", ".join(driver.agents) or "you are every agent of the crew in turn"
        version = None  # of a checkout that is not installed
        with suppress(PackageNotFoundError):
            version = metadata.version("autonomous-ssm-metarl")
        self.server: Server[Client, Any] = Server(
            NAME, version or "checkout", instructions=HOW.format(who=who), lifespan=self._session
        )
        self.server.list_tools()(self._list_tools)
        self.server.call_tool(validate_input=False)(self._call)
        self.server.list_prompts()(self._list_prompts)
        self.server.get_prompt()(self._get_prompt)
        self.server.list_resources()(self._list_resources)
        self.server.list_resource_templates()(self._list_templates)
        self.server.read_resource()(self._read_resource)

    @asynccontextmanager
    async def _session(self, server: Server[Client, Any]) -> AsyncIterator[Client]:
        """The client of one session (the SDK enters this once for each), which gives its turn back at the end."""
        client = Client()
        try:
            yield client
        finally:
            with CancelScope(shield=True), suppress(InputError, SQLAlchemyError):
                await to_thread.run_sync(self.driver.leave, client)

    def _client(self) -> tuple[Client, ServerSession]:
        context = self.server.request_context
        client = context.lifespan_context
        if not client.name:
            told = context.session.client_params
            client.name = client_name(told.clientInfo.name if told else "")
        return client, context.session

    # ---- tools ----------------------------------------------------------------------------

    async def _list_tools(self) -> list[types.Tool]:
        driving = [
            types.Tool(
                name=name,
                description=words,
                inputSchema=arguments.model_json_schema(),
                outputSchema=result.model_json_schema(mode="serialization"),
                annotations=hints,
            )
            for name, (arguments, result, words, hints) in DRIVING.items()
        ]
        return driving + [described(tool, self.members) for tool in self.tools.values()]

    async def _call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        client, session = self._client()
        try:
            if name in self.tools:
                return await self._crew_tool(client, name, arguments)
            if name not in DRIVING:
                raise unknown_name("tool", name, [*DRIVING, *self.tools])
            try:
                asked = DRIVING[name][0].model_validate(arguments)
            except ValidationError as problem:
                raise InputError(explain(problem, DRIVING[name][0])) from None
            return told(await getattr(self, f"_{name}")(client, session, asked))
        except InputError as problem:
            return types.CallToolResult(content=[types.TextContent(type="text", text=str(problem))], isError=True)

    async def _open_campaign(self, client: Client, session: ServerSession, asked: OpenArguments) -> Standing:
        await to_thread.run_sync(self.driver.open, client, asked)
        return await self._turn_or_standing(client, session)

    async def _resume_campaign(self, client: Client, session: ServerSession, asked: CampaignArguments) -> Standing:
        await to_thread.run_sync(self.driver.resume, client, asked.campaign)
        return await self._turn_or_standing(client, session)

    async def _next_turn(self, client: Client, session: ServerSession, asked: CampaignArguments) -> Standing:
        if asked.campaign is not None:
            await to_thread.run_sync(self.driver.campaign, client, asked.campaign)
        return await self._turn_or_standing(client, session)

    async def _finish_turn(self, client: Client, session: ServerSession, asked: FinishArguments) -> Standing:
        turn = await to_thread.run_sync(self.driver.turn, client)
        if turn is None:
            raise InputError(await self._why_no_turn(client))
        await to_thread.run_sync(self.driver.hand(client).finish, turn, asked.words)
        began = time.monotonic()
        await in_time(lambda: is_over(self.driver, turn.campaign, turn.number), began)
        return await self._turn_or_standing(client, session, began)

    async def _campaign_status(self, client: Client, session: ServerSession, asked: CampaignArguments) -> Status:
        number = await to_thread.run_sync(self.driver.campaign, client, asked.campaign)
        return await to_thread.run_sync(self.driver.status, number)

    async def _turn_or_standing(self, client: Client, session: ServerSession, began: float | None = None) -> Standing:
        """The client's turn as soon as there is one; else, after a while or where none can come, how it stands."""

        def look() -> Standing | None:
            turn = self.driver.turn(client)
            if turn is None and (client.campaign is not None or client.opening is None):
                self.driver.hand(client).come(self.driver.campaign(client, None))
            standing = self.driver.standing(client, turn)
            return (
                standing if standing.state in ("your turn", "finished", "not running", "waits for approval") else None
            )

        found = await in_time(look, began)
        standing = found or await to_thread.run_sync(self.driver.standing, client, None)
        if standing.state == "waits for approval":
            self._ask_person(client, session)
        return standing

    async def _crew_tool(self, client: Client, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """One of the crew's tools, which the campaign's process runs as the agent whose turn it is."""
        turn = await to_thread.run_sync(self.driver.turn, client)
        if turn is None:
            raise InputError(await self._why_no_turn(client))
        if name not in turn.tools:
            raise InputError(f"{name} is no tool of {turn.agent}, whose turn it is; allowed: {', '.join(turn.tools)}")
        call = await to_thread.run_sync(self.driver.hand(client).call, turn, name, arguments)

        def look() -> str | None:
            answer = answer_to(self.driver.ledger, turn.campaign, call)
            if answer is None and is_over(self.driver, turn.campaign, turn.number):
                answer = answer_to(self.driver.ledger, turn.campaign, call)
                return answer or json.dumps({"error": f"the turn of {turn.agent} is over: ask next_turn"})
            return answer

        answer = await in_time(look)
        if answer is None:
            words = f"{name} is at work. Call it again with the same arguments in {TOOL_AGAIN_S} s."
            return told(Pending(running=words, again_s=TOOL_AGAIN_S))
        data = json.loads(answer)
        content: list[types.ContentBlock] = [types.TextContent(type="text", text=data.get("error") or answer)]
        if "error" in data:
            return types.CallToolResult(content=content, isError=True)
        return types.CallToolResult(content=content, structuredContent=data)

    async def _why_no_turn(self, client: Client) -> str:
        standing = await to_thread.run_sync(self.driver.standing, client, None)
        return f"it is not your turn: {standing.text}"

    # ---- approvals --------------------------------------------------------------------------

    def _ask_person(self, client: Client, session: ServerSession) -> None:
        """Have the client ask its person what the campaign waits for, where it can; once for each, beside the call."""
        wanted = types.ClientCapabilities(elicitation=types.ElicitationCapability())
        number = self.driver.campaign(client, None)
        waiting = self.driver.waits(number)
        if waiting is None or (number, waiting.key) in client.asked or not session.check_client_capability(wanted):
            return
        client.asked.add((number, waiting.key))
        task = asyncio.get_running_loop().create_task(self._elicit(client, session, number, waiting))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _elicit(self, client: Client, session: ServerSession, number: int, waiting: Waiting) -> None:
        name = str(readable_id("c", number))
        schema = {
            "type": "object",
            "properties": {
                "approve": {"type": "boolean", "title": "Approve", "description": "Whether it may go on."},
                "reason": {"type": "string", "title": "Reason", "description": "Why not; the crew reads it."},
            },
            "required": ["approve"],
        }
        with suppress(McpError, InputError, OSError):  # a client that is gone; what was answered elsewhere meanwhile
            words = (
                f"{name} waits for your approval of {waiting.what} You may also answer with: {command('approve', name)}"
            )
            answer = await session.elicit_form(words, schema)
            if answer.action != "accept" or self.driver.waits(number) != waiting:
                return
            given = answer.content or {}
            deny = None if given.get("approve") is True else str(given.get("reason") or "no reason was given")
            ledger = self.driver.writable
            await to_thread.run_sync(lambda: approve(ledger, number, deny=deny, via=f"mcp:{client.name}"))

    # ---- prompts and resources --------------------------------------------------------------

    async def _list_prompts(self) -> list[types.Prompt]:
        names = [m.name for m in self.members] if self.driver.agents else [CREW, *(m.name for m in self.members)]
        return [types.Prompt(name=name, description=f"Be {f'the {CREW}' if name == CREW else name} of a campaign.") for name in names]  # fmt: skip

    async def _get_prompt(self, name: str, arguments: Mapping[str, str] | None) -> types.GetPromptResult:
        known = [prompt.name for prompt in await self._list_prompts()]
        if name not in known:
            raise unknown_name("prompt", name, known)
        roles = self.members if name == CREW else [AGENTS[name]]
        who = "you are every agent of the crew in turn" if name == CREW else f"you are {name}"
        text = "\n\n".join([HOW.format(who=who), *(read_prompt(member.prompt).strip() for member in roles)])
        message = types.PromptMessage(role="user", content=types.TextContent(type="text", text=text))
        return types.GetPromptResult(description=f"Be {name}.", messages=[message])

    async def _list_resources(self) -> list[types.Resource]:
        return await to_thread.run_sync(resources.newest, self.driver.ledger)

    async def _list_templates(self) -> list[types.ResourceTemplate]:
        return resources.templates()

    async def _read_resource(self, uri: AnyUrl) -> list[ReadResourceContents]:
        return [await to_thread.run_sync(resources.read, self.driver.ledger, str(uri))]


def described(tool: Tool, members: Sequence[AgentSpec]) -> types.Tool:
    """One of the crew's tools as MCP lists it."""
    owners = ", ".join(member.name for member in members if tool in member.tools)
    result = tool.result.model_json_schema(mode="serialization", ref_template="#/$defs/{model}")
    parts = result.pop("$defs", {})
    less = {
        "type": "object",
        "required": ["left_out"],
        "properties": {"left_out": {"type": "string", "description": SHORTENED}},
    }
    kinds = [result, less, Pending.model_json_schema(mode="serialization")]
    either = {"type": "object", "anyOf": kinds, "$defs": parts}
    return types.Tool(
        name=tool.name,
        description=f"{tool.description} In a turn of: {owners}.",
        inputSchema=tool.arguments.model_json_schema(),
        outputSchema=either,
        annotations=types.ToolAnnotations(
            readOnlyHint=tool.writes == "nothing",
            destructiveHint=False,
            idempotentHint=tool.writes != "more",
            openWorldHint=False,
        ),
    )


def told(result: BaseModel) -> types.CallToolResult:
    """A result as text and as data."""
    data = result.model_dump(mode="json")
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=json.dumps(data, ensure_ascii=False))]
    return types.CallToolResult(content=content, structuredContent=data)


def is_over(driver: Driver, campaign: int, turn: int) -> bool:
    """Whether a turn waits for nobody any more."""
    now = open_turn(driver.ledger, campaign)
    return now is None or now.number != turn


async def in_time(look: Callable[[], T], began: float | None = None) -> T | None:
    """What `look`, called again and again in a thread, gives first; None `WAIT_S` after the call began (now, where nothing is said)."""
    end = (time.monotonic() if began is None else began) + WAIT_S
    while not (found := await to_thread.run_sync(look)) and time.monotonic() < end:
        await sleep(LOOK_S)
    return found or None
