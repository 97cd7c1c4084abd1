"""What the crew's tools may read: tables of this campaign's search pool, and nothing of selection or confirmation.

Whoever names a run is held to the search pool by `Evidence.search_run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.errors import bad_value, unknown_name
from experiments.campaign.trials import FinishedTrial, Trials, best_first
from experiments.campaign.views import RoundView, SpaceView
from experiments.ledger.models import Run
from experiments.metrics import parse_metric
from experiments.search.side import Value
from experiments.tables import Cell, TableView, flatten, rounded
from experiments.vocabulary import FINISHED, readable_id

VIEWS = ("incumbent", "top", "runs", "failures", "baseline", "sensitivity")


class Evidence:
    """The readable side of the campaign whose trials are given."""

    def __init__(self, trials: Trials) -> None:
        self.trials, self.ledger, self.campaign_id = trials, trials.ledger, trials.campaign_id

    # ---- tables -------------------------------------------------------------------------

    def describe_search_space(self, arm: str, role: str | None = None) -> SpaceView:
        """The tunable fields of an arm, of one role's slice where it is named."""
        return SpaceView(arm=arm, parameters=self.trials.space(arm).of_role(role))

    def ledger_query(self, view: str, arm: str | None = None, limit: int = 8, skip: int = 0) -> TableView:
        """A compact table of search-pool facts: incumbent, top, runs, failures, baseline or sensitivity.

        top and incumbent begin with the best, runs and failures with the newest. skip: rows left out before the first.
        """
        if view not in VIEWS:
            raise unknown_name("view", view, VIEWS)
        if arm is not None:
            self.trials.space(arm)
        if not 1 <= limit <= 50:
            raise bad_value("limit", limit, "from 1 to 50")
        if view == "baseline":
            return self.baseline_table()
        if view == "sensitivity":
            from experiments.campaign.sensitivity import sensitivity_table

            arm = arm or "challenger"
            table = sensitivity_table(self.trials.finished(arm), self.trials.space(arm).parameters, skip + limit)
            return table.model_copy(update={"rows": table.rows[skip:]})
        if view == "failures":
            ended = [run for run in self.search_runs(arm) if run.status in FINISHED]
            failed = [run for run in ended if run.status not in ("done", "pruned")]
            return runs_table(failed[::-1][skip : skip + limit], "arm", "status", "cause")
        trials = [t for a in ([arm] if arm else self.trials.arms) for t in self.trials.finished(a)]
        trials = sorted(trials, key=lambda t: -t.run.id) if view == "runs" else best_first(trials)
        if view == "incumbent":
            trials = [next(t for t in trials if t.arm == a) for a in dict.fromkeys(t.arm for t in trials)]
        return self._trials_table(trials[skip : skip + limit])

    def _trials_table(self, trials: Sequence[FinishedTrial]) -> TableView:
        level, floor = self.trials.default_score(), self.trials.noise_floor()
        rows = tuple(
            (
                readable_id("r", t.run.id), t.arm, t.number, t.run.status, rounded(t.score),
                None if t.score is None or level is None or not floor else round((t.score - level) / floor, 1),
                described(t.values),
            )
            for t in trials
        )  # fmt: skip
        note = (
            f"noise floors: distance from the baseline's default on the same seed in units of {floor:.3g}"
            if floor
            else ""
        )
        return TableView(
            columns=("run", "arm", "trial", "status", "score", "noise floors", "configuration"), rows=rows, note=note
        )

    def baseline_table(self) -> TableView:
        """The baseline's default configuration on its seeds, and the noise floor that they give."""
        mean, floor = self.trials.baseline_mean(), self.trials.noise_floor()
        seeds = len(self.trials.baseline_scores())
        note = "" if floor is None else f"mean {mean:.1f}, noise floor {floor:.1f} over {seeds} seeds"
        return runs_table(self.trials.baseline_runs(), "seed", "status", "env_steps", "score", note=note)

    def round_view(self, round_: int) -> RoundView:
        """The finished runs of one search round."""
        numbers = self.trials.plan.trials_of(round_)
        measured = [t for arm in self.trials.arms for n in numbers if (t := self.trials.measured(arm, n)) is not None]
        floor = self.trials.noise_floor()
        return RoundView(
            round=round_,
            columns=("run", "arm", "status", "score", "configuration"),
            rows=tuple(
                (readable_id("r", t.run.id), t.arm, t.run.status, rounded(t.run.score), described(t.values))
                for t in measured
            ),
            noise_floor=None if floor is None else round(floor, 2),
        )

    def compare_variants(self, first: str, second: str) -> TableView:
        """Two runs of the search pool: what differs in the configuration, and the scores in units of the noise floor."""
        a, b = self.search_run(first), self.search_run(second)
        left, right = flatten(a.spec), flatten(b.spec)
        rows: list[tuple[Cell, ...]] = [
            (name, str(left.get(name)), str(right.get(name)))
            for name in sorted(left.keys() | right.keys())
            if left.get(name) != right.get(name)
        ]
        rows.append(("score", rounded(a.score), rounded(b.score)))
        floor = self.trials.noise_floor()
        note = ""
        if a.score is not None and b.score is not None and floor:
            note = f"{first} minus {second} is {(a.score - b.score) / floor:+.1f} noise floors (one is {floor:.1f})"
        return TableView(columns=("field", first, second), rows=tuple(rows), note=note)

    def analyse_curves(self, arm: str | None = None, run_id: str | None = None, limit: int = 8) -> TableView:
        """Slope, plateau, instability and forecast of search-pool learning curves: one run's, or the newest ones'."""
        from experiments.campaign.curves import curve_table

        if not 1 <= limit <= 20:
            raise bad_value("limit", limit, "from 1 to 20")
        if arm is not None:
            self.trials.space(arm)
        curves = [run for run in self.search_runs(arm) if run.status in ("done", "running", "diverged", "pruned")]
        return curve_table(
            self.ledger,
            [self.search_run(run_id)] if run_id is not None else curves[::-1][:limit],
            [run for run in self.search_runs() if run.status == "done"],
            full_steps=self.trials.plan.env_steps_full,
            floor=self.trials.noise_floor(),
            metric=parse_metric(self.trials.question.metric),
        )

    def episode_returns(self, run_id: str) -> TableView:
        """Evaluation return of one search-pool run by episode on the task, and its gain over the first episode."""
        from experiments.campaign.curves import episode_table

        return episode_table(self.ledger, self.search_run(run_id))

    # ---- the search pool ----------------------------------------------------------------

    def search_runs(self, arm: str | None = None) -> list[Run]:
        """The runs of this campaign's search pool, of one arm where it is named."""
        return self.ledger.runs(self.campaign_id, purpose=("baseline", "search"), arm=arm)

    def search_run(self, run_id: str) -> Run:
        """A run of this campaign's search pool; InputError for any other, so agents see none."""
        run = self.ledger.get_run(self.ledger.resolve(run_id, "run"))
        if run.campaign_id != self.campaign_id or run.pool != "search":
            allowed = ", ".join(readable_id("r", r.id) for r in self.search_runs()[-12:])
            raise bad_value("run", run_id, f"a search run of this campaign: {allowed or 'none yet'}")
        return run

    def check_ids(self, evidence: Sequence[str]) -> None:
        """InputError where what somebody rests on is not a run of the search pool."""
        for run_id in evidence:
            if not run_id.startswith("r-"):
                raise bad_value("evidence", run_id, "ids of search runs of this campaign, such as r-0042")
            self.search_run(run_id)


def runs_table(runs: Sequence[Run], *fields: str, note: str = "") -> TableView:
    """Runs with the named columns of their rows; scores to five digits."""

    def shown(run: Run, field: str) -> Cell:
        return rounded(run.score) if field == "score" else getattr(run, field)

    rows = tuple((readable_id("r", run.id), *(shown(run, field) for field in fields)) for run in runs)
    return TableView(columns=("run", *fields), rows=rows, note=note)


def described(values: Mapping[str, Value]) -> str:
    """A configuration on one line."""
    return " ".join(f"{name}={f'{value:.3g}' if isinstance(value, float) else value}" for name, value in values.items())


def changed_fields(before: Mapping[str, Value], after: Mapping[str, Value]) -> str:
    """What differs from one configuration to another, on one line; a field that only one has is named with - for the other."""

    def shown(values: Mapping[str, Value], name: str) -> str:
        value = values.get(name, "-")
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    names = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {shown(before, name)} -> {shown(after, name)}" for name in names)
