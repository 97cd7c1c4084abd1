"""What every family promises, run over all that are registered: the listed ones, and one id of every other kind."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from core.errors import InputError
from core.seeding import numpy_stream
from env_runner.batched_mujoco import available_cores
from env_runner.task_distributions import FAMILIES, POOLS, get_family
from env_runner.task_family import RESOLVERS, TRAIN_MARGIN, ContinuousTasks, TaskFamily, TaskVectorEnv, check_pool

IDS = [*FAMILIES, *RESOLVERS]
DRAW_GOALS_FOR_MINUTES = {"metaworld-ml10", "metaworld-ml45", "metaworld-mt10", "metaworld-mt50"}
START_IS_FIXED = {"t-maze", "bandit", "tabular-mdp", "metaworld-ml1:reach-v3", *DRAW_GOALS_FOR_MINUTES}


def is_installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


STEPPABLE = [
    pytest.param(family_id, marks=pytest.mark.slow) if family_id in DRAW_GOALS_FOR_MINUTES else family_id
    for family_id in IDS
    if all(map(is_installed, get_family(family_id).engine_packages))
]
"""Those whose extras are installed here."""


def random_actions(family: TaskFamily, env: TaskVectorEnv, rng: np.random.Generator) -> np.ndarray:
    space = env.single_action_space
    if isinstance(space, spaces.Box):
        return rng.uniform(space.low, space.high, (env.num_envs, *space.shape))
    return rng.integers(family.action.size, size=env.num_envs)


def live(family: TaskFamily, num_threads: int, seed: int, steps: int = 25) -> list[np.ndarray]:
    """Everything that three worlds see under fixed actions."""
    env = family.make(3, num_threads=num_threads)
    obs, _ = env.reset(seed=seed)
    seen, rng = [env.tasks.copy(), obs], np.random.default_rng(9)
    for _ in range(steps):
        obs, rewards, terminated, truncated, _ = env.step(random_actions(family, env, rng))
        seen += [obs, rewards, terminated, truncated]
    env.close()
    return seen


def test_every_file_of_families_can_be_imported():
    assert FAMILIES.failures == RESOLVERS.failures == {}


@pytest.mark.parametrize("family_id", IDS)
def test_a_family_is_found_by_its_id(family_id: str):
    family = get_family(family_id)
    assert isinstance(family, TaskFamily)
    assert family.id == family_id
    assert get_family(family_id) is family


@pytest.mark.parametrize("family_id", STEPPABLE)
def test_same_seed_gives_same_tasks_starts_and_returns_whatever_the_threads(family_id: str):
    family = get_family(family_id)
    first = live(family, 0, seed=4)
    for threads in (0, 2) if available_cores() > 1 else (0,):
        for a, b in zip(first, live(family, threads, seed=4), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family_id", STEPPABLE)
def test_other_seeds_give_other_worlds(family_id: str):
    family = get_family(family_id)
    first, second = live(family, 0, seed=4), live(family, 0, seed=5)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert family_id in START_IS_FIXED or not np.array_equal(first[1], second[1])


@pytest.mark.parametrize("family_id", IDS)
def test_pools_are_fixed_and_disjoint_from_one_another_and_from_training(family_id: str):
    family = get_family(family_id)
    pools = [family.eval_tasks(pool) for pool in POOLS]
    for pool, tasks in zip(POOLS, pools, strict=True):
        assert tasks.shape[1] == family.num_params
        np.testing.assert_array_equal(tasks, family.eval_tasks(pool))
    assert family.sample_tasks(np.random.default_rng(0), 0).shape == (0, family.num_params)
    train = family.sample_tasks(np.random.default_rng(0), 300)
    assert train.shape == (300, family.num_params)
    np.testing.assert_array_equal(train, family.sample_tasks(np.random.default_rng(0), 300))
    if not family.pools_are_disjoint:
        return
    for i in range(3):
        for other in [train, *pools[i + 1 :]]:
            distance = np.abs(pools[i][:, None] - other[None]).max(axis=2).min()
            assert distance >= (TRAIN_MARGIN if isinstance(family, ContinuousTasks) else 1e-9)


@pytest.mark.parametrize("family_id", STEPPABLE)
def test_spaces_are_what_the_family_says(family_id: str):
    family = get_family(family_id)
    env = family.make(2)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, family.obs_dim) == env.observation_space.shape
    assert obs.dtype == np.float64
    space = env.single_action_space
    if family.action.kind == "gaussian":
        assert isinstance(space, spaces.Box)
        assert space.shape == (family.action.size,)
    else:
        assert isinstance(space, spaces.Discrete)
        assert space.n == family.action.size
    env.close()


@pytest.mark.parametrize("family_id", IDS)
def test_the_docstring_has_gymnasiums_sections_and_the_versions(family_id: str):
    family = get_family(family_id)
    text = family.docstring
    parts = ["Action Space", "Observation Space", "Reward", "Starting State", "Episode"]
    if family_id[0].islower():  # our own; Gymnasium's pages have headings of their own
        parts += ["## Description", "## Tasks", "## Arguments", "## Anchors", "## Provenance"]
    for part in [*parts, "## Version", family_id]:
        assert part.lower() in text.lower(), f"{family_id} lacks {part}"


@pytest.mark.parametrize("family_id", STEPPABLE)
def test_a_world_that_ends_starts_again_in_the_same_step_on_the_same_task(family_id: str):
    family = get_family(family_id)
    env, rng = family.make(2), np.random.default_rng(0)
    env.reset(seed=0)
    tasks = env.tasks.copy()
    env.elapsed[0] = family.horizon - 1  # as if world 0 were at its last step
    obs, _, terminated, truncated, infos = env.step(random_actions(family, env, rng))
    assert truncated[0]
    assert not terminated[0]
    assert not truncated[1]
    np.testing.assert_array_equal(infos["_final_obs"], terminated | truncated)
    assert infos["final_obs"].shape == obs.shape
    if family_id != "bandit":  # its observation is a constant
        assert not np.array_equal(infos["final_obs"][0], obs[0])
    np.testing.assert_array_equal(infos["final_obs"][1], obs[1])
    np.testing.assert_array_equal(env.tasks, tasks)
    np.testing.assert_array_equal(env.elapsed, [0, 1])
    env.close()


def test_a_worlds_starts_do_not_depend_on_how_many_others_there_are():
    family = get_family("halfcheetah-vel")
    few, many = family.make(2), family.make(5)
    np.testing.assert_array_equal(few.reset(seed=1)[0], many.reset(seed=1)[0][:2])


def test_given_tasks_stay_until_others_are_given():
    family = get_family("halfcheetah-vel")
    env, tasks = family.make(3), family.eval_tasks("search")[:3]
    env.reset(seed=0, options={"tasks": tasks})
    env.reset()
    np.testing.assert_array_equal(env.tasks, tasks)
    env.reset(seed=5)
    np.testing.assert_array_equal(env.tasks, tasks)
    env.reset(options={"resample_tasks": True})
    assert not np.array_equal(env.tasks, tasks)


def test_drawn_tasks_are_drawn_anew_with_a_seed_and_stay_without():
    env = get_family("halfcheetah-vel").make(3)
    env.reset(seed=0)
    first = env.tasks.copy()
    env.reset()
    np.testing.assert_array_equal(env.tasks, first)
    env.reset(seed=1)
    assert not np.array_equal(env.tasks, first)
    env.reset(seed=0)
    np.testing.assert_array_equal(env.tasks, first)


def test_the_training_stream_of_a_family_is_what_reset_draws_from():
    family = get_family("halfcheetah-vel")
    env = family.make(3)
    env.reset(seed=7)
    np.testing.assert_array_equal(env.tasks, family.sample_tasks(numpy_stream(7, "tasks"), 3))


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        (np.zeros((2, 5)), "shape (2, 5)"),
        (np.zeros(6), "shape (6,)"),
        ("fast", "str"),
        (np.array([[0.0] * 6, [np.nan] * 6]), "NaN in world 1"),
    ],
)
def test_bad_actions_are_refused_by_name(actions, says: str):
    env = get_family("halfcheetah-vel").make(2)
    env.reset(seed=0)
    with pytest.raises(InputError, match="actions") as error:
        env.step(actions)
    assert says in str(error.value)


def test_infinite_actions_are_clipped_like_any_other():
    env, other = (get_family("halfcheetah-vel").make(2) for _ in range(2))
    env.reset(seed=0)
    other.reset(seed=0)
    np.testing.assert_array_equal(env.step(np.full((2, 6), np.inf))[1], other.step(np.ones((2, 6)))[1])


@pytest.mark.parametrize("actions", [[3, 0], [0.5, 0.5], [0], [-1, 0]])
def test_bad_discrete_actions_are_refused(actions):
    env = get_family("t-maze").make(2)
    env.reset(seed=0)
    with pytest.raises(InputError, match="actions"):
        env.step(np.array(actions))


def test_other_bad_input_is_refused_with_what_is_allowed():
    family = get_family("halfcheetah-vel")
    with pytest.raises(InputError, match="Did you mean 'halfcheetah-vel'"):
        get_family("halfcheeta-vel")
    with pytest.raises(InputError, match="num_threads"):
        family.make(4, num_threads=available_cores() + 1)
    with pytest.raises(InputError, match="num_envs"):
        family.make(0)
    with pytest.raises(InputError, match="pool"):
        check_pool("test")
    env = family.make(2)
    with pytest.raises(InputError, match="reset first"):
        env.step(np.zeros((2, 6)))
    with pytest.raises(InputError, match=r"shape \(3, 1\)"):
        env.reset(options={"tasks": np.zeros((3, 1))})
    with pytest.raises(InputError, match="NaN"):
        env.reset(options={"tasks": np.full((2, 1), np.nan)})
    with pytest.raises(InputError, match="options"):
        env.reset(options={"task": np.zeros((2, 1))})


def test_a_module_is_never_imported_by_an_environment_id():
    with pytest.raises(InputError, match="unknown task family"):
        get_family("os:CartPole-v1")


def test_gymnasiums_own_vector_wrappers_work_on_our_worlds():
    env = RecordEpisodeStatistics(get_family("point-robot").make(3))
    env.reset(seed=0)
    infos = {}
    for _ in range(20):
        _, _, _, truncated, infos = env.step(np.zeros((3, 2)))
    assert truncated.all()
    np.testing.assert_array_equal(infos["episode"]["l"], 20)
    np.testing.assert_allclose(infos["episode"]["r"], -20, atol=3)


def test_training_tasks_of_one_call_fill_every_part_of_each_parameters_range():
    family = get_family("halfcheetah-vel")
    drawn = family.sample_tasks(np.random.default_rng(0), 300)[:, 0]
    counts = np.histogram(drawn, bins=30, range=(0.0, 3.0))[0]
    assert counts.min() >= 8  # independent draws would leave some with 3 or 4
    assert counts.max() <= 12
    many = np.concatenate([family.sample_tasks(np.random.default_rng(s), 1)[:, 0] for s in range(2000)])
    assert abs(many.mean() - 1.5) < 0.06
    assert abs(many.std() - 3 / 12**0.5) < 0.03


@pytest.mark.parametrize("family_id", [name for name in STEPPABLE if name in FAMILIES])
def test_cuts_of_a_family_are_its_own_worlds_with_shorter_episodes(family_id: str):
    family = get_family(family_id)
    steps = min(family.horizon - 1, 6)
    shorter = f"{family_id}@steps={steps}"
    whole = live(family, 0, seed=3, steps=steps)
    for cut in (get_family(shorter), get_family(f"{shorter}@on={family_id}")):
        found = live(cut, 0, seed=3, steps=steps)
        for one, other in zip(whole[: 1 + 4 * (steps - 1)], found, strict=False):
            np.testing.assert_array_equal(one, other)
        assert found[-1].all(), "truncated where the cut says"
    assert get_family(f"{shorter}@on={family_id}").examined is family
