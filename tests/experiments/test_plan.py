"""Budgets become plans that fit them, and too small ones are refused with the smallest that works."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from experiments.campaign.plan import DESIGNS, Budget, Plan, make_plan
from experiments.numbers import parse_count, parse_duration

CHEETAH = {"iteration_steps": 12_800, "horizon": 200, "workers": 2}


def _plan(part: float = 1.0, **budget: float) -> Plan:
    rate = 8_000.0 if "wall_s" in budget else None
    given = {name: value * part if name == "wall_s" else round(value * part) for name, value in budget.items()}
    return make_plan(Budget.model_validate(given), tuned_arms=2, steps_per_s=rate, part=part, **CHEETAH)


@given(wall_s=st.floats(180, 86_400), tuned=st.sampled_from([1, 2]), rate=st.floats(4_000, 20_000))
@settings(max_examples=200, deadline=None)
def test_a_plan_for_wall_time_expects_to_end_within_it(wall_s: float, tuned: int, rate: float) -> None:
    plan = make_plan(Budget(wall_s=wall_s), tuned_arms=tuned, steps_per_s=rate, **CHEETAH)
    assert plan.expected_s is not None
    assert plan.expected_s < wall_s
    assert plan.env_steps_full % 12_800 == 0
    assert plan.env_steps_search % 12_800 == 0


@given(steps=st.integers(800_000, 10**9))
@settings(max_examples=200, deadline=None)
def test_a_plan_for_env_steps_nearly_never_exceeds_them(steps: int) -> None:
    plan = make_plan(Budget(env_steps=steps), tuned_arms=2, steps_per_s=None, **CHEETAH)
    runs = plan.runs
    assert plan.env_steps_total <= steps + runs * 12_800  # half runs are rounded up to whole iterations


def test_more_budget_buys_a_richer_design_or_longer_runs() -> None:
    plans = [_plan(wall_s=s) for s in (180, 600, 1800, 3600, 6 * 3600, 24 * 3600)]
    ranks = [-[d.name for d in DESIGNS].index(p.design.name) for p in plans]
    assert ranks == sorted(ranks)
    assert plans[0].env_steps_total < plans[-1].env_steps_total
    assert plans[-1].design.name == "thorough"


def test_the_plan_counts_the_runs_that_it_names() -> None:
    plan, design = _plan(wall_s=1800), _plan(wall_s=1800).design
    search = 2 * plan.trials + 2 * (design.baseline_seeds - 1)  # the first seed of each side's default is its trial 0
    assert plan.runs == search + 2 * sum(design.race) + 2 * design.confirmation_seeds
    assert plan.trials >= 6


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_round_holds_as_many_trials_of_a_side_as_there_are_workers(workers: int) -> None:
    shape = CHEETAH | {"workers": workers}
    plan = make_plan(Budget(wall_s=3600.0), tuned_arms=2, steps_per_s=8_000.0, **shape)
    assert plan.trials_at_once == workers
    assert [plan.round_of(trial) for trial in plan.trials_of(1)] == [1] * workers
    same = make_plan(Budget(env_steps=10**8), tuned_arms=2, steps_per_s=None, **shape)
    assert same.trials_at_once == 2  # the same on every machine


@pytest.mark.parametrize(
    "part", [1.0, 0.5, 1 / 1.1]
)  # of what a person gave, where a chat model or a second question has the rest
@pytest.mark.parametrize("budget", [{"wall_s": 20.0}, {"env_steps": 10_000}])
def test_the_smallest_budget_that_is_named_does_work(budget: dict[str, float], part: float) -> None:
    with pytest.raises(InputError, match=r"(--budget 20s|--env-steps 10k) is too small for any verdict") as caught:
        _plan(part, **budget)
    if "wall_s" in budget:
        named = re.search(r"--budget (\w+)$", str(caught.value))
        assert named is not None
        _plan(part, wall_s=parse_duration(named[1]))
    else:
        named = re.search(r"--env-steps ([\w.]+)$", str(caught.value))
        assert named is not None
        _plan(part, env_steps=parse_count(named[1]))
