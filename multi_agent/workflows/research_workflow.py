"""`run_research`: the campaign from question to verdict. A plain loop over `lab.stage`, which lives in the ledger.

Why no CrewAI Flow and no Crew object: a Flow keeps its own state beside the ledger's, and a Crew aborts all its tasks
when one model call fails. Here the ledger is the only truth, so that a resume is the same loop again; each stage calls
one CrewAI agent after the other through `Agent.kickoff`; and what an agent does not do, code does. An agent that fails,
talks prose or loops costs its turn, never the campaign: the round then runs the optimizer's suggestion.

Agents reach the search side of the lab through tools. Baseline, selection, claim, confirmation and judging are calls
of this file alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from experiments.campaign.trials import AGENT_SHARE
from experiments.runs.runner import Denied, Paused
from multi_agent.agents.agent import (
    AGENTS,
    MAX_MODEL_CALLS,
    AgentSpec,
    build_agent,
    crew_members,
    prompt_hash,
    read_prompt,
)
from multi_agent.communication.message_broker import EVERYONE, Message, MessageBroker
from multi_agent.communication.shared_memory import SharedMemory
from multi_agent.llm.choose import LLMChoice, redact
from multi_agent.llm.meter import BudgetSpentError, Meter, read_prices
from multi_agent.tools.tool import Mode, ToolContext, clean, summary
from multi_agent.workflows.approval import Approvals, ApproveEach
from multi_agent.workflows.collaborative_learning import COLLABORATION, COORDINATOR
from multi_agent.workflows.collaborative_learning import Mode as Collaboration

if TYPE_CHECKING:
    from crewai import Agent

    from experiments.campaign.lab import Lab
    from multi_agent.llm.langchain_llm import ModelCall
    from multi_agent.llm.replay import Recording

T = TypeVar("T")
EventKind = Literal["stage", "agent", "tool_call", "tool_result", "message", "llm_call", "waiting"]
WORKFLOW = "workflow"
GIVE_UP_AFTER = 3  # turns in a row without an answer: the model is not asked again in this sitting
MODEL_SECONDS_A_TURN = 300.0  # that one agent may wait for its model in one turn
PLATEAU_ROUNDS = 3  # without a better trial on any arm: the agents are asked, if their share is not used up
MESSAGES_A_TURN = 30  # the newest ones, where more wait
HUMAN = "human"
ROW_ID = r"\b[a-z]+-\d+\b"


@dataclass(frozen=True)
class CrewEvent:
    """Something a person watching wants to see. `text` is plain text, whatever a model wrote into it."""

    kind: EventKind
    actor: str
    text: str
    payload: Mapping[str, Any]


def run_research(
    lab: Lab,
    llm: LLMChoice,
    *,
    data_dir: Path,
    on_event: Callable[[CrewEvent], None],
    max_tokens: int | None = None,
    max_usd: float | None = None,
    collaboration: Collaboration = "sequential",
    agents: Sequence[str] | None = None,
    approve_each: ApproveEach | None = None,
) -> None:
    """Run, or go on with, the campaign of `lab` until its stage is "done".

    llm: from `choose_llm`. data_dir: everything CrewAI writes goes below it. on_event: called for each event, which is
    in the ledger by then. max_tokens, max_usd: caps on the chat model, over all sittings of the campaign; when one is
    reached, the optimizer goes on alone. collaboration: how specialists work together in a round. agents: the
    specialists that take part, all by default. approve_each: what waits for a person's approval; None for what the
    campaign had so far. May be called inside a running event loop. Raises Paused when the lab is paused or stopped; nothing is lost then.
    """
    crew = Crew(lab, llm, data_dir, on_event, max_tokens, max_usd, collaboration, agents, approve_each)
    while lab.stage != "done":
        crew.ask_before_stage(lab.stage)
        STAGES[lab.stage](crew)


class Crew:
    """The five agents at work on one campaign: asks them for turns, records everything, survives their failures."""

    def __init__(
        self,
        lab: Lab,
        choice: LLMChoice,
        data_dir: Path,
        on_event: Callable[[CrewEvent], None],
        max_tokens: int | None,
        max_usd: float | None,
        collaboration: Collaboration,
        agents: Sequence[str] | None,
        approve_each: ApproveEach | None,
    ) -> None:
        from multi_agent.llm.quiet_crewai import boot

        boot(data_dir / "crewai")
        self.lab, self.choice, self._on_event = lab, choice, on_event
        self._lock = threading.Lock()
        self.members = self.choose_members(agents)
        self.work_together = COLLABORATION[collaboration]
        names = tuple(member.name for member in self.members)
        self.broker = MessageBroker(names, self.emit)
        self.memory = SharedMemory(self.emit)
        prices_date, prices = read_prices(data_dir / "prices.json")
        self.meter = Meter(choice.price_name, prices, max_tokens=max_tokens, max_usd=max_usd)
        self.model_seconds = 0.0  # of the present turn
        self.recording = self._read_recording() if choice.kind == "replay" else None
        # A fixed procedure costs neither time nor money, so every agent speaks in every round, and takes what the
        # optimizer suggests.
        self.by_procedure = choice.kind == "offline" or (self.recording is not None and self.recording.by_procedure)
        self.agent_rounds: set[int] = set()
        self.instructed = False  # by a person, since the last round
        self._instructions_read = 0
        earlier = self._remember_earlier_sittings()
        self.approvals = Approvals(lab, approve_each or earlier, self.emit, self._show)
        self.failures_in_a_row = 0
        self.silent_because = ""
        self.contexts = {
            m.name: ToolContext(lab, m.name, m.slice, self.emit, self.broker, self.memory) for m in self.members
        }
        self.agents: dict[str, Agent] = {m.name: self._build(m) for m in self.members}
        self.emit(
            "stage",
            WORKFLOW,
            f"The crew: {', '.join(names)}; model: {choice.name}.",
            llm=choice.name,
            approve_each=self.approvals.each,
            prompts={m.name: prompt_hash(m.prompt) for m in self.members},
        )
        if broken := AGENTS.failures_in_words():
            self.emit("stage", WORKFLOW, f"{broken} The crew works without it.")
        if max_usd is not None and self.meter.price is None and choice.kind == "langchain":
            self.emit(
                "stage",
                WORKFLOW,
                f"The price of {choice.name} is not in the price list of {prices_date}: --max-usd cannot be held, "
                f"only tokens are counted. Add it in {data_dir / 'prices.json'}, or cap with --max-tokens.",
            )

    def choose_members(self, agents: Sequence[str] | None) -> list[AgentSpec]:
        """The Coordinator and the specialists of those names, all by default."""
        return [m for m in crew_members() if agents is None or m.name in (*agents, COORDINATOR)]

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
        limit = 100 if self.by_procedure else MAX_MODEL_CALLS  # the offline researcher makes one call at a time
        return build_agent(member, LangChainLLM.wrap(chat, watcher), self.contexts[member.name], limit)

    def _remember_earlier_sittings(self) -> ApproveEach:
        """What was spent, found, said, read and given to agents before this process began; gives what to approve."""
        approve_each: ApproveEach = "none"
        messages: list[Message] = []
        read: dict[str, int] = {}
        for event in self.lab.events(["llm_call", "message", "stage", "agent"]):
            payload = event.payload
            if event.kind == "message" and "to" in payload:
                evidence = tuple(payload["evidence"])
                messages.append(Message(event.actor, payload["to"], payload["text"], evidence, event.id))
            elif event.kind == "agent" and "read" in payload:
                read[event.actor] = max(payload["read"], read.get(event.actor, 0))
            elif event.kind == "stage" and "approve_each" in payload:
                approve_each = payload["approve_each"]
            if event.kind == "llm_call":
                self.meter.tokens += payload["input_tokens"] + payload["output_tokens"]
                self.meter.usd += payload["usd"] or 0.0
            elif event.kind == "message" and "finding" in payload:
                self.memory.restore(event.actor, payload["finding"], tuple(payload["evidence"]))
            elif event.kind == "message" and "instruction" in payload:
                self._instructions_read = max(self._instructions_read, payload["instruction"])
            elif event.kind == "stage" and payload.get("mode") == "agents":
                self.agent_rounds.add(payload["round"])
        self.broker.restore(messages, read)
        return approve_each

    def read_instructions(self) -> None:
        """Hand what people wrote with `instruct` to every agent."""
        for event in self.lab.events(["instruct"], after=self._instructions_read):
            self._instructions_read, self.instructed = event.id, True
            self.broker.post(HUMAN, EVERYONE, str(event.payload.get("text", ""))[:2_000], instruction=event.id)
            if self.choice.kind != "langchain":
                self.emit("stage", WORKFLOW, "No language model is in use, so nobody can act on this instruction.")

    @property
    def specialists(self) -> list[AgentSpec]:
        return [member for member in self.members if member.name != COORDINATOR]

    def emit(self, kind: EventKind, actor: str, text: str, /, **payload: Any) -> int:
        """Record an event in the ledger, then show it; its number. Keys of chat models are taken out of both."""
        text = " ".join(redact(clean(text)).split())
        payload = json.loads(redact(json.dumps(clean({"text": text} | payload, longest=100_000))))
        with self._lock:
            number = self.lab.record_event(kind, actor, payload)
            self._on_event(CrewEvent(kind, actor, text, payload))
        return number

    def _show(self, text: str) -> None:
        """Show what is in the ledger already."""
        self._on_event(CrewEvent("waiting", WORKFLOW, text, {"text": text}))

    def ask_before_stage(self, stage: str) -> None:
        """Wait for a person's approval where it is wanted before a stage. Raises Denied where they say no."""
        each = self.approvals.each
        if each == "none" or stage not in ASKED_STAGES or (each == "run" and stage in ("search", "claim")):
            return
        what = f"the stage {stage}: {ASKED_STAGES[stage]}."
        if stage == "confirmation":
            what += f" The claim: {self.lab.write_claim().content.hypothesis}."
        reason = self.approvals.wait(f"stage:{stage}", what)
        if reason is not None:
            self.deny(f"the stage {stage}", reason)

    def ask_before_round(self, number: int) -> bool:
        """Wait for a person's approval of a search round. False where it was denied and the agents propose it again."""
        if self.approvals.each != "run":
            return True
        rows = self.lab.prepare_round().rows
        shown = "; ".join(" ".join(str(cell) for cell in row if cell is not None) for row in rows)
        what = f"search round {number + 1} of {self.lab.plan.rounds}: {shown}."
        reason = self.approvals.wait(f"round:{number}", what)
        if reason is None:
            return True
        if self.choice.kind != "langchain" or self.silent_because:
            self.deny(f"search round {number + 1}", reason)
        self.broker.post(HUMAN, EVERYONE, f"Search round {number + 1} as proposed was denied: {reason}"[:2_000])
        return False

    def deny(self, what: str, reason: str) -> None:
        """Pause, and leave the reason to every agent."""
        self.broker.post(HUMAN, EVERYONE, f"{what} was denied: {reason}"[:2_000])
        raise Denied(f"{what} was denied: {reason}")

    def check_pause(self, context: ToolContext) -> None:
        """Raise Paused if the campaign is to stop, also later on through the agent framework."""
        if context.interrupt is None and self.lab.stop_event.is_set():
            context.interrupt = Paused("stopped while the crew was at work")
        if context.interrupt is not None:
            raise context.interrupt

    def ask(self, name: str, prompt: str, *, mode: Mode = "optimizer", **turn: Any) -> str | None:
        """One agent's turn: its closing words, or None where it had none to give. Raises Paused, nothing else.

        prompt: file in `agents/prompts/`, whose `$names` come from `turn`.
        """
        if self.silent_because:
            return None
        context = self.contexts[name]
        context.begin_turn(self.lab.round, mode, may_launch=turn["turn"]["kind"] == "launch")
        self.model_seconds = 0.0
        self.check_pause(context)
        messages = self.broker.collect(name)[-MESSAGES_A_TURN:]
        text = self._prompt(prompt, turn, messages)
        try:
            answer = outside_event_loop(lambda: self.agents[name].kickoff(text))
            words = str(getattr(answer, "raw", "")).strip()
        except Exception as error:
            self.broker.put_back(name, messages)
            self.check_pause(context)
            self._failed(name, error)
            return None
        self.check_pause(context)
        self.failures_in_a_row = 0
        read = {"read": messages[-1].number} if messages else {}
        self.emit("agent", name, words[:2_000], turn=turn.get("turn"), **read)
        return words

    def _prompt(self, file: str, values: dict[str, Any], messages: Sequence[Message]) -> str:
        """The turn's prompt with the goal, the messages that wait for the agent, and the shared findings."""
        lines = [read_prompt(file, goal=self.lab.question.goal, **{**values, "turn": json.dumps(values["turn"])})]
        facts = self.memory.recall()
        if messages:
            lines += ["Messages for you:", *(f"- {message}" for message in messages)]
        if facts:
            lines += ["Shared findings:", *(f"- {fact}" for fact in facts)]
        return "\n".join(lines)

    def _failed(self, name: str, error: Exception) -> None:
        self.failures_in_a_row += 1
        if isinstance(error, BudgetSpentError):
            self.silent_because = str(error)
        elif self.failures_in_a_row >= GIVE_UP_AFTER:
            self.silent_because = f"{GIVE_UP_AFTER} turns in a row failed"
        text = f"{name} could not answer ({str(error)[:300]}); code goes on with the optimizer's suggestion."
        self.emit("agent", name, text, failed=True, error=f"{type(error).__name__}: {error}"[:2_000])
        if self.silent_because:
            self.emit(
                "stage",
                WORKFLOW,
                f"The chat model is not asked again in this sitting: {self.silent_because}. "
                "The optimizer proposes every configuration from here on.",
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


class _Watcher:
    """Stands around the model calls of one agent: caps and pauses before, the record after."""

    def __init__(self, crew: Crew, member: AgentSpec) -> None:
        self._crew, self._member = crew, member

    def before(self, prompt_tokens: int) -> None:
        self.waiting()
        if self._crew.model_seconds > MODEL_SECONDS_A_TURN:
            raise TimeoutError(f"its model took more than {MODEL_SECONDS_A_TURN:.0f} s in this turn")
        if self._crew.choice.kind == "langchain":
            self._crew.meter.check(prompt_tokens)

    def waiting(self) -> None:
        self._crew.check_pause(self._crew.contexts[self._member.name])

    def after(self, call: ModelCall) -> None:
        meter = self._crew.meter
        meter.add(call.input_tokens, call.output_tokens)
        self._crew.model_seconds += call.latency_s
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


# The stages. Each does its work and sets the next one; all of them can be repeated after an interruption.


def _question(crew: Crew) -> None:
    crew.lab.set_stage("plan")


def _plan(crew: Crew) -> None:
    crew.lab.set_stage("baseline")


def _baseline(crew: Crew) -> None:
    crew.emit("stage", WORKFLOW, f"Question: {crew.lab.question.sentence()}")
    crew.emit("stage", WORKFLOW, "Baseline: its default configuration on several seeds, for the noise floor.")
    table = crew.lab.run_baseline()
    crew.emit("stage", WORKFLOW, f"Baseline measured: {summary(table)}", stage="baseline")
    crew.lab.set_stage("search")


def _search(crew: Crew) -> None:
    lab = crew.lab
    crew.read_instructions()
    if lab.round == 0:
        crew.ask(
            COORDINATOR,
            "turn_plan.md",
            turn={"kind": "plan", "arms": lab.arms, "specialists": [m.name for m in crew.specialists]},
            question=lab.question.model_dump_json(),
            plan=lab.plan.model_dump_json(),
        )
    while lab.round < lab.plan.rounds:
        if lab.time_is_short():
            crew.emit(
                "stage", WORKFLOW, f"The search ends after {lab.round} rounds: the wall time left is needed to confirm."
            )
            break
        if lab.ends_early():
            crew.emit(
                "stage", WORKFLOW, f"The search ends after {lab.round} rounds, as the crew asked and the rule allows."
            )
            break
        _round(crew, lab.round)
    lab.set_stage("selection")


def _round(crew: Crew, number: int) -> None:
    """One search round: the specialists propose, the Coordinator launches, and code does what they leave undone."""
    lab, rounds = crew.lab, crew.lab.plan.rounds
    mode = _mode(crew, number)
    text = f"Search round {number + 1} of {rounds}: {MODE_NAMES[mode]}."
    crew.emit("stage", WORKFLOW, text, stage="search", round=number, mode=mode)
    shared = {"round": number + 1, "rounds": rounds, "arms": ", ".join(lab.arms)}
    _proposals(crew, number, mode, shared)
    while not crew.ask_before_round(number):
        if number:
            mode = "agents"
            lab.open_round(HUMAN)
        _proposals(crew, number, mode, shared)
    if lab.ends_early():
        return  # what was proposed for this round is not trained on any arm
    turn = {"kind": "launch", "round": number, "arms": lab.arms}
    words = crew.ask(COORDINATOR, "turn_launch.md", mode=mode, turn=turn, **shared)
    if lab.ends_early() and lab.round == number:
        return
    if lab.round == number:  # whatever the Coordinator did instead
        crew.emit("stage", WORKFLOW, f"Code launches round {number + 1}.")
        crew.emit("stage", WORKFLOW, f"Round {number + 1}: {summary(lab.launch())}")
    elif words:
        crew.broker.post(COORDINATOR, EVERYONE, words[:600])
    if lab.round == number:
        raise RuntimeError(f"round {number} was launched and is still not measured")


def _proposals(crew: Crew, number: int, mode: Mode, shared: dict[str, Any]) -> None:
    """The specialists' turns of a round, where it is theirs."""
    # Waiting for a model is paid in training time: it speaks where it counts.
    if mode == "agents" or crew.by_procedure:

        def ask(member: AgentSpec, prompt: str, pass_: int) -> str | None:
            kind = "revise" if pass_ else "propose"
            turn = {"kind": kind, "round": number, "pass": pass_, "arms": crew.lab.arms, "role": member.slice}
            return crew.ask(member.name, prompt, mode=mode, turn=turn, whose=MODE_TEXT[mode], **shared)

        crew.work_together(crew, ask)


def _mode(crew: Crew, number: int) -> Mode:
    """Whose configuration round `number` runs; a person's instruction opens it to the agents."""
    crew.read_instructions()
    if crew.by_procedure:
        return "optimizer" if number else "default"
    rows = crew.lab.ledger_query("incumbent")
    last_gain = max((int(row[rows.columns.index("trial")] or 0) for row in rows.rows), default=0)
    plateau = number - last_gain > PLATEAU_ROUNDS
    mode = whose_round(number, crew.lab.plan.rounds, crew.agent_rounds, plateau=plateau, share=crew.lab.agent_share)
    if crew.instructed and number > 0:
        mode, crew.instructed = "agents", False
        crew.lab.open_round(HUMAN)
    if mode == "agents":
        crew.agent_rounds.add(number)
    return mode


def _selection(crew: Crew) -> None:
    crew.emit("stage", WORKFLOW, "Selection: the best configurations of each arm again, on fresh seeds.")
    crew.emit("stage", WORKFLOW, f"Selected: {summary(crew.lab.run_selection())}", stage="selection")
    crew.lab.set_stage("claim")


def _claim(crew: Crew) -> None:
    claim = crew.lab.write_claim()
    text = f"Claim {claim.id}, fixed before its first run: {claim.content.hypothesis}."
    crew.emit("stage", WORKFLOW, text, stage="claim", claim=claim.id)
    crew.lab.set_stage("confirmation")


def _confirmation(crew: Crew) -> None:
    crew.emit("stage", WORKFLOW, "Confirmation: fresh seeds, held-out tasks.")
    runs = len(crew.lab.run_confirmation().rows)  # their scores are not shown before the verdict
    crew.emit("stage", WORKFLOW, f"Confirmation measured: {runs} runs are recorded.", stage="confirmation")
    crew.lab.set_stage("verdict")


def _verdict(crew: Crew) -> None:
    lab = crew.lab
    verdict = lab.judge()
    facts = verdict.model_dump_json()
    crew.emit("stage", WORKFLOW, f"Verdict: {verdict.outcome}. {verdict.reason}", stage="verdict")
    narrative = crew.ask(
        COORDINATOR,
        "turn_report.md",
        turn={"kind": "report", "arms": crew.lab.arms, "outcome": verdict.outcome},
        verdict=facts,
        outcome=verdict.outcome,
    )
    narrative = redact(narrative or "")[:4_000]
    narrator = f"{COORDINATOR} ({crew.choice.name})"
    sources = [facts, lab.question.model_dump_json(), lab.plan.model_dump_json(), *crew.contexts[COORDINATOR].heard]
    problem = narrative_problem(narrative, verdict.outcome, " ".join(sources)) if narrative else ""
    if problem:
        crew.emit("stage", WORKFLOW, f"The narrative is not used: {problem}.")
    if problem or not narrative:
        narrative, narrator = f"The verdict is {verdict.outcome}. {verdict.reason}", "code"
    lab.finish(narrative, narrator)
    if lab.stage != "done":
        lab.set_stage("done")


STAGES: dict[str, Callable[[Crew], None]] = {
    "question": _question,
    "plan": _plan,
    "baseline": _baseline,
    "search": _search,
    "selection": _selection,
    "claim": _claim,
    "confirmation": _confirmation,
    "verdict": _verdict,
}
ASKED_STAGES = {
    "baseline": "the baseline's default configuration is trained on several seeds, for the noise floor",
    "search": "both arms are tuned, round by round",
    "selection": "the best configurations of the search are trained again on fresh seeds",
    "claim": "the hypothesis, both configurations, the seeds and the test are fixed",
    "confirmation": "both configurations are trained on fresh seeds and evaluated on the held-out tasks",
}
MODE_NAMES: dict[Mode, str] = {
    "default": "the default configuration",
    "agents": "the agents' configuration",
    "optimizer": "the optimizer's configuration",
}
MODE_TEXT: dict[Mode, str] = {
    "default": "It runs the default configuration: propose exactly what suggest gives.",
    "agents": "It is yours to shape: depart from the optimizer's suggestion where rows support it.",
    "optimizer": "It runs the optimizer's suggestion: propose exactly what suggest gives.",
}


def whose_round(number: int, rounds: int, agent_rounds: Set[int], *, plateau: bool, share: float = AGENT_SHARE) -> Mode:
    """Who shapes round `number` (from 0) of `rounds`: the default first, then the agents, then the optimizer.

    Agents have at most `share` of the rounds, the first one included in the count: half of them early, where the
    optimizer has too few rows to beat a guess, the others when no trial has become better for `PLATEAU_ROUNDS` rounds.
    The lab refuses more. agent_rounds: the rounds they had so far.
    """
    if number == 0:
        return "default"
    allowed = int(share * rounds)
    if allowed >= rounds:
        return "agents"
    if number in agent_rounds or number <= math.ceil(allowed / 2) or (plateau and len(agent_rounds) < allowed):
        return "agents"
    return "optimizer"


def narrative_problem(narrative: str, outcome: str, sources: str) -> str:
    """Why a narrative may not stand in the report, or "": it must name the outcome, and every number and row id in it
    must come from `sources` (up to rounding, sign and percent)."""
    if not re.search(rf"\b{outcome}\b", narrative, re.IGNORECASE):
        return f"it does not name the outcome, {outcome}"
    for name in re.findall(ROW_ID, narrative):
        if name not in sources:
            return f"{name} stands in no result"
    number = unknown_number(narrative, sources)
    return f"the number {number} stands in no result" if number else ""


def unknown_number(text: str, sources: str) -> str:
    """The first number in `text`, row ids left out, that `sources` do not hold (up to rounding, sign and percent), or ""."""
    known = [float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", re.sub(ROW_ID, " ", sources))]
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", re.sub(ROW_ID, " ", text))
    for number in re.findall(r"(?<![A-Za-z\d])\d+(?:\.\d+)?", plain):
        half_digit = 0.5000001 * 10.0 ** -len(number.partition(".")[2])
        if not any(abs(k * scale - float(number)) <= half_digit for k in known for scale in (1, 100)):
            return number
    return ""
