"""The snippets of the earlier systems' front pages, each run word for word as it stands in `snippets.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab_on_script import ScriptedExecutor, ssm_leads

from adaptation.test_time_adaptation import Adapter
from core.errors import InputError
from core.ssm import StateSpaceModel
from env_runner.environment import Environment
from experiments.ledger import Ledger
from experiments.runs.paths import Paths
from meta_rl.meta_maml import MetaMAML

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent / "snippets.md").read_text(), re.DOTALL)


def block_with(words: str) -> str:
    (found,) = [block for block in BLOCKS if words in block]
    return found


def run(block: str, **names: Any) -> dict[str, Any]:
    exec(compile(block, "snippets.md", "exec"), names)
    return names


ALONE = [block for block in BLOCKS if "maml_algo" not in block and "solve_task" not in block]


def test_every_block_is_run_by_a_test_of_this_file() -> None:
    assert len(ALONE) == len(BLOCKS) - 2 == 4


@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.splitlines()[-1][:40])
def test_a_snippet_runs_as_it_stands(block: str) -> None:
    run(block)


def model() -> StateSpaceModel:
    return StateSpaceModel(state_dim=16, input_dim=4, output_dim=2, device="cpu")


@pytest.mark.parametrize("worlds", [1, 3])
def test_a_coordinator_runs_both_agents_on_one_world_and_on_a_batch(worlds: int) -> None:
    maml, adapter = MetaMAML(model()), Adapter(model())
    with Environment("CartPole-v1", batch_size=worlds, seed=0) as env:
        made = run(block_with("maml_algo"), maml_algo=maml, adapter=adapter, env=env)
        observations, actions = made["observations"], made["actions"]
    assert actions.keys() == {"MAML", "Adapt"}
    many = observations if worlds > 1 else observations[None]
    expected, _ = maml.model(torch.tensor(many, dtype=torch.float32), maml.model.init_hidden(worlds))
    expected = expected.detach().numpy()
    assert np.allclose(actions["MAML"], expected if worlds > 1 else expected[0], atol=1e-6)
    done = np.zeros(worlds, dtype=bool)
    for agent in (made["agent_maml"], made["agent_adapt"]):  # the contract of `core.agent.Agent`, after the actions
        agent.observe(np.ones(worlds), done)
        report = agent.adapt(torch.randn(worlds, 4), torch.randn(worlds, 2))
        assert report["status"] in ("adapted", "rolled_back")
        agent.update({})
        agent.start(worlds)
    with pytest.raises(InputError, match="taken: MAML, Adapt"):
        made["coordinator"].register_agent(made["agent_maml"], "Adapt")


def test_agents_solve_a_gymnasium_task_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The campaign is the product's own; only its training is answered from a script."""
    paths = Paths.of(tmp_path)
    monkeypatch.setattr(Paths, "of", classmethod(lambda cls, data_dir: paths))
    monkeypatch.setattr("experiments.runs.executor.LocalExecutor", lambda *options: ScriptedExecutor(ssm_leads))
    results = run(block_with("solve_task"))["results"]
    improvement, strategies = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Performance improvement: \d+\.\d \[\d+\.\d, \d+\.\d\]%", improvement)
    assert strategies == "Novel strategies discovered: ()"  # offline nobody departs from the optimizer
    effect = results.improvement
    assert effect.low < effect.effect < effect.high
    assert float(effect) == pytest.approx(100 * 10 / 15, abs=3)  # -5 against -15
    assert results.collaboration_mode == "emergent"
    ledger = Ledger(paths.ledger_url)
    assert ledger.get_campaign(1).question["task"] == "HalfCheetah-v4"
    assert {run.status for run in ledger.runs(1)} == {"done"}
