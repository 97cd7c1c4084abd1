"""What is claimed and what it is judged by: a claim made from a campaign's selection, the rows of its confirmation, the
verdict on them. The judge itself is `experiments/judging/judge.py`; here its words become rows, once each."""

from __future__ import annotations

from sqlalchemy import select

from core.errors import InputError
from experiments.campaign.design import TASK_BLIND, best_task_blind, design_test, equal_time, equivalence_margin
from experiments.campaign.plan import FEWEST_TRIALS
from experiments.campaign.question import Question
from experiments.campaign.trials import Trials
from experiments.campaign.views import ClaimView, VerdictView
from experiments.judging.claim import ALPHA, ArmClaim, ClaimContent, ConfirmationRow, EqualTime
from experiments.judging.judge import VerdictContent, judge
from experiments.ledger.models import Claim, Run, Verdict
from experiments.ledger.store import Ledger, now
from experiments.metrics import FIRST_EPISODE, parse_metric
from experiments.search.sizing import count_parameters
from experiments.search.space import plan_unit
from experiments.vocabulary import ARMS, readable_id
from meta_rl.learner import DEFAULT_LEARNER


def find_claim(ledger: Ledger, campaign_id: int) -> Claim | None:
    """The claim of a campaign, None before it is written."""
    with ledger.session() as session:
        return session.scalar(select(Claim).where(Claim.campaign_id == campaign_id))


def write_claim(trials: Trials, question: Question) -> ClaimView:
    """Fix the hypothesis, both configurations, the seeds and the rule; the same claim where it is written already.

    InputError where the row in the ledger does not match its hash.
    """
    row = find_claim(trials.ledger, trials.campaign_id)
    if row is None:
        if trials.plan.extends is not None:
            content = extended_claim(trials)
        else:
            content = claim_content(trials, question, trials.plan.confirmation_steps)
        row = Claim(
            campaign_id=trials.campaign_id,
            content=content.model_dump(mode="json"),
            content_hash=content.content_hash,
            created_at=now(),
        )
        trials.ledger.add(row)
    content = ClaimContent.model_validate(row.content)
    if content.content_hash != row.content_hash:
        raise InputError(f"claim {readable_id('k', row.id)} does not match its hash: the ledger was edited by hand")
    return ClaimView(id=readable_id("k", row.id), content=content, content_hash=row.content_hash)


def find_verdict(ledger: Ledger, claim: Claim) -> Verdict | None:
    """The verdict on a claim, None before it is judged."""
    with ledger.session() as session:
        return session.scalar(select(Verdict).where(Verdict.claim_id == claim.id))


def judge_claim(ledger: Ledger, claim: Claim) -> VerdictView:
    """Judge a claim from its rows and keep the verdict; the same verdict where it is judged already."""
    row = find_verdict(ledger, claim)
    if row is None:
        content = judge(ClaimContent.model_validate(claim.content), confirmation_rows(ledger, claim.id))
        row = Verdict(
            claim_id=claim.id,
            outcome=content.outcome,
            reason=content.reason,
            content=content.model_dump(mode="json"),
            created_at=now(),
        )
        ledger.add(row)
    return VerdictView(
        **VerdictContent.model_validate(row.content).model_dump(),
        id=readable_id("v", row.id),
        claim_id=readable_id("k", claim.id),
    )


def claim_content(trials: Trials, question: Question, env_steps: int) -> ClaimContent:
    """The claim of a campaign after its selection: both chosen configurations, fresh seeds, and the rule that decides.

    env_steps: training budget of every confirmation run.
    """
    family = question.family
    arms = {}
    for arm in trials.sides:
        _, values = trials.winner(arm)
        spec = trials.spec(arm, values, seed=0, env_steps=env_steps)
        finished = trials.finished(arm) if arm in trials.arms else []
        selection = trials.ledger.runs(trials.campaign_id, purpose="selection", arm=arm)
        arms[arm] = ArmClaim(
            variant_hash=spec.variant_hash,
            label=question.side(arm).label if question.rivals else "",
            model=spec.policy.model.kind,
            learner=spec.learner.kind,
            scored_by=spec.scored_by,
            parameters=count_parameters(spec),
            tuner="default then multivariate TPE" if arm in trials.arms else "default",
            search_trials=len(finished),
            # A pruned run counts what it really spent; any other what it was given, so that a crash is no discount.
            tuning_env_steps=sum(
                run.env_steps if run.status == "pruned" else int(run.spec["env_steps"])
                for run in [*(t.run for t in finished), *selection]
            ),
        )
    metric = parse_metric(question.metric)
    floor_name, floor = (
        best_task_blind(family.anchors) if metric.quantity == "return" and not metric.worst else ("", None)
    )
    fresh = trials.seeds("confirmation")
    design = design_test(trials, len(fresh))
    if design.split is not None:
        fresh = trials.seeds("confirmation", count=max(design.split))
    timed = equal_time(trials, env_steps, plan_unit(list(trials.spaces.values())))
    margin = f" by {question.improvement_pct:g} %" if question.improvement_pct else ""
    scored = "" if metric.name == FIRST_EPISODE else f", by {question.score_in_words}"
    trained = "" if question.learner == DEFAULT_LEARNER else f" trained by {question.learner}"
    tuned = "" if question.baseline_is_tuned else "default "
    rest = question.sides[1:]
    held = " and ".join([f"{tuned}{rest[0].label}", *(side.label for side in rest[1:])])
    beats = f"{question.challenger.label} beats the {held}"
    if question.kind == "compare" and question.rivals:
        beats = f"one of {', '.join(side.label for side in question.sides)} beats all others"
    changed = f", where in every episode {question.changes.in_words}" if question.changes.changes_anything else ""
    return ClaimContent(
        hypothesis=f"{beats}{margin} on {question.task} {_lengths(timed, env_steps)}{trained}{scored}{changed}",
        task=question.task,
        task_version=family.version,
        metric=question.metric,
        challenger=arms["challenger"],
        baseline=arms["baseline"],
        others={arm: content for arm, content in arms.items() if arm not in ARMS},
        pairs=question.pairs if question.rivals else (),
        ranks=question.kind == "compare" and bool(question.rivals),
        alpha=ALPHA / question.tasks_at_once,
        seeds=fresh,
        env_steps=env_steps,
        num_tasks=len(family.eval_tasks("confirmation")),
        margin_pct=question.improvement_pct,
        floor=floor,
        floor_name=f"{TASK_BLIND[floor_name]} reaches" if floor_name else "",
        equal_tuning=question.baseline_is_tuned,
        looks=design.looks if timed is None else (),
        pruning=trials.plan.pruning,
        test=design.test,
        test_why=design.why,
        split=design.split,
        equivalence=equivalence_margin(trials),
        tuned_from=0 if trials.plan.judging == 1 else FEWEST_TRIALS,
        equal_time=timed,
    )


def extended_claim(trials: Trials) -> ClaimContent:
    """The claim of an extending campaign: the one that it extends on fresh seeds, with the evidence so far."""
    extension = trials.plan.extends
    assert extension is not None
    earlier = ClaimContent.model_validate(extension.claim)
    first = earlier.hypothesis.partition(", going on from")[0].partition(", and at equal training time")[0]
    alone = earlier.equal_time is not None and earlier.equal_time.alone
    return earlier.model_copy(
        update={
            "hypothesis": f"{first}, going on from {extension.evidence.claim}",
            "seeds": trials.seeds("confirmation"),
            "looks": (),
            "split": None,
            "equivalence": None,
            "equal_time": earlier.equal_time if alone else None,
            "extends": extension.evidence,
        }
    )


def _lengths(timed: EqualTime | None, env_steps: int) -> str:
    """The parities of a claim in words."""
    steps = f"after {env_steps:,} env steps"
    if timed is None:
        return steps
    time = f"at equal training time ({timed.challenger:,} and {timed.baseline:,} env steps)"
    return time if timed.alone else f"{steps}, and {time}"


def confirmation_rows(ledger: Ledger, claim_id: int) -> list[ConfirmationRow]:
    """The judge's evidence: every confirmation run of a claim with what it is scored by on each held-out task."""
    with ledger.session() as session:
        query = select(Run).where(Run.claim_id == claim_id, Run.purpose == "confirmation").order_by(Run.id)
        runs = list(session.scalars(query))
    returns = ledger.scored_values([run.id for run in runs])
    return [
        ConfirmationRow(
            run_id=run.id,
            arm=run.arm or "",
            seed=run.seed,
            variant_hash=run.variant_hash,
            task=run.task,
            task_version=run.task_version,
            status=run.status,
            env_steps=run.env_steps,
            planned=int(run.spec["env_steps"]),
            returns=tuple(value for _, value in sorted(returns.get(run.id, {}).items())),
        )
        for run in runs
    ]
