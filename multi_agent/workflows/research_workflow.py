"""`run_research`: the campaign from question to verdict. A plain loop over `lab.stage`, which lives in the ledger.

Why no CrewAI Flow and no Crew object: a Flow keeps its own state beside the ledger's, and CrewAI's Crew aborts all its tasks
when one model call fails. Here the ledger is the only truth, so that a resume is the same loop again; each stage calls
one CrewAI agent after the other through `Agent.kickoff`; and what an agent does not do, code does: the round then runs
the optimizer's suggestion.

Agents reach the search side of the lab through tools. Baseline, selection, claim, confirmation and judging are calls
of this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multi_agent.agents.agent import COORDINATOR_NAME, AgentSpec
from multi_agent.communication.honesty import narrative_problem
from multi_agent.communication.message_broker import EVERYONE, HUMAN
from multi_agent.llm.choose import LLMChoice, redact
from multi_agent.tools.tool import RoundOwner, summary
from multi_agent.workflows.approval import ApproveEach
from multi_agent.workflows.crew import Crew, CrewEvent
from multi_agent.workflows.modes import CRITICISE, MAX_WORDS, OWNER_NAMES, OWNER_RULES, Collaboration, whose_round

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab

PLATEAU_ROUNDS = 3  # without a better trial on any arm: the agents are asked, if their share is not used up


def run_research(
    lab: Lab,
    llm: LLMChoice,
    *,
    data_dir: Path,
    on_event: Callable[[CrewEvent], None],
    max_tokens: int | None = None,
    max_usd: float | None = None,
    collaboration: Collaboration | None = None,
    agents: Sequence[str | AgentSpec] | None = None,
    approve_each: ApproveEach | None = None,
) -> None:
    """Run, or go on with, the campaign of `lab` until its stage is "done".

    llm: from `choose_llm`. data_dir: everything CrewAI writes goes below it. on_event: called for each event, which is
    in the ledger by then. max_tokens, max_usd: caps on the chat model, over all sittings of the campaign; when one is
    reached, the optimizer goes on alone. collaboration: how specialists work together in a round. agents: the
    specialists that take part, by name or as specifications. approve_each: what waits for a person's approval. None of
    these three stands for what the campaign had so far, at first: sequential, all registered agents, nothing. May be called inside a running event loop. Raises
    InputError for agents that cannot take part, and Paused when the lab is paused or stopped; nothing is lost then.
    """
    crew = Crew(
        lab,
        llm,
        data_dir=data_dir,
        on_event=on_event,
        max_tokens=max_tokens,
        max_usd=max_usd,
        collaboration=collaboration,
        agents=agents,
        approve_each=approve_each,
    )
    while lab.stage != "done":
        crew.approvals.before_stage(lab.stage)
        STAGES[lab.stage](crew)


# The stages. Each does its work and sets the next one; all of them can be repeated after an interruption.


def _question(crew: Crew) -> None:
    crew.lab.set_stage("plan")


def _plan(crew: Crew) -> None:
    crew.lab.set_stage("baseline")


def _baseline(crew: Crew) -> None:
    crew.announce(f"Question: {crew.lab.question.sentence()}")
    crew.announce("Baseline: its default configuration on several seeds, for the noise floor.")
    table = crew.lab.run_baseline()
    crew.announce(f"Baseline measured: {summary(table)}", stage="baseline")
    crew.lab.set_stage("search")


def _search(crew: Crew) -> None:
    lab = crew.lab
    crew.read_instructions()
    if lab.round == 0 and crew.is_led:
        crew.ask(
            COORDINATOR_NAME,
            "turn_plan.md",
            turn={"kind": "plan", "arms": lab.arms, "specialists": [m.name for m in crew.specialists]},
        )
    while lab.round < lab.plan.rounds:
        if lab.time_is_short():
            crew.announce(f"The search ends after {lab.round} rounds: the wall time left is needed to confirm.")
            break
        if lab.ends_early():
            crew.announce(f"The search ends after {lab.round} rounds, as the crew asked and the rule allows.")
            break
        _round(crew, lab.round)
    lab.set_stage("selection")


def _round(crew: Crew, number: int) -> None:
    """One search round: the specialists propose, and code launches what stands then."""
    lab, rounds = crew.lab, crew.lab.plan.rounds
    owner = _owner(crew, number)
    text = f"Search round {number + 1} of {rounds}: {OWNER_NAMES[owner]}."
    crew.announce(text, stage="search", round=number, mode=owner)
    shared = {"round": number + 1, "rounds": rounds, "arms": ", ".join(lab.arms)}
    _proposals(crew, number, owner, shared)
    while not crew.approvals.before_round(number, can_propose=crew.can_propose):
        if number:
            owner = "agents"
            lab.open_round(HUMAN)
        _proposals(crew, number, owner, shared)
    _review(crew, number, owner, shared)
    if lab.ends_early():
        return  # what was proposed for this round is not trained on any arm
    crew.announce(f"Round {number + 1}: {summary(lab.launch())}")
    if lab.round == number:
        raise RuntimeError(f"round {number} was launched and is still not measured")


def _owner(crew: Crew, number: int) -> RoundOwner:
    """Whose configuration round `number` runs; a person's instruction opens it to the agents."""
    crew.read_instructions()
    if crew.by_procedure:
        return "optimizer" if number else "default"
    rows = crew.lab.ledger_query("incumbent")
    lab = crew.lab
    last_gain = max((int(row[rows.columns.index("trial")] or 0) for row in rows.rows), default=0)
    plateau = number - lab.plan.round_of(last_gain) > PLATEAU_ROUNDS
    allowed = lab.plan.rounds_of_agents(lab.agent_share)
    owner = whose_round(number, lab.plan.rounds, crew.agent_rounds, plateau=plateau, allowed=allowed)
    if crew.instructed and number > 0:
        owner, crew.instructed = "agents", False
        crew.lab.open_round(HUMAN)
    if owner == "agents":
        crew.agent_rounds.add(number)
    return owner


def _proposals(crew: Crew, number: int, owner: RoundOwner, shared: dict[str, Any]) -> None:
    """The specialists' turns of a round, where it is theirs."""
    # Waiting for a model is paid in training time: it speaks where it counts.
    if (owner == "agents" or crew.by_procedure) and not crew.lab.is_launched(number):
        # An empty slice is nobody's turn; a fixed procedure says so itself.
        able = [m for m in crew.specialists if crew.by_procedure or m.slice is None or _has_slice(crew.lab, m.slice)]
        spoken: list[str] = []

        def ask(member: AgentSpec, prompt: str, pass_number: int) -> str | None:
            kind = "revise" if pass_number else "criticise" if member.asked == CRITICISE else "propose"
            turn = {"kind": kind, "round": number, "pass": pass_number, "arms": crew.lab.arms, "role": member.slice}
            if crew.collaboration == "emergent":  # where nobody's words are passed on unasked
                turn["spoken"] = list(spoken)
                spoken.append(member.name)
            return crew.ask(member.name, prompt, owner=owner, turn=turn, whose=OWNER_RULES[owner], **shared)

        crew.work_together(able, crew.broker, ask)


def _has_slice(lab: Lab, role: str) -> bool:
    return any(lab.describe_search_space(arm, role).parameters for arm in lab.arms)


def _review(crew: Crew, number: int, owner: RoundOwner, shared: dict[str, Any]) -> None:
    """The Coordinator's turn over what the agents propose, and the one in which the search may end for the first time."""
    may_end = not crew.lab.why_not_yet()
    if (
        crew.by_procedure
        or not crew.is_led
        or crew.lab.is_launched(number)
        or not (owner == "agents" or (may_end and not crew.asked_to_end))
    ):
        return
    crew.asked_to_end |= may_end
    turn = {"kind": "review", "round": number, "arms": crew.lab.arms}
    words = crew.ask(COORDINATOR_NAME, "turn_review.md", owner=owner, turn=turn, **shared)
    if words:
        crew.broker.post(COORDINATOR_NAME, EVERYONE, words[:MAX_WORDS])


def _selection(crew: Crew) -> None:
    crew.announce("Selection: the best configurations of each arm again, on fresh seeds.")
    crew.announce(f"Selected: {summary(crew.lab.run_selection())}", stage="selection")
    crew.lab.set_stage("claim")


def _claim(crew: Crew) -> None:
    claim = crew.lab.write_claim()
    text = f"Claim {claim.id}, fixed before its first run: {claim.content.hypothesis}."
    crew.announce(text, stage="claim", claim=claim.id)
    crew.lab.set_stage("confirmation")


def _confirmation(crew: Crew) -> None:
    crew.announce("Confirmation: fresh seeds, held-out tasks.")
    runs = len(crew.lab.run_confirmation().rows)  # their scores are not shown before the verdict
    crew.announce(f"Confirmation measured: {runs} runs are recorded.", stage="confirmation")
    crew.lab.set_stage("verdict")


def _verdict(crew: Crew) -> None:
    lab = crew.lab
    verdict = lab.judge()
    facts = verdict.model_dump_json()
    crew.announce(f"Verdict: {verdict.outcome}. {verdict.reason}", stage="verdict")
    narrative = crew.ask(
        COORDINATOR_NAME,
        "turn_report.md",
        turn={"kind": "report", "arms": lab.arms, "outcome": verdict.outcome},
        verdict=facts,
        outcome=verdict.outcome,
    )
    narrative = redact(narrative or "")[:4_000]
    context = crew.contexts[COORDINATOR_NAME]
    narrator = f"{COORDINATOR_NAME} ({f'mcp:{context.client}' if context.client else crew.choice.name})"
    heard = context.heard
    sources = [facts, lab.question.model_dump_json(), lab.plan.model_dump_json(), *heard]
    problem = narrative_problem(narrative, verdict.outcome, " ".join(sources)) if narrative else ""
    if problem:
        crew.announce(f"The narrative is not used: {problem}.")
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
