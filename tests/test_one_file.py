"""One file is enough: each example of `examples/plugins/` is found in the command line, a goal, the agents' tools and a campaign.

They lie outside the packages and are named with `--plugin`, as anybody's own file would be; the contract suites take them in too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_on_script import lab_on_script

import main
from core.plugins import VARIABLE, load_plugin

ROOT = Path(__file__).resolve().parent.parent

FILES = {file.stem: file for file in sorted((ROOT / "examples" / "plugins").glob("*.py"))}
EVERY = [word for file in FILES.values() for word in ("--plugin", str(file))]
GOAL = "beat LSTM with mgu on crosswind, trained by reinforce"
pytestmark = pytest.mark.usefixtures("plugins_loaded")


def call(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main.main([*words]) == code
    return capsys.readouterr().out if code == 0 else capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("models", "mgu"),
        ("tasks", "crosswind"),
        ("learners", "reinforce"),
        ("agents", "Sceptic"),
        ("benches", "footprint"),
        ("plugins", "minimal_gated_unit"),
    ],
)
def test_the_command_line_lists_it_where_its_file_is_named_and_only_there(
    what: str, name: str, capsys: pytest.CaptureFixture[str], plugins_loaded
) -> None:
    def names(*words: str) -> list[str]:
        return [next(iter(row.values())) for row in json.loads(call(capsys, "list", what, "--json", *words))]

    assert name not in names()
    assert name in names(*EVERY)
    plugins_loaded.forget()
    assert name not in names()


def test_its_bench_measures(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(call(capsys, *EVERY, "bench", "footprint", "--width", "16", "--json"))
    mgu = next(row for row in rows if row["model"] == "mgu")
    assert mgu == {"model": "mgu", "parameters": 2 * (16 * 16 + 16) + 2 * 16 * 16, "carried": 16}
    assert "unknown bench 'footprin'. Did you mean 'footprint'" in call(capsys, "bench", "footprin", code=2)


def test_a_goal_may_name_its_model_its_task_and_its_learner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--goal",
        GOAL,
        "--env-steps",
        "1M",
        "--llm",
        "offline",
        "--dry-run",
        "--json",
        "--data-dir",
        str(tmp_path),
    ]
    found = json.loads(call(capsys, *EVERY, *words))
    assert found["question"]["challenger"]["kinds"] == ["mgu"]
    assert (found["question"]["task"], found["question"]["learner"]) == ("crosswind", "reinforce")
    assert (
        found["plan"]["env_steps_full"] % (64 * 20) == 0
    )  # whole iterations of the most worlds that its learner searches


def test_a_run_trains_all_three_in_its_own_process_and_is_repeated_only_with_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plugins_loaded
) -> None:
    data, own = tmp_path / "data", tmp_path / "minimal_gated_unit.py"
    own.write_bytes(FILES["minimal_gated_unit"].read_bytes())
    others = [word for name in ("crosswind", "reinforce") for word in ("--plugin", str(FILES[name]))]
    spec = {
        "task": "crosswind",
        "policy": {"model": {"kind": "mgu", "hidden_dim": 8}, "encoder_dim": 8, "head_dim": 8},
        "learner": {"kind": "reinforce", "num_worlds": 8},
        "env_steps": 480,
        "seed": 1,
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    place = ["--data-dir", str(data)]
    assert "r-0001: done" in call(capsys, "run", "--spec", str(file), "--plugin", str(own), *others, *place)
    row = json.loads(call(capsys, "show", "r-1", "--json", *place))
    assert set(row["spec"]["plugins"]) == {"minimal_gated_unit", "crosswind", "reinforce"}
    assert [p["registers"] for p in row["provenance"]["plugins"]] == [
        {"task family": ["crosswind"]},
        {"model": ["mgu"]},
        {"learner": ["reinforce"]},
    ]

    plugins_loaded.forget()
    missing = call(capsys, "rerun", "r-1", "--check", *others, *place, code=2)
    assert "r-0001 needs its plugins as they were: the plugin 'minimal_gated_unit'" in missing
    assert f"is not loaded: add --plugin {own}" in missing
    assert "r-0001" in call(capsys, "runs", *place)  # what is recorded is read without them

    plugins_loaded.forget()
    own.write_bytes(own.read_bytes() + b"\n# changed\n")
    changed = call(capsys, "rerun", "r-1", "--check", "--plugin", str(own), *others, *place, code=2)
    kept = data / "provenance" / row["spec"]["plugins"]["minimal_gated_unit"] / "minimal_gated_unit.py"
    assert "the plugin 'minimal_gated_unit' was changed" in changed
    assert str(kept.relative_to(data)) in changed
    assert len(json.loads(call(capsys, "runs", "--json", *place))) == 1  # nothing was queued, let alone trained

    plugins_loaded.forget()
    assert "r-0002 matches r-0001" in call(capsys, "rerun", "r-1", "--check", "--plugin", str(kept), *others, *place)


def test_a_campaign_searches_its_fields_hears_its_agent_and_goes_on_only_with_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plugins_loaded
) -> None:
    from multi_agent.agents.agent import AGENTS
    from multi_agent.llm.choose import choose_llm
    from multi_agent.tools.tool import execute
    from multi_agent.workflows.crew import Crew
    from multi_agent.workflows.research_workflow import run_research

    for file in FILES.values():
        load_plugin(file)
    lab = lab_on_script(tmp_path, goal=GOAL)
    crew = Crew(lab, choose_llm("offline"), data_dir=tmp_path, on_event=lambda event: None)
    tools = {tool.name: tool for member in crew.members for tool in member.tools}
    searched = {}
    for member in crew.members:
        if member.slice is not None:
            found = json.loads(
                execute(tools["describe_search_space"], crew.contexts[member.name], {"arm": "challenger"})
            )
            searched[member.slice] = [parameter["name"] for parameter in found["parameters"]]
    assert searched["state-modeling"] == ["model.num_layers", "model.gate_bias"]
    assert "learner.learning_rate" in searched["meta-learning"]
    assert searched["environment"] == ["learner.num_worlds"]
    task = json.loads(execute(tools["describe_task"], crew.contexts["Environment"], {}))
    assert (task["task"], task["hidden_parameters"]) == ("crosswind", ["wind"])
    memory = json.loads(execute(tools["memory_length"], crew.contexts["State-Modeling"], {"arm": "challenger"}))
    assert memory["kind"] == "mgu"
    assert AGENTS["Sceptic"] in crew.members

    said: list[Any] = []
    run_research(lab, choose_llm("offline"), data_dir=tmp_path, on_event=said.append)
    assert lab.stage == "done"
    assert "Sceptic" in {event.actor for event in said if event.kind == "agent"}
    runs = lab.ledger.runs(lab.number)
    assert {(run.spec["learner"]["kind"], run.task) for run in runs} == {("reinforce", "crosswind")}
    assert {run.model for run in runs} == {"mgu", "lstm"}
    assert "trained by reinforce" in lab.write_claim().content.hypothesis
    lab.set_stage("search")
    lab.ledger.close()

    plugins_loaded.forget()
    words = call(capsys, "resume", "c-1", "--data-dir", str(tmp_path), code=2)
    assert "c-0001 needs its plugins as they were" in words
    for name in ("crosswind", "minimal_gated_unit", "reinforce", "sceptic"):
        assert f"add --plugin {FILES[name]}" in words
    assert "footprint" not in words  # a bench is no part of a campaign


def test_a_campaign_may_be_trained_by_another_learner_of_the_tree(tmp_path: Path) -> None:
    from multi_agent.llm.choose import choose_llm
    from multi_agent.workflows.research_workflow import run_research

    lab = lab_on_script(tmp_path, goal="beat LSTM with lru on point-robot, trained by MAML-PPO")
    run_research(lab, choose_llm("offline"), data_dir=tmp_path, on_event=lambda event: None)
    assert lab.stage == "done"
    assert {run.spec["learner"]["kind"] for run in lab.ledger.runs(lab.number)} == {"maml-ppo"}


def test_the_contract_suites_take_it_in(tmp_path: Path) -> None:
    suites = [
        "tests/core/test_sequence_models.py",
        "tests/env_runner/test_family_contract.py",
        "tests/meta_rl/test_every_learner.py",
        "tests/multi_agent/test_every_agent.py",
        "tests/experiments/test_every_bench.py",
    ]
    names = ("mgu", "crosswind", "reinforce", "Sceptic", "footprint")
    scripts = {"custom_model": "leaky", "custom_family": "thermostat", "custom_agent_creation": "Archivist"}
    files = [*FILES.values(), *(ROOT / "examples" / f"{script}.py" for script in scripts)]
    environment = os.environ | {VARIABLE: os.pathsep.join(map(str, files))}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-o", "addopts=", "-v", "--timeout", "300"]  # fmt: skip
    done = subprocess.run(
        [*command, "-k", " or ".join((*names, *scripts.values())), *suites],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = [line for line in done.stdout.splitlines() if " PASSED" in line]
    for suite, name in zip(suites, names, strict=True):
        assert len([line for line in passed if line.startswith(suite) and name in line]) >= (
            1 if name == "footprint" else 2
        )
    assert [name for name in scripts.values() if sum(name in line for line in passed) < 2] == []


def test_standing_still_in_the_crosswind_costs_what_its_anchor_says() -> None:
    from env_runner.task_distributions import get_family

    load_plugin(FILES["crosswind"])
    family = get_family("crosswind")
    env = family.make(2000)
    env.reset(seed=0, options={"tasks": family.sample_tasks(np.random.default_rng(0), 2000)})
    total = sum(env.step(np.zeros((2000, 1)))[1] for _ in range(family.horizon))
    assert np.mean(total) == pytest.approx(family.anchors["stand_still"], abs=0.3)


def test_the_guide_shows_the_examples_as_they_are() -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r"```python\n# (examples/plugins/\w+\.py)\n(.*?)```", text, re.DOTALL)
    assert [Path(name).name for name, _ in shown] == [
        "minimal_gated_unit.py", "crosswind.py", "reinforce.py", "sceptic.py", "footprint.py"
    ]  # fmt: skip
    for name, code in shown:
        whole = (ROOT / name).read_text()
        for part in code.strip("\n").split("\n...\n"):
            assert part.strip("\n") in whole, f"{name} has no such lines:\n{part}"
