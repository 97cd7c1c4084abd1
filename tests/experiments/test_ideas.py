"""What agents propose by rule 2: one change against the best configuration on one seed, with a prediction that is held against the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lab_on_script import lab_on_script, proposals_of

from core.errors import InputError
from experiments.campaign.lab import Lab
from experiments.campaign.plan import MOST_IDEAS, PROPOSING, Design
from experiments.campaign.proposing.briefing import MAX_CHARS, briefing
from experiments.campaign.proposing.ideas import (
    PRIOR_TRIALS,
    Expected,
    all_ideas,
    measured,
    optimizers_effects,
    standing,
)
from experiments.runs.executor import Job

RATE = "learner.learning_rate"


def _by_rate(job: Job) -> float:
    """A thousandth more of learning rate is worth one; seeds differ by a hundredth."""
    return -10.0 + 1000 * float(job.spec.learner.learning_rate) + 0.0001 * (job.spec.seed % 97)  # type: ignore[attr-defined]


def _lab(folder: Path, rounds: int = 3, **plan: Any) -> Lab:
    """A campaign whose first round is measured, with two trials of each side in a round."""
    design = Design(name="test", baseline_seeds=2, rounds=rounds, top=1, selection_seeds=1, confirmation_seeds=5)
    lab = lab_on_script(
        folder,
        _by_rate,
        new=True,
        design=design,
        **({"proposing": PROPOSING, "trials_at_once": 2, "suggesting": 2} | plan),
    )
    lab.run_baseline()
    lab.set_stage("search")
    lab.launch()
    return lab


def _idea(author: str = "Meta-Learning", delta: float = 1.0, **other: Any) -> dict[str, Any]:
    role = {"Meta-Learning": "meta-learning", "Environment": "environment", "State-Modeling": "state-modeling"}[author]
    values: dict[str, Any] = {
        "meta-learning": {RATE: 0.001},
        "environment": {"learner.num_worlds": 64},
        "state-modeling": {"model.num_layers": 1},
    }[role]
    expected = Expected(delta=delta, low=delta - 1, high=delta + 1)
    return {"arm": "challenger", "role": role, "values": values, "reason": "r", "base": "incumbent", "author": author, "prior": True, "expected": expected} | other  # fmt: skip


def test_an_idea_is_one_change_of_the_incumbent_on_its_seed_and_its_effect_is_their_difference(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    best = lab.trials.incumbent("challenger")
    assert best is not None
    view = lab.propose(**_idea(delta=9.0))
    assert (view.trial, view.source) == (3, "agent")
    lab.launch()
    tried = lab.trials.finished("challenger")[3]
    assert tried.values == best.values | {RATE: 0.001}
    assert tried.run.seed == best.run.seed
    assert [lab.trials.proposer("challenger", n, "search") for n in (2, 3)] == ["optimizer", "agent:meta-learning"]
    (done,) = measured(lab.trials)
    floor = lab.trials.noise_floor()
    assert floor
    assert done.effect == pytest.approx(((tried.score or 0) - (best.score or 0)) / floor)
    assert done.is_covered == (8.0 <= done.effect <= 10.0)
    assert done.idea.against == f"r-{best.run.id:04d}"
    assert len(optimizers_effects(lab.trials)) == 3  # trials 2 of the challenger, 2 and 3 of the baseline
    text = briefing(lab, "meta-learning", "Meta-Learning")
    assert f"{RATE}=0.001: expected +9 [+8, +10] nf, measured {done.effect:+.1f} nf" in text
    assert "none of your ideas was measured yet" in briefing(lab, "environment", "Environment")


def test_of_more_ideas_than_trials_the_one_of_which_most_is_expected_is_tried_corrected_by_its_authors_record(
    tmp_path: Path,
) -> None:
    lab = _lab(tmp_path, 4)
    lab.agent_share = 1.0
    assert lab.propose(**_idea("Environment", 2.0)).trial == 3
    assert lab.propose(**_idea("State-Modeling", 1.0)).trial is None
    assert lab.propose(**_idea("Meta-Learning", 500.0)).trial == 3  # in the place of Environment's
    assert {i.author for i in standing(lab.trials).values()} == {"Meta-Learning"}
    assert "expects +500 [+499, +501] nf" in briefing(lab, "environment", "Environment")
    assert "expects" not in briefing(lab, "environment", "Environment", colleagues=False)
    lab.launch()
    assert lab.propose(**_idea("Environment", 2.0)).trial == 5
    boast = _idea("Meta-Learning", 50.0, values={RATE: 0.002})
    assert lab.propose(**boast).trial is None  # it promised hundreds too much
    assert len(all_ideas(lab.trials)) == 5


def test_an_idea_may_be_taken_back_and_a_suggestion_taken_as_it_is_leaves_a_colleagues_idea_alone(
    tmp_path: Path,
) -> None:
    lab = _lab(tmp_path)
    lab.propose(**_idea())
    taken = _idea("Environment", 0.0, base="suggestion", values={})
    assert lab.propose(**taken).trial is None
    assert set(standing(lab.trials)) == {("challenger", 3)}
    assert lab.propose(**_idea(base="suggestion", values={})).source == "optimizer"
    assert standing(lab.trials) == {}
    lab.launch()
    assert lab.trials.proposer("challenger", 3, "search") == "optimizer"


def test_a_kill_between_two_agents_turns_doubles_no_idea_and_no_trial(tmp_path: Path) -> None:
    lab = _lab(tmp_path)
    lab.propose(**_idea())
    before = proposals_of(lab).keys()
    again = Lab(lab.ledger, lab.number, lab.executor, lab.paths)
    again.propose(**_idea())
    for _ in range(2):
        again.propose(**_idea("Environment", 0.5))
    assert [i.author for i in all_ideas(again.trials)] == ["Meta-Learning", "Environment"]
    assert proposals_of(again).keys() == before
    again.launch()
    assert len([r for r in again.ledger.runs(again.number, purpose="search", arm="challenger") if r.trial == 3]) == 1


def test_an_idea_rests_on_rows_or_early_on_on_prior_knowledge(tmp_path: Path) -> None:
    lab = _lab(tmp_path, 4)
    with pytest.raises(InputError, match="rows without evidence"):
        lab.propose(**_idea(prior=False))
    lab.launch()
    lab.launch()
    assert len(lab.trials.finished("challenger")) >= PRIOR_TRIALS
    with pytest.raises(InputError, match="has 6 finished trials"):
        lab.propose(**_idea())


def test_a_campaign_of_before_merges_slices_and_knows_no_other_base(tmp_path: Path) -> None:
    lab = _lab(tmp_path, proposing=1)
    lab.agent_share = 1.0
    with pytest.raises(InputError, match="base: got 'incumbent', allowed: suggestion in a campaign that began"):
        lab.propose(**_idea())
    for author in ("Meta-Learning", "Environment"):
        lab.propose(**_idea(author, base="suggestion"))
    lab.launch()
    values = lab.trials.finished("challenger")[3].values
    assert (values[RATE], values["learner.num_worlds"]) == (0.001, 64)
    assert all_ideas(lab.trials) == []


@pytest.mark.parametrize(("at_once", "count"), [(1, 1), (2, 1), (3, 1), (6, 3), (16, MOST_IDEAS)])
def test_half_of_a_rounds_trials_are_open_to_agents_and_no_more_than_there_are_slices(
    at_once: int, count: int, tmp_path: Path
) -> None:
    lab = lab_on_script(tmp_path, trials_at_once=at_once, proposing=PROPOSING)
    assert list(lab.plan.open_trials(1)) == list(lab.plan.trials_of(1))[-count:]
    old = lab_on_script(tmp_path, new=True, trials_at_once=at_once)
    assert list(old.plan.open_trials(1)) == [old.plan.trials_of(1)[-1]]


def test_a_briefing_tells_what_a_turn_needs_and_stays_below_its_limit_however_much_was_tried(tmp_path: Path) -> None:
    lab = _lab(tmp_path, 30)
    for _ in range(6):
        lab.launch()
    for role, author in (("state-modeling", "State-Modeling"), (None, "Coordinator")):
        text = briefing(lab, role, author, left="27,000 tokens, 0.80 dollars")
        assert len(text) <= MAX_CHARS
        best = lab.trials.incumbent("challenger")
        assert best is not None
        for said in (
            "hidden goal", "goal_angle", "20 steps an episode", "10 iterations of 640", "50,437 parameters", "over 2 seeds",
            f"r-{best.run.id:04d}", f"{RATE}={best.values[RATE]}", "width ", "more trials (ledger_query)", "optimizer, trial 16 of 60",
            "Left: 23 of 30 search rounds, this one counted, 27,000 tokens, 0.80 dollars.",
        ):  # fmt: skip
            assert said in text, said
        assert ("your slice: model." in text) == (role is not None)
