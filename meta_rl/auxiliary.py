"""An auxiliary loss on a policy's memory: a linear head has to predict from it what is worth remembering.

    c mean |W [m_t, a_t] + b - y_t|^2,   y: the reward that follows, the observation that follows, or the task (without a_t)
m is the memory's output, which this gradient flows into; the head is thrown away after training. Predicting rewards and states is
what VariBAD's decoder trains its belief with (Zintgraf et al. 2020, arXiv 1910.08348, equation 9), the task itself what Humplik et al.
2019 (arXiv 1905.06424, section 4) supervise theirs with; one step ahead and without a variational bottleneck is ours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from core.errors import bad_value
from core.policy import PolicyInput, RecurrentPolicy
from core.seeding import numpy_stream
from core.sequence_model import linear
from env_runner.task_family import TaskFamily
from meta_rl.rollout import Trajectory

Predicted = Literal["none", "reward", "next_observation", "task"]


class Targets(NamedTuple):
    """What the head reads beside the memory, (N, T, A or 0), what it has to say (N, T, D), and which steps count (N, T)."""

    beside: Tensor
    wanted: Tensor
    counts: Tensor

    def of(self, rows: Tensor) -> Targets:
        """Those of the sequences `rows`."""
        return Targets(*(part[rows] for part in self))


class Auxiliary:
    """The head, its weight in the loss, and how large its loss was since `mean_loss` was last asked.

    Raises InputError for the task of a family that has a single one.
    """

    def __init__(
        self,
        predicts: Predicted,
        weight: float,
        policy: RecurrentPolicy,
        family: TaskFamily,
        generator: torch.Generator,
    ) -> None:
        self.predicts, self.weight = predicts, weight
        self.width = policy.config.model.hidden_dim
        sizes = {"reward": 1, "next_observation": family.obs_dim, "task": family.num_params}
        beside = 0 if predicts == "task" else policy.action.size
        self.head = linear(self.width + beside, sizes[predicts], generator)
        drawn = np.ones((2, 1))
        if predicts == "task":
            drawn = family.sample_tasks(numpy_stream(0, "auxiliary", "tasks"), 1000)
            if not np.ptp(drawn, axis=0).any():
                raise bad_value("learner.aux", predicts, f"another: the tasks of {family.id} are all the same")
        self._mean, self._scale = drawn.mean(0), 1.0 / (drawn.std(0) + 1e-6)
        self._sum, self._count = 0.0, 0

    def targets(self, trajectory: Trajectory) -> Targets:
        """What the head has to say of each step that was lived; rewards and observations as the policy reads them.

        Where an episode ends, what follows is the start of another: no observation is predicted over that border.
        """
        after = trajectory.inputs
        counts = torch.ones_like(after.prev_done[:, 1:])
        if self.predicts == "task":
            known = ((trajectory.tasks - self._mean) * self._scale).astype(np.float32)
            return Targets(after.prev_action[:, 1:, :0], torch.from_numpy(known), counts)
        if self.predicts == "reward":
            return Targets(after.prev_action[:, 1:], after.prev_reward[:, 1:, None], counts)
        return Targets(after.prev_action[:, 1:], after.obs[:, 1:], counts - after.prev_done[:, 1:])

    def loss(self, memory: Float[Tensor, "N T H"], targets: Targets) -> Float[Tensor, ""]:
        """Mean squared error of the head over the steps that count, times the weight."""
        said = self.head(torch.cat([memory, targets.beside], -1))
        error = (said - targets.wanted).square().mean(-1) * targets.counts
        mean = error.sum() / targets.counts.sum().clamp_min(1.0)
        self._sum, self._count = self._sum + float(mean.detach()), self._count + 1
        return self.weight * mean

    @torch.no_grad()
    def errors(self, policy: RecurrentPolicy, trajectory: Trajectory) -> np.ndarray:
        """The head's squared error at each step, (N, T), as a share of what the targets vary by over the whole trajectory (1: as
        good as their mean); NaN at the steps that do not count."""
        targets = self.targets(trajectory)
        inputs = PolicyInput(*(part[:, :-1] for part in trajectory.inputs))
        features, _ = policy.features(inputs, policy.init_hidden(len(trajectory.rewards)))
        said = self.head(torch.cat([features[..., : self.width], targets.beside], -1))
        counted = targets.counts > 0
        spread = targets.wanted[counted].var(0, correction=0) + 1e-8
        error = ((said - targets.wanted).square() / spread).mean(-1)
        return torch.where(counted, error, torch.nan).numpy().astype(np.float64)

    def mean_loss(self) -> float:
        """The head's mean squared error, on average since this was last asked."""
        mean = self._sum / max(self._count, 1)
        self._sum, self._count = 0.0, 0
        return mean

    def tensors(self) -> dict[str, Tensor]:
        """The head, as named tensors for a checkpoint."""
        return {f"auxiliary.{name}": value for name, value in self.head.state_dict().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        own = {n.removeprefix("auxiliary."): v for n, v in tensors.items() if n.startswith("auxiliary.")}
        self.head.load_state_dict(own)
