"""What a member of the crew has to know before it proposes, on one page, written by code from the ledger's rows.

Everything that was measured is a difference to the best configuration of its arm, in noise floors, so that nobody has to look a
table up to see what a difference is worth. Words of agents are no part of it, but for what they propose and expect.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from env_runner.task_distributions import get_family
from experiments.campaign.evidence import changed_fields
from experiments.campaign.proposing.ideas import Expected, Measured, all_ideas, measured, standing, unit
from experiments.campaign.sensitivity import sensitivity_table
from experiments.campaign.trials import FinishedTrial
from experiments.metrics import parse_metric
from experiments.numbers import format_count, format_seconds
from experiments.search.optimizer import NEAR_TRIALS
from experiments.search.sizing import count_parameters, state_size
from experiments.search.space import Parameter, iteration_steps
from experiments.vocabulary import readable_id
from meta_rl.learner import LEARNERS

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab

MAX_CHARS = 4_800
"""Of a briefing: 1,200 tokens, where a token is four characters."""
LESS_THAN_NOISE = 2.0  # noise floors: a smaller difference of two runs is none


def briefing(
    lab: Lab, role: str | None, author: str, *, authors: Sequence[str] = (), colleagues: bool = True, left: str = ""
) -> str:
    """The page for one agent. At most `MAX_CHARS` characters: the oldest and worst trials are left out first, and said to be.

    role: its slice, None for one that has none. author: who reads it. authors: whose predictions are shown, its own by default. colleagues: whether it sees what others propose in
    this round. left: what the crew may still spend on its model, in words.
    """
    for most in (12, 8, 5, 3, 2, 1, 0):
        text = _page(lab, role, author, authors or [author], colleagues=colleagues, left=left, most=most)
        if len(text) <= MAX_CHARS:
            return text
    return text[: MAX_CHARS - 4] + " ..."


def facts(lab: Lab) -> str:
    """What of the briefing was measured or planned, and nothing that anybody proposed or expected."""
    return "\n".join([*_frame(lab), *(line for arm in lab.arms for line in _arm(lab, arm, None, most=5))])[:MAX_CHARS]


def _page(
    lab: Lab, role: str | None, author: str, authors: Sequence[str], *, colleagues: bool, left: str, most: int
) -> str:
    lines = _frame(lab)
    for arm in lab.arms:
        lines += _arm(lab, arm, role, most=most)
    if colleagues:
        lines += _proposed(lab, author)
    for name in authors:
        lines += _record(lab, name, "Your" if name == author else f"{name}'s")
    lines.append(_left(lab, left))
    return "\n".join(lines)


def _frame(lab: Lab) -> list[str]:
    """The task, the learner, the lengths, the size and the noise."""
    question, plan, trials = lab.question, lab.plan, lab.trials
    family = get_family(question.task)
    words = family.docstring.split("## Description\n", 1)[-1].strip().split("\n\n")[0]
    reference = trials.baseline_specs()[0]
    iteration = iteration_steps(reference)
    learners = "; ".join(
        f"{name} ({(inspect.getdoc(LEARNERS[name].learner) or name).split('.')[0]})" for name in question.learners
    )
    lines = [
        f"Task {family.id}: {' '.join(words.split())[:300]} Hidden, other on every task: {', '.join(family.param_names)[:120]}. "
        f"{family.horizon} steps an episode, {family.obs_dim} observations, {family.action.size} {family.action.kind} actions.",
        f"Learner: {learners[:200]}.",
        f"A search run has {format_count(plan.env_steps_search)} env steps, {plan.env_steps_search // iteration} iterations of {iteration} "
        f"by default; a confirmation run {format_count(plan.confirmation_steps)}. Policies are sized to {trials.parameters:,} parameters.",
    ]
    metric = parse_metric(question.metric)
    if metric.quantity != "return":
        lines.append(f"A score is {question.score_in_words}.")
    floor, score = trials.noise_floor(), trials.default_score()
    seeds = len(trials.baseline_scores())
    if floor and score is not None:
        lines.append(
            f"One noise floor (nf) is {floor:.4g}{metric.unit}: the spread of the baseline's default over {seeds} seeds, itself rough. Less than "
            f"{LESS_THAN_NOISE:g} nf is no difference. That default scores {score:.5g} on the seed of all search trials; higher is better."
        )
    else:
        lines.append("No noise floor is measured: differences are in units of the score; higher is better.")
    return lines


def _arm(lab: Lab, arm: str, role: str | None, *, most: int) -> list[str]:
    """One arm: its best configuration, all trials against it, the optimizer and the agent's own slice."""
    trials, space = lab.trials, lab.trials.space(arm)
    best, finished = trials.incumbent(arm), trials.finished(arm)
    lead = trials.base_values(arm, 0, "incumbent")
    spec = trials.search_spec(arm, lead)
    shown = " ".join(f"{name}={value}" for name, value in lead.items())
    trained = f"width {spec.policy.model.hidden_dim}, state {state_size(spec)}, {count_parameters(spec):,} parameters"
    who = "the default, not measured yet" if best is None else _who(lab, best)
    lines = [f"[{arm}] incumbent: {who}; trained with {trained}: {shown}"]
    others = sorted((t for t in finished if best is not None and t.number != best.number), key=lambda t: -t.number)
    for trial in others[:most]:
        level = (
            trial.run.status
            if trial.score is None or best is None
            else f"{(trial.score - (best.score or 0.0)) / unit(trials):+.1f} nf"
        )
        lines.append(f"  {_who(lab, trial)}: {level} with {changed_fields(lead, trial.values) or 'the same'}")
    if len(others) > most:
        lines.append(f"  and {len(others) - most} more trials (ledger_query)")
    sensitive = sensitivity_table(finished, space.parameters, 3)
    if sensitive.rows:
        lines.append("  sensitive to " + ", ".join(f"{r[0]} ({r[1]} {r[2]})" for r in sensitive.rows))
    if lab.stage == "search" and lab.round < lab.plan.rounds and not lab.ends_early():
        suggestion = lab.suggest(arm)
        rule = f"; TPE from trial {NEAR_TRIALS + 1}" if lab.plan.suggesting > 1 else ""
        lines.append(
            f"  optimizer, trial {suggestion.trial + 1} of {lab.plan.trials} ({suggestion.reason}{rule}), suggests "
            f"{changed_fields(lead, space.complete(suggestion.values)) or 'the incumbent'}"
        )
    if role is not None:
        own = [p for p in space.of_role(role) if space.has(p, lead) or p.only_for]
        lines.append("  your slice: " + ("; ".join(_range(p) for p in own) or "nothing"))
    return lines


def _range(parameter: Parameter) -> str:
    allowed = (
        "|".join(map(str, parameter.choices or ()))
        if parameter.kind == "choice"
        else f"{parameter.low:g}..{parameter.high:g}{' log' if parameter.log else ''}"
    )
    return f"{parameter.name} {allowed}" + (f" ({', '.join(parameter.only_for)})" if parameter.only_for else "")


def _who(lab: Lab, trial: FinishedTrial) -> str:
    proposer = lab.trials.proposer(trial.arm, trial.number, "search")
    return f"{readable_id('r', trial.run.id)} (trial {trial.number}, {proposer})"


def _proposed(lab: Lab, author: str) -> list[str]:
    """What the others propose in the present round."""
    said = [
        f"{idea.author} on {idea.arm}: the {idea.base} with {' '.join(f'{k}={v}' for k, v in idea.changes.items())}, expects {_short(idea.expected)}"
        for (arm, trial), idea in standing(lab.trials).items()
        if idea.round == lab.round and idea.author != author
    ]
    return [f"Proposed in this round: {'; '.join(said)[:800]}."] if said else []


def _record(lab: Lab, author: str, whose: str) -> list[str]:
    """An agent's predictions and what was measured, the newest first."""
    done = [m for m in measured(lab.trials) if m.idea.author == author]
    told = [m for m in done if m.idea.expected is not None and m.effect is not None]
    mine = "your" if whose == "Your" else "its"
    tried = sum(idea.author == author and idea.trial is None for idea in all_ideas(lab.trials))
    if not done:
        return [f"{whose} record: none of {mine} ideas was measured yet."]
    covered = f" {sum(bool(m.is_covered) for m in told)} of {len(told)} effects lay in {mine} interval." if told else ""
    unmet = f" {tried} of {mine} ideas were not tried." if tried else ""
    return [f"{whose} record: {'; '.join(_scored(m) for m in done[::-1][:4])}.{covered}{unmet}"]


def _scored(done: Measured) -> str:
    changes = " ".join(f"{name}={value}" for name, value in done.idea.changes.items())
    result = done.status if done.effect is None else f"measured {done.effect:+.1f} nf"
    return f"{done.idea.arm} {changes[:160]}: expected {_short(done.idea.expected)}, {result}"


def _short(expected: Expected | None) -> str:
    return "nothing" if expected is None else f"{expected.delta:+.3g} [{expected.low:+.3g}, {expected.high:+.3g}] nf"


def _left(lab: Lab, left: str) -> str:
    budget = lab.budget()
    time = ""
    if budget.wall_s_planned is not None:
        time = f", {format_seconds(max(budget.wall_s_planned - budget.wall_s_spent, 0))} of wall time"
    rounds = budget.rounds_planned - budget.rounds_finished
    return (
        f"Left: {rounds} of {budget.rounds_planned} search rounds, this one counted{time}{f', {left}' if left else ''}."
    )
