"""From a goal in words to a typed question that code can judge."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from core.config import FrozenConfig
from core.errors import InputError, unknown_name
from core.sequence_model import MODELS
from core.words.commands import command
from env_runner.task_distributions import FAMILIES
from experiments.numbers import parse_percent
from experiments.search.space import ModelFamily
from meta_rl.learner import DEFAULT_LEARNER, LEARNERS

SSM_KINDS = ("s5", "lru", "s4d")  # the default comes first
EXAMPLES = (
    "beat LSTM on halfcheetah-vel",
    "compare S5 and GRU on halfcheetah-dir",
    "improve LRU on halfcheetah-vel by 10 %",
)
ALIASES = {
    "ssm": "ssm",
    "ssms": "ssm",
    "state space model": "ssm",
    "state space models": "ssm",
    "state-space model": "ssm",
    "state-space models": "ssm",
    "attention": "transformer",
    "transformers": "transformer",
    "feedforward": "mlp",
    "feed-forward": "mlp",
    "memoryless policy": "mlp",
}
_FILLER = re.compile(
    r"^(?:please|can you|could you|can|could|does|do|will|would|is|are|i want to|i would like to|we want to|let's|try to|"
    r"make|have|show that|check whether|check if|see if|see whether|whether|if|a|an|the|our|my|some|tuned|new)\s+",
    re.IGNORECASE,
)
_TAIL = re.compile(r"\s+(?:please|model|models|policy|policies|network|networks|architecture|memory|task|family|env)$")
_LEARNER = re.compile(r",?\s+trained\s+(?:by|with|using)\s+(?:the\s+)?(?P<learner>\S+)$", re.IGNORECASE)
_ON = r"\s+(?:on|in|for|at|with|over)\s+"
_PATTERNS: tuple[tuple[Literal["beat", "compare", "best", "improve"], str], ...] = (
    ("improve", rf"(?:improve|raise|boost)\s+(?:on\s+|upon\s+)?(?P<x>.+?){_ON}(?P<t>\S+)\s+by\s+(?P<n>[\d.,]+)\s*(?:%|percent|per cent)"),
    ("improve", rf"(?:improve|raise|boost)\s+(?:on\s+|upon\s+)?(?P<x>.+?)\s+by\s+(?P<n>[\d.,]+)\s*(?:%|percent|per cent){_ON}(?P<t>.+)"),
    ("compare", rf"(?:compare|contrast)\s+(?P<x>.+?)\s+(?:and|with|to|against|versus|vs\.?)\s+(?P<y>.+?){_ON}(?P<t>.+)"),
    ("compare", rf"(?:(?P<x>.+?)\s+)(?:versus|vs\.?)\s+(?P<y>.+?){_ON}(?P<t>.+)"),
    ("best", rf"(?:find|get|search|search for|look for|what is|which is)\s+(?:me\s+)?(?:the\s+)?best\s+(?P<x>.+?){_ON}(?P<t>.+)"),
    ("best", rf"(?:the\s+)?best\s+(?P<x>.+?){_ON}(?P<t>.+)"),
    ("best", rf"(?:tune|optimi[sz]e)\s+(?P<x>.+?){_ON}(?P<t>.+)"),
    ("beat", rf"(?:beat|beats|outperform|outperforms|surpass|exceed|do better than|be better than|better than|win against|improve (?:up)?on)\s+(?P<y>.+?)\s+(?:with|using|by)\s+(?P<x>.+?){_ON}(?P<t>.+)"),
    ("beat", rf"(?:(?P<x>.+?)\s+)?(?:beat|beats|outperform|outperforms|surpass|exceed|do better than|be better than|better than|win against|improve (?:up)?on)\s+(?P<y>.+?){_ON}(?P<t>.+)"),
)  # fmt: skip


class Question(FrozenConfig):
    """The goal as code understands it."""

    goal: str
    """The words as they were typed."""
    kind: Literal["beat", "compare", "best", "improve"]
    challenger: ModelFamily
    """The side that is hoped to be better."""
    baseline: ModelFamily
    """The side it is held against."""
    task: str
    """Task family."""
    metric: Literal["return_first_episode"] = "return_first_episode"
    """Mean over the tasks of the return of the first episode, acting deterministically."""
    direction: Literal["maximize"] = "maximize"
    improvement_pct: float = 0.0
    """How much better the challenger must be, in percent of the baseline's absolute score."""
    learner: str = Field(default=DEFAULT_LEARNER, exclude_if=lambda name: name == DEFAULT_LEARNER)
    """What trains both sides; left out of the JSON where the goal names none, as it was before goals could."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every registered name that the campaign works with: models, task and learner."""
        return (*self.challenger.kinds, *self.baseline.kinds, self.task, self.learner)

    @property
    def baseline_is_tuned(self) -> bool:
        """Whether both sides are tuned; "best" and "improve" hold a tuned model against its own default."""
        return self.kind in ("beat", "compare")

    def sentence(self) -> str:
        """What was understood, in one sentence."""
        c, b = label(self.challenger), label(self.baseline)
        trained = "" if self.learner == DEFAULT_LEARNER else f" Trained by {self.learner}."
        asked = {
            "beat": f"Does {c} reach a higher return than {b} on {self.task}, both tuned equally?",
            "compare": f"Which reaches the higher return on {self.task}, {c} or {b}, both tuned equally?",
            "best": f"Which {c} configuration is best on {self.task}, and does it beat the default {b}?",
            "improve": f"Can {c} on {self.task} be improved by {self.improvement_pct:g} % over its default?",
        }[self.kind]
        return asked + trained


def label(family: ModelFamily) -> str:
    """How a family is written for people: `SSM (s5, lru, s4d)` or `LSTM`."""
    name = family.name.upper() if family.name in ("ssm", "lstm", "gru", "mlp", "lru", "s5", "s4d") else family.name
    return f"{name} ({', '.join(family.kinds)})" if len(family.kinds) > 1 else name


def model_families() -> dict[str, ModelFamily]:
    """Every name a goal may use: each registered kind, `ssm` for the diagonal cells, `model` for all."""
    families = {kind: ModelFamily(name=kind, kinds=(kind,)) for kind in MODELS}
    families["ssm"] = ModelFamily(name="ssm", kinds=tuple(k for k in SSM_KINDS if k in MODELS))
    return families


def parse_model(words: str) -> ModelFamily:
    """The model family named by a few words; InputError with the nearest and the list."""
    name = _strip(words)
    families = model_families()
    for candidate in (name, words.strip().lower()):
        candidate = ALIASES.get(candidate, candidate)
        if candidate in families:
            return families[candidate]
    raise unknown_name("model", name, families, hint=f"See: {command('list', 'models')}")


def parse_task(words: str) -> str:
    """The task family named by a few words; InputError with the nearest and the list."""
    name = re.sub(r"^the\s+", "", words.strip())
    for candidate in (name, _TAIL.sub("", name), name.lower(), name.lower().replace(" ", "-").replace("_", "-")):
        if candidate in FAMILIES:
            return candidate
    from env_runner.task_distributions import get_family

    try:
        return get_family(name).id
    except InputError:
        raise unknown_name("task", name, FAMILIES, hint=f"See: {command('list', 'tasks')}") from None


def parse_learner(word: str) -> str:
    """The learner that a word names; InputError with the nearest and the list."""
    name = word.lower()
    if name not in LEARNERS:
        raise unknown_name("learner", name, LEARNERS, hint=f"See: {command('list', 'learners')}")
    return name


def parse_goal(goal: str) -> Question:
    """The question behind `goal`; "..., trained by maml-ppo" names another learner than the usual one.

    InputError says what was missing, with three examples.
    """
    words = re.sub(r"\s+", " ", goal.strip()).rstrip(" .?!")
    words = words.strip("\"'").rstrip(" .?!")
    trained = _LEARNER.search(words)
    learner = DEFAULT_LEARNER if trained is None else parse_learner(trained["learner"])
    kept = _without_fillers(_LEARNER.sub("", words))
    for kind, pattern in _PATTERNS:
        match = re.fullmatch(pattern, kept, re.IGNORECASE)
        if match:
            return _question(goal, kind, match.groupdict()).model_copy(update={"learner": learner})
    raise InputError(_what_is_missing(words))


def _question(goal: str, kind: Literal["beat", "compare", "best", "improve"], parts: dict[str, str | None]) -> Question:
    task = parse_task(parts["t"] or "")
    named = parts.get("x")
    challenger = parse_model(named) if named else model_families()["ssm"]
    if kind in ("best", "improve"):
        percent = parse_percent(parts.get("n") or "") if kind == "improve" else 0.0
        default = ModelFamily(name=challenger.kinds[0], kinds=challenger.kinds[:1])
        return Question(
            goal=goal, kind=kind, challenger=challenger, baseline=default, task=task, improvement_pct=percent
        )
    baseline = parse_model(parts["y"] or "")
    if set(challenger.kinds) & set(baseline.kinds):
        if parts.get("x"):
            shared = ", ".join(sorted(set(challenger.kinds) & set(baseline.kinds)))
            raise InputError(
                f"goal: {challenger.name} and {baseline.name} share {shared}: a model cannot be held against itself. "
                f'To tune one, ask: "find the best {challenger.name} on {task}"'
            )
        rest = tuple(k for k in challenger.kinds if k not in baseline.kinds)
        if not rest:
            raise InputError(
                f'goal: what should beat {baseline.name}? Name it: "beat {baseline.name} with lstm on {task}"'
            )
        challenger = ModelFamily(name="ssm", kinds=rest)
    return Question(goal=goal, kind=kind, challenger=challenger, baseline=baseline, task=task)


def _what_is_missing(words: str) -> str:
    lower = f" {words.lower()} "
    missing = []
    if not re.search(r"\b(beats?|outperforms?|surpass|exceed|better|win|compare|contrast|vs\.?|versus|best|tune|optimi[sz]e|improve|raise|boost)\b", lower):  # fmt: skip
        missing.append("what to do (beat, compare, find the best, improve)")
    elif re.search(r"\b(improve|raise|boost)\b", lower) and not re.search(r"\d\s*(%|percent|per cent)", lower):
        missing.append("by how many percent to improve")
    names = set(model_families()) | set(ALIASES)
    if not any(re.search(rf"\b{re.escape(name)}\b", lower) for name in names):
        missing.append("a model (such as LSTM)")
    if not any(re.search(rf"[\s]{re.escape(task.lower())}[\s.,]", lower) for task in FAMILIES):
        missing.append("the task (on halfcheetah-vel)")
    examples = "; ".join(f'"{example}"' for example in EXAMPLES)
    return f"the goal {words!r} was not understood: missing {' and '.join(missing) or 'an order of words that fits'}. Examples: {examples}"


def _without_fillers(words: str) -> str:
    while (shorter := _FILLER.sub("", words)) != words:
        words = shorter
    return words


def _strip(words: str) -> str:
    """The bare name: fillers before it and nouns such as "model" or "policy" behind it taken off."""
    name = _without_fillers(words.strip().lower())
    while name not in ALIASES and (shorter := _TAIL.sub("", name)) != name and shorter:
        name = shorter
    return name
