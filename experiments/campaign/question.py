"""From a goal in words to a typed question that code can judge."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field, ValidationError

from core.config import FrozenConfig, explain_validation
from core.errors import InputError, bad_value, unknown_name
from core.sequence_model import MODELS, default_config
from core.words.commands import command
from core.words.text import as_it_looks
from env_runner.task_distributions import FAMILIES, get_family
from env_runner.task_family import EnvOptions, TaskFamily, with_changes
from experiments.campaign.sides import Named, default_of, hold_against, no_ledger, parse_side, parts_of, side_words
from experiments.metrics import FIRST_EPISODE, PREDICTION_ERROR, Metric, QuestionMetric, parse_metric, steps_to
from experiments.numbers import parse_percent
from experiments.search.side import Recorded, Side
from experiments.vocabulary import ARMS, Arm
from meta_rl.learner import DEFAULT_LEARNER, LEARNERS

Kind = Literal["beat", "compare", "best", "improve"]
EXAMPLES = (
    "beat LSTM on halfcheetah-vel",
    "beat RL2 with MAML on point-robot after 2 shots",
    "improve LRU on halfcheetah-vel by 10 %",
)
_FILLER = re.compile(
    r"^(?:please|can you|could you|can|could|does|do|will|would|is|are|i want to|i would like to|we want to|let's|try to|"
    r"make|have|show that|check whether|check if|see if|see whether|whether|if)\s+",
    re.IGNORECASE,
)
_TASK_NOUN = re.compile(r"\s+(?:task|tasks|family|env|environment)$")
_LEARNER = re.compile(r",?\s+trained\s+(?:by|with|using)\s+(?:the\s+)?(?P<learner>(?:(?!\s+on\s).)+)$", re.IGNORECASE)
_AT_STEP = r"(?:,?\s+(?:at|from|after)\s+step\s+(?P<step>\d+)(?:\s+on)?)?"
_FAILURE = re.compile(
    rf",?\s+(?<!trained\s)(?:and\s+)?(?:with|after|under|when|where|and)\s+(?:a\s+|one\s+|the\s+)?(?:joint|motor)(?:'s motor)?\s+(?:failure|fails|failing)\b{_AT_STEP}",
    re.IGNORECASE,
)
_SWITCH = re.compile(
    rf",?\s+(?<!trained\s)(?:and\s+)?(?:with|after|under|when|where|and)\s+(?:a\s+|the\s+)?(?:(?:switch|change)\s+of\s+(?:the\s+)?(?:target|goal|task)"
    rf"|(?:target|goal|task)\s+(?:switch|change|switches|changes))\b{_AT_STEP}",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"\s+by\s+(?:at\s+least\s+)?(?P<n>[\d.,]+)\s*(?:%|percent|per\s+cent)", re.IGNORECASE)
_ON = re.compile(r"\s*,?\s+(?:on|in|for|at|with|over)\s+", re.IGNORECASE)
_BEAT = r"(?:beat|beats|outperform|outperforms|surpass|exceed|do better than|be better than|better than|win against|improve (?:up)?on)"
_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("beat", r"(?:improve|raise|boost)\s+(?P<x>.+?)\s+over\s+(?P<y>.+)"),
    ("improve", r"(?:improve|raise|boost)\s+(?!(?:up)?on\s)(?P<x>.+)"),
    ("improve", r"(?:improve|raise|boost)\s+(?:up)?on\s+(?P<x>.+)"),
    ("compare", r"(?:compare|contrast)\s+(?P<x>(?:all|every)\s+(?:the\s+)?(?:sequence\s+)?models?)"),
    ("compare", r"(?:compare|contrast)\s+(?P<x>.+?)\s+(?:and|to|against|versus|vs\.?)\s+(?P<y>.+)"),
    ("compare", r"(?:compare|contrast)\s+(?P<x>.+?)\s+with\s+(?P<y>.+)"),
    ("compare", r"(?:which|what)\s+(?:is|does|works?)\s+(?:better|best)\s*[,:]?\s+(?P<x>.+?),?\s+or\s+(?P<y>.+)"),
    ("compare", r"(?P<x>.+?)\s+(?:versus|vs\.?)\s+(?P<y>.+)"),
    ("best", r"(?:which|what)\s+(?P<x>.+?)\s+(?:is|does|works?)\s+(?:the\s+)?best"),
    ("best", r"(?:(?:find|get|search|search for|look for|what is|which is)\s+(?:me\s+)?)?(?:the\s+)?best\s+(?P<x>.+)"),
    ("best", r"(?:tune|optimi[sz]e)\s+(?P<x>.+)"),
    ("beat", rf"{_BEAT}\s+(?P<y>.+?)\s+(?:with|using|by)\s+(?P<x>.+)"),
    ("beat", rf"(?:(?P<x>.+?)\s+)?{_BEAT}\s+(?P<y>.+)"),
)  # fmt: skip
_NUMBERS = {
    w: n for n, w in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_SHOTS = re.compile(
    rf",?\s+after\s+(?P<k>\d+|{'|'.join(_NUMBERS)})\s+(?:shots?|(?:gradient|inner|adaptation)\s+steps?|episodes?)",
    re.IGNORECASE,
)
_FIRST = re.compile(r",?\s+(?:in\s+the\s+first\s+episode|zero[- ]shot)", re.IGNORECASE)
_WORST = re.compile(r",?\s+(?:in|on|over)\s+the\s+(?:worst|hardest)(?:\s+tenth\s+of\s+the)?\s+tasks?", re.IGNORECASE)
_PARITY = re.compile(
    r",?\s+(?:at|with|in|for|given)\s+(?:the\s+)?(?:equal|same)\s+(?:(?:training|wall|cpu|compute)[- ]?)?"
    r"(?P<of>time|seconds|(?:env(?:ironment)?\s+)?steps|samples)",
    re.IGNORECASE,
)
_FEWER = re.compile(
    r",?\s+(?:in|with|by|using)\s+(?:fewer|less|the\s+fewest)\s+(?:(?:(?:env(?:ironment)?|training)\s+)?(?:steps|samples)|"
    r"(?P<time>(?:training\s+|wall\s+)?time|seconds))\s+(?:to|until|for|up\s+to)\s+(?:a\s+|the\s+)?(?:mean\s+)?(?:return\s+)?(?:of\s+)?"
    r"(?P<level>-?\d+(?:\.\d+)?)(?![\d.]*\s*(?:shots?|steps?|%))",
    re.IGNORECASE,
)
_PREDICTS = re.compile(
    r",?\s+(?:by|in)\s+(?:the\s+)?(?:prediction\s+error|predicting)(?:\s+(?:of\s+)?(?:the\s+)?(?P<what>reward|next\s+observation|task))?",
    re.IGNORECASE,
)
_SUCCESS = re.compile(r",?\s+(?:by|in|at)\s+(?:the\s+)?success(?:\s+rate)?", re.IGNORECASE)


class Question(FrozenConfig):
    """The goal as code understands it."""

    goal: str
    """The words as they were typed."""
    understood_as: str = Field(default="", exclude_if=lambda words: not words)
    """The goal in the grammar's words, where somebody translated it."""
    translated_by: str = Field(default="", exclude_if=lambda name: not name)
    """The chat model that translated it."""
    kind: Kind
    challenger: Side
    """The side that is hoped to be better."""
    baseline: Side
    """The side it is held against."""
    rivals: tuple[Side, ...] = Field(default=(), exclude_if=lambda sides: not sides)
    """Further sides, where there are more than two: the challenger is held against each, or in a comparison each against each."""
    tasks_at_once: int = Field(default=1, ge=1, exclude_if=lambda count: count == 1)
    """On how many task families the same was asked at once; each has a campaign of its own, and its error rate is divided by this."""
    task: str
    """Task family."""
    metric: QuestionMetric = FIRST_EPISODE
    """What both sides are scored by, acting deterministically; one that ends in `as_trained` is taken after the shots that each
    side's learner trains for."""
    direction: Literal["maximize"] = "maximize"
    improvement_pct: float = 0.0
    """How much better the challenger must be, in percent of the baseline's absolute score."""
    parity: Literal["steps", "time"] | None = Field(default=None, exclude_if=lambda parity: parity is None)
    """Equal env steps alone, or equal training time alone; None: both, judged together, where they can be."""
    changes: EnvOptions = Field(default_factory=EnvOptions, exclude_if=lambda changes: not changes.changes_anything)
    """Mid-episode changes of the worlds that both sides are evaluated in; left out of the JSON where nothing changes."""
    learner: str = Field(default=DEFAULT_LEARNER, exclude_if=lambda name: name == DEFAULT_LEARNER)
    """What trains a side that names no learner; left out of the JSON where that is the usual one, as it was before goals
    could name one."""

    @property
    def learners(self) -> tuple[str, ...]:
        """Every learner that may train a side."""
        return tuple(dict.fromkeys(name for side in self.sides for name in side.learners or (self.learner,)))

    @property
    def sides(self) -> tuple[Side, ...]:
        """Challenger, baseline and further rivals."""
        return self.challenger, self.baseline, *self.rivals

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The names of the sides in rows, in their order."""
        return (*ARMS, *(f"rival-{number}" for number in range(2, 2 + len(self.rivals))))

    @property
    def pairs(self) -> tuple[tuple[Arm, Arm], ...]:
        """Which side is held against which."""
        if self.kind == "compare":
            return tuple(itertools.combinations(self.arms, 2))
        return tuple((self.arms[0], other) for other in self.arms[1:])

    def side(self, arm: Arm) -> Side:
        """The side of an arm."""
        return self.sides[self.arms.index(arm)]

    @property
    def family(self) -> TaskFamily:
        """The task family with the mid-episode changes."""
        return with_changes(get_family(self.task), self.changes)

    @property
    def names(self) -> tuple[str, ...]:
        """Every registered name that the campaign works with: models, task and learners."""
        return (*(kind for side in self.sides for kind in side.kinds), self.task, *self.learners)

    @property
    def baseline_is_tuned(self) -> bool:
        """Whether both sides are tuned; "best" and "improve" hold a tuned side against its own default, and a recorded run is
        what it is."""
        return self.kind in ("beat", "compare") and self.baseline.recorded is None

    @property
    def score_in_words(self) -> str:
        """What is compared: "return" where that is of the first episode, else more."""
        metric = parse_metric(self.metric)
        return "return" if metric.name == FIRST_EPISODE else metric.words(self._shot)

    @property
    def _shot(self) -> str:
        """What a shot is to the learners."""
        shots = {LEARNERS[name].config_type.shot for name in self.learners}
        return shots.pop() if len(shots) == 1 else "shot"

    def sentence(self) -> str:
        """What was understood, in one sentence."""
        c, b = self.challenger.label, _listed([side.label for side in self.sides[1:]], "and")
        trained = "" if self.learner == DEFAULT_LEARNER else f" Trained by {self.learner}."
        tuned = f", {'all' if self.rivals else 'both'} tuned equally" if self.baseline_is_tuned else ""
        by = f" by {self.improvement_pct:g} %" if self.improvement_pct and self.kind != "improve" else ""
        metric = parse_metric(self.metric)
        what = "return" if metric.name == FIRST_EPISODE else metric.asked(self._shot)
        more = "high" if metric.sign > 0 else "low"
        higher = f"{more}est" if self.rivals else f"{more}er"
        asked = {
            "beat": f"Does {c} reach a {more}er {what} than {b}{by} on {self.task}{tuned}?",
            "compare": f"Which reaches the {higher} {what} on {self.task}, {_listed([s.label for s in self.sides], 'or')}{tuned}?",
            "best": f"Which {c} configuration is best on {self.task}, and does it beat the default {b}?",
            "improve": f"Can {c} on {self.task} be improved by {self.improvement_pct:g} % over its default?",
        }[self.kind]
        scored = "" if self.kind in ("beat", "compare") or what == "return" else f" Scored by {what}."
        open_ = dict.fromkeys(side.kinds for side in self.sides if side.learners and len(side.kinds) > 1)
        searched = "".join(f" A model is searched among {', '.join(kinds)}." for kinds in list(open_)[:1])
        parity = {"time": " At equal training time.", "steps": " At equal env steps.", None: ""}[self.parity]
        several = "" if self.tasks_at_once == 1 else f" One of {self.tasks_at_once} tasks asked about at once."
        by = f" ({self.translated_by} read it as {self.understood_as!r}.)" if self.translated_by else ""
        changed = f" In every episode {self.changes.in_words}." if self.changes.changes_anything else ""
        return asked + changed + parity + trained + scored + searched + several + by


def parse_task(words: str) -> str:
    """The task family named by a few words; InputError with the nearest and the list."""
    name = re.sub(r"^the\s+", "", words.strip())
    for candidate in (name, _TASK_NOUN.sub("", name), name.lower(), name.lower().replace(" ", "-").replace("_", "-")):
        if candidate in FAMILIES:
            return candidate
    try:
        return get_family(name).id
    except InputError:
        if re.search("[:@]", name):  # of a kind, whose own words say what is wrong
            raise
        raise unknown_name("task", name, FAMILIES, hint=f"See: {command('list', 'tasks')}") from None


def parse_goal(goal: str, runs: Callable[[str], Recorded] = no_ledger) -> Question:
    """The question behind `goal`; "..., trained by maml-ppo" names another learner than the usual one.

    runs: gives the recorded run of an id such as r-0042. InputError says what was missing, with three examples, and where the goal
    names several tasks.
    """
    first, *more = parse_goals(goal, runs)
    if more:
        tasks = _listed([question.task for question in (first, *more)], "and")
        raise InputError(f"goal: {tasks} are several tasks, and one question is wanted here: ask for each of them")
    return first


def parse_goals(goal: str, runs: Callable[[str], Recorded] = no_ledger) -> list[Question]:
    """The questions behind a goal that may name several tasks, one a task."""
    words = re.sub(r"\s+", " ", as_it_looks(goal).strip()).rstrip(" .?!")
    words = words.strip("\"'").rstrip(" .?!")
    rest, change_at = _take_changes(words)
    rest, metric, predicted, fewer = _take_metric(rest)
    parity = _PARITY.search(rest)
    rest = _PARITY.sub("", rest)
    trained = _LEARNER.search(rest)
    learner = DEFAULT_LEARNER if trained is None else _parse_learner(trained["learner"])
    rest = _without_fillers(_LEARNER.sub("", rest))
    percent = _PERCENT.search(rest)
    rest = _PERCENT.sub("", rest)
    tasks, rest = _take_tasks(rest)
    found: list[Question] = []
    for task in tasks:
        refused: InputError | None = None
        for kind, pattern in _PATTERNS:
            match = re.fullmatch(pattern, rest, re.IGNORECASE)
            if match is None or (kind == "improve" and percent is None):
                continue
            parts = match.groupdict()
            margin = None if percent is None else parse_percent(percent["n"])
            try:
                question = _question(goal, kind, parts.get("x"), parts.get("y"), task, margin or 0.0, learner, runs)
            except InputError as error:
                if kind != "compare":
                    raise
                refused = (
                    refused or error
                )  # "S5 with LSTM and GRU" are three sides, "S5 with adapter:head and GRU" are two
                continue
            changes: dict[str, object] = {} if len(tasks) == 1 else {"tasks_at_once": len(tasks)}
            if parity is not None:
                changes["parity"] = "time" if parity["of"].lower() in ("time", "seconds") else "steps"
            elif fewer is not None:
                changes["parity"] = fewer
            question = _changed(question.model_copy(update=changes), change_at)
            found.append(_scored(_predicting(question, metric, predicted), metric))
            break
        else:
            if refused is not None:
                raise refused
    if not found:
        raise InputError(_what_is_missing(words))
    return found


def parse_question(text: str, source: str) -> Question:
    """A question from JSON text. InputError names each wrong field, and each name that is not registered."""
    try:
        question = Question.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{source}: {explain_validation(error, lambda place: _fields_at(place))}") from None
    get_family(question.task)
    for side in question.sides:
        if not side.kinds:
            raise bad_value(f"{source}: {side.name}.kinds", "no model", f"some of {', '.join(MODELS)}")
        for kind in side.kinds:
            default_config(kind)
    for name in question.learners:
        LEARNERS[name]
    metric = parse_metric(question.metric)
    return _scored(_predicting(_changed(question, {}), metric, None), metric)


def _fields_at(place: tuple[str, ...]) -> Iterable[str]:
    return (
        Question.model_fields if place == () else Side.model_fields if place[-1] in ("challenger", "baseline") else ()
    )


def _parse_learner(words: str) -> str:
    """The learner that trains both sides; InputError with the nearest and the list."""
    try:
        named = parse_side(words, no_ledger)
    except InputError:
        named = None
    if named is None or len(named.learners) != 1 or named.kinds or named.fixed:
        raise unknown_name("learner", words.lower(), LEARNERS, hint=f"See: {command('list', 'learners')}")
    return named.learners[0]


def _question(
    goal: str,
    kind: Kind,
    x: str | None,
    y: str | None,
    task: str,
    margin: float,
    learner: str,
    runs: Callable[[str], Recorded],
) -> Question:
    several = _several(x, y, kind)
    if several is not None:
        first, others = several
        return _question_of_several(goal, kind, first, others, task, margin, learner, runs)
    challenger = None if x is None else parse_side(x, runs)
    if y is None:
        assert challenger is not None
        if challenger.recorded is not None:  # better than a run: its own model and learner are tuned
            kind, baseline = "beat", challenger
            challenger = Named(
                name=challenger.kinds[0], kinds=challenger.kinds, learners=challenger.learners, fixed={}, recorded=None
            )
            sides = hold_against(challenger, baseline, task, learner)
        else:
            one = challenger.completed()
            sides = one, default_of(one, learner)
    else:
        sides = hold_against(challenger, parse_side(y, runs), task, learner)
    return Question(
        goal=goal,
        kind=kind,
        challenger=sides[0],
        baseline=sides[1],
        task=task,
        improvement_pct=margin,
        learner=learner,
    )


def _scored(question: Question, metric: Metric | None) -> Question:
    """With the metric that was asked for, else what the learners say; InputError where the task or a side has no such score."""
    metric = metric or Metric("return", None, False)
    if {LEARNERS[name].config_type(kind=name).scored_by for name in question.learners} == {FIRST_EPISODE}:
        metric = metric.of_learner(FIRST_EPISODE)
    if metric.quantity == "success" and not get_family(question.task).reports_success:
        raise bad_value("goal", "success rate", f"the return: {question.task} does not say when a goal is reached")
    for side in question.sides:
        if side.recorded is not None and side.recorded.spec["task"] != question.task:
            other = side.recorded.spec["task"]
            raise InputError(
                f'goal: {side.recorded.run} was trained on {other}: ask "... {side.recorded.run} on {other}"'
            )
    return question.model_copy(update={"metric": metric.name})


def _take_changes(words: str) -> tuple[str, dict[str, int | None]]:
    """The goal without the mid-episode changes that it asks for, and the step of each by its field; None for half an episode."""
    found: dict[str, int | None] = {}
    for field, pattern in (("failure_step", _FAILURE), ("switch_step", _SWITCH)):
        match = pattern.search(words)
        if match is not None:
            found[field] = None if match["step"] is None else int(match["step"])
            words = pattern.sub("", words, count=1)
    return words, found


def _changed(question: Question, steps: Mapping[str, int | None]) -> Question:
    """With the changes that were asked for, else those that a recorded side was evaluated with. InputError where the task has none
    of the kind, and for a side that trains with changes where there are none."""
    half = get_family(question.task).horizon // 2
    changes = question.changes.model_copy(update={name: half if step is None else step for name, step in steps.items()})
    recorded = [side.recorded.spec.get("changes", {}) for side in question.sides if side.recorded is not None]
    if not changes.changes_anything and any(recorded):
        known = {name: value for name, value in recorded[0].items() if name in EnvOptions.model_fields}
        changes = EnvOptions.model_validate(known)
    question = question.model_copy(update={"changes": changes})
    try:
        get_family(question.task).refuse_changes(question.changes)
    except InputError as error:
        raise InputError(f"goal: {error}") from None
    for side in question.sides:
        if "changes.in_training" in side.fixed and not question.changes.changes_anything:
            raise InputError(
                f'goal: {side.name}: nothing changes in the worlds of this goal: add "with a joint failure" or "with a switch of '
                f'target", which both sides are then evaluated with'
            )
    return question


def _predicting(question: Question, metric: Metric | None, predicted: str | None) -> Question:
    """With sides that have an auxiliary head, where they are scored by its prediction error: of the same thing on every side."""
    if metric is None or metric.quantity != PREDICTION_ERROR:
        return question
    named = [side.fixed["learner.aux"] for side in question.sides if "learner.aux" in side.fixed]
    what = predicted or next((str(value) for value in named if value != "none"), "next_observation")
    for side in question.sides:
        if side.recorded is not None:
            raise InputError(f"goal: {side.name} is a recorded run, which cannot be given something to predict")
        if side.fixed.get("learner.aux", what) != what:
            raise InputError(
                f"goal: the prediction error of {what}, but {side.name} has learner.aux={side.fixed['learner.aux']}: both sides must "
                f"predict the same"
            )
        without = [
            name
            for name in side.learners or (question.learner,)
            if "aux" not in LEARNERS[name].config_type.model_fields
        ]
        if without:
            having = [name for name in LEARNERS if "aux" in LEARNERS[name].config_type.model_fields]
            raise InputError(f"goal: {without[0]} predicts nothing; allowed: {', '.join(having)}")
    sides = [side.model_copy(update={"fixed": {**side.fixed, "learner.aux": what}}) for side in question.sides]
    return question.model_copy(update={"challenger": sides[0], "baseline": sides[1], "rivals": tuple(sides[2:])})


def _take_metric(words: str) -> tuple[str, Metric | None, str | None, Literal["time", "steps"] | None]:
    """The goal without what it says of the score, that, what is predicted where that is scored, and of what there shall be fewer;
    None where it says nothing."""
    fewer, predicts = _FEWER.search(words), _PREDICTS.search(words)
    for found in (_FEWER, _PREDICTS):
        words = found.sub("", words)
    shots, first = _SHOTS.search(words), _FIRST.search(words)
    worst, success = _WORST.search(words), _SUCCESS.search(words)
    for found in (_SHOTS, _FIRST, _WORST, _SUCCESS):
        words = found.sub("", words)
    if not any((shots, first, worst, success, fewer, predicts)):
        return words, None, None, None
    if sum(map(bool, (success, fewer, predicts))) > 1 or (fewer and worst):
        raise InputError(
            "goal: one score is wanted: the env steps to a return (of all tasks), a prediction error, or a success rate"
        )
    shot = None
    if shots is not None:
        k = shots["k"].lower()
        shot = _NUMBERS.get(k, int(k) if k.isdigit() else 0)
    elif first is not None:
        shot = 0
    if fewer is not None:
        return words, steps_to(float(fewer["level"]), shot), None, "steps" if fewer["time"] is None else "time"
    what = None if predicts is None or predicts["what"] is None else re.sub(r"\s+", "_", predicts["what"].lower())
    quantity = "success" if success else PREDICTION_ERROR if predicts else "return"
    return words, parse_metric(Metric(quantity, shot, worst is not None).name), what, None


def _take_tasks(words: str) -> tuple[list[str], str]:
    """The tasks that are named last, and the goal without them; none where there is none, and InputError where "on" is followed by
    no task."""
    places = list(_ON.finditer(words))
    for place in reversed(places):
        listed = [part for part in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", words[place.end() :]) if part]
        if len(listed) > 1:
            try:
                tasks = [parse_task(part) for part in listed]
            except InputError:
                tasks = []
            if tasks and len(set(tasks)) == len(tasks):
                return tasks, words[: place.start()].strip(" ,")
        after = words[place.end() :].split(" ")
        for count in range(min(len(after), 4), 0, -1):
            try:
                task = parse_task(" ".join(after[:count]).strip(" ,"))
            except InputError:
                continue
            return [task], " ".join([words[: place.start()], *after[count:]]).strip(" ,")
    named = [place for place in places if place[0].strip(" ,").lower() == "on"]
    if named:
        parse_task(words[named[-1].end() :])  # raises
    return [], words


def _several(x: str | None, y: str | None, kind: Kind) -> tuple[str | None, list[str]] | None:
    """(challenger, those it is held against) where a goal names more than two sides; None where it does not."""
    if kind == "best":
        return None
    if kind == "compare":
        sides = [part for words in (x, y) for part in parts_of(words)]
        return (sides[0], sides[1:]) if len(sides) > 2 else None
    if len(parts_of(x)) > 1:
        raise InputError(
            f"goal: {x!r} are several, and one side is held against others: ask for each, or which is best: "
            f'"compare {_listed(parts_of(x), "and")} on ..."'
        )
    others = parts_of(y)
    return (x, others) if len(others) > 1 else None


def _question_of_several(
    goal: str,
    kind: Kind,
    first: str | None,
    others: list[str],
    task: str,
    margin: float,
    learner: str,
    runs: Callable[[str], Recorded],
) -> Question:
    """A question of more than two sides."""
    parsed = [parse_side(words, runs) for words in others]
    challenger = None if first is None else parse_side(first, runs)
    held = [hold_against(challenger, other, task, learner) for other in parsed]
    recorded = [side.name for pair in held for side in pair if side.recorded is not None]
    if recorded:
        raise InputError(
            f"goal: {recorded[0]} is a recorded run, which nothing is tuned of: hold it against one side at a time"
        )
    if len({pair[0].model_dump_json() for pair in held}) > 1:
        pairs = "; ".join(f'"{kind} {first} and {other} on {task}"' for other in others)
        raise InputError(
            f"goal: {first} is not the same against each of {_listed(others, 'and')}: ask for each pair: {pairs}"
        )
    names = [side.name for side in (held[0][0], *(pair[1] for pair in held))]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"goal: {twice} is named twice: a side is held against another one")
    return Question(
        goal=goal,
        kind=kind,
        challenger=held[0][0],
        baseline=held[0][1],
        rivals=tuple(pair[1] for pair in held[1:]),
        task=task,
        improvement_pct=margin,
        learner=learner,
    )


def _listed(words: Sequence[str], last: str) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _what_is_missing(words: str) -> str:
    lower = f" {words.lower()} "
    missing = []
    if not re.search(r"\b(beats?|outperforms?|surpass|exceed|better|win|compare|contrast|vs\.?|versus|best|tune|optimi[sz]e|improve|raise|boost)\b", lower):  # fmt: skip
        missing.append("what to do (beat, compare, find the best, improve)")
    elif re.search(r"\b(improve|raise|boost)\b", lower) and not re.search(r"\d\s*(%|percent|per cent)", lower):
        missing.append("by how many percent to improve")
    if not any(re.search(rf"\b{re.escape(name)}\b", lower) for name in side_words()):
        missing.append("a model or learner (such as LSTM)")
    if not any(re.search(rf"[\s]{re.escape(task.lower())}[\s.,]", lower) for task in FAMILIES):
        missing.append("the task (on halfcheetah-vel)")
    nearest = "; ".join(f'"{goal}"' for goal in nearest_goals(words))
    return f"the goal {words!r} was not understood: missing {' and '.join(missing) or 'an order of words that fits'}. The nearest that would be: {nearest}"


def nearest_goals(words: str, count: int = 3) -> list[str]:
    """Goals that are understood and are most like `words`: of the sides and tasks that it names or nearly names, in every form."""
    lower = re.findall(r"[\w.-]+", words.lower())
    tasks = _named_in(lower, list(FAMILIES)) or ["halfcheetah-vel"]
    sides = [*dict.fromkeys(_named_in(lower, [name for name in side_words() if " " not in name])), "lstm", "ssm"]
    first, second = sides[0], next((side for side in sides if side != sides[0]), "lstm")
    goals = [
        form.format(x=x, y=y, task=task)
        for task in tasks[:2]
        for x, y in ((first, second), (second, first))
        for form in ("beat {y} on {task}", "beat {y} with {x} on {task}", "compare {x} and {y} on {task}", "find the best {x} on {task}", "improve {x} on {task} by 10 %")
    ]  # fmt: skip
    ranked = sorted(dict.fromkeys(goals), key=lambda goal: -difflib.SequenceMatcher(None, words.lower(), goal).ratio())
    understood = (goal for goal in ranked if _is_understood(goal))
    return list(itertools.islice(understood, count))


def _named_in(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that are among the words, then those that nearly are."""
    exact = [name for name in names if name.lower() in words]
    near = [name for word in words for name in difflib.get_close_matches(word, names, 1, 0.75)]
    return list(dict.fromkeys([*exact, *near]))


def _is_understood(goal: str) -> bool:
    try:
        parse_goal(goal)
    except InputError:
        return False
    return True


def _without_fillers(words: str) -> str:
    while (shorter := _FILLER.sub("", words)) != words:
        words = shorter
    return words
