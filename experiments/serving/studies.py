"""A campaign's search as Optuna studies, one a side, for optuna-dashboard and whatever else reads Optuna's storage.

The studies are made from the ledger's rows and go no way back. They hold the search alone: no score of the selection or of the
confirmation is in them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from core.errors import InputError
from core.files import replacing
from core.words.commands import command
from core.words.text import harmless
from experiments.campaign.plan import Plan
from experiments.campaign.question import Question
from experiments.campaign.trials import space_of
from experiments.ledger.models import Run
from experiments.ledger.store import Ledger, join_value, readable_id
from experiments.runs.runner import RUNG_SCORE
from experiments.search.side import Value
from experiments.search.space import SearchSpace
from experiments.vocabulary import FINISHED

REFRESH_S = 5.0  # between two looks for trials that have finished meanwhile
INSTALL = 'pip install -e ".[dashboard]"'
STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
"""Of Optuna, by the run's status; every other end is a failure."""


class Studies:
    """The studies of one campaign in one storage."""

    def __init__(self, ledger: Ledger, campaign_id: int, storage: optuna.storages.BaseStorage) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.ledger, self.campaign_id = ledger, campaign_id
        row = ledger.get_campaign(campaign_id)
        question, plan = Question.model_validate(row.question), Plan.model_validate(row.plan)
        arms = question.arms if question.baseline_is_tuned else ("challenger",)
        self.spaces = {arm: space_of(question, question.side(arm), plan.marks) for arm in arms}
        self._storage = storage
        self._about = {
            arm: {"goal": row.goal, "side": question.side(arm).label, "score": question.metric} for arm in arms
        }
        self.studies: dict[str, optuna.Study] = {}
        """Arm -> its study. What a person does to it in the dashboard (rename it, delete it) is done to this copy alone."""
        self._lock, self._looked = threading.Lock(), 0.0
        self.refresh()

    def _study(self, arm: str) -> optuna.Study:
        """The study of an arm, made where there is none: at first, and after a person deleted it."""
        study = self.studies.get(arm)
        if study is not None and study._study_id in {kept._study_id for kept in self._storage.get_all_studies()}:
            return study  # by its number, so that a new name is kept
        name = f"{readable_id('c', self.campaign_id)} {arm}"
        taken = {kept.study_name for kept in self._storage.get_all_studies()}
        while name in taken:  # by one that a person named so
            name += "'"
        study = optuna.create_study(storage=self._storage, study_name=name, direction="maximize")
        for attribute, value in self._about[arm].items():
            study.set_user_attr(attribute, harmless(value))
        self.studies[arm] = study
        return study

    def refresh(self) -> int:
        """Add the trials that have finished since, and return how many trials there are. A trial that is still training is added once it
        has finished, also after later ones: Optuna numbers trials as they come, the attribute `trial` is the campaign's number."""
        with self._lock:
            for arm in self._about:
                study = self._study(arm)
                runs = self.ledger.runs(self.campaign_id, purpose=("baseline", "search"), arm=arm)
                by_trial = {
                    run.trial: run for run in reversed(runs) if run.trial is not None and run.status in FINISHED
                }
                there = {trial.user_attrs.get("trial") for trial in study.get_trials(deepcopy=False)}
                for number in sorted(by_trial.keys() - there):
                    study.add_trial(self._frozen(by_trial[number], self.spaces[arm]))
            self._looked = time.monotonic()
            return sum(len(study.get_trials(deepcopy=False)) for study in self.studies.values())

    def refresh_if_due(self) -> None:
        if time.monotonic() - self._looked > REFRESH_S:
            self.refresh()

    def _frozen(self, run: Run, space: SearchSpace) -> FrozenTrial:
        """One run as a trial. Its parameters are what it was trained with, of the fields that are searched."""
        trained = {p.name: value for p in space.parameters if (value := _trained(run.spec, p.name)) is not None}
        ranges = {p.name: p.distribution() for p in space.parameters}
        inside = {name: value for name, value in trained.items() if _holds(ranges[name], value)}
        state = STATES.get(run.status, TrialState.FAIL)
        if state is TrialState.COMPLETE and run.score is None:  # one that is no number
            state = TrialState.FAIL
        attributes: dict[str, Any] = {"trial": run.trial, "run": readable_id("r", run.id), "status": run.status}
        attributes |= {"proposer": harmless(run.proposer)} | ({"cause": harmless(run.cause)} if run.cause else {})
        attributes |= {
            f"outside of the space: {name}": _shown(trained[name]) for name in trained.keys() - inside.keys()
        }
        rungs = self.ledger.metrics(run.id, RUNG_SCORE)
        return FrozenTrial(
            number=run.trial or 0,
            trial_id=-1,  # the storage gives one
            state=state,
            value=run.score if state is TrialState.COMPLETE else None,
            datetime_start=(run.started_at or run.created_at).replace(tzinfo=None),  # as Optuna keeps them
            datetime_complete=(run.ended_at or run.created_at).replace(tzinfo=None),
            params=inside,
            distributions={name: ranges[name] for name in inside},
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={m.env_steps: join_value(m.value, m.kind) for m in rungs},
        )


def _shown(value: Any) -> Any:
    return harmless(value) if isinstance(value, str) else value


def _trained(spec: Mapping[str, Any], name: str) -> Any:
    """The value of a searched field in a run's specification, or of a place (from 1) in a list of it; None where it has none."""
    section, field, *place = name.split(".")
    value = (spec["policy"]["model"] if section == "model" else spec.get(section, {})).get(field)
    if not place:
        return value
    return value[int(place[0]) - 1] if isinstance(value, list) and int(place[0]) <= len(value) else None


def _holds(values: BaseDistribution, value: Value) -> bool:
    """Whether a search space of today has the value that was tried then."""
    try:
        return values._contains(values.to_internal_repr(value))
    except ValueError:
        return False


def write_studies(ledger: Ledger, campaign_id: int, out: Path) -> int:
    """Write a campaign's studies to `out`, an SQLite file that Optuna opens, and return the number of trials."""
    try:
        with replacing(out) as partial:
            storage = optuna.storages.RDBStorage(f"sqlite:///{partial}")
            count = Studies(ledger, campaign_id, storage).refresh()
            storage.remove_session()
            storage.engine.dispose()
            return count
    except OSError as error:
        raise InputError(f"--out: cannot write {out} ({error.strerror})") from None


def dashboard(ledger: Ledger, campaign_id: int) -> Any:
    """Optuna's dashboard over a campaign's studies, as an ASGI application that looks for new trials as it is looked at.

    InputError with the line that installs it, where it is not.
    """
    try:
        from a2wsgi import WSGIMiddleware  # pyright: ignore[reportMissingImports]
        from optuna_dashboard import wsgi  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"--search needs optuna-dashboard: {INSTALL}. Without it, write the trials for other programs of Optuna's with: "
            + command("export", "--format", "optuna", "--campaign", readable_id("c", campaign_id))
        ) from None
    storage = optuna.storages.InMemoryStorage()
    studies, inner = Studies(ledger, campaign_id, storage), wsgi(storage)

    def outer(environment: Any, start: Any) -> Any:
        studies.refresh_if_due()
        return inner(environment, start)

    return WSGIMiddleware(outer)
