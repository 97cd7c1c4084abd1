"""What the words for one side of a goal name: models, a learner, options of both, a preset or a recorded run, or several joined."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pydantic import ValidationError

from adaptation.policy_adaptation import NOTHING, PolicyAdaptation
from core.config import FrozenConfig, explain_validation
from core.errors import InputError, bad_value, unknown_name
from core.policy import PolicyConfig
from core.sequence_model import MODELS, default_config
from core.words.commands import command
from experiments.presets import named_preset
from experiments.search.side import Recorded, Side, Value
from experiments.spec import WorldChanges
from meta_rl.learner import DEFAULT_LEARNER, LEARNERS, LearnerConfig

SSM_KINDS = ("mingru", "minlstm", "s5", "lru", "s4d", "mlstm", "ssd", "gated-deltanet")
"""The linear recurrences that `ssm` in a goal means, gated, time-invariant and matrix-valued; the two that are best at the lengths that a
campaign of half an hour reaches come first (docs/benchmarks.md)."""
RECURRENT_KINDS = ("lstm", "gru", "diag-gru", "rtu-tanh", "slstm")
"""The recurrences that are nonlinear in their state, which no scan computes: a loop over time, in training too."""
MODEL_ALIASES = {
    "ssms": "ssm",
    "state space model": "ssm",
    "state space models": "ssm",
    "state-space model": "ssm",
    "state-space models": "ssm",
    "rnn": "recurrent",
    "rnns": "recurrent",
    "attention": "transformer",
    "transformers": "transformer",
    "feedforward": "mlp",
    "feed-forward": "mlp",
    "memoryless policy": "mlp",
}
LEARNER_ALIASES: dict[str, tuple[str, dict[str, Value]]] = {
    "rl^2": ("rl2", {}),
    "rl-2": ("rl2", {}),
    "maml": ("maml-ppo", {}),
    "promp": ("maml-ppo", {}),
    "fomaml": ("maml-ppo", {"learner.first_order": True}),
    "e-maml": ("maml-ppo", {"learner.correction": "e-maml"}),
    "meta-sgd": ("maml-ppo", {"learner.inner_rates": "meta-sgd"}),
    "maml++": ("maml-ppo", {"learner.inner_rates": "maml++"}),
}
MOVING = {
    "": "head", "head": "head", "heads": "head", "norm": "norm", "norms": "norm", "gains": "norm", "low-rank": "low-rank",
    "low rank": "low-rank", "all": "all", "all weights": "all", "everything": "all", "nothing": NOTHING,
}  # fmt: skip
"""What adapts at test time, as goals say it; the head where they only say that something does."""
_ADAPTER = re.compile(
    rf"(?P<no>no |without )?(?:test-time )?(?:adapter|adaptation|adapting)\s*(?:of |: ?)?(?:the )?(?P<what>{'|'.join(MOVING)})"
    r"(?: at test[- ]time)?"
)
IN_TRAINING = (
    "failures",
    "joint failures",
    "the failure",
    "the failures",
    "changes",
    "the changes",
    "switches",
    "the switch",
)
"""What "trained with ..." may be followed by, to have the goal's mid-episode changes in training too."""
ANY_MODEL = ("model", "models", "sequence model", "memory", "cell", "kind of memory")
ANY_LEARNER = ("learner", "learners", "learning algorithm", "algorithm", "meta-learner", "meta-learning algorithm")
_JOINER = re.compile(
    r"\s+(?:with|plus|using|for|trained\s+(?:by|with))\s+|\s+(?=(?:without|no)\s)|\s*\+\s*", re.IGNORECASE
)
_LIST = re.compile(r"\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:please|a|an|the|our|my|some|tuned|new|of|among)\s+", re.IGNORECASE)
_NOUN = re.compile(
    r"\s+(?:please|model|models|policy|policies|network|networks|architecture|memory|learner|agent|agents)$"
)


class Named(NamedTuple):
    """What a side's words name; empty is what they leave open."""

    name: str
    kinds: tuple[str, ...]
    learners: tuple[str, ...]
    fixed: dict[str, Value]
    recorded: Recorded | None

    @property
    def is_option(self) -> bool:
        """Whether it names nothing but fields."""
        return bool(self.fixed) and not self.kinds and not self.learners and self.recorded is None

    def completed(self, kinds: Iterable[str] = ()) -> Side:
        """The side, its models those that its learners are usually trained with, then `kinds`, where it names none."""
        usual = [kind for name in self.learners or (DEFAULT_LEARNER,) for kind in LEARNERS[name].config_type.models]
        open_ = tuple(dict.fromkeys(kind for kind in (*usual, *kinds) if kind in MODELS))
        return _with_only_what_fits(
            Side(
                name=self.name,
                kinds=self.kinds or open_,
                learners=self.learners,
                fixed=self.fixed,
                recorded=self.recorded,
            )
        )


def no_ledger(run: str) -> Recorded:
    """What answers a run's id where there is no ledger."""
    raise bad_value("goal", run, "a run of a ledger, where there is one")


def model_families() -> dict[str, tuple[str, ...]]:
    """Every name of models that a goal may use, with their kinds: each registered kind, `ssm` for the linear recurrences and `recurrent` for
    the nonlinear ones."""
    families = {"ssm": SSM_KINDS, "recurrent": RECURRENT_KINDS}
    return {kind: (kind,) for kind in MODELS} | {
        name: tuple(kind for kind in kinds if kind in MODELS) for name, kinds in families.items()
    }


def side_words() -> list[str]:
    """Every name and alias of models and learners."""
    return [*model_families(), *MODEL_ALIASES, *LEARNERS, *LEARNER_ALIASES]


def parse_model(words: str) -> Side:
    """The side that names models alone; InputError with the nearest and the list for anything else."""
    named = parse_side(words, no_ledger)
    if named.learners or named.fixed or named.recorded is not None:
        raise unknown_name("model", words, model_families(), hint=f"See: {command('list', 'models')}")
    return named.completed()


def parse_side(words: str, runs: Callable[[str], Recorded]) -> Named:
    """What the words name. InputError for an unknown name, with the nearest and the list, and for names that exclude each other.

    runs: gives the recorded run of an id such as r-0042.
    """
    groups = [_group(part, runs) for part in _JOINER.split(words.strip()) if part.strip()]
    if not groups:
        raise unknown_name("model", words, model_families(), hint=f"See: {command('list', 'models')}")
    joined, *others = sorted(
        groups, key=lambda group: group.is_option
    )  # "no adaptation for S5" is S5 without adaptation
    for other in others:
        twice = [what for what in ("kinds", "learners", "recorded") if getattr(joined, what) and getattr(other, what)]
        against = sorted(joined.fixed.keys() & other.fixed.keys())
        if twice or against or (joined.recorded or other.recorded):
            raise InputError(f"goal: {joined.name} and {other.name} exclude each other on one side: name one of them")
        joined = Named(
            f"{joined.name} {'' if re.match('no |without |trained ', other.name) else 'with '}{other.name}",
            joined.kinds or other.kinds,
            joined.learners or other.learners,
            joined.fixed | other.fixed,
            None,
        )
    return joined


def hold_against(challenger: Named | None, baseline: Named, task: str, learner: str) -> tuple[Side, Side]:
    """(challenger, baseline) of a question that names both, or only what is to be beaten.

    What neither names is free on both sides alike. InputError where the two are the same, or where one cannot be searched.
    """
    if challenger is None:
        challenger = _rival_of(baseline, task, learner)
    if challenger.recorded is not None:
        run = challenger.recorded.run
        if baseline.recorded is not None:
            other = baseline.recorded.run
            raise InputError(
                f"goal: {run} and {other} are both as they were recorded. See: {command('compare', other, run)}"
            )
        raise InputError(
            f'goal: {run} is what it is and cannot be tuned: ask "beat {run} with {baseline.name} on {task}"'
        )
    if (
        challenger.is_option != baseline.is_option
    ):  # "does adapting the head beat no adaptation for S5": S5 on both sides
        whole, option = (baseline, challenger) if challenger.is_option else (challenger, baseline)
        if whole.recorded is None:
            of = " ".join((*whole.kinds[:1], *whole.learners[:1]) if len(whole.kinds) < 2 else (whole.name,))
            told = option._replace(
                name=f"{of} {'' if re.match('no |without |trained ', option.name) else 'with '}{option.name}",
                kinds=whole.kinds,
                learners=whole.learners,
            )
            challenger, baseline = (told, whole) if challenger.is_option else (whole, told)
    both_open = not challenger.kinds and not baseline.kinds
    first = challenger.completed(baseline.completed().kinds if both_open else ())
    second = baseline.completed(challenger.completed().kinds if both_open else ())
    if baseline.recorded is not None:
        return first, second
    if _overlap(first, second, learner):
        shared = set(first.fixed) ^ set(second.fixed)
        first, second = (_with_defaults(side, shared, learner) for side in (first, second))
        if first.fixed == second.fixed:
            common = [k for k in first.kinds if k in second.kinds]
            if not (challenger.kinds or baseline.kinds) or challenger.learners:
                raise InputError(
                    f"goal: {first.name} and {second.name} train the same ({', '.join(sorted(common))}): a side cannot be held "
                    f'against itself. To tune one, ask: "find the best {first.name} on {task}"'
                )
            raise InputError(
                f"goal: {first.name} and {second.name} share {', '.join(sorted(common))}: a model cannot be held against itself. "
                f'To tune one, ask: "find the best {first.name} on {task}"'
            )
    return first, second


def default_of(side: Side, learner: str) -> Side:
    """The first configuration of a side, as a side: what its best one is held against."""
    name = side.learners[0] if len(side.learners) > 1 else side.kinds[0]
    return side.model_copy(update={"name": name, "kinds": side.kinds[:1], "learners": side.learners[:1]})


# ---- inner workings ---------------------------------------------------------------------------------------------------


def _group(words: str, runs: Callable[[str], Recorded]) -> Named:
    """What one part between joiners names: a list of models or learners, an option, a preset or a run."""
    parts = [_part(part, runs) for part in _LIST.split(words.strip()) if part.strip()]
    if not parts:
        raise unknown_name("model", words, model_families(), hint=f"See: {command('list', 'models')}")
    if len(parts) == 1:
        return parts[0]
    if any(p.fixed or p.recorded is not None for p in parts) or len({bool(p.kinds) for p in parts}) > 1:
        raise InputError(f"goal: {words!r} is no list of models, and no list of learners")
    kinds = tuple(dict.fromkeys(kind for p in parts for kind in p.kinds))
    learners = tuple(dict.fromkeys(name for p in parts for name in p.learners))
    return Named(", ".join(p.name for p in parts), kinds, learners, {}, None)


def _part(words: str, runs: Callable[[str], Recorded]) -> Named:
    bare = words.strip()
    while (shorter := _ARTICLE.sub("", bare)) != bare:
        bare = shorter
    bare = bare.lower()
    if re.fullmatch(r"r-\d+", bare):
        return _whole(runs(bare))
    if "=" in bare:
        return _setting(bare)
    if (adapter := _ADAPTER.fullmatch(bare)) is not None:
        what = NOTHING if adapter["no"] else MOVING[adapter["what"]]
        name = "without adaptation" if what == NOTHING else f"adapter:{what}"
        return Named(name, (), (), {"adaptation.adapts": what}, None)
    if (trained := re.fullmatch(rf"(no |without )?(?:{'|'.join(IN_TRAINING)})(?: in training)?", bare)) is not None:
        name = f"trained {'with' if trained[1] is None else 'without'} the changes"
        return Named(name, (), (), {"changes.in_training": trained[1] is None}, None)
    if re.fullmatch(r"[\w-]+(?:\.[\w-]+)+", bare) and bare.rpartition(".")[2] in MODELS:
        return _whole(Recorded(run=bare, spec=named_preset(bare).model_dump(mode="json")))
    candidates = [bare]
    while (shorter := _NOUN.sub("", candidates[-1])) != candidates[-1]:
        candidates.append(shorter)
    for name in candidates:
        if (named := _known(name)) is not None:
            return named
    for name in candidates:  # "first-order MAML": an option before what it is an option of
        for cut in (place.start() for place in re.finditer(" ", name)):
            option, rest = _option(name[:cut]), _known(name[cut + 1 :])
            if option is not None and rest is not None:
                return Named(name, rest.kinds, rest.learners, rest.fixed | option, None)
    raise unknown_name("model", candidates[-1], side_words(), hint=f"See: {command('list', 'models')}")


def _known(name: str) -> Named | None:
    families = model_families()
    family = MODEL_ALIASES.get(name, name)
    if family in families:
        return Named(family, families[family], (), {}, None)
    if name in ("architecture", "architectures"):
        return Named("architecture", (*LearnerConfig.models, "mingru", "hybrid"), (), {}, None)
    if name in ANY_MODEL:
        return Named("model", (), (), {}, None)
    if name in ANY_LEARNER:
        others = [learner for learner in LEARNERS if learner != DEFAULT_LEARNER]
        return Named("learner", (), (DEFAULT_LEARNER, *others), {}, None)
    if name in LEARNER_ALIASES or name in LEARNERS:
        learner, fixed = LEARNER_ALIASES.get(name, (name, {}))
        return Named(name if fixed else learner, (), (learner,), dict(fixed), None)
    option = _option(name)
    return None if option is None else Named(name, (), (), option, None)


def _option(words: str) -> dict[str, Value] | None:
    """A switch that is named by its field, "privileged critic", with "no" or "without" before it to turn it off."""
    match = re.fullmatch(r"(?:(?P<no>no|without|non)[\s-])?(?P<name>.+)", words)
    assert match is not None
    name, value = re.sub(r"[\s-]+", "_", match["name"]), match["no"] is None
    if name == "second_order":
        name, value = "first_order", not value
    for section, config in _configs():
        field = config.model_fields.get(name)
        if field is not None and field.annotation is bool:
            return {f"{section}.{name}": value}
    return None


def _setting(words: str) -> Named:
    """`learner.gamma=0.95`, or `gamma=0.95` where one part of a specification alone has that field."""
    name, _, text = (part.strip() for part in words.partition("="))
    section, _, field = name.rpartition(".")
    found = [(s, c) for s, c in _configs() if field in c.model_fields and section in ("", s)]
    usual = [(s, c) for s, c in found if s != "adaptation"]
    found = usual or found  # a rate without more words is the learner's
    sections = sorted({s for s, _ in found})
    if not found:
        every = sorted({f"{s}.{f}" for s, c in _configs() for f in c.model_fields if f != "kind"})
        raise unknown_name("field in the goal", name, every)
    if len(sections) > 1:
        raise bad_value("goal", name, f"with its part: {', '.join(f'{s}.{field}' for s in sections)}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    errors = []
    for _, config in found:
        try:
            default = {"kind": config.model_fields["kind"].default} if "kind" in config.model_fields else {}
            config.model_validate({**default, field: value})
            break
        except ValidationError as error:
            errors.append(error)
    else:
        raise InputError(f"goal: {words}: {explain_validation(errors[0])}") from None
    return Named(words, (), (), {f"{sections[0]}.{field}": value}, None)


def _configs() -> list[tuple[str, type[FrozenConfig]]]:
    """(section of a configuration's fields, class) of everything that a specification is made of."""
    learners = [("learner", LEARNERS[name].config_type) for name in LEARNERS]
    models = [("model", type(default_config(kind))) for kind in MODELS]
    return [*learners, *models, ("policy", PolicyConfig), ("adaptation", PolicyAdaptation)]


def _whole(run: Recorded) -> Named:
    """The side that a whole specification is."""
    kind, learner = run.spec["policy"]["model"]["kind"], run.spec["learner"]["kind"]
    return Named(run.run, (kind,), (learner,), {}, run)


def _rival_of(baseline: Named, task: str, learner: str) -> Named:
    """What is held against a side that is named alone: state space models against models, the other learners against one."""
    if baseline.recorded is None and baseline.learners and not baseline.kinds:
        others = tuple(name for name in LEARNERS if name not in baseline.learners)
        if others:
            return Named("learner", (), others, {}, None)
    kinds = model_families()["ssm"]
    if baseline.recorded is not None:
        return Named("ssm", kinds, baseline.learners, {}, None)
    rest = tuple(kind for kind in kinds if kind not in baseline.kinds)
    if not rest:
        raise InputError(f'goal: what should beat {baseline.name}? Name it: "beat {baseline.name} with lstm on {task}"')
    return Named("ssm", rest, baseline.learners, {}, None)


def _with_only_what_fits(side: Side) -> Side:
    """A side with those of its models and learners alone that have the fields which it names."""
    kinds, learners = side.kinds, side.learners
    for name in side.fixed:
        section, field = name.split(".", 1)
        if section == "model":
            kinds = tuple(kind for kind in kinds if field in type(default_config(kind)).model_fields)
        elif section == "learner":
            having = tuple(name for name in learners or LEARNERS if field in LEARNERS[name].config_type.model_fields)
            learners = having if learners or DEFAULT_LEARNER not in having else learners
        elif section == "adaptation" and side.fixed.get("adaptation.adapts") != NOTHING:
            asked = {
                name: LEARNERS[name].config_type(kind=name).why_no_adaptation for name in learners or (DEFAULT_LEARNER,)
            }
            refused = {name: why for name, why in asked.items() if why is not None}
            if len(refused) == len(asked):
                raise InputError(f"goal: {side.name}: {'; '.join(f'{name}: {why}' for name, why in refused.items())}")
            learners = tuple(name for name in learners if name not in refused)
        if not kinds or (section == "learner" and not having):
            raise InputError(f"goal: {side.name}: {' and '.join(side.kinds + side.learners)} has no field {field}")
    return side.model_copy(update={"kinds": kinds, "learners": learners})


def _overlap(first: Side, second: Side, learner: str) -> bool:
    """Whether a model trained by a learner may be a configuration of both."""
    learners = set(first.learners or (learner,)) & set(second.learners or (learner,))
    return bool(set(first.kinds) & set(second.kinds) and learners)


def _with_defaults(side: Side, names: set[str], learner: str) -> Side:
    """A side that also fixes, at their defaults, the fields that the other side names and it does not."""
    configs = {
        "model": type(default_config(side.kinds[0])),
        "learner": LEARNERS[(side.learners or (learner,))[0]].config_type,
        "policy": PolicyConfig,
        "adaptation": PolicyAdaptation,
        "changes": WorldChanges,
    }
    defaults = {name: configs[name.split(".", 1)[0]].model_fields[name.split(".", 1)[1]].default for name in names}
    return side.model_copy(update={"fixed": defaults | side.fixed})


ALL_MODELS = ("ssm", "lstm", "gru", "transformer", "mlp")
"""What `all models` are: one side a family of them."""


def parts_of(words: str | None) -> list[str]:
    """The sides that a list names; `all models` are those of `ALL_MODELS`."""
    if words is None:
        return []
    if re.fullmatch(r"(?:all|every|all the)\s+(?:sequence\s+)?models?", words.strip(), re.IGNORECASE):
        return list(ALL_MODELS)
    return [part for part in re.split(r"\s*,\s*(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+", words) if part]
