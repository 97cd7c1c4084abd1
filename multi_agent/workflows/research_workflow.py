"""`run_research`: the campaign from question to verdict. A plain loop over `lab.stage`, which lives in the ledger.

Why no CrewAI Flow and no Crew object: a Flow keeps its own state beside the ledger's, and a Crew aborts all its tasks
when one model call fails. Here the ledger is the only truth, so that a resume is the same loop again; each stage calls
one CrewAI agent after the other through `Agent.kickoff`; and what an agent does not do, code does. An agent that fails,
talks prose or loops costs its turn, never the campaign: the round then runs the optimizer's suggestion.

Agents reach the search side of the lab through tools. Baseline, selection, claim, confirmation and judging are calls
of this file alone.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.lab import Paused
from multi_agent.agents.agent import MAX_MODEL_CALLS, AgentSpec, build_agent, crew_members, prompt_hash, read_prompt
from multi_agent.communication.message_broker import EVERYONE, MessageBroker
from multi_agent.communication.shared_memory import SharedMemory
from multi_agent.llm.choose import LLMChoice, redact
from multi_agent.llm.meter import BudgetSpentError, Meter, read_prices
from multi_agent.tools.tool import Mode, ToolContext, clean, summary
from multi_agent.workflows.collaborative_learning import COLLABORATION, COORDINATOR
from multi_agent.workflows.collaborative_learning import Mode as Collaboration

if TYPE_CHECKING:
    from crewai import Agent

    from experiments.lab import Lab
    from multi_agent.llm.langchain_llm import ModelCall
    from multi_agent.llm.replay import Recording

EventKind = Literal["stage", "agent", "tool_call", "tool_result", "message", "llm_call"]
WORKFLOW = "workflow"
AGENT_SHARE = 0.3  # of the rounds may be shaped by agents; the optimizer has the others
GIVE_UP_AFTER = 3  # turns in a row without an answer: the model is not asked again in this sitting
MODEL_SECONDS_A_TURN = 300.0  # that one agent may wait for its model in one turn
PLATEAU_ROUNDS = 3  # without a better trial on any arm: the agents are asked, if their share is not used up
HUMAN = "human"


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
) -> None:
    """Run, or go on with, the campaign of `lab` until its stage is "done".

    llm: from `choose_llm`. data_dir: everything CrewAI writes goes below it. on_event: called for each event, which is
    in the ledger by then. max_tokens, max_usd: caps on the chat model, over all sittings of the campaign; when one is
    reached, the optimizer goes on alone. collaboration: how specialists work together in a round. agents: the
    specialists that take part, all by default. Raises Paused when the lab is paused or stopped; nothing is lost then.
    """
    crew = Crew(lab, llm, data_dir, on_event, max_tokens, max_usd, collaboration, agents)
    while lab.stage != "done":
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
    ) -> None:
        from multi_agent.llm.quiet_crewai import boot

        boot(data_dir / "crewai")
        self.lab, self.choice, self._on_event = lab, choice, on_event
        self._lock = threading.Lock()
        self.members = [m for m in crew_members() if agents is None or m.name in (*agents, COORDINATOR)]
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
        self._remember_earlier_sittings()
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
            prompts={m.name: prompt_hash(m.prompt) for m in self.members},
        )
        if max_usd is not None and self.meter.price is None and choice.kind == "langchain":
            self.emit(
                "stage",
                WORKFLOW,
                f"The price of {choice.name} is not in the price list of {prices_date}: --max-usd cannot be held, "
                f"only tokens are counted. Add it in {data_dir / 'prices.json'}, or cap with --max-tokens.",
            )

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

    def _remember_earlier_sittings(self) -> None:
        """What was spent, found, given to agents and read of people's instructions before this process began."""
        for event in self.lab.events(["llm_call", "message", "stage"]):
            payload = event.payload
            if event.kind == "llm_call":
                self.meter.tokens += payload["input_tokens"] + payload["output_tokens"]
                self.meter.usd += payload["usd"] or 0.0
            elif event.kind == "message" and "finding" in payload:
                self.memory.restore(event.actor, payload["finding"], tuple(payload["evidence"]))
            elif event.kind == "message" and "instruction" in payload:
                self._instructions_read = max(self._instructions_read, payload["instruction"])
            elif event.kind == "stage" and payload.get("mode") == "agents":
                self.agent_rounds.add(payload["round"])

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

    def emit(self, kind: EventKind, actor: str, text: str, /, **payload: Any) -> None:
        """Record an event in the ledger, then show it. Keys of chat models are taken out of both."""
        text = " ".join(redact(clean(text)).split())
        payload = json.loads(redact(json.dumps(clean({"text": text} | payload, longest=100_000))))
        with self._lock:
            self.lab.record_event(kind, actor, payload)
            self._on_event(CrewEvent(kind, actor, text, payload))

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
        context.begin_turn(self.lab.round, mode)
        self.model_seconds = 0.0
        self.check_pause(context)
        try:
            answer = self.agents[name].kickoff(self._prompt(name, prompt, turn))
            words = str(getattr(answer, "raw", "")).strip()
        except Exception as error:
            self.check_pause(context)
            self._failed(name, error)
            return None
        self.check_pause(context)
        self.failures_in_a_row = 0
        self.emit("agent", name, words[:2_000], turn=turn.get("turn"))
        return words

    def _prompt(self, name: str, file: str, values: dict[str, Any]) -> str:
        """The turn's prompt with the goal, the messages that wait for the agent, and the shared findings."""
        lines = [read_prompt(file, goal=self.lab.question.goal, **{**values, "turn": json.dumps(values["turn"])})]
        messages, facts = self.broker.collect(name), self.memory.recall()
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
        _round(crew, lab.round)
    lab.set_stage("selection")


def _round(crew: Crew, number: int) -> None:
    """One search round: the specialists propose, the Coordinator launches, and code does what they leave undone."""
    lab, rounds = crew.lab, crew.lab.plan.rounds
    mode = _mode(crew, number)
    text = f"Search round {number + 1} of {rounds}: {MODE_NAMES[mode]}."
    crew.emit("stage", WORKFLOW, text, stage="search", round=number, mode=mode)
    shared = {"round": number + 1, "rounds": rounds, "arms": ", ".join(lab.arms)}
    # Waiting for a model is paid in training time: it speaks where it counts.
    if mode == "agents" or crew.by_procedure:

        def ask(member: AgentSpec, prompt: str, pass_: int) -> str | None:
            kind = "revise" if pass_ else "propose"
            turn = {"kind": kind, "round": number, "pass": pass_, "arms": lab.arms, "role": member.slice}
            return crew.ask(member.name, prompt, mode=mode, turn=turn, whose=MODE_TEXT[mode], **shared)

        crew.work_together(crew, ask)
    turn = {"kind": "launch", "round": number, "arms": lab.arms}
    words = crew.ask(COORDINATOR, "turn_launch.md", mode=mode, turn=turn, **shared)
    if lab.round == number:  # whatever the Coordinator did instead
        crew.emit("stage", WORKFLOW, f"Code launches round {number + 1}.")
        crew.emit("stage", WORKFLOW, f"Round {number + 1}: {summary(lab.launch())}")
    elif words:
        crew.broker.post(COORDINATOR, EVERYONE, words[:600])
    if lab.round == number:
        raise RuntimeError(f"round {number} was launched and is still not measured")


def _mode(crew: Crew, number: int) -> Mode:
    """Whose configuration round `number` runs; a person's instruction opens it to the agents."""
    crew.read_instructions()
    if crew.by_procedure:
        return "optimizer" if number else "default"
    rows = crew.lab.ledger_query("incumbent")
    last_gain = max((int(row[rows.columns.index("trial")] or 0) for row in rows.rows), default=0)
    mode = whose_round(number, crew.lab.plan.rounds, crew.agent_rounds, plateau=number - last_gain > PLATEAU_ROUNDS)
    if crew.instructed and number > 0:
        mode, crew.instructed = "agents", False
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
    crew.emit("stage", WORKFLOW, f"Confirmation measured: {summary(crew.lab.run_confirmation())}", stage="confirmation")
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
    narrative = (narrative or "")[:4_000]
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


def whose_round(number: int, rounds: int, agent_rounds: Set[int], *, plateau: bool) -> Mode:
    """Who shapes round `number` (from 0) of `rounds`: the default first, then the agents, then the optimizer.

    Agents have at most 30 % of the rounds (but one, from three rounds on): half of them early, where the optimizer has
    too few rows to beat a guess, the others when no trial has become better for `PLATEAU_ROUNDS` rounds.
    agent_rounds: the rounds they had so far.
    """
    if number == 0:
        return "default"
    share = max(1, int(AGENT_SHARE * rounds)) if rounds >= 3 else 0
    if number in agent_rounds or number <= math.ceil(share / 2) or (plateau and len(agent_rounds) < share):
        return "agents"
    return "optimizer"


def narrative_problem(narrative: str, outcome: str, sources: str) -> str:
    """Why a narrative may not stand in the report, or "": it must name the outcome, and every number and row id in it
    must come from `sources` (up to rounding, sign and percent)."""
    if not re.search(rf"\b{outcome}\b", narrative, re.IGNORECASE):
        return f"it does not name the outcome, {outcome}"
    row_id = r"\b[a-z]+-\d+\b"
    for name in re.findall(row_id, narrative):
        if name not in sources:
            return f"{name} stands in no result"
    known = [float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", re.sub(row_id, " ", sources))]
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", re.sub(row_id, " ", narrative))
    for number in re.findall(r"(?<![A-Za-z\d])\d+(?:\.\d+)?", plain):
        half_digit = 0.5000001 * 10.0 ** -len(number.partition(".")[2])
        if not any(abs(k * scale - float(number)) <= half_digit for k in known for scale in (1, 100)):
            return f"the number {number} stands in no result"
    return ""
