"""RunSpec: everything that decides a run's numbers, as one typed value with two hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from adaptation.policy_adaptation import PolicyAdaptation
from core.config import FrozenConfig, explain_validation, search
from core.errors import InputError
from core.plugins import Plugin, unlike_recorded
from core.policy import PolicyConfig, RecurrentPolicy
from core.sequence_model import MODELS
from env_runner.task_distributions import FAMILIES, get_family
from env_runner.task_family import RESOLVERS, EnvOptions
from experiments.metrics import FIRST_EPISODE, PREDICTION_ERROR, MetricName, parse_metric
from experiments.numbers import LARGEST_COUNT
from meta_rl.adapting import moving_names
from meta_rl.learner import LEARNERS, AnyLearnerConfig
from meta_rl.rollout import family_action

LARGEST_SEED = 2**63 - 1  # what a database keeps as a whole number


class WorldChanges(EnvOptions):
    """Mid-episode changes in the worlds of the evaluation, and whether training has them too."""

    in_training: bool = Field(
        default=False, json_schema_extra=search(choices=(False, True), role="environment", since=2)
    )
    """Whether the worlds of the training have them too; without, they are met for the first time when it is evaluated."""


class RunSpec(FrozenConfig):
    """One training run: task family, policy with its sequence model, learner, budget and seed."""

    task: str
    """Id of the task family, such as halfcheetah-vel."""
    policy: PolicyConfig
    """Encoder, sequence model and heads."""
    learner: AnyLearnerConfig
    """Learning algorithm and its settings."""
    evaluation_episodes: int = Field(default=2, ge=1, le=20)
    """Columns of the evaluation on each task, parted by the learner's `shot`; the first one is zero-shot."""
    env_steps: int = Field(ge=1, le=LARGEST_COUNT)
    """Training budget in environment steps."""
    seed: int = Field(ge=0, le=LARGEST_SEED)
    """Seed of every random stream of the run."""
    scored_by: MetricName = Field(default=FIRST_EPISODE, exclude_if=lambda name: name == FIRST_EPISODE)
    """What the run is scored by; left out of the JSON, and so of the hashes, where it is the first episode's return."""
    changes: WorldChanges = Field(default_factory=WorldChanges, exclude_if=lambda changes: not changes.changes_anything)
    """Mid-episode changes of the worlds that it is evaluated in, and on demand of those that it trains in; left out of the JSON,
    and so of the hashes, where nothing changes."""
    adaptation: PolicyAdaptation = Field(default_factory=PolicyAdaptation, exclude_if=lambda config: not config.is_on)
    """How the policy goes on learning while it is evaluated; left out of the JSON, and so of the hashes, where it does not."""
    plugins: dict[str, str] = Field(default_factory=dict, exclude_if=lambda named: not named)
    """Name -> SHA-256 of the plugins that the model, learner and task come from; found by code, never chosen. Left out of the
    JSON, and so of the hashes, where all three come from the tree."""

    @model_validator(mode="before")
    @classmethod
    def _recorded_plugins_are_here(cls, data: Any) -> Any:
        """A specification that names plugins is read only where these very plugins are loaded."""
        recorded = data.get("plugins") if isinstance(data, Mapping) else None
        if isinstance(recorded, Mapping):
            problems = unlike_recorded({str(name): str(digest) for name, digest in recorded.items()})
            if problems:
                raise InputError("; ".join(problems))
        return data

    @model_validator(mode="after")
    def _score_is_evaluated(self) -> RunSpec:
        shot = parse_metric(self.scored_by).column
        if shot >= self.evaluation_episodes:
            raise ValueError(f"scored_by: {self.scored_by} needs evaluation_episodes of {shot + 1} or more")
        if parse_metric(self.scored_by).quantity == PREDICTION_ERROR:
            if self.learner.predicts is None:
                raise ValueError(
                    f"scored_by: {self.scored_by} needs something to predict: learner.aux=next_observation"
                )
            if self.adaptation.is_on:
                raise ValueError(
                    f"scored_by: {self.scored_by} is of the trained memory; allowed: adaptation.adapts=nothing"
                )
        return self

    @model_validator(mode="after")
    def _adaptation_fits_the_learner(self) -> RunSpec:
        problem = self.learner.why_no_adaptation if self.adaptation.is_on else None
        if problem is not None:
            raise ValueError(f"adaptation.adapts: {self.adaptation.adapts} with {self.learner.kind}: {problem}")
        return self

    @model_validator(mode="after")
    def _name_plugins(self) -> RunSpec:
        object.__setattr__(self, "plugins", _plugins_behind(self))
        return self

    @property
    def conditions(self) -> str:
        """What is unusual of the evaluation, as sentences to follow others; empty where nothing is."""
        words = f" In every episode {self.changes.in_words}" if self.changes.changes_anything else ""
        words += f", {'in training too' if self.changes.in_training else 'but not in training'}." if words else ""
        return words + (f" {self.adaptation.in_words}" if self.adaptation.is_on else "")

    @property
    def config_hash(self) -> str:
        """Hash of the whole specification: equal hashes mean equal numbers."""
        return _hash(self.model_dump(mode="json"))

    @property
    def variant_hash(self) -> str:
        """Hash without seed and budget, so that aggregates group over them."""
        return _hash(self.model_dump(mode="json", exclude={"seed", "env_steps", "evaluation_episodes"}))


def _plugins_behind(spec: RunSpec) -> dict[str, str]:
    """Name -> SHA-256 of the plugins that registered the task family, the learner, or a model that `spec` names."""
    used = [_plugin_of_task(spec.task), LEARNERS.plugin_of(spec.learner.kind)]
    used += [MODELS.plugin_of(word) for word in _words_in(spec.policy.model.model_dump())]
    return {plugin.name: plugin.sha256 for plugin in sorted(filter(None, used), key=lambda plugin: plugin.name)}


def _plugin_of_task(task: str) -> Plugin | None:
    """The plugin that lists a task family, or makes the families of its kind of ids."""
    if task in FAMILIES:
        return FAMILIES.plugin_of(task)
    made = ((RESOLVERS.plugin_of(example), RESOLVERS[example]) for example in RESOLVERS)
    return next((plugin for plugin, resolve in made if plugin is not None and resolve(task) is not None), None)


def _words_in(value: Any) -> Iterator[str]:
    """Every text among the values of a configuration: its kind, and kinds of parts of it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _words_in(part)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recorded_spec(content: Mapping[str, Any], name: str, provenance: Mapping[str, Any]) -> RunSpec:
    """The RunSpec of a recorded or queued run, to be trained.

    content: the row's `spec`. name: what the run is called. provenance: the row's, which says where its plugins lay.
    InputError in words where a plugin is missing or was changed since, or where this code knows no such configuration.
    """
    sources = {plugin["name"]: plugin["source"] for plugin in provenance.get("plugins", ())}
    problems = unlike_recorded(content.get("plugins", {}), sources)
    if problems:
        raise InputError(f"{name} needs its plugins as they were: {'; '.join(problems)}")
    try:
        return RunSpec.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{name}: {explain_validation(error)}") from None


def parse_spec(text: str, source: str) -> RunSpec:
    """A RunSpec from JSON text. InputError names each wrong field by its path, the value and what is allowed."""
    try:
        spec = RunSpec.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"{source}: {explain_validation(error, lambda place: _fields_at(json.loads(text), place))}"
        ) from None
    try:
        family = get_family(spec.task)
    except InputError as error:
        raise InputError(f"{source}: task: {error}") from None
    try:
        family.refuse_changes(spec.changes)
    except InputError as error:
        raise InputError(f"{source}: changes.{error}") from None
    if spec.adaptation.is_on:
        try:
            moving_names(RecurrentPolicy(family.obs_dim, family_action(family), spec.policy), spec.adaptation)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
    return spec


def _fields_at(data: dict[str, Any], place: tuple[str, ...]) -> Iterable[str]:
    """The fields that a specification may have at a path; none where that depends on what is wrong elsewhere."""
    node: Any = data
    for part in place:
        node = node.get(part) if isinstance(node, dict) else None
    if place == ():
        return [name for name in RunSpec.model_fields if name != "plugins"]
    for section, config in (("policy", PolicyConfig), ("changes", WorldChanges), ("adaptation", PolicyAdaptation)):
        if place == (section,):
            return config.model_fields
    kind = str(node.get("kind")) if isinstance(node, dict) else ""
    if place == ("policy", "model") and kind in MODELS:
        return MODELS[kind].config_type.model_fields
    if place == ("learner",) and kind in LEARNERS:
        return LEARNERS[kind].config_type.model_fields
    return ()


def _every_field(config: FrozenConfig) -> dict[str, Any]:
    """A configuration as JSON, with the fields that are left out of it at their defaults; without what code finds."""
    data = config.model_dump(mode="json")
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, FrozenConfig):
            data[name] = _every_field(value)
        elif name not in data and name != "plugins":
            data[name] = value
    return data


def set_fields(spec: RunSpec, changes: dict[str, str], source: str = "--set") -> RunSpec:
    """A copy with `{"policy.model.state_dim": "64"}` applied; `model.` is short for `policy.model.`."""
    data = _every_field(spec)
    for path, raw in changes.items():
        parts = path.split(".")
        if parts[0] == "model":
            parts = ["policy", *parts]
        node = data
        for part in parts[:-1]:
            if not isinstance(node.get(part), dict):
                raise InputError(f"{source} {path}: no field {part!r}; allowed here: {', '.join(node)}")
            node = node[part]
        if parts[-1] not in node:
            raise InputError(f"{source} {path}: no field {parts[-1]!r}; allowed here: {', '.join(node)}")
        try:
            node[parts[-1]] = json.loads(raw)
        except json.JSONDecodeError:
            node[parts[-1]] = raw
    return parse_spec(json.dumps(data), source)
