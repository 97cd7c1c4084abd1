"""Memory tasks against plain games played card by card and step by step, and families that are scored on another one."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import InputError
from env_runner.memory_tasks import RepeatPrevious, deck
from env_runner.task_distributions import get_family
from env_runner.transfer import ExaminedFamily
from experiments.presets import named_preset
from meta_rl.evaluate import evaluate
from meta_rl.learner import build_learner


def play(order: np.ndarray, k: int, actions: np.ndarray) -> tuple[list[int], list[float]]:
    """POPGym's game (envs/repeat_previous.py) with a hand of cards: what is shown, and the rewards."""
    hand, rest = [int(order[0])], [int(card) for card in order[1:]]
    shown, rewards = [hand[0]], []
    for action in actions.tolist():
        reward = 0.0
        if len(hand) >= k:
            reward = (1 if action == hand[-k] else -1) / (len(order) - k)
        hand.append(rest.pop(0))
        shown.append(hand[-1])
        rewards.append(reward)
    assert not rest
    return shown, rewards


@pytest.mark.parametrize(("size", "decks", "k"), [("easy", 1, 4), ("medium", 2, 32), ("hard", 3, 64)])
def test_repeat_previous_is_the_game_of_popgym_card_by_card(size: str, decks: int, k: int) -> None:
    family = get_family(f"repeat-previous-{size}")
    tasks = family.eval_tasks("search")[:3]
    worlds = family.make(3)
    obs, _ = worlds.reset(seed=0, options={"tasks": tasks})
    actions = np.random.default_rng(1).integers(4, size=(family.horizon, 3))
    seen, earned, ends = [obs.argmax(1)], [], []
    for row in actions:
        obs, reward, terminated, truncated, infos = worlds.step(row)
        seen.append((infos["final_obs"] if truncated.all() else obs).argmax(1))
        earned.append(reward)
        ends.append(bool(terminated.any() or truncated.any()))
    assert family.horizon == 52 * decks - 1
    assert ends == [False] * (family.horizon - 1) + [True]
    for world in range(3):
        order = deck(float(tasks[world, 0]), decks)
        assert np.bincount(order).tolist() == [13 * decks] * 4
        shown, rewards = play(order, k, actions[:, world])
        assert np.array(seen)[:, world].tolist() == shown
        np.testing.assert_allclose(np.array(earned)[:, world], rewards)


@pytest.mark.parametrize("size", ["easy", "medium", "hard"])
def test_a_perfect_memory_earns_the_ceiling_and_one_suit_always_half_of_it_below_nothing(size: str) -> None:
    family = get_family(f"repeat-previous-{size}")
    assert isinstance(family, RepeatPrevious)
    tasks = family.sample_tasks(np.random.default_rng(0), 400)
    returns = {"perfect": 0.0, "constant": np.zeros(len(tasks))}
    worlds = family.make(len(tasks))
    obs, _ = worlds.reset(seed=0, options={"tasks": tasks})
    past = [obs.argmax(1)]
    for _ in range(family.horizon):
        obs, reward, *_ = worlds.step(past[max(len(past) - family.k, 0)])
        past.append(obs.argmax(1))
        returns["perfect"] += reward
    worlds.reset(seed=0, options={"tasks": tasks})
    for _ in range(family.horizon):
        returns["constant"] += worlds.step(np.zeros(len(tasks), dtype=int))[1]
    np.testing.assert_allclose(returns["perfect"], family.anchors["ceiling"])
    spread = np.std(returns["constant"]) / np.sqrt(len(tasks))
    assert abs(np.mean(returns["constant"]) - family.anchors["stand_still"]) < 4 * spread


@pytest.mark.parametrize("name", ["repeat-previous-easy@on=repeat-previous-medium", "repeat-previous-easy@steps=51"])
def test_a_family_made_of_repeat_previous_plays_the_same_game(name: str) -> None:
    plain, made = get_family("repeat-previous-easy"), get_family(name)
    tasks, played = plain.eval_tasks("search")[:2], []
    for family in (plain, made):
        worlds = family.make(2)
        obs, _ = worlds.reset(seed=0, options={"tasks": tasks})
        steps = [worlds.step(np.array([n % 4, 3]))[:4] for n in range(plain.horizon)]
        played.append([obs, *(part for step in steps for part in step)])
        assert worlds.family is family
    for ours, theirs in zip(*played, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_deck_is_its_tasks_alone_and_others_are_in_another_order() -> None:
    orders = [deck(task, 1).tolist() for task in (0.25, 0.25, 0.5, np.nextafter(1, 0))]
    assert orders[0] == orders[1] != orders[2] != orders[3]


@pytest.mark.parametrize("length", [10, 30])
def test_the_corridor_of_a_t_maze_is_as_long_as_its_name_says(length: int) -> None:
    family = get_family("t-maze" if length == 10 else f"t-maze:{length}")
    worlds = family.make(2)
    obs, _ = worlds.reset(seed=0, options={"tasks": np.array([[1.0], [-1.0]])})
    assert obs[:, 0].tolist() == [1.0, -1.0]
    for step in range(1, length + 1):
        obs, reward, *_ = worlds.step(np.array([0, 0]))
        assert (obs[:, 0] == 0).all()
        assert (obs[:, 1] == (step == length)).all()
        assert (reward == 0).all()
    _, reward, terminated, _, _ = worlds.step(np.array([1, 1]))
    assert reward.tolist() == [1.0, -1.0]
    assert terminated.all()
    assert family.horizon == 3 * length


@pytest.mark.parametrize("length", ["9", "10", "010", "1001", "ten", "-20", ""])
def test_other_lengths_are_refused_with_what_is_allowed(length: str) -> None:
    with pytest.raises(InputError, match=r"from 11 to 1000" if length else "unknown task family"):
        get_family(f"t-maze:{length}")


def test_a_learner_is_trained_in_the_first_family_and_scored_on_the_second() -> None:
    family = get_family("t-maze@on=t-maze:30")
    assert isinstance(family, ExaminedFamily)
    assert (family.horizon, family.examined.horizon) == (30, 90)
    spec = named_preset("t-maze@on=t-maze:30.gru")
    learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.learner.iteration_steps(30), seed=0)
    (report,) = learner.train()
    assert report.env_steps == spec.learner.iteration_steps(30)
    tasks = family.eval_tasks("search")
    found = evaluate(learner, tasks, episodes=2, seed=1)
    alone = evaluate(learner, tasks, episodes=2, seed=1, family=get_family("t-maze:30"))
    np.testing.assert_array_equal(found.returns, alone.returns)
    assert found.extras["episode_length"].max() <= 90
    assert learner.family is family


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("t-maze@on=point-robot", "observations 3 and 2"),
        ("t-maze@on=t-maze", "scored on itself already"),
        ("t-maze@on=t-maze:30@on=t-maze:40", "one family after @on="),
        ("t-maze@on=t-mase", "Did you mean 't-maze'"),
        ("halfcheetah-vel@train=0,1,2,3,4,5,6,7,8,9@test=10,11,12,13@on=halfcheetah-vel-classic", "64 characters"),
    ],
)
def test_families_that_cannot_be_scored_on_each_other_are_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        get_family(name)
