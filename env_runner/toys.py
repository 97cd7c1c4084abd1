"""Families that cost milliseconds, for tests and a first look, most of them with exact anchors.

`point-robot` (continuous actions), `bandit` and `tabular-mdp` (discrete, the two of the RL2 paper, Duan et al. 2016),
and `t-maze` (pure memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float64
from numpy import ndarray

from core.errors import bad_value
from core.seeding import numpy_stream
from env_runner.drawing import Disc, Line, Lived, Picture, Track, Words, box
from env_runner.task_family import (
    ActionInfo,
    ContinuousTasks,
    EnvOptions,
    FiniteTasks,
    Pool,
    TaskFamily,
    TaskVectorEnv,
    check_count,
    check_pool,
    make_box,
    register_family,
    register_resolver,
)


class ToyFamily(TaskFamily):
    """A family that is always on the caller's thread; of mid-episode changes it knows at most a switch of the target."""

    env_type: type[TaskVectorEnv]
    engine_packages = ("numpy",)

    def make(self, num_envs: int, *, num_threads: int = 0, options: EnvOptions | None = None) -> TaskVectorEnv:
        self.refuse_changes(options)
        check_count("num_threads", num_threads, 0)
        worlds = self.env_type(self, num_envs)  # pyright: ignore[reportCallIssue, reportArgumentType]
        worlds.options = options or worlds.options
        return worlds


# Point robot ---------------------------------------------------------------------------------------------------------
class PointRobotEnv(TaskVectorEnv):
    """N points in the plane."""

    STEP = 0.1

    def __init__(self, family: TaskFamily, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(2), spaces.Box(-1.0, 1.0, (2,), np.float32))
        self._position = np.zeros((self.num_envs, 2))

    def _start(self, worlds: ndarray) -> None:
        for world in worlds.tolist():
            self._position[world] = self.world_rngs[world].uniform(-0.1, 0.1, 2)
        self.draw_switches(worlds)

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        self._position += self.STEP * actions
        tasks = self.tasks_in_force()
        angles = tasks[:, 0]
        goals = np.stack((np.cos(angles), np.sin(angles)), axis=1)
        distance = np.linalg.norm(self._position - goals, axis=1)
        infos = {"distance": distance} | ({} if self.options.switch_step is None else {"tasks": tasks})
        return -distance, np.zeros(self.num_envs, dtype=bool), infos

    def _observe(self) -> ndarray:
        return self._position.copy()


@register_family
class PointRobot(ToyFamily, ContinuousTasks):
    """## Description
    A point in the plane looks for a hidden goal on the unit half-circle, from the reward alone.

    ## Action Space
    `Box(-1, 1, (2,), float32)`, clipped: the step in x and y, in units of 0.1 m.

    ## Observation Space
    `Box(-inf, inf, (2,), float64)`: x and y of the point, in m. The goal is not observed.

    ## Tasks
    `goal_angle` ~ U[0, pi] rad; the goal is (cos, sin) of it. Pools: grids, disjoint from one another and from training.

    ## Rewards
    Minus the distance to the goal in m, after the step.

    ## Starting State
    U[-0.1, 0.1] m in each coordinate.

    ## Episode End
    Never terminates; truncated after 20 steps.

    ## Arguments
    `make(num_envs, options=EnvOptions(...))`: `switch_step`, `switch_task`.

    ## Anchors
    Standing at the origin costs 1 a step: -20, up to the start noise. Knowing the goal: at best 0.1 m a step along each
    axis; the ceiling depends on the angle and is not given.

    ## Provenance
    The half-circle point robot of PEARL (Rakelly et al. 2019) and VariBAD with a dense reward.
    """

    id = "point-robot"
    env_type = PointRobotEnv
    target_can_switch = True
    horizon = 20
    obs_dim = 2
    action = ActionInfo("gaussian", 2)
    param_names = ("goal_angle",)
    low, high = (0.0,), (np.pi,)
    anchors: Mapping[str, float] = {"stand_still": -20.0}

    def track(self, lived: Lived) -> Track:
        return Track("distance to the goal", lived.infos["distance"], np.zeros(len(lived.rewards)), "m")

    def picture(self, lived: Lived, step: int) -> Picture:
        circle = tuple((float(np.cos(a)), float(np.sin(a))) for a in np.linspace(0.0, np.pi, 49))
        angle = lived.tasks[step, 0]
        goal = Disc(float(np.cos(angle)), float(np.sin(angle)), 0.09, "target", hollow=True)
        path = [(float(x), float(y)) for x, y in lived.states[: step + 1]]
        walked = (Line(tuple(path), "agent", 2.5),) if step else ()
        point = Disc(*path[-1], 0.05)
        return Picture((-1.6, -0.35, 1.6, 1.25), (Line(circle, "line"), goal, *walked, point))


# Bandit --------------------------------------------------------------------------------------------------------------
class BanditEnv(TaskVectorEnv):
    """N Bernoulli bandits; the observation is a constant."""

    def __init__(self, family: TaskFamily, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(1), spaces.Discrete(family.action.size))

    def _start(self, worlds: ndarray) -> None:
        self.draw_switches(worlds)

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        tasks = self.tasks_in_force()
        chance = np.take_along_axis(tasks, actions[:, None], axis=1)[:, 0]
        drawn = np.array([rng.random() for rng in self.world_rngs])
        infos = {} if self.options.switch_step is None else {"tasks": tasks}
        return (drawn < chance).astype(np.float64), np.zeros(self.num_envs, dtype=bool), infos

    def _observe(self) -> ndarray:
        return np.ones((self.num_envs, 1))


@register_family
class Bandit(ToyFamily, ContinuousTasks):
    """## Description
    Five arms with hidden chances of paying 1. Explore, then exploit.

    ## Action Space
    `Discrete(5)`: the arm.

    ## Observation Space
    `Box(-inf, inf, (1,), float64)`: always 1 (no unit).

    ## Tasks
    Five chances, each U[0, 1]. Pools: fixed draws, disjoint from one another and from training.

    ## Rewards
    1 with the arm's chance, else 0.

    ## Starting State
    There is none.

    ## Episode End
    Never terminates; truncated after 100 steps.

    ## Arguments
    `make(num_envs, options=EnvOptions(...))`: `switch_step`, `switch_task`.

    ## Anchors
    Exact: random and task-blind 50, ceiling (the best arm known from the start) 100 * 5/6 = 83.3.

    ## Provenance
    Duan et al. 2016 (RL2), section 3.1, with k = 5 arms and n = 100 pulls.
    """

    id = "bandit"
    env_type = BanditEnv
    target_can_switch = True
    horizon = 100
    obs_dim = 1
    action = ActionInfo("categorical", 5)
    param_names = tuple(f"chance_{arm}" for arm in range(5))
    low, high = (0.0,) * 5, (1.0,) * 5
    anchors: Mapping[str, float] = {"random": 50.0, "task_blind": 50.0, "ceiling": 100 * 5 / 6}

    def track(self, lived: Lived) -> Track:
        chance = np.take_along_axis(lived.tasks, lived.actions[:, None].astype(int), axis=1)[:, 0]
        return Track("chance of the pulled arm", chance, lived.tasks.max(axis=1))

    def picture(self, lived: Lived, step: int) -> Picture:
        chances, pulled = lived.tasks[step], int(lived.actions[step])
        shapes: list[Line | Disc | Words] = []
        for arm, chance in enumerate(chances.tolist()):
            left, count = 1.2 * arm, int((lived.actions[: step + 1] == arm).sum())
            shapes += [box(left, 0.0, left + 1.0, 2.0), box(left, 0.0, left + 1.0, 2.0 * chance, "agent" if arm == pulled else "line")]  # fmt: skip
            shapes.append(Words(left + 0.5, -0.2, f"{chance:.2f}, pulled {count}", "target" if chance == chances.max() else "soft", 10.0))  # fmt: skip
        paid = Disc(1.2 * pulled + 0.5, 2.25, 0.13, "good", hollow=bool(lived.rewards[step] == 0))
        return Picture((-0.1, -0.4, 5.9, 2.45), (*shapes, paid))


# Tabular MDP ---------------------------------------------------------------------------------------------------------
class TabularMDPEnv(TaskVectorEnv):
    """N random Markov decision processes of ten states and five actions."""

    def __init__(self, family: TaskFamily, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(TabularMDP.STATES), spaces.Discrete(TabularMDP.ACTIONS))
        self._state = np.zeros(self.num_envs, dtype=np.int64)
        self._apply_tasks()

    def _apply_tasks(self) -> None:
        states, actions = TabularMDP.STATES, TabularMDP.ACTIONS
        self._mean_reward = self.tasks[:, : states * actions].reshape(-1, states, actions)
        chances = self.tasks[:, states * actions :].reshape(-1, states, actions, states)
        self._cumulative = np.cumsum(chances, axis=-1)

    def _start(self, worlds: ndarray) -> None:
        self._state[worlds] = 0

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        worlds = np.arange(self.num_envs)
        noise = np.array([rng.standard_normal() for rng in self.world_rngs])
        drawn = np.array([rng.random() for rng in self.world_rngs])
        rewards = self._mean_reward[worlds, self._state, actions] + noise
        passed = self._cumulative[worlds, self._state, actions] < drawn[:, None]
        self._state = np.minimum(passed.sum(axis=1), TabularMDP.STATES - 1)
        return rewards, np.zeros(self.num_envs, dtype=bool), {}

    def _observe(self) -> ndarray:
        return np.eye(TabularMDP.STATES)[self._state]


@register_family
class TabularMDP(ToyFamily):
    """## Description
    A random Markov decision process: learn where the reward is, then go there.

    ## Action Space
    `Discrete(5)`.

    ## Observation Space
    `Box(-inf, inf, (10,), float64)`: the state, one-hot (no unit).

    ## Tasks
    50 mean rewards (state, action), each N(1, 1), then 500 transition chances (state, action, next state), each row from
    a flat Dirichlet. Pools: fixed draws, disjoint from one another and from training with probability one.

    ## Rewards
    N(mean of the state and action, 1).

    ## Starting State
    State 0.

    ## Episode End
    Never terminates; truncated after 10 steps.

    ## Arguments
    `make(num_envs)`.

    ## Anchors
    Exact: random and task-blind 10 (every mean reward is 1 on average).

    ## Provenance
    Duan et al. 2016 (RL2), section 3.2 (after Osband et al. 2013): 10 states, 5 actions, horizon 10.
    """

    STATES, ACTIONS = 10, 5
    id = "tabular-mdp"
    env_type = TabularMDPEnv
    horizon = 10
    obs_dim = STATES
    action = ActionInfo("categorical", ACTIONS)
    param_names = (
        *(f"reward_{s}_{a}" for s in range(10) for a in range(5)),
        *(f"chance_{s}_{a}_{t}" for s in range(10) for a in range(5) for t in range(10)),
    )
    anchors: Mapping[str, float] = {"random": 10.0, "task_blind": 10.0}

    def picture(self, lived: Lived, step: int) -> Picture:
        places = [(float(np.sin(a)), float(np.cos(a))) for a in 2 * np.pi * np.arange(self.STATES) / self.STATES]
        visited = lived.states[: step + 1].argmax(axis=1).tolist()
        means = lived.tasks[step, : self.STATES * self.ACTIONS].reshape(self.STATES, self.ACTIONS)
        walked = (Line(tuple(places[state] for state in visited), "agent", 2.0),) if step else ()
        rings = [Disc(x, y, 0.17, "agent" if state == visited[-1] else "line") for state, (x, y) in enumerate(places)]
        best = [
            Words(1.3 * x, 1.3 * y, f"{means[state].max():.1f}", "soft", 10.0) for state, (x, y) in enumerate(places)
        ]
        return Picture((-2.2, -1.5, 2.2, 1.5), (*walked, *rings, *best))

    def sample_tasks(self, rng: np.random.Generator, n: int) -> Float64[ndarray, "n P"]:
        check_count("n", n, 0)
        rewards = rng.normal(1.0, 1.0, (n, self.STATES * self.ACTIONS))
        chances = rng.dirichlet(np.ones(self.STATES), (n, self.STATES * self.ACTIONS))
        return np.concatenate((rewards, chances.reshape(n, self.STATES * self.ACTIONS * self.STATES)), axis=1)

    def eval_tasks(self, pool: Pool) -> Float64[ndarray, "M P"]:
        count = 40 if check_pool(pool) == "confirmation" else 20
        return self.sample_tasks(numpy_stream(0, "pool", self.id, pool), count)


# T-maze --------------------------------------------------------------------------------------------------------------
SHORTEST, LONGEST = 10, 1000


class TMazeEnv(TaskVectorEnv):
    """N corridors with a cue at the start and a junction at the end."""

    def __init__(self, family: TMaze, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(3), spaces.Discrete(3))
        self.length = family.length
        self._place = np.zeros(self.num_envs, dtype=np.int64)

    def _start(self, worlds: ndarray) -> None:
        self._place[worlds] = 0

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        at_junction = self._place == self.length
        turned = at_junction & (actions > 0)
        side = np.where(actions == 1, 1.0, -1.0)
        bumped = (at_junction & (actions == 0)) | (~at_junction & (actions > 0))
        rewards = np.where(turned, np.where(side == self.tasks[:, 0], 1.0, -1.0), 0.0) - 0.1 * bumped
        self._place += (~at_junction & (actions == 0)).astype(np.int64)
        return rewards, turned, {}

    def _observe(self) -> ndarray:
        cue = np.where((self._place == 0) & (self.elapsed == 0), self.tasks[:, 0], 0.0)
        junction = self._place == self.length
        return np.stack((cue, junction.astype(np.float64), np.ones(self.num_envs)), axis=1)

    def drawn_state(self) -> ndarray:
        return self._place[:, None].astype(np.float64)


@register_family
class TMaze(ToyFamily, FiniteTasks):
    """## Description
    Walk down a corridor and turn to the side that a cue showed at the very first step. Pure memory. The corridor has 10 places; in
    `t-maze:LENGTH` it has LENGTH of them, 10 to 1000.

    ## Action Space
    `Discrete(3)`: 0 forward, 1 turn left, 2 turn right.

    ## Observation Space
    `Box(-inf, inf, (3,), float64)`, no units:

    | Num | Observation |
    |---|---|
    | 0 | the cue at the first step of an episode (+1 left, -1 right), else 0 |
    | 1 | 1 at the junction, else 0 |
    | 2 | always 1 |

    ## Tasks
    `side`: +1 (left) or -1 (right); both in training and in every pool.

    ## Rewards
    +1 for the right turn at the junction, -1 for the wrong one, -0.1 for every action that bumps into a wall.

    ## Starting State
    The corridor's first place.

    ## Episode End
    Terminates at a turn taken at the junction; truncated after three times as many steps as the corridor has places (30).

    ## Arguments
    `make(num_envs)`.

    ## Anchors
    Exact: ceiling 1; task-blind 0 (half of the turns are wrong); stand still is not defined.

    ## Provenance
    After Bakker 2002, "Reinforcement learning with long short-term memory".
    """

    env_type = TMazeEnv
    obs_dim = 3
    action = ActionInfo("categorical", 3)
    param_names = ("side",)
    tasks = ((1.0,), (-1.0,))
    anchors: Mapping[str, float] = {"task_blind": 0.0, "ceiling": 1.0}

    def __init__(self, length: int = SHORTEST) -> None:
        self.length, self.horizon = length, 3 * length
        self.id = "t-maze" if length == SHORTEST else f"t-maze:{length}"

    def picture(self, lived: Lived, step: int) -> Picture:
        place, action, end = float(lived.states[step, 0]), int(lived.actions[step]), float(self.length)
        side = float(lived.tasks[step, 0])
        turned = place == end and action > 0
        up = {1: 1.0, 2: -1.0}.get(action, 0.0)
        goal = Disc(end, 2.0 * side, 0.35, "target", hollow=True)
        corridor = (box(-0.5, -0.5, end + 0.5, 0.5), box(end - 0.5, -2.5, end + 0.5, 2.5))
        cue = (Words(0.0, 1.0, "cue: left" if side > 0 else "cue: right", "target"),) if step == 0 else ()
        going = Line(((place, 0.0), (place, up * (2.0 if turned else 0.4))) if up else ((place, 0.0), (place + 0.6, 0.0)), "soft", 3.0)  # fmt: skip
        walker = Disc(place, 2.0 * up if turned else 0.0, 0.3, ("good" if up == side else "bad") if turned else "agent")
        return Picture((-1.0, -2.7, end + 1.0, 2.7), (*corridor, goal, *cue, going, walker))


@register_resolver("t-maze:30")
def t_maze(family_id: str) -> TMaze | None:
    """The corridor of `t-maze:LENGTH`."""
    name, _, length = family_id.partition(":")
    if name != "t-maze" or not length or "@" in length:
        return None
    if not length.isdecimal() or not SHORTEST < int(length) <= LONGEST or str(int(length)) != length:
        raise bad_value(
            "the length of t-maze",
            length,
            f"a whole number from {SHORTEST + 1} to {LONGEST}; t-maze alone has {SHORTEST}",
        )
    return TMaze(int(length))
