"""A goal in anybody's words, in any language, put into the words that the grammar knows, by a chat model. Code reads what comes back: the
model chooses no side, task or metric that the grammar does not take, and the question records who translated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.words.text import plain
from env_runner.task_distributions import FAMILIES
from experiments.campaign.question import EXAMPLES, Question, parse_goals
from experiments.campaign.sides import side_words
from experiments.search.side import Recorded
from multi_agent.llm.calls import CALL_S, estimated_tokens, used_tokens, within
from multi_agent.llm.choose import LLMChoice, redact
from multi_agent.llm.meter import Meter, read_prices

ATTEMPTS = 2
MAX_GOAL_CHARS = 2_000
INSTRUCTIONS = """You put a researcher's wish into one goal that a program can read. Answer with that goal alone, on one line, in English; \
answer with the single word none where the wish asks for nothing of the kind.
Forms: beat Y on TASK | beat Y with X on TASK | compare X and Y on TASK | compare X, Y and Z on TASK | find the best X on TASK | improve X on \
TASK by N %. At the end may stand: after K shots | zero-shot | in the worst tasks | by success rate | in fewer steps to R | in less time to R | by prediction error | at equal time | at equal env steps.
X and Y are sequence models, learners, or both joined by "with" ("S5 with maml-ppo"): {sides}.
TASK is one of: {tasks}.
Examples: {examples}."""


def translate(
    goal: str,
    llm: LLMChoice,
    *,
    runs: Callable[[str], Recorded],
    data_dir: Path,
    max_tokens: int | None = None,
    max_usd: float | None = None,
) -> list[Question]:
    """The questions behind a goal that the grammar does not understand, one a task.

    Raises InputError where the model gives nothing that the grammar takes, with what it said, or gives no answer at all.
    """
    from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

    assert llm.make_chat is not None
    _, prices = read_prices(data_dir / "prices.json")
    meter = Meter(llm.price_name, prices, max_tokens=max_tokens, max_usd=max_usd)
    opening = INSTRUCTIONS.format(
        sides=", ".join(side_words()), tasks=", ".join(FAMILIES), examples="; ".join(EXAMPLES)
    )
    messages: list[BaseMessage] = [SystemMessage(opening), HumanMessage(goal[:MAX_GOAL_CHARS])]
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            sent = [message.text for message in messages]
            meter.check(estimated_tokens(*sent))
            reply: Any = within(CALL_S, llm.make_chat().invoke, messages)
        except Exception as error:  # whatever the model or its server did
            why = redact(" ".join(f"{error}".split()))[:300]
            raise InputError(f"{llm.name} could not be asked what the goal means ({why})") from None
        meter.add(*used_tokens(reply, *sent))
        lines = plain(redact(reply.text)).strip().splitlines() or [""]
        said = lines[-1].strip().strip("\"'`").strip()
        if said.lower().rstrip(".") in ("none", ""):
            raise InputError(f"{llm.name} found no goal in it")
        try:
            questions = parse_goals(said, runs)
        except InputError as error:
            problem = f"{llm.name} understood {said[:200]!r}, which is no goal either: {error}"
            messages += [
                AIMessage(said),
                HumanMessage(f"The program answers: {error}. Answer with one corrected goal."),
            ]
            continue
        return [
            question.model_copy(update={"goal": goal, "understood_as": said, "translated_by": llm.name})
            for question in questions
        ]
    raise InputError(problem)
