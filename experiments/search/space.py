"""The search space of one side, read off the tunable fields of the registered configurations.

A field marked with `core.config.search(...)` is a parameter of the space; a new model or learner therefore brings its
own. What the side names is fixed and no parameter; where it leaves several models or learners open, which of them is
one, and the fields of each are there with it alone. Every parameter belongs to the slice of one role of the crew, and
the slices are disjoint. Both sides train policies of the same parameter count: the width follows from the campaign's
parameter budget and is not searched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, ValidationError

from core.config import FrozenConfig, explain_validation
from core.errors import InputError, bad_value, unknown_name
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions
from experiments.metrics import FIRST_EPISODE, PREDICTION_ERROR, parse_metric
from experiments.presets import preset
from experiments.search.side import Side, Value
from experiments.search.sizing import size_policy
from experiments.spec import RunSpec, WorldChanges, recorded_spec, set_fields
from meta_rl.learner import parse_learner_config

Role = Literal["state-modeling", "meta-learning", "adaptation", "environment"]
ROLES: tuple[Role, ...] = ("state-modeling", "meta-learning", "adaptation", "environment")
NEAR = 0.02
"""Two configurations are the same trial where no coordinate of the unit cube (`Parameter.to_unit`) differs by more than
this: numbers by 2 % of their range, in logarithms on a log scale, and every choice agrees. Noise hides less than that."""
MARKS = 4
"""The present generation of search marks (`core.config.search`): 2 has test-time adaptation, training with the changes, learned
inner rates and auxiliary losses, 3 the forms of state space blocks, 4 the memory's own rate. Campaigns and tables that began before go on without them."""
EMPTY = "empty"
"""What stands in a place of a list that is not used."""
REGION = 0.1
"""Half the width of a region: where no field differs by more than this share of its range, the region was reached."""
ALL_SLICES = "all"  # in the place of a role: every parameter
FAMILY_OF_ROLE: dict[Role, str] = {
    "state-modeling": "architecture",
    "meta-learning": "optimisation",
    "adaptation": "adaptation",
    "environment": "environment",
}
"""The family of a parameter whose mark names none."""


class Parameter(FrozenConfig):
    """One searched field."""

    name: str
    """Dotted name, such as learner.learning_rate."""
    role: Role
    """Whose slice it belongs to."""
    family: str
    """What it is about: architecture, optimisation, horizon and exploration, environment or adaptation."""
    kind: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Value, ...] | None = None
    default: Value
    only_for: tuple[str, ...] | None = None
    """Model kinds that have this field; None where all do."""
    only_with: tuple[str, ...] | None = Field(default=None, exclude_if=lambda learners: learners is None)
    """Learners that have this field; None where all do."""
    only_if: tuple[str, tuple[Value, ...]] | None = Field(default=None, exclude_if=lambda where: where is None)
    """Another parameter or field, and its values with which this one has an effect; None where it always has one."""
    since: int = Field(default=1, exclude_if=lambda since: since == 1)
    """The generation of its mark."""
    description: str = ""

    @property
    def field(self) -> str:
        """Dotted name of the field, of which a place in a list is a part."""
        return ".".join(self.name.split(".")[:2])

    def distribution(self) -> BaseDistribution:
        if self.kind == "choice":
            return CategoricalDistribution(self.choices or ())
        assert self.low is not None
        assert self.high is not None
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    @property
    def ordered(self) -> bool:
        """Whether two values can be nearer to each other than two others: numbers, also in a list of choices."""
        return all(isinstance(c, int | float) and not isinstance(c, bool) for c in self.choices or ())

    def to_unit(self, value: Value) -> float:
        """Place of a value between 0 and 1: linear in the value, its logarithm, or its rank among the choices."""
        if self.kind == "choice":
            ranked = self._ranked()
            return ranked.index(value) / max(len(ranked) - 1, 1)
        assert self.low is not None
        assert self.high is not None
        low, high, here = self.low, self.high, float(value)
        if self.log:
            low, high, here = math.log(low), math.log(high), math.log(max(here, 1e-300))
        return min(max((here - low) / (high - low), 0.0), 1.0)

    def distance(self, one: Value | None, other: Value | None) -> float:
        """Distance of two values from 0 to 1, None standing for a configuration without this parameter."""
        if one is None or other is None:
            return float(one is not other)
        return abs(self.to_unit(one) - self.to_unit(other)) if self.ordered else float(one != other)

    def from_unit(self, place: float) -> Value:
        """The value at a place between 0 and 1; choices and integers have equal shares of the interval."""
        if self.kind == "choice":
            ranked = self._ranked()
            return ranked[min(int(place * len(ranked)), len(ranked) - 1)]
        assert self.low is not None
        assert self.high is not None
        low, high = (self.low, self.high + (1 if self.kind == "int" else 0))
        value = low * (high / low) ** place if self.log else low + (high - low) * place
        value = min(max(value, self.low), self.high)
        return min(int(value), int(self.high)) if self.kind == "int" else float(f"{value:.6g}")

    def _ranked(self) -> list[Value]:
        choices = list(self.choices or ())
        return sorted(choices, key=lambda c: float(c)) if self.ordered else choices

    def allowed(self) -> str:
        if self.kind == "choice":
            return f"one of {', '.join(str(c) for c in self.choices or ())}"
        return f"{self.kind} from {self.low:g} to {self.high:g}{' (log scale)' if self.log else ''}"

    def check(self, value: Value) -> Value:
        """The value in its own type; InputError where it is not allowed."""
        if self.kind == "choice":
            for choice in self.choices or ():
                if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                    return choice
                if str(value).lower() == str(choice).lower():
                    return choice
            raise bad_value(self.name, value, self.allowed())
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise bad_value(self.name, value, self.allowed()) from None
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not self.low <= number <= self.high or (self.kind == "int" and number % 1):
            nearest = min(max(number, self.low), self.high) if number == number else self.default
            raise bad_value(self.name, value, self.allowed(), hint=f"The nearest allowed is {nearest:g}.")
        return int(number) if self.kind == "int" else number


class SearchSpace:
    """The parameters of one side and how their values become a RunSpec.

    side: what is fixed and what is open. task: task family. learner: what trains a side that names no learner.
    defaults: trial 0 of each kind, where it is not the kind's preset for the learner. score: name of the metric that runs
    are scored by; each learner's own where None. changes: mid-episode changes of the worlds that every run is evaluated in; a
    side that is a recorded run is held to them as well. What adapts at test time is searched where worlds change, and where the
    side names it: in worlds that stay as they are, memory is all that a task needs, and every further field costs trials. marks: the
    generation of search marks, `MARKS` or one before.
    """

    def __init__(
        self,
        side: Side,
        task: str,
        *,
        learner: str,
        defaults: dict[str, RunSpec] | None = None,
        score: str | None = None,
        changes: EnvOptions | None = None,
        marks: int = 1,
    ) -> None:
        self.side, self.task, self.score, self.changes = side, task, score, changes or EnvOptions()
        self.marks = marks
        self.learners = side.learners or (learner,)
        self._defaults = {(kind, self.learners[0]): spec for kind, spec in (defaults or {}).items()}
        self.parameters = () if side.recorded is not None else self._collect()

    def default(self, kind: str, learner: str) -> RunSpec:
        """What the search begins with for a model kind and a learner, with all that the side fixes."""
        key = (kind, learner)
        if key not in self._defaults:
            spec = preset(self.task, kind, learner) if self.side.recorded is None else _recorded(self.side, self.task)
            self._defaults[key] = spec
            if self.changes.changes_anything:
                trained = spec.changes.in_training
                changed = WorldChanges.model_validate(self.changes.model_dump() | {"in_training": trained})
                self._defaults[key] = spec.model_copy(update={"changes": changed})
            self._defaults[key] = with_fields(self._defaults[key], self.side.fixed)
        return self._defaults[key]

    def _collect(self) -> tuple[Parameter, ...]:
        kinds, learners = self.side.kinds, self.learners
        parameters = [
            *_choice_of("model.kind", "state-modeling", kinds, "Kind of sequence model."),
            *_choice_of("learner.kind", "meta-learning", learners, "What trains the policy."),
        ]
        parameters += _of_several(
            [
                (kind, _tunable(self.default(kind, learners[0]).policy.model, "model", "state-modeling"))
                for kind in kinds
            ],
            "only_for",
        )
        parameters += _tunable(self.default(kinds[0], learners[0]).policy, "policy", "meta-learning")
        specs = [(name, self.default(kinds[0], name)) for name in learners]
        parameters += _of_several(
            [(name, _tunable(spec.learner, "learner", "meta-learning")) for name, spec in specs], "only_with"
        )
        if self.changes.changes_anything:
            parameters += _tunable(specs[0][1].changes, "changes", "environment")
        predicts = (
            self.score is not None and parse_metric(self.score).quantity == PREDICTION_ERROR
        )  # of the memory as trained
        asked = self.changes.changes_anything or any(name.startswith("adaptation.") for name in self.side.fixed)
        if asked and not predicts:
            able = [(n, s) for n, s in specs if s.adaptation.is_on or s.learner.why_no_adaptation is None]
            own = [(n, _tunable(s.adaptation, "adaptation", "adaptation") if (n, s) in able else []) for n, s in specs]
            parameters += _of_several(own, "only_with")
        return tuple(p for p in parameters if p.field not in self.side.fixed and self._can_matter(p))

    def _can_matter(self, parameter: Parameter) -> bool:
        """Whether a parameter is of the side's generation, and what the side fixes leaves it an effect."""
        if parameter.since > self.marks:
            return False
        if parameter.name == "model.selective" and self.side.fixed.get("model.integrators"):  # they exclude each other
            return False
        name, values = parameter.only_if or ("", ())
        return name not in self.side.fixed or self.side.fixed[name] in values

    def chosen(self, values: Mapping[str, Value]) -> tuple[str, str]:
        """(model kind, learner) of a configuration."""
        return str(values.get("model.kind", self.side.kinds[0])), str(values.get("learner.kind", self.learners[0]))

    def has(self, parameter: Parameter, values: Mapping[str, Value]) -> bool:
        """Whether a configuration with these kinds has a parameter."""
        kind, learner = self.chosen(values)
        if parameter.only_for is not None and kind not in parameter.only_for:
            return False
        if parameter.only_with is not None and learner not in parameter.only_with:
            return False
        if parameter.only_if is None:
            return True
        name, those = parameter.only_if
        section, field = name.split(".", 1)
        return values.get(name, getattr(_sections(self.default(kind, learner))[section], field)) in those

    def why_absent(self, name: str, values: Mapping[str, Value]) -> str:
        """Why a configuration has no value of a parameter, with what it has instead."""
        kind, learner = self.chosen(values)
        parameter = next(p for p in self.parameters if p.name == name)
        if parameter.only_if is not None and self.has(parameter.model_copy(update={"only_if": None}), values):
            other, those = parameter.only_if
            return f"no value, since it has an effect only where {other} is {' or '.join(map(str, those))}"
        section = name.split(".", 1)[0]
        owner = kind if section == "model" else learner
        fields = ", ".join(other for other in values if other.startswith(f"{section}."))
        return f"no value, since {owner} has no such field; of {owner}: {fields}"

    def of_role(self, role: str | None) -> tuple[Parameter, ...]:
        if role in (None, ALL_SLICES):
            return self.parameters
        if role not in ROLES:
            raise unknown_name("role", role, ROLES)
        return tuple(p for p in self.parameters if p.role == role)

    def families(self) -> tuple[str, ...]:
        """The families of the parameters, in the order in which they come first."""
        return tuple(dict.fromkeys(p.family for p in self.parameters))

    def default_values(self) -> dict[str, Value]:
        """Trial 0: the preset of the side's first kind and first learner."""
        return {p.name: p.default for p in self.parameters if self.has(p, {})}

    def preset_values(self, kind: str) -> dict[str, Value]:
        """The preset of one of the side's kinds for its first learner, as a configuration of this space.

        InputError where the preset has a value that this space does not allow.
        """
        spec = self.default(kind, self.learners[0])
        sections = ((spec.policy.model, "model"), (spec.policy, "policy"), (spec.learner, "learner"))
        held = {p.name: p.default for config, name in sections for p in _tunable(config, name, "meta-learning")}
        chosen: dict[str, Value] = {"model.kind": kind}
        values = {p.name: held[p.name] for p in self.parameters if p.name in held and self.has(p, chosen)}
        return self.complete(self.check_values(chosen | values))

    def check_values(self, values: dict[str, Value], role: str | None = None) -> dict[str, Value]:
        """Values in their own types. InputError for a name outside the role's slice or a value out of range."""
        slice_ = {p.name: p for p in self.of_role(role)}
        for name in values:
            if name not in slice_:
                owner = next((p.role for p in self.parameters if p.name == name), None)
                hint = f"{name} belongs to the slice of {owner}." if owner else ""
                raise unknown_name("parameter", name, slice_, hint=hint)
        return {name: slice_[name].check(value) for name, value in values.items()}

    def complete(self, values: dict[str, Value]) -> dict[str, Value]:
        """`values` with defaults for what is missing, less what the chosen kind and learner do not have."""
        kind, learner = self.chosen(values)
        own = {
            p.name: p.default
            for p in _tunable(self.default(kind, self.learners[0]).policy.model, "model", "state-modeling")
        }
        if learner != self.learners[0]:
            own |= {
                p.name: p.default for p in _tunable(self.default(kind, learner).learner, "learner", "meta-learning")
            }
        return _close_up(
            {p.name: values.get(p.name, own.get(p.name, p.default)) for p in self.parameters if self.has(p, values)}
        )

    def to_unit(self, values: dict[str, Value]) -> Float[ndarray, " D"]:
        """Unit coordinates of a complete configuration, one a parameter; NaN where its kinds have no such field."""
        return np.array([p.to_unit(values[p.name]) if p.name in values else math.nan for p in self.parameters])

    def from_unit(self, point: Sequence[float] | Float[ndarray, " D"]) -> dict[str, Value]:
        """The configuration at a point of the unit cube; coordinates of fields that its kind lacks are left out."""
        return self.complete({p.name: p.from_unit(float(x)) for p, x in zip(self.parameters, point, strict=True)})

    def spec(
        self, values: dict[str, Value], *, env_steps: int, seed: int, parameters: int | None, sizing: int = 1
    ) -> RunSpec:
        """The RunSpec of a complete configuration, its policy sized to `parameters` trainable numbers by rule `sizing`."""
        values = self.complete(self.check_values(values))
        kind, learner = self.chosen(values)
        data: dict[str, Any] = self.default(kind, learner).model_dump(mode="json") | {
            "env_steps": env_steps,
            "seed": seed,
        }
        for section in ("changes", "adaptation"):  # left out of the JSON at their defaults
            data[section] = getattr(self.default(kind, learner), section).model_dump(mode="json")
        sections = {**data, "model": data["policy"]["model"]}
        for name, value in values.items():
            section, field, *place = name.split(".")
            if place:  # of a list: they come in order
                before = sections[section][field] if place != ["1"] else []
                sections[section][field] = [*before, value] if value != EMPTY else before
            elif field != "kind":
                sections[section][field] = value
        try:
            learned = parse_learner_config(data["learner"])
            if self.side.recorded is None or self.score is not None:
                data["scored_by"] = (
                    learned.scored_by
                    if self.score is None
                    else parse_metric(self.score).of_learner(learned.scored_by).name
                )
            shots = parse_metric(data.get("scored_by", FIRST_EPISODE)).column
            data["evaluation_episodes"] = max(data["evaluation_episodes"], learned.evaluation_episodes, shots + 1)
            spec = RunSpec.model_validate(data)
        except ValidationError as error:
            raise InputError(f"configuration: {explain_validation(error)}") from None
        return (
            spec if parameters is None or self.side.recorded is not None else size_policy(spec, parameters, rule=sizing)
        )

    def unit_steps(self) -> int:
        """The least env steps that are whole training iterations of every configuration of the space."""
        units = []
        for name in self.learners:
            learner = self.default(self.side.kinds[0], name).learner
            choices: dict[str, tuple[int, ...]] = {}
            for parameter in self.parameters:
                section, field = parameter.name.split(".", 1)
                own = parameter.only_with is None or name in parameter.only_with
                if section == "learner" and own and field in learner.size_fields and parameter.choices:
                    choices[field] = tuple(int(choice) for choice in parameter.choices)
            units.append(learner.unit_steps(get_family(self.task).horizon, choices))
        return math.lcm(*units)


def with_fields(spec: RunSpec, fields: Mapping[str, Value]) -> RunSpec:
    """A specification with some of its fields set, by dotted name such as learner.gamma; InputError where one does not fit."""
    if not fields:
        return spec
    return set_fields(spec, {name: json.dumps(value) for name, value in fields.items()}, source="configuration")


def _sections(spec: RunSpec) -> dict[str, FrozenConfig]:
    """The parts of a specification that have searched fields, by the first word of a parameter's name."""
    return {
        "model": spec.policy.model,
        "policy": spec.policy,
        "learner": spec.learner,
        "changes": spec.changes,
        "adaptation": spec.adaptation,
    }


def _recorded(side: Side, task: str) -> RunSpec:
    """The specification of the run that a side is."""
    assert side.recorded is not None
    return recorded_spec(side.recorded.spec, side.recorded.run, {})


def _choice_of(name: str, role: Role, choices: tuple[str, ...], description: str) -> list[Parameter]:
    """The parameter that chooses one of several kinds; none where there is nothing to choose."""
    if len(choices) < 2:
        return []
    return [
        Parameter(
            name=name,
            role=role,
            family=FAMILY_OF_ROLE[role],
            kind="choice",
            choices=choices,
            default=choices[0],
            description=description,
        )
    ]


def _of_several(owners: Sequence[tuple[str, list[Parameter]]], mark: str) -> list[Parameter]:
    """The parameters of several kinds, each once, with the kinds that have it where not all do."""
    found: dict[str, Parameter] = {}
    names: dict[str, list[str]] = {}
    for owner, parameters in owners:
        for parameter in parameters:
            found.setdefault(parameter.name, parameter)
            names.setdefault(parameter.name, []).append(owner)
    return [
        parameter.model_copy(update={mark: None if len(names[name]) == len(owners) else tuple(names[name])})
        for name, parameter in found.items()
    ]


def _tunable(config: FrozenConfig, section: str, role: Role) -> list[Parameter]:
    """The parameters marked in a configuration's class, with the defaults that `config` holds."""
    parameters = []
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        marked: Any = extra.get("search") if isinstance(extra, dict) else None
        if marked is None:
            continue
        default = getattr(config, name)
        if marked.get("slots"):
            parameters += _places(f"{section}.{name}", default, marked, role, field.description or "")
            continue
        if marked["choices"] is not None:
            kind = "choice"
        else:
            kind = "int" if isinstance(default, int) and not isinstance(default, bool) else "float"
        choices = tuple(marked["choices"]) if marked["choices"] is not None else None
        if choices is not None and default not in choices:
            choices = (*choices, default)
        parameters.append(
            Parameter(
                name=f"{section}.{name}",
                role=marked["role"] or role,
                family=marked["family"] or FAMILY_OF_ROLE[marked["role"] or role],
                kind=kind,
                low=marked["low"],
                high=marked["high"],
                log=marked["log"],
                choices=choices,
                default=default,
                only_if=None
                if marked["only_if"] is None
                else (f"{section}.{marked['only_if'][0]}", marked["only_if"][1]),
                since=marked["since"],
                description=(field.description or "").replace("\n", " "),
            )
        )
    return parameters


def _places(name: str, default: Sequence[str], marked: Mapping[str, Any], role: Role, words: str) -> list[Parameter]:
    """A choice for each place of a list; a list that is longer than what is searched stays as it is."""
    if len(default) > marked["slots"]:
        return []
    found = []
    for place in range(marked["slots"]):
        here = default[place] if place < len(default) else EMPTY
        found.append(
            Parameter(
                name=f"{name}.{place + 1}",
                role=marked["role"] or role,
                family=marked["family"] or FAMILY_OF_ROLE[marked["role"] or role],
                kind="choice",
                choices=marked["choices"] if place == 0 else (EMPTY, *marked["choices"]),
                default=here,
                since=marked["since"],
                description=f"Place {place + 1} of: {words}".replace("\n", " "),
            )
        )
    return found


def _close_up(values: dict[str, Value]) -> dict[str, Value]:
    """With the empty places of lists last, so that one list is written in one way."""
    lists: dict[str, list[str]] = {}
    for name in values:
        field, _, place = name.rpartition(".")
        if place.isdigit():
            lists.setdefault(field, []).append(name)
    for names in lists.values():
        filled = [values[name] for name in names if values[name] != EMPTY]
        values |= dict(zip(names, [*filled, *[EMPTY] * (len(names) - len(filled))], strict=True))
    return values


def is_near(parameters: Sequence[Parameter], first: Mapping[str, Value], second: Mapping[str, Value]) -> bool:
    """Whether two complete configurations of one side are the same trial for all that a run can show (see `NEAR`)."""
    if first.keys() != second.keys():
        return False
    shared = [p for p in parameters if p.name in first]
    return all(abs(p.to_unit(first[p.name]) - p.to_unit(second[p.name])) <= NEAR for p in shared)


def iteration_steps(spec: RunSpec) -> int:
    """Env steps of one training iteration of `spec`."""
    return spec.learner.iteration_steps(get_family(spec.task).horizon)


def plan_unit(spaces: Sequence[SearchSpace]) -> int:
    """The least env steps that are whole training iterations of every configuration of every space."""
    return math.lcm(*(space.unit_steps() for space in spaces))
