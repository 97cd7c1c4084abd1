"""Agents work together: three of the crew on one question to its verdict, and learning agents side by side in one environment.

Also a script, as an earlier system documented it: `python tests/integration/test_agent_collaboration.py`, from any folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":  # before anything of the project is imported, whose shapes the tests check
    sys.exit(pytest.main([__file__, "-n", "0", *sys.argv[1:]]))

import numpy as np
import torch
from lab_on_script import lab_on_script, proposals_of

from adaptation.adaptation_agent import AdaptationAgent as AdaptingAgent
from adaptation.test_time_adaptation import AdaptationConfig, Adapter
from core.coordinator import AgentCoordinator
from core.ssm import StateSpaceModel
from env_runner.environment import Environment
from experiments.campaign.plan import Design
from meta_rl.maml_agent import MetaMAMLAgent
from meta_rl.meta_maml import MetaMAML
from multi_agent.agents import AdaptationAgent, MetaLearningAgent, StateModelingAgent
from multi_agent.llm.choose import choose_llm
from multi_agent.workflows import run_research
from multi_agent.workflows.crew import CrewEvent

SPECIALISTS = (MetaLearningAgent(), AdaptationAgent(), StateModelingAgent())
SMALL = Design(name="test", baseline_seeds=2, rounds=1, top=1, selection_seeds=1, confirmation_seeds=2)


def test_three_agents_debate_one_question_to_a_verdict_that_rests_on_rows(tmp_path: Path) -> None:
    lab, events = lab_on_script(tmp_path, design=SMALL), list[CrewEvent]()
    crew = {"collaboration": "debate", "agents": SPECIALISTS}
    run_research(lab, choose_llm("offline"), data_dir=tmp_path, on_event=events.append, **crew)  # type: ignore[arg-type]
    turns = [(e.actor, e.payload["turn"]["pass"]) for e in events if e.kind == "agent" and "pass" in e.payload["turn"]]
    names = ["State-Modeling", "Meta-Learning", "Adaptation"]
    assert turns == [(name, number) for number in (0, 1) for name in names]  # all propose, then all have heard all
    heard = {e.actor for e in events if e.kind == "message" and e.payload.get("to") == "all"}
    assert set(names) <= heard
    slices = {agent.slice for agent in SPECIALISTS}
    assert slices <= {role for _, arm, role in proposals_of(lab) if arm == "challenger"}
    verdict = lab.judge()
    confirmation = {run.id for run in lab.ledger.runs(lab.number) if run.purpose == "confirmation"}
    assert set(verdict.run_ids) == confirmation
    assert verdict.effect == pytest.approx(10, abs=1)  # -5 against -15
    lab.ledger.close()


def test_two_learning_agents_act_and_adapt_in_the_same_worlds() -> None:
    def model() -> StateSpaceModel:
        return StateSpaceModel(state_dim=16, input_dim=3, output_dim=1)

    maml, adapter = MetaMAML(model(), inner_lr=1e-3), Adapter(model(), AdaptationConfig(learning_rate=0.01))
    coordinator = AgentCoordinator()
    coordinator.register_agent(MetaMAMLAgent(maml), "MAML")
    coordinator.register_agent(AdaptingAgent(adapter), "Adapt")
    x, y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1)
    before = maml.loss(maml.start(), x, y)
    with Environment("Pendulum-v1", batch_size=2, seed=0) as env:
        observations = env.reset()
        for _ in range(5):
            actions = coordinator.run_step_all(observations)
            assert {name: action.shape for name, action in actions.items()} == {"MAML": (2, 1), "Adapt": (2, 1)}
            observations, rewards, done, _ = env.step(actions["Adapt"])
            for agent in coordinator.agents.values():
                agent.observe(np.asarray(rewards), np.asarray(done))
        unlike = coordinator.run_step_all(observations)
        agents = coordinator.agents
        assert agents["MAML"].adapt(x, y)["loss"] < before
        losses = [agents["Adapt"].adapt(x, y)["loss"] for _ in range(8)]
        assert losses[-1] < losses[0]
        adapted = coordinator.run_step_all(observations)
    assert all(not np.allclose(adapted[name], unlike[name]) for name in agents)
