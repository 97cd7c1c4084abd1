"""Read-only questions to the ledger, for the command line."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from core.errors import InputError, bad_value, unknown_name
from experiments.lab import TableView
from experiments.ledger.models import Artifact, Campaign, Claim, Eval, Metric, Note, Proposal, Run, Verdict
from experiments.ledger.store import FINISHED, PREFIXES, Ledger, join_value, readable_id

PURPOSES = ("baseline", "search", "selection", "confirmation", "manual", "rerun")
STATUSES = ("queued", "running", *FINISHED)


def list_runs(
    ledger: Ledger, *, campaign: int | None, purpose: str | None, status: str | None, limit: int
) -> TableView:
    """The newest `limit` runs that fit, oldest of them first."""
    if purpose is not None and purpose not in PURPOSES:
        raise unknown_name("purpose", purpose, PURPOSES)
    if status is not None and status not in STATUSES:
        raise unknown_name("status", status, STATUSES)
    if limit < 1:
        raise bad_value("--limit", limit, "1 or more")
    columns = (Run.id, Run.campaign_id, Run.purpose, Run.arm, Run.task, Run.model, Run.seed, Run.status, Run.env_steps, Run.score)  # fmt: skip
    query, total = select(*columns), select(func.count()).select_from(Run)
    for column, value in ((Run.campaign_id, campaign), (Run.purpose, purpose), (Run.status, status)):
        if value is not None:
            query, total = query.where(column == value), total.where(column == value)
    with ledger.session() as session:
        found = list(session.execute(query.order_by(Run.id.desc()).limit(limit)))[::-1]
        count = session.scalar(total) or 0
    rows = tuple((readable_id("r", r[0]), readable_id("c", r[1]), *r[2:]) for r in found)
    note = f"the newest {len(rows)} of {count}; see more with --limit" if count > len(rows) else ""
    return TableView(
        columns=("run", "campaign", "purpose", "arm", "task", "model", "seed", "status", "env_steps", "score"),
        rows=rows,
        note=note,
    )


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
            (readable_id("c", c.id), c.goal, c.stage, c.status, c.llm, round(c.spent_s, 1), outcome)
            for c, outcome in session.execute(query)
        )
    return TableView(columns=("campaign", "goal", "stage", "status", "llm", "seconds", "verdict"), rows=rows)


def describe_row(ledger: Ledger, value: str) -> dict[str, Any]:
    """Everything recorded about one row, as plain data."""
    prefix = value[:1].lower()
    kind = PREFIXES[prefix][0] if prefix in PREFIXES else "run"
    number = ledger.resolve(value, kind)
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
            select(Eval.name, Eval.episode, func.avg(Eval.value), func.min(Eval.value), func.count())
            .where(Eval.run_id == number)
            .group_by(Eval.name, Eval.episode)
        )
        evals = [
            {"quantity": q, "episode": e, "mean": mean, "worst": worst, "tasks": tasks}
            for q, e, mean, worst, tasks in session.execute(query)
        ]
        notes = [
            _fields(n, "author", "text", "created_at") for n in session.scalars(select(Note).where(Note.target == name))
        ]
        files = [
            _fields(a, "kind", "path", "sha256")
            for a in session.scalars(select(Artifact).where(Artifact.run_id == number))
        ]
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
    campaign = ledger.get_campaign(number)
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
        "runs": runs,
        "claim": readable_id("k", claim.id) if claim else None,
        "verdict": verdict.content if verdict else None,
        "narrative": campaign.narrative,
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
        return TableView(columns=columns, rows=rows, note="Any Gymnasium id is a one-task family too.")
    if what == "models":
        from core.sequence_model import MODELS, default_config
        from experiments.presets import effort

        rows = tuple((kind, type(default_config(kind)).__doc__ or "", effort("", kind)) for kind in MODELS)
        return TableView(columns=("model", "what it is", "tuning of the default"), rows=rows, note="ssm in a goal means s5, lru and s4d.")  # fmt: skip
    if what == "learners":
        from meta_rl.learner import LEARNERS

        rows = tuple((kind, (LEARNERS[kind].learner.__doc__ or "").split("\n")[0]) for kind in LEARNERS)
        return TableView(columns=("learner", "what it is"), rows=rows)
    raise InputError(f"list: got {what!r}, allowed: tasks, models, learners")


def _anchors(family: Any) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in family.anchors.items())
