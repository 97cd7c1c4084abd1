"""Read-only questions to the ledger, for the command line."""

from __future__ import annotations

import statistics
from typing import Any

from sqlalchemy import func, select

from core.errors import InputError, bad_value, unknown_name
from core.words.commands import command
from experiments.campaign.holder import describe_holder, standing_of
from experiments.campaign.steering import open_wait
from experiments.ledger.filters import COLUMNS, parse_columns, parse_sort, parse_where
from experiments.ledger.ids import archived
from experiments.ledger.models import Artifact, Campaign, Claim, Eval, Metric, Note, Proposal, Run, Verdict
from experiments.ledger.scores import SCORE
from experiments.ledger.store import Ledger, join_value, now
from experiments.ledger.waste import count_waste
from experiments.metrics import WATCHED
from experiments.tables import TableView
from experiments.vocabulary import FINISHED, PURPOSES, STATUSES, readable_id

LISTED = ("run", "campaign", "purpose", "arm", "task", "model", "seed", "status", "env_steps", "score")
GROUPED = ("runs", "done", "seeds", "score", "spread", "best", "worst", "last_run")


def list_runs(
    ledger: Ledger,
    *,
    campaign: int | None = None,
    purpose: str | None = None,
    status: str | None = None,
    where: str | None = None,
    group: str | None = None,
    sort: str | None = None,
    everything: bool = False,
    limit: int = 40,
) -> TableView:
    """The newest `limit` runs that fit, oldest of them first, or the first `limit` in the order of `sort`.

    where: see `experiments/ledger/filters.py`. group: columns to aggregate over, such as variant. sort: a column, with `-` before
    it for descending. everything: archived runs too.
    """
    if purpose is not None and purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES)
    if status is not None and status not in STATUSES:
        raise unknown_name("status", status, STATUSES)
    if limit < 1:
        raise bad_value("--limit", limit, "1 or more")
    conditions = [] if where is None else parse_where(where, ledger.resolve)
    for column, value in ((Run.campaign_id, campaign), (Run.purpose, purpose), (Run.status, status)):
        if value is not None:
            conditions.append(column == value)
    hidden = 0
    with ledger.session() as session:
        if not everything:
            runs, campaigns = archived(session)
            if runs or campaigns:
                put_away = Run.id.in_(runs) | (Run.campaign_id.in_(campaigns) & Run.campaign_id.is_not(None))
                hidden = session.scalar(select(func.count()).select_from(Run).where(*conditions, put_away)) or 0
                conditions.append(~put_away)
        if group is not None:
            return _grouped(session, conditions, parse_columns("--group", group), sort, limit, hidden)
        query = select(*(COLUMNS[name] for name in LISTED)).where(*conditions)
        if sort is None:
            found = list(session.execute(query.order_by(Run.id.desc()).limit(limit)))[::-1]
        else:
            name, descending = parse_sort(sort, COLUMNS)
            order = COLUMNS[name].desc() if descending else COLUMNS[name].asc()
            found = list(session.execute(query.order_by(order.nulls_last(), Run.id).limit(limit)))
        count = session.scalar(select(func.count()).select_from(Run).where(*conditions)) or 0
    rows = tuple((readable_id("r", r[0]), readable_id("c", r[1]), *r[2:]) for r in found)
    shown = "first" if sort else "newest"
    notes = [f"the {shown} {len(rows)} of {count}; see more with --limit"] if count > len(rows) else []
    return TableView(columns=LISTED, rows=rows, note="; ".join(notes + _hidden(hidden)))


def _hidden(count: int) -> list[str]:
    return [f"{count} archived not shown; see them with --all"] if count else []


def _grouped(
    session: Any, conditions: list[Any], names: list[str], sort: str | None, limit: int, hidden: int
) -> TableView:
    """One row a group with the mean score of its finished runs, best mean first."""
    if "variant" in names or "config" in names:  # a hash alone says little
        names = list(dict.fromkeys([*names, "model", "task"]))
    query = select(*(COLUMNS[name] for name in names), Run.id, Run.status, Run.seed, SCORE)
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in session.execute(query.where(*conditions).order_by(Run.id)):
        groups.setdefault(tuple(row[: len(names)]), []).append(row[len(names) :])
    rows: list[tuple[Any, ...]] = []
    for key, members in groups.items():
        scores = [score for *_, score in members if score is not None]
        rows.append(
            (
                *(_key(name, value) for name, value in zip(names, key, strict=True)),
                len(members),
                sum(status == "done" for _, status, _, _ in members),
                len({seed for _, _, seed, _ in members}),
                statistics.fmean(scores) if scores else None,
                statistics.stdev(scores) if len(scores) > 1 else None,
                max(scores, default=None),
                min(scores, default=None),
                readable_id("r", members[-1][0]),
            )
        )
    columns = [*names, *GROUPED]
    name, descending = parse_sort(sort or "-score", columns)
    place = columns.index(name)
    known = sorted((r for r in rows if r[place] is not None), key=lambda r: r[place], reverse=descending)
    rows = known + [r for r in rows if r[place] is None]
    notes = [f"the first {limit} of {len(rows)} groups; see more with --limit"] if len(rows) > limit else []
    return TableView(columns=tuple(columns), rows=tuple(rows[:limit]), note="; ".join(notes + _hidden(hidden)))


def _key(name: str, value: Any) -> Any:
    if name in ("variant", "config"):
        return value[:12]
    prefix = {"run": "r", "rerun_of": "r", "campaign": "c", "claim": "k"}.get(name)
    return value if prefix is None else readable_id(prefix, value)


def list_active(ledger: Ledger) -> tuple[TableView, TableView]:
    """Campaigns that are not finished, with who holds them, and the runs that are training or waiting."""
    with ledger.session() as session:
        finished = select(func.count()).select_from(Run).where(Run.campaign_id == Campaign.id, Run.status.in_(FINISHED))
        query = select(Campaign, finished.scalar_subquery()).where(Campaign.stage != "done").order_by(Campaign.id)
        campaigns = [
            (
                readable_id("c", c.id),
                c.goal,
                c.stage,
                standing_of(c),
                describe_holder(c.holder),
                done,
                round(c.spent_s, 1),
            )
            for c, done in session.execute(query)
        ]
        open_ids = list(session.scalars(select(Campaign.id).where(Campaign.stage != "done")))
        moment = now()
        runs = [
            (
                readable_id("r", run.id),
                readable_id("c", run.campaign_id),
                run.purpose,
                run.arm,
                run.model,
                run.status,
                round(100 * run.env_steps / run.spec["env_steps"], 1) if run.spec.get("env_steps") else None,
                None if run.heartbeat_at is None else round((moment - run.heartbeat_at).total_seconds(), 1),
            )
            for run in session.scalars(select(Run).where(Run.status.not_in(FINISHED)).order_by(Run.id))
        ]
        waits = {readable_id("c", n): w for n in open_ids if (w := open_wait(session, n)) is not None}
    interrupted = [row[0] for row in campaigns if row[3] != "running"]
    notes = [f"Go on with: {command('resume', interrupted[-1])}"] if interrupted else []
    notes += [f"{name} waits for approval of {w.what} Approve: {command('approve', name)}, or refuse with --deny REASON" for name, w in waits.items()]  # fmt: skip
    wasted = {n: count_waste(ledger, n) for n in open_ids}
    notes += [f"{readable_id('c', n)} wasted trials: {w.sentence()}" for n, w in wasted.items() if w.launched]
    note = "\n".join(notes)
    return (
        TableView(
            columns=("campaign", "goal", "stage", "status", "held by", "runs finished", "seconds"),
            rows=tuple(campaigns),
            note=note if campaigns else "No campaign is open.",
        ),
        TableView(
            columns=("run", "campaign", "purpose", "arm", "model", "status", "done %", "last report (s ago)"),
            rows=tuple(runs),
            note="" if runs else "No run is training or waiting.",
        ),
    )


def what_is_left(ledger: Ledger, number: int) -> dict[str, Any]:
    """Where a campaign stands: what was spent and what its plan still holds, at most."""
    from experiments.campaign.plan import Plan

    campaign = ledger.get_campaign(number)
    plan = Plan.model_validate(campaign.plan)
    runs = [run for run in ledger.runs(number) if run.status in FINISHED]
    steps = sum(run.env_steps for run in runs)
    return {
        "campaign": readable_id("c", number),
        "goal": campaign.goal,
        "stage": campaign.stage,
        "status": standing_of(campaign),
        "held_by": describe_holder(campaign.holder),
        "runs_finished": len(runs),
        "runs_left": 0 if campaign.stage == "done" else max(plan.runs - len(runs), 0),
        "env_steps_spent": steps,
        "env_steps_left": 0 if campaign.stage == "done" else max(plan.env_steps_total - steps, 0),
        "wall_s_spent": round(campaign.spent_s, 1),
        "wall_s_budget": plan.budget.wall_s,
    }


def list_campaigns(ledger: Ledger) -> TableView:
    """Every campaign with its stage, status and verdict."""
    with ledger.session() as session:
        query = (
            select(Campaign, Verdict.outcome)
            .outerjoin(Claim, Claim.campaign_id == Campaign.id)
            .outerjoin(Verdict, Verdict.claim_id == Claim.id)
            .order_by(Campaign.id)
        )
        rows = tuple(
            (readable_id("c", c.id), c.goal, c.stage, standing_of(c), c.llm, round(c.spent_s, 1), outcome)
            for c, outcome in session.execute(query)
        )
    return TableView(columns=("campaign", "goal", "stage", "status", "llm", "seconds", "verdict"), rows=rows)


def describe_row(ledger: Ledger, value: str) -> dict[str, Any]:
    """Everything recorded about one row, as plain data."""
    kind, number = ledger.locate(value)
    if kind == "run":
        return _describe_run(ledger, number)
    if kind == "campaign":
        return _describe_campaign(ledger, number)
    with ledger.session() as session:
        if kind == "claim":
            claim = session.get_one(Claim, number)
            return {"claim": readable_id("k", number), "campaign": readable_id("c", claim.campaign_id), "hash": claim.content_hash, **claim.content}  # fmt: skip
        if kind == "verdict":
            verdict = session.get_one(Verdict, number)
            return {"verdict": readable_id("v", number), "claim": readable_id("k", verdict.claim_id), **verdict.content}
        proposal = session.get_one(Proposal, number)
        return {
            "proposal": readable_id("p", number),
            "campaign": readable_id("c", proposal.campaign_id),
            **_fields(proposal, "arm", "trial", "role", "source", "changes", "reason", "predicted_effect", "evidence"),
        }


def _describe_run(ledger: Ledger, number: int) -> dict[str, Any]:
    run = ledger.get_run(number)
    name = readable_id("r", number)
    with ledger.session() as session:
        last = select(func.max(Metric.env_steps)).where(Metric.run_id == number).scalar_subquery()
        metrics = {
            m.name: join_value(m.value, m.kind)
            for m in session.scalars(select(Metric).where(Metric.run_id == number, Metric.env_steps == last))
        }
        query = (
            select(
                Eval.name,
                Eval.episode,
                func.avg(Eval.value),
                func.min(Eval.value),
                func.count(Eval.value),
                func.count(),
            )
            .where(Eval.run_id == number)
            .group_by(Eval.name, Eval.episode)
            .order_by(Eval.name, Eval.episode)
        )
        evals = [
            {"quantity": q, "episode": e, "mean": mean, "worst": worst, "tasks": finite}
            | ({"not_finite": rows - finite} if rows > finite else {})  # which no mean has
            for q, e, mean, worst, finite, rows in session.execute(query)
        ]
        notes = [
            _fields(n, "author", "text", "created_at") for n in session.scalars(select(Note).where(Note.target == name))
        ]
        files = [
            _fields(a, "kind", "path", "sha256")
            for a in session.scalars(select(Artifact).where(Artifact.run_id == number))
        ]
    if ledger.score_is_hidden(run):
        run.score, evals = None, []
        metrics.pop(WATCHED, None)
    return {
        "run": name,
        "campaign": readable_id("c", run.campaign_id),
        "claim": readable_id("k", run.claim_id),
        "rerun_of": readable_id("r", run.rerun_of),
        **_fields(
            run, "purpose", "pool", "arm", "trial", "proposer", "status", "cause", "score", "task", "task_version"
        ),
        **_fields(run, "model", "parameters", "seed", "env_steps", "train_s", "wall_s", "started_at", "ended_at"),
        "evaluation": evals,
        "last_metrics": metrics,
        "spec": run.spec,
        "config_hash": run.config_hash,
        "variant_hash": run.variant_hash,
        "files": files,
        "notes": notes,
        "provenance": run.provenance,
    }


def _describe_campaign(ledger: Ledger, number: int) -> dict[str, Any]:
    from experiments.reading.crew import ideas_table, predictions_table

    campaign, ideas = ledger.get_campaign(number), ideas_table(ledger, number)
    with ledger.session() as session:
        statuses = session.execute(
            select(Run.purpose, Run.status, func.count())
            .where(Run.campaign_id == number)
            .group_by(Run.purpose, Run.status)
        )
        runs = [{"purpose": p, "status": s, "runs": n} for p, s, n in statuses]
        claim = session.scalar(select(Claim).where(Claim.campaign_id == number))
        verdict = session.scalar(select(Verdict).where(Verdict.claim_id == claim.id)) if claim else None
    return {
        "campaign": readable_id("c", number),
        **_fields(campaign, "goal", "stage", "status", "llm", "seed", "spent_s", "created_at", "ended_at"),
        "status": standing_of(campaign),
        "runs": runs,
        "claim": readable_id("k", claim.id) if claim else None,
        "verdict": verdict.content if verdict else None,
        "narrative": campaign.narrative,
        **(
            {"predictions": predictions_table(ledger, number).records(), "ideas": ideas.records()} if ideas.rows else {}
        ),
        "question": campaign.question,
        "plan": campaign.plan,
        "provenance": campaign.provenance,
    }


def _fields(row: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def list_registered(what: str) -> TableView:
    """The names that goals and specifications may use."""
    if what == "tasks":
        from env_runner.task_distributions import FAMILIES

        families = [FAMILIES[name] for name in FAMILIES]
        rows = tuple(
            (
                f.id,
                f.obs_dim,
                f"{f.action.kind} {f.action.size}",
                f.horizon,
                len(f.eval_tasks("confirmation")),
                _anchors(f),
            )
            for f in families
        )
        columns = ("task", "obs", "action", "steps", "held-out tasks", "anchors")
        note = f"Any Gymnasium id is a one-task family too. {FAMILIES.failures_in_words()}"
        return TableView(columns=columns, rows=rows, note=note.rstrip())
    if what == "models":
        from core.sequence_model import MODELS, default_config
        from experiments.campaign.sides import RECURRENT_KINDS, SSM_KINDS
        from experiments.presets import effort

        rows = tuple((kind, type(default_config(kind)).__doc__ or "", effort("", kind)) for kind in MODELS)
        note = f"ssm in a goal means {', '.join(SSM_KINDS)}; recurrent means {', '.join(RECURRENT_KINDS)}. {MODELS.failures_in_words()}"
        return TableView(columns=("model", "what it is", "tuning of the default"), rows=rows, note=note.rstrip())
    if what == "learners":
        from meta_rl.learner import LEARNERS

        entries = [(kind, LEARNERS[kind]) for kind in LEARNERS]
        rows = tuple((kind, (e.learner.__doc__ or "").split("\n")[0], e.config_type.shot) for kind, e in entries)
        return TableView(columns=("learner", "what it is", "a shot"), rows=rows, note=LEARNERS.failures_in_words())
    if what == "presets":
        from experiments.presets import list_presets

        return list_presets()
    if what == "plugins":
        return _list_plugins()
    raise InputError(f"list: got {what!r}, allowed: tasks, models, learners, presets, plugins")


def _list_plugins() -> TableView:
    """What is loaded from outside the tree, and installed plugins that could not be."""
    from core.plugins import loaded_plugins, plugin_failures, registrations

    rows = tuple(
        (
            plugin.name,
            "; ".join(f"{kind} {', '.join(names)}" for kind, names in registrations(plugin).items()) or "nothing",
            plugin.sha256[:12],
            plugin.source,
        )
        for plugin in loaded_plugins()
    )
    notes = [f"{module} could not be loaded: {why}" for module, why in plugin_failures().items()]
    note = "\n".join(notes if rows else ["None. Add some with --plugin FILE|MODULE; see docs/extending.md.", *notes])
    return TableView(columns=("plugin", "registers", "sha256", "from"), rows=rows, note=note)


def _anchors(family: Any) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in family.anchors.items())
