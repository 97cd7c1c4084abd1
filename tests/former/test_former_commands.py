"""The commands of the earlier systems as their front pages have them, small: each says today's command once, and writes rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli.app import main
from core.errors import InputError
from env_runner.cut_families import cut_id
from env_runner.task_distributions import get_family
from env_runner.task_family import EnvOptions, with_changes
from experiments.ledger import Ledger
from experiments.runs.grid import grid_specs
from experiments.runs.paths import Paths
from experiments.search.sizing import count_parameters

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SCRIPTS = {
    "quick_benchmark.py": "--quick_benchmark",
    "serious_benchmark.py": "--serious_benchmark",
    "visualize_results.py": "--visualize_results",
    "run_experiment.py": "--run_experiment",
    "multi_agent_benchmarks/emergence_benchmark.py": "--emergence_benchmark",
    "emergence_analysis/strategy_discovery.py": "--strategy_discovery",
    "performance_comparison/performance_comparison.py": "--performance_comparison",
}
WITHOUT_METAWORLD = [
    "--task-dist metaworld-ml10 --method ssm --benchmark-mode --few-shot 1 5 10 --epochs 50",
    "--task-dist metaworld-ml45 --benchmark-mode --epochs 100",
    "--task-dist metaworld-ml1 --benchmark-mode",
    *(f"--run_experiment --benchmark {name}" for name in ("MT10", "MT50", "ML1", "ML10", "ML45")),
]


def call(words: str, data: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main([*words.split(), "--data-dir", str(data)]) == code
    out, error = capsys.readouterr()
    assert out.count("The same today: ") == (code == 0), out
    return out + error


def runs_in(data: Path) -> list:
    return Ledger(Paths.of(data).ledger_url, read_only=True).runs(None)


def test_an_environment_is_trained_on_adapted_to_and_measured_before_and_after(tmp_path: Path, capsys) -> None:
    said = call("--num_epochs 1 --env_name CartPole-v1", tmp_path, capsys)
    assert "run --preset CartPole-v1.s5 --learner maml-ppo --env-steps 32000" in said
    assert "0 shots" in said
    assert "1 shots" in said
    assert "a reduction of" in said
    assert "what adapting is worth is the return" in said
    (run,) = runs_in(tmp_path)
    assert (run.status, run.task, run.spec["learner"]["kind"]) == ("done", "CartPole-v1", "maml-ppo")


def test_a_persons_split_is_recorded_in_the_specification_and_tested_on_its_own_tasks(tmp_path: Path, capsys) -> None:
    words = "--task-dist point-robot --method lstm --benchmark-mode --few-shot 1 2 --epochs 10 --zero-shot --train-tasks 0 1 2 --test-tasks 3 4"
    said = call(words, tmp_path, capsys)
    assert all(f"{shots} shots" in said for shots in (0, 1, 2))
    assert "confirmation pool, 2 tasks" in said
    (run,) = runs_in(tmp_path)
    assert run.spec["task"] == "point-robot@train=0,1,2@test=3,4"
    looks = Ledger(Paths.of(tmp_path).ledger_url, read_only=True).metrics(run.id, "rung/score")
    assert len(looks) == 10  # the search pool on the way
    assert (tmp_path / "models" / "r-0001-best.safetensors").is_file()


def test_a_cut_family_trains_on_its_tasks_alone_and_ends_its_episodes_early() -> None:
    base = get_family("imujoco-halfcheetah")
    family = get_family(cut_id("imujoco-halfcheetah", train=[2, 0, 1], test=[4, 3], steps=5))
    assert family.id == "imujoco-halfcheetah@train=0,1,2@test=3,4@steps=5"
    trained = {task.tobytes() for task in family.sample_tasks(np.random.default_rng(0), 60)}
    tested = {task.tobytes() for task in family.eval_tasks("confirmation")}
    assert (len(trained), len(tested)) == (3, 2)
    assert trained.isdisjoint(tested)
    for pool in ("search", "selection"):
        assert {task.tobytes() for task in family.eval_tasks(pool)} == trained
    theirs = {task.tobytes() for pool in ("search", "selection", "confirmation") for task in base.eval_tasks(pool)}
    assert theirs.isdisjoint(trained | tested)
    assert [cut_id("halfcheetah-dir", train=[0], test=[1])] == ["halfcheetah-dir@train=0@test=1"]
    worlds = family.make(2)
    worlds.reset(seed=0)
    assert {task.tobytes() for task in worlds.tasks} <= trained
    with pytest.raises(InputError, match="below the horizon"):
        with_changes(family, EnvOptions(failure_step=5))
    assert with_changes(family, EnvOptions(failure_step=2)).id == family.id
    ends = [worlds.step(np.zeros((2, 6)))[3].all() for _ in range(5)]
    assert ends == [False] * 4 + [True]
    worlds.close()


@pytest.mark.parametrize(
    ("base", "cut", "words"),
    [
        (
            "point-robot",
            {"train": [0, 1], "test": [1, 2]},
            "test tasks: got '1', allowed: tasks that are not trained on",
        ),
        ("point-robot", {"train": [0]}, "test tasks"),
        ("CartPole-v1", {"train": [0], "test": [1]}, "has one task"),
        ("halfcheetah-dir", {"train": [0], "test": [2]}, "task number"),
        ("point-robot", {"steps": 21}, "from 1 to 20"),
    ],
)
def test_a_cut_that_makes_no_sense_is_refused(base: str, cut: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        cut_id(base, **cut)


@pytest.mark.parametrize("words", WITHOUT_METAWORLD)
def test_without_metaworld_one_sentence_says_how_to_get_it_before_anything_is_spent(
    words: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "metaworld" else found(name, *more)
    )
    said = call(words, tmp_path / "data", capsys, 2)
    assert said.startswith("error: Meta-World is not installed. Run: pip install")
    assert not (tmp_path / "data").exists()


def test_an_experiment_takes_every_documented_option_and_writes_its_folder(tmp_path: Path, capsys) -> None:
    said = call(
        "--run_experiment --benchmark point-robot --num-epochs 4 --meta-batch-size 2 --inner-batch-size 2 "
        "--max-steps-per-episode 15 --hidden-dim 32 --meta-lr 0.002 --inner-lr 0.2 --gamma 0.9 --gae-lambda 0.9 "
        f"--clip-epsilon 0.2 --eval-interval 2 --num-eval-tasks 5 --eval-episodes 2 --output-dir {tmp_path}/out --seed 3",
        tmp_path / "data",
        capsys,
    )
    assert "best_model on the held-out tasks: return after 0 shots" in said
    models = [f"{model}.{suffix}" for model in ("best_model", "final_model") for suffix in ("json", "safetensors")]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *models,
        "results.json",
        "training_curves.png",
    ]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    learner = results["configuration"]["learner"]
    given = {"tasks_per_update": 2, "episodes_per_task": 2, "learning_rate": 0.002, "inner_lr": 0.2, "gamma": 0.9}
    given |= {"gae_lambda": 0.9, "clip": 0.2}
    assert given.items() <= learner.items()
    assert results["configuration"]["policy"]["model"]["hidden_dim"] == 32
    assert (results["configuration"]["task"], results["configuration"]["seed"]) == ("point-robot@steps=15", 3)
    assert [steps for steps, _ in results["returns"]] == [120, 240, 360, 480]
    assert [steps for steps, _ in results["evaluations"]] == [240, 480]
    assert set(results["losses"]["train/policy_loss"][0]) != set()
    assert len(results["test_returns"]["best_model"]["return after 1 shots"]["tasks"]) == 5
    again = tmp_path / "best"
    assert main(["evaluate", str(tmp_path / "out" / "best_model"), "--json", "--data-dir", str(again)]) == 0


GOAL_PLUGIN = '''
"""The point robot, whose worlds tell when it is within 0.3 m of its goal."""
from env_runner.task_family import register_family
from env_runner.toys import PointRobot, PointRobotEnv

class GoalEnv(PointRobotEnv):
    def _advance(self, actions):
        rewards, ended, infos = super()._advance(actions)
        return rewards, ended, infos | {"success": (infos["distance"] < 0.3).astype(float)}

@register_family
class GoalRobot(PointRobot):
    id, env_type, reports_success = "goal-robot", GoalEnv, True
'''


@pytest.mark.parametrize("learner", ["maml-ppo", "rl2"])
def test_where_worlds_tell_of_a_goal_success_is_recorded_on_the_way_and_at_the_end(
    learner: str, tmp_path: Path, capsys, plugins_loaded
) -> None:
    (tmp_path / "goal_robot.py").write_text(GOAL_PLUGIN)
    out = tmp_path / "out"
    words = f"run --preset goal-robot.gru --learner {learner} --env-steps 7680 --evaluate-every 2560 --out {out}"
    assert main(["--plugin", f"{tmp_path}/goal_robot.py", *words.split(), "--data-dir", str(tmp_path / "data")]) == 0
    assert "success after 0 shots" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [steps for steps, _ in results["success_rates"]] == [steps for steps, _ in results["returns"]]
    assert all(0 <= rate <= 1 for _, rate in results["success_rates"])
    looks = results["evaluations_by_quantity"]
    assert [steps for steps, _ in looks["success"]] == [steps for steps, _ in results["evaluations"]] != []
    assert looks["return"] == results["evaluations"]  # what it is scored by
    # The last look is at the model that is evaluated at the end, on the same tasks from the same seed.
    column = int(learner == "maml-ppo")
    ledger = Ledger(Paths.of(tmp_path / "data").ledger_url, read_only=True)
    last = [row.value for row in ledger.evals([1], name="success") if row.episode == column]
    assert looks["success"][-1] == [7680, pytest.approx(np.mean(last))]


def test_a_benchmark_trains_every_pair_at_equal_parameters_steps_and_seeds_once(tmp_path: Path, capsys) -> None:
    words = "--serious_benchmark --task point-robot --method gru --epochs 2 --seeds 2"
    said = call(words, tmp_path, capsys)
    assert "grid point-robot --models gru --learners maml-ppo rl2 --epochs 2 --seeds 2" in said
    runs = runs_in(tmp_path)
    assert [(r.spec["learner"]["kind"], r.seed) for r in runs] == [
        ("maml-ppo", 0),
        ("maml-ppo", 1),
        ("rl2", 0),
        ("rl2", 1),
    ]
    assert {r.spec["env_steps"] for r in runs} == {2560}
    call(words, tmp_path, capsys)
    assert len(runs_in(tmp_path)) == 4  # what is trained is not trained again
    drawn = call(f"--visualize_results --output-dir {tmp_path}/figures", tmp_path, capsys)
    assert "plot r-0001 r-0002 r-0003 r-0004 --what curves" in drawn
    assert {"point-robot-curves.png", "point-robot-tasks.png"} <= {f.name for f in (tmp_path / "figures").iterdir()}


def test_every_method_has_the_parameters_of_the_lstm() -> None:
    specs = grid_specs("point-robot", ["s5", "lstm", "gru", "transformer", "mlp"], ["maml-ppo", "rl2"], epochs=3)
    counts = [count_parameters(spec) for spec in specs]
    assert max(counts) <= 1.1 * min(counts)
    assert {spec.env_steps for spec in specs} == {3 * 1280}


@pytest.mark.slow
def test_the_quick_benchmark_runs_every_model(tmp_path: Path, capsys) -> None:
    call("--quick_benchmark --epochs 1 --seeds 2", tmp_path, capsys)
    assert {run.model for run in runs_in(tmp_path)} == {"s5", "lstm", "gru", "transformer", "mlp"}


@pytest.mark.slow
def test_a_crew_of_some_agents_works_emergently_to_a_verdict(tmp_path: Path, capsys) -> None:
    words = "--emergence_benchmark --agents meta,adaptation,state --task point-robot --collaboration emergent --env-steps 200k --llm offline"
    said = call(words, tmp_path, capsys)
    assert "--collaboration emergent --agents Meta-Learning Adaptation State-Modeling" in said
    assert "strategies in 1 campaign" in said
    assert "strategies in 1 campaign" in call(
        f"--strategy_discovery --results {tmp_path} --analyze-novelty", tmp_path, capsys
    )


def test_the_arms_of_the_performance_comparison_search_equally_long(capsys) -> None:
    assert main(["--performance_comparison", "--searches", "1", "--trials", "2", "--json"]) == 0
    arms = {arm["arm"]: arm["trials"] for arm in json.loads(capsys.readouterr().out)["arms"]}
    assert arms == dict.fromkeys(("random", "optimizer", "ensemble", "single-agent", "crew"), 2)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_its_command_from_any_folder(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / script, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"Usage: main.py {SCRIPTS[script]}" in done.stdout
