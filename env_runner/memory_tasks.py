"""Memory and nothing else, with cards: `repeat-previous` (easy, medium, hard), in the rules of POPGym.

What is hidden is the order of a deck, which the task is the number of: it stays through a trial. POPGym shuffles for every episode, which
with one episode a trial, as is usual, is the same. Source: Morad et al. 2023, "POPGym" (ICLR, arXiv 2303.01859).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float64, Int64
from numpy import ndarray

from env_runner.drawing import Lived, Picture, Words
from env_runner.task_family import (
    ActionInfo,
    ContinuousTasks,
    TaskVectorEnv,
    make_box,
    register_family,
)
from env_runner.toys import ToyFamily

SUITS, A_SUIT = 4, 13


def deck(task: float, decks: int) -> Int64[ndarray, " C"]:
    """The suits, 0 to 3, of `decks` decks of 52 cards in the order that is numbered by a task in [0, 1)."""
    cards = np.repeat(np.arange(SUITS), A_SUIT * decks)
    return np.random.default_rng(int(task * 2**53)).permutation(cards)


class RepeatPreviousEnv(TaskVectorEnv):
    """N decks, a card a step."""

    def __init__(self, family: RepeatPrevious, num_envs: int) -> None:
        super().__init__(family, num_envs, make_box(SUITS), spaces.Discrete(SUITS))
        self.decks, self.k = family.decks, family.k  # kept here: `self.family` may be a cut of it, which has neither
        self.cards = np.zeros((num_envs, family.cards), dtype=np.int64)
        self.shown = np.zeros(num_envs, dtype=np.int64)  # the place of the last card dealt

    def _apply_tasks(self) -> None:
        self.cards = np.stack([deck(task, self.decks) for task in self.tasks[:, 0]])

    def _start(self, worlds: ndarray) -> None:
        self.shown[worlds] = 0

    def _advance(self, actions: ndarray) -> tuple[ndarray, ndarray, dict[str, Any]]:
        asked = self.shown - (self.k - 1)
        right = actions == self.cards[np.arange(self.num_envs), np.maximum(asked, 0)]
        scale = 1 / (self.cards.shape[1] - self.k)
        rewards = np.where(asked >= 0, np.where(right, scale, -scale), 0.0)
        self.shown += 1
        return rewards, np.zeros(self.num_envs, dtype=bool), {}

    def _observe(self) -> Float64[ndarray, "N 4"]:
        return np.eye(SUITS)[self.cards[np.arange(self.num_envs), self.shown]]

    def drawn_state(self) -> ndarray:
        return np.stack((self.shown, self.cards[np.arange(self.num_envs), self.shown]), axis=1).astype(np.float64)


class RepeatPrevious(ToyFamily, ContinuousTasks):
    """## Description
    Cards are shown one by one; say at every step which suit was shown some steps ago. `repeat-previous-easy`: one deck, 3 steps ago
    (k = 4, the present card being the first); `-medium`: two decks, k = 32; `-hard`: three decks, k = 64.

    ## Action Space
    `Discrete(4)`: a suit.

    ## Observation Space
    `Box(-inf, inf, (4,), float64)`: the suit of the card that is shown, one-hot.

    ## Tasks
    `order` ~ U[0, 1): the number that the deck is shuffled from. Pools: grids, disjoint from one another and from training.

    ## Rewards
    Once k cards were shown: +1 / (cards - k) for the suit of k - 1 steps ago, else minus that.

    ## Starting State
    The first card is shown.

    ## Episode End
    Never terminates; truncated where the last card is shown, after 51, 103 or 155 steps.

    ## Arguments
    `make(num_envs)`.

    ## Anchors
    Exact: a perfect memory reaches 1 (ceiling). Acting at random, and standing still, that is naming one suit always, cost -0.5 in the mean.

    ## Provenance
    POPGym's RepeatPrevious (Morad et al. 2023); the observation is one-hot in place of a number. Tables that print returns times 100 have 99.9 for
    a GRU on the easy one (Le et al. 2025, "Stable Hadamard Memory", ICLR).
    """

    env_type = RepeatPreviousEnv
    obs_dim = SUITS
    action = ActionInfo("categorical", SUITS)
    param_names = ("order",)
    low, high = (0.0,), (1.0,)
    anchors: Mapping[str, float] = {"stand_still": -0.5, "random": -0.5, "ceiling": 1.0}

    def __init__(self, size: str, decks: int, k: int) -> None:
        self.id = f"repeat-previous-{size}"
        self.decks, self.k, self.cards = decks, k, SUITS * A_SUIT * decks
        self.horizon = self.cards - 1

    def from_unit(self, unit: Float64[ndarray, "n P"]) -> Float64[ndarray, "n P"]:
        return np.minimum(unit, 1 - 2.0**-53)  # 1 itself would be the order of no task that is drawn

    def picture(self, lived: Lived, step: int) -> Picture:
        place, suit = (int(value) for value in lived.states[step])
        order, said, names = (
            deck(float(lived.tasks[step, 0]), self.decks),
            int(lived.actions[step]),
            ("clubs", "diamonds", "hearts", "spades"),
        )
        asked = place - (self.k - 1)
        words = [Words(0.0, 1.0, f"card {place + 1} of {self.cards}: {names[suit]}", "ink")]
        if asked >= 0:
            words.append(Words(0.0, 0.0, f"{self.k - 1} steps ago: {names[order[asked]]}", "target"))
            words.append(Words(0.0, -1.0, f"said: {names[said]}", "good" if said == order[asked] else "bad"))
        return Picture((-4.0, -2.0, 4.0, 2.0), tuple(words))


for family in (RepeatPrevious("easy", 1, 4), RepeatPrevious("medium", 2, 32), RepeatPrevious("hard", 3, 64)):
    register_family(family)
