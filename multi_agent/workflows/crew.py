"""The crew at work on one campaign: who is in it, its turns and messages, what it may spend, and what it did, as events.

An agent that fails, talks prose or loops costs its turn, never the campaign: `Crew.ask` gives its closing words or None.
Everything a crew knows is read from the ledger's events when it is made, so that a sitting goes on where the last one was
interrupted: messages that nobody had read yet, shared findings, what was spent, which rounds the agents had.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from core.errors import InputError
from experiments.campaign.proposing.briefing import briefing, facts
from experiments.ledger.ids import named_rows
from experiments.runs.runner import Paused
from multi_agent.agents.agent import (
    AGENTS,
    COORDINATOR_NAME,
    DEFAULT_CREW,
    MAX_MODEL_CALLS,
    AgentSpec,
    build_agent,
    choose_members,
    prompt_hash,
    read_prompt,
)
from multi_agent.communication.message_broker import EVERYONE, HUMAN, WORKFLOW, Message, MessageBroker
from multi_agent.communication.shared_memory import SharedMemory
from multi_agent.llm.calls import CALL_S, MODEL_SHARE, ContextError, NoAnswerError
from multi_agent.llm.choose import LLMChoice, redact
from multi_agent.llm.meter import BudgetSpentError, Meter, read_prices
from multi_agent.mcp.mailbox import Mailbox, served
from multi_agent.tools.tool import RoundOwner, ToolContext, clean
from multi_agent.workflows.approval import Approvals, ApproveEach
from multi_agent.workflows.modes import Collaboration, way_to_work

if TYPE_CHECKING:
    from crewai import Agent

    from experiments.campaign.lab import Lab
    from multi_agent.llm.langchain_llm import ModelCall
    from multi_agent.llm.replay import Recording

T = TypeVar("T")
EventKind = Literal["stage", "agent", "tool_call", "tool_result", "message", "llm_call", "waiting", "turn"]
ASKED = ("langchain", "mcp")  # kinds of a choice that hear what they are told
GIVE_UP_AFTER = 3  # turns in a row without an answer: the model is not asked again in this sitting
MODEL_SECONDS_A_TURN = 300.0  # that one agent may wait for its model in one turn
TURN_SHARE = 1 / 3  # of what is left of the model's time: one turn that hangs leaves something to the others
MESSAGES_A_TURN = 30  # the newest ones, where more wait


@dataclass(frozen=True)
class CrewEvent:
    """Something a person watching wants to see. `text` is plain text, whatever a model wrote into it."""

    kind: EventKind
    actor: str
    text: str
    payload: Mapping[str, Any]


class Crew:
    """Asks the agents for turns, records everything, survives their failures.

    The arguments are those of `run_research`.
    """

    def __init__(
        self,
        lab: Lab,
        choice: LLMChoice,
        *,
        data_dir: Path,
        on_event: Callable[[CrewEvent], None],
        max_tokens: int | None = None,
        max_usd: float | None = None,
        collaboration: Collaboration | None = None,
        agents: Sequence[str | AgentSpec] | None = None,
        approve_each: ApproveEach | None = None,
    ) -> None:
        introduced = _introduced(lab)
        self.collaboration: Collaboration = collaboration or introduced.get("collaboration", "sequential")
        self.work_together = way_to_work(self.collaboration)
        absent: list[str] = []
        if agents is None and introduced.get("agents") is not None:
            agents = [name for name in introduced["agents"] if name in AGENTS]
            absent = [name for name in introduced["agents"] if name not in AGENTS]
        self.members = choose_members(agents)
        self.mailbox = Mailbox(lab, self.emit, served(choice)) if choice.kind == "mcp" else None
        if self.mailbox is None:
            from multi_agent.llm.quiet_crewai import boot

            boot(data_dir / "crewai")
        self.lab, self.choice, self._on_event = lab, choice, on_event
        self._lock = threading.Lock()
        names = tuple(member.name for member in self.members)
        self.broker = MessageBroker(names, self.emit)
        self.memory = SharedMemory(self.emit)
        prices_date, prices = read_prices(data_dir / "prices.json")
        self.meter = Meter(choice.price_name, prices, max_tokens=max_tokens, max_usd=max_usd)
        self.model_seconds = 0.0  # of the present turn
        self.turn_seconds = MODEL_SECONDS_A_TURN  # that it may take
        self.all_model_seconds = 0.0  # of all sittings
        self.recording = self._read_recording() if choice.kind == "replay" else None
        # A fixed procedure costs neither time nor money, so every agent speaks in every round, and takes what the
        # optimizer suggests.
        self.by_procedure = choice.kind == "offline" or (self.recording is not None and self.recording.by_procedure)
        self.agent_rounds: set[int] = set()
        self.instructed = False  # by a person, since the last round
        self.asked_to_end = False  # whether the Coordinator was asked, in this sitting, if the search is to end
        self._instructions_read = 0
        self._remember_earlier_sittings()
        approved: ApproveEach = approve_each or introduced.get("approve_each", "none")
        self.approvals = Approvals(lab, approved, self.broker, self.emit, self._show)
        self.failures_in_a_row = 0
        self.silent_because = ""
        self.contexts = {
            m.name: ToolContext(lab, m.name, m.slice, self.emit, self.broker, self.memory) for m in self.members
        }
        self.agents: dict[str, Agent] = {} if self.mailbox else {m.name: self._build(m) for m in self.members}
        self.emit(
            "stage",
            WORKFLOW,
            f"The crew: {', '.join(names)}; model: {choice.name}.",
            llm=choice.name,
            approve_each=self.approvals.each,
            collaboration=self.collaboration,
            agents=None if agents is None else [*(member.name for member in self.members), *absent],
            prompts={m.name: prompt_hash(m.prompt) for m in self.members},
        )
        if absent:
            self.announce(f"Not registered here, so the crew works without: {', '.join(absent)}.")
        if broken := AGENTS.failures_in_words():  # of plugins that may hold no agent; an agent's own file is refused
            self.announce(f"{broken} The crew works without it.")
        if max_usd is not None and self.meter.price is None and choice.kind == "langchain":
            self.emit(
                "stage",
                WORKFLOW,
                f"The price of {choice.name} is not in the price list of {prices_date}: --max-usd cannot be held, "
                f"only tokens are counted. Add it in {data_dir / 'prices.json'}, or cap with --max-tokens.",
            )

    @property
    def specialists(self) -> list[AgentSpec]:
        return [member for member in self.members if member.name != COORDINATOR_NAME]

    @property
    def is_led(self) -> bool:
        """Whether the Coordinator plans and reviews: in its own crew, and in one that a person put together; the others go without."""
        return not self.specialists or any(member.crew == DEFAULT_CREW for member in self.specialists)

    def _read_recording(self) -> Recording:
        from multi_agent.llm.replay import Recording

        campaign = self.choice.name.removeprefix("replay:")
        return Recording(campaign, self.lab.events(["llm_call", "stage"], campaign=campaign))

    def _build(self, member: AgentSpec) -> Agent:
        from multi_agent.llm.langchain_llm import LangChainLLM
        from multi_agent.llm.offline import OfflineResearcher
        from multi_agent.llm.replay import ReplayChat

        if self.choice.make_chat is not None:
            chat = self.choice.make_chat()
        elif self.recording is not None:
            chat = ReplayChat(recording=self.recording, agent=member.name)
        else:
            chat = OfflineResearcher()
        watcher = _Watcher(self, member)
        max_calls = 100 if self.by_procedure else MAX_MODEL_CALLS  # the offline researcher makes one call at a time
        llm = LangChainLLM.wrap(chat, watcher, costs=self.choice.kind == "langchain", tools=self.choice.tools)
        return build_agent(member, llm, self.contexts[member.name], max_calls)

    def _remember_earlier_sittings(self) -> None:
        """What was spent, found, said, read and given to agents before this process began."""
        messages: list[Message] = []
        read: dict[str, int] = {}
        for event in self.lab.events(["llm_call", "message", "stage", "agent"]):
            payload = event.payload
            if event.kind == "message" and "to" in payload:
                evidence = tuple(payload["evidence"])
                messages.append(Message(event.actor, payload["to"], payload["text"], evidence, event.id))
            elif event.kind == "agent" and "read" in payload:
                read[event.actor] = max(payload["read"], read.get(event.actor, 0))
            if event.kind == "llm_call":
                self.meter.tokens += payload["input_tokens"] + payload["output_tokens"]
                self.meter.usd += payload["usd"] or 0.0
                self.all_model_seconds += payload["latency_s"]
            elif event.kind == "message" and "finding" in payload:
                self.memory.restore(event.actor, payload["finding"], tuple(payload["evidence"]))
            elif event.kind == "message" and "instruction" in payload:
                self._instructions_read = max(self._instructions_read, payload["instruction"])
            elif event.kind == "stage" and payload.get("mode") == "agents":
                self.agent_rounds.add(payload["round"])
        self.broker.restore(messages, read)

    # ---- events and messages --------------------------------------------------------------

    def emit(self, kind: EventKind, actor: str, text: str, /, **payload: Any) -> int:
        """Record an event in the ledger, then show it; its number. Keys of chat models are taken out of both."""
        text = " ".join(redact(clean(text)).split())
        payload = json.loads(redact(json.dumps(clean({"text": text} | payload, longest=100_000))))
        with self._lock:
            event_id = self.lab.record_event(kind, actor, payload)
            self._on_event(CrewEvent(kind, actor, text, payload))
        return event_id

    def announce(self, text: str, **payload: Any) -> None:
        """Say what the workflow's code does: an event of the kind "stage"."""
        self.emit("stage", WORKFLOW, text, **payload)

    def _show(self, text: str) -> None:
        """Show what is in the ledger already."""
        self._on_event(CrewEvent("waiting", WORKFLOW, text, {"text": text}))

    def read_instructions(self) -> None:
        """Hand what people wrote with `instruct` to every agent."""
        for event in self.lab.events(["instruct"], after=self._instructions_read):
            self._instructions_read, self.instructed = event.id, True
            self.broker.post(HUMAN, EVERYONE, str(event.payload.get("text", ""))[:2_000], instruction=event.id)
            if self.choice.kind not in ASKED:
                self.announce("No language model is in use, so nobody can act on this instruction.")

    @property
    def can_propose(self) -> bool:
        """Whether somebody would hear why a round was denied and propose another."""
        return self.choice.kind in ASKED and not self.silent_because

    # ---- turns ----------------------------------------------------------------------------

    def ask(self, name: str, prompt: str, *, owner: RoundOwner = "optimizer", **turn: Any) -> str | None:
        """One agent's turn: its closing words, or None where it had none to give. Raises Paused, nothing else.

        prompt: file in `agents/prompts/`, whose `$names` come from `turn`. owner: whose configuration the round runs.
        """
        if self.silent_because or (self.mailbox is not None and not self.mailbox.asks(name)):
            return None
        context = self.contexts[name]
        context.begin_turn(owner)
        self.model_seconds = 0.0
        self.turn_seconds = min(MODEL_SECONDS_A_TURN, self.model_time_left() * TURN_SHARE)
        self.check_pause(context)
        messages = self.broker.collect(name)[-MESSAGES_A_TURN:]
        text = self._prompt(name, prompt, turn, messages)
        context.given = "" if self.by_procedure else text
        try:
            words = self._closing_words(name, text, turn["turn"])
        except Exception as error:
            self.broker.put_back(name, messages)
            self.check_pause(context)
            self._failed(name, error)
            return None
        self.check_pause(context)
        self.failures_in_a_row = 0
        if turn["turn"]["kind"] != "report":  # which is held against all that it heard, see `honesty.py`
            words = context.checked(words)
        told: dict[str, Any] = {"read": messages[-1].number} if messages else {}
        if context.client:
            told["client"] = context.client
        self.emit("agent", name, words[:2_000], turn=turn.get("turn"), **told)
        if turn["turn"]["kind"] != "report":
            try:
                self.lab.evidence.check_ids([row for row in named_rows(words) if row.startswith("r-")])
            except InputError as problem:
                self.announce(f"What {name} said is passed on to nobody: {problem}.")
                return None
        return words

    def _closing_words(self, name: str, prompt: str, turn: Mapping[str, Any]) -> str:
        if self.mailbox is not None:
            tools = next(member.tools for member in self.members if member.name == name)
            return self.mailbox.take_turn(self.contexts[name], tools, prompt, turn).strip()
        answer = outside_event_loop(lambda: self.agents[name].kickoff(prompt))
        return str(getattr(answer, "raw", "")).strip()

    def check_pause(self, context: ToolContext) -> None:
        """Raise Paused if the campaign is to stop, also later on through the agent framework."""
        if context.interrupt is None and self.lab.stop_event.is_set():
            context.interrupt = Paused("stopped while the crew was at work")
        if context.interrupt is not None:
            raise context.interrupt

    def model_time_left(self) -> float:
        """Seconds that the model may still take, over all sittings; no end where the budget is not in wall time."""
        budget_s = self.lab.plan.budget.wall_s
        return float("inf") if budget_s is None else max(MODEL_SHARE * budget_s - self.all_model_seconds, 0.0)

    def _briefing(self, name: str, turn: Mapping[str, Any]) -> str:
        """What code knows for this turn. The closing report gets what was measured alone, which its narrative may tell."""
        context = self.contexts[name]
        if turn["kind"] == "report":
            context.heard.append(facts(self.lab))
            return context.heard[-1]
        unheard = self.collaboration == "emergent" or (self.collaboration == "debate" and turn.get("pass") == 0)
        authors = [m.name for m in self.specialists if m.slice] if turn["kind"] == "criticise" else [name]
        return briefing(self.lab, context.role, name, authors=authors, colleagues=not unheard, left=self.meter.left())

    def _prompt(self, name: str, file: str, values: dict[str, Any], messages: Sequence[Message]) -> str:
        """The turn's prompt with the goal, the briefing, the messages that wait for the agent, and the shared findings."""
        lines = [read_prompt(file, goal=self.lab.question.goal, **{**values, "turn": json.dumps(values["turn"])})]
        if not self.by_procedure:
            lines.append(self._briefing(name, values["turn"]))
        facts = self.memory.recall()
        if messages:
            lines += ["Messages for you:", *(f"- {message}" for message in messages)]
        if facts:
            lines += ["Shared findings:", *(f"- {fact}" for fact in facts)]
        return "\n".join(lines)

    def _failed(self, name: str, error: Exception) -> None:
        self.failures_in_a_row += 1
        if isinstance(error, BudgetSpentError | ContextError):
            self.silent_because = str(error)
        elif self.failures_in_a_row >= GIVE_UP_AFTER and self.mailbox is None:  # a client may come back
            self.silent_because = f"{GIVE_UP_AFTER} turns in a row failed"
        text = f"{name} could not answer ({str(error)[:300]}); code goes on with the optimizer's suggestion."
        self.emit("agent", name, text, failed=True, error=f"{type(error).__name__}: {error}"[:2_000])
        if self.silent_because:
            self.announce(
                f"The chat model is not asked again in this sitting: {self.silent_because}. "
                "The optimizer proposes every configuration from here on."
            )


def _introduced(lab: Lab) -> Mapping[str, Any]:
    """What the crew of the last sitting was told: what to approve, how to work together, who takes part."""
    return next((e.payload for e in reversed(lab.events(["stage"])) if "approve_each" in e.payload), {})


class _Watcher:
    """Stands around the model calls of one agent: caps and pauses before, the record after."""

    def __init__(self, crew: Crew, member: AgentSpec) -> None:
        self._crew, self._member = crew, member

    def closing(self) -> str:
        """Once every arm has a proposal the turn is over: its reasons are what colleagues read, and no model is asked for more."""
        proposed = self._crew.contexts[self._member.name].proposed
        if self._crew.by_procedure or not all(arm in proposed for arm in self._crew.lab.arms):
            return ""
        return " ".join(f"{arm}: {reason}" for arm, reason in proposed.items())

    def before(self, prompt_tokens: int) -> None:
        crew = self._crew
        crew.check_pause(crew.contexts[self._member.name])
        if crew.choice.kind != "langchain":
            return
        if crew.model_time_left() < 1:
            share_s = MODEL_SHARE * (crew.lab.plan.budget.wall_s or 0.0)
            raise BudgetSpentError(f"the {share_s:.0f} s that the budget has for the chat model are over")
        if crew.model_seconds >= crew.turn_seconds:
            raise TimeoutError(f"its model took more than {crew.turn_seconds:.0f} s in this turn")
        crew.meter.check(prompt_tokens)

    def waiting(self, seconds: float) -> None:
        crew = self._crew
        crew.check_pause(crew.contexts[self._member.name])
        most = min(CALL_S, crew.turn_seconds - crew.model_seconds)
        if crew.choice.kind == "langchain" and seconds > most:
            raise NoAnswerError(f"no whole answer within {most:.0f} s")

    def after(self, call: ModelCall) -> None:
        meter = self._crew.meter
        meter.add(call.input_tokens, call.output_tokens)
        self._crew.model_seconds += call.latency_s
        self._crew.all_model_seconds += call.latency_s
        if self._crew.choice.kind == "langchain" and self._crew.lab.plan.budget.wall_s is not None:
            self._crew.lab.rest(call.latency_s)
        tokens = call.input_tokens + call.output_tokens
        self._crew.emit(
            "llm_call",
            self._member.name,
            f"{call.error or ', '.join(c['name'] for c in call.tool_calls) or 'answer'}"[:200]
            + f" ({tokens} tokens, {call.latency_s:.1f} s)",
            model=self._crew.choice.name,
            prompt_file_hash=prompt_hash(self._member.prompt),
            prompt_hash=call.prompt_hash,
            messages=call.messages,
            answer=call.text,
            tool_calls=call.tool_calls,
            input_tokens=call.input_tokens,
            output_tokens=call.output_tokens,
            usd=meter.cost(call.input_tokens, call.output_tokens) if meter.price else None,
            latency_s=round(call.latency_s, 3),
            error=call.error,
            tokens_so_far=meter.tokens,
            max_tokens=meter.max_tokens,
            usd_so_far=round(meter.usd, 6) if meter.price else None,
            max_usd=meter.max_usd,
        )


def outside_event_loop(work: Callable[[], T]) -> T:
    """The result of `work`, run in a thread of its own where an event loop runs in this one, as in a notebook.

    Inside a loop CrewAI's `kickoff` would give a coroutine that nobody awaits.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["value"] = work()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True, name="crew")
    thread.start()
    while thread.is_alive():  # in steps, so that Ctrl-C comes through
        thread.join(0.2)
    if "error" in box:
        raise box["error"]
    return box["value"]
