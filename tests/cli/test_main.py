"""What bad input gets at the command line: one clear sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import main
from cli.app import INSTALLED
from experiments.runs.paths import CHECKOUT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--goal", "beat LSTM on halfcheeta-vel"], ["halfcheeta-vel", "Did you mean 'halfcheetah-vel'", "Allowed:"]),
        (["--goal", "beat LTSM on halfcheetah-vel"], ["ltsm", "Did you mean 'lstm'"]),
        (["--goal", "do something"], ["was not understood", "The nearest that would be:"]),
        (["--goal", "beat LSTM on point-robot", "--budget", "soon"], ["--budget", "'soon'", "30m"]),
        (["--goal", "beat LSTM on point-robot", "--env-steps", "x"], ["--env-steps", "20M"]),
        (["--goal", "beat LSTM on point-robot", "--env-steps", "1k"], ["too small", "The smallest that works"]),
        (["--goal", "beat LSTM on point-robot", "--budget", "3m", "--env-steps", "1M"], ["not both"]),
        (["--goal", "beat LSTM on point-robot", "--seed", "-1"], ["--seed", "-1"]),
        (["--goal", "beat LSTM on point-robot", "--llm", "opnai:gpt-5"], ["opnai", "openai"]),
        (["--goal", "beat LSTM on point-robot", "--llm", "openai:gpt-5"], ["OPENAI_API_KEY"]),
        (["--gaol", "x"], ["--gaol"]),
        (["list", "taks"], ["taks"]),
    ],
)
def test_bad_input_is_answered_and_writes_nothing(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    place = [] if arguments[0] == "list" else ["--data-dir", str(tmp_path / "data")]
    assert main.main([*arguments, *place]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    ledger = tmp_path / "data" / "ledger.db"
    if ledger.exists():
        with sqlite3.connect(ledger) as connection:
            assert connection.execute("select count(*) from campaigns").fetchone() == (0,)


def test_reading_without_a_ledger_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["runs"], ["show", "r-1"], ["resume"], ["report"], ["rerun", "r-1"], ["campaigns"]):
        assert main.main([*command, "--data-dir", str(tmp_path)]) == 2
        assert "no ledger at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_cannot_be_used_is_said_before_anything_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "ledger.db"
    broken.write_text("this is no database, " * 100)
    goal = ["--goal", "beat LSTM on point-robot", "--llm", "offline", "--data-dir", str(tmp_path)]
    assert main.main(goal) == 2
    assert "damaged or is no SQLite database" in capsys.readouterr().err
    broken.unlink()
    with sqlite3.connect(broken) as connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values ('9999')")
    assert main.main(goal) == 2
    assert "newer version" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    goal = ["--goal", "beat LSTM on point-robot", "--env-steps", "1M", "--llm", "offline", "--dry-run"]
    assert main.main([*goal, "--data-dir", str(data)]) == 0
    output = capsys.readouterr().out
    assert "confirmation" in output
    assert "nothing was started" in output
    assert not data.exists()


@pytest.mark.parametrize("what", ["tasks", "models", "learners", "presets"])
def test_names_are_listed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", what]) == 0
    expected = {"tasks": "halfcheetah-vel", "models": "s5", "learners": "rl2", "presets": "halfcheetah-vel.lstm"}[what]
    assert expected in capsys.readouterr().out


def test_a_specification_with_a_wrong_field_names_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spec.json"
    file.write_text('{"task": "point-robot", "env_steps": 640, "seed": 0, "learner": {"kind": "rl2", "gamma": 3}}')
    assert main.main(["run", "--spec", str(file), "--data-dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert "gamma" in error
    assert "policy" in error
    assert not (tmp_path / "data").exists()


WRONG_FIELDS = (
    (
        {"colour": 1},
        [
            "colour, got 1: no such field",
            "Allowed: adaptation, changes, env_steps, evaluation_episodes, learner, policy, scored_by, seed, task",
        ],
    ),
    ({"policy.model.sate_dim": 3}, ["policy.model.sate_dim, got 3: no such field. Did you mean 'state_dim'?"]),
    ({"policy.model.state_dim": "many"}, ["policy.model.state_dim, got 'many'", "valid integer"]),
    ({"policy.model.gating": "maybe"}, ["policy.model.gating, got 'maybe'", "'none', 'half', 'full' or 'bounded'"]),
    (
        {"policy.model.kind": "s6"},
        ["policy.model", "unknown model 's6'. Did you mean 's5'? Allowed: diag-gru, gated-deltanet, gru"],
    ),
    ({"learner.gamma": 3, "learner.lr": 1}, ["learner.gamma, got 3", "less than or equal to 1", "learner.lr, got 1"]),
    ({"learner.kind": "r2"}, ["unknown learner 'r2'. Did you mean 'rl2'?"]),
    ({"task": "point-robt"}, ["task: unknown task", "Did you mean 'point-robot'?"]),
    ({"env_steps": 0}, ["env_steps, got 0", "greater than or equal to 1"]),
)


@pytest.mark.parametrize(("changes", "words"), WRONG_FIELDS, ids=[next(iter(c)) for c, _ in WRONG_FIELDS])
def test_each_wrong_field_of_a_specification_has_its_path_its_value_and_what_is_allowed(
    changes: dict[str, object], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.presets import named_preset

    content = named_preset("point-robot.s5").model_dump(mode="json")
    for path, value in changes.items():
        *parents, name = path.split(".")
        node = content
        for part in parents:
            node = node[part]
        node[name] = value
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(content))
    assert main.main(["run", "--spec", str(file), "--data-dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    for word in [str(file), *words]:
        assert word in error
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["--spec FILE or --preset NAME"]),
        (["run", "--preset", "lstm"], ["TASK.MODEL", "halfcheetah-vel.lstm"]),
        (["run", "--preset", "halfcheeta-vel.lstm"], ["Did you mean 'halfcheetah-vel'"]),
        (["run", "--preset", "point-robot.ltsm"], ["Did you mean 'lstm'", "list presets"]),
        (["run", "--preset", "point-robot.lstm", "--seed", "1", "--seeds", "2"], ["either --seed or --seeds"]),
        (["run", "--preset", "point-robot.lstm", "--seeds", "0"], ["--seeds", "from 1 to 100"]),
        (["run", "--preset", "point-robot.lstm", "--seed", "-3"], ["--seed", "from 0 to"]),
        (["run", "--preset", "point-robot.lstm", "--env-steps", "lots"], ["--env-steps", "lots"]),
        (["run", "--preset", "point-robot.lstm", "--set", "policy.model.colour=1"], ["no field 'colour'"]),
        (["run", "--spec", "nowhere.json"], ["nowhere.json does not exist"]),
        (["completion", "--shell", "tcsh"], ["tcsh"]),
    ],
)
def test_a_run_by_hand_that_cannot_be_is_answered(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if arguments[0] == "completion" else ["--data-dir", str(tmp_path / "data"), "--dry-run"]
    assert main.main([*arguments, *place]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_a_dry_run_by_hand_says_what_it_would_train_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [
        "run",
        "--preset",
        "halfcheetah-vel.lstm",
        "--seeds",
        "3",
        "--env-steps",
        "300k",
        "--set",
        "learner.gamma=0.9",
    ]
    assert main.main([*call, "--dry-run", "--json", "--data-dir", str(tmp_path / "data")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (len(set(found["seeds"])), found["env_steps_total"], found["pool"]) == (3, 900_000, "search")
    assert all(0 <= seed < 100_000_000 for seed in found["seeds"])  # the search pool's own range
    assert (found["spec"]["learner"]["gamma"], found["expected_s"]) == (0.9, None)
    assert not (tmp_path / "data").exists()


def test_a_checkpoint_whose_hash_does_not_match_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next run finds a checkpoint of its own number whose tensors are not those that its JSON names."""
    import torch

    from core.checkpoint import save_checkpoint
    from experiments.runs.paths import Paths

    checkpoint = Paths.of(tmp_path).checkpoint(1)
    save_checkpoint(checkpoint, {"weight": torch.zeros(3)}, {"kind": "rl2"})
    file = checkpoint.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    call = ["run", "--preset", "point-robot.mlp", "--env-steps", "640", "--data-dir", str(tmp_path)]
    assert main.main(call) == 1
    output = capsys.readouterr().out
    assert "r-0001: failed" in output
    assert "has hash" in output
    assert "refused" in output


def test_the_second_of_two_processes_that_resume_a_campaign_is_told_who_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.campaign.holder import this_process
    from experiments.ledger import Ledger
    from experiments.ledger.models import Campaign

    data = tmp_path / "data"
    _campaign(data, "running")
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        ledger = Ledger(f"sqlite:///{data / 'ledger.db'}")
        with ledger.session() as session:
            session.get_one(Campaign, 1).holder = this_process() | {"pid": other.pid, "start": None}
        ledger.close()
        assert main.main(["resume", "c-1", "--llm", "offline", "--data-dir", str(data)]) == 2
        error = capsys.readouterr().err
        assert f"c-0001 is being worked on by process {other.pid} on" in error
        assert "python main.py pause c-0001" in error
    finally:
        other.communicate()
    with sqlite3.connect(data / "ledger.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (0,)


def test_a_disk_that_refuses_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import experiments.reading.queries

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/x.json")

    monkeypatch.setattr(experiments.reading.queries, "list_registered", full)
    assert main.main(["list", "tasks"]) == 1
    error = capsys.readouterr().err
    assert "cannot write /data/x.json (No space left on device)" in error
    assert "python main.py resume" in error


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", "--shell", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("rerun", "presets", "python3", "python", "ssm-metarl"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_what_follows_main_py_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["completion", "--shell", "bash"])
    (tmp_path / "complete.bash").write_text(capsys.readouterr().out)
    typed = {
        "python main.py rer": "rerun",
        "python3 ./main.py list pr": "presets",
        "ssm-metarl rer": "rerun",
        "python other.py rer": "",
        "python ma": "",
    }
    for line, expected in typed.items():
        words = " ".join(f"'{word}'" for word in line.split())
        function = "_ssm_metarl" if line.startswith("ssm-metarl") else "_python_main_py"
        code = f"source {tmp_path}/complete.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); {function}; echo ${{COMPREPLY[*]}}"
        found = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
        assert found.stdout.strip() == expected, line
    assert f"complete -F _ssm_metarl {INSTALLED}\n" in (tmp_path / "complete.bash").read_text()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_both_spellings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["completion", "--shell", "fish"])
    (tmp_path / "complete.fish").write_text(capsys.readouterr().out)
    (tmp_path / "main.py").touch()
    for line, expected in {"python main.py rer": "rerun", "ssm-metarl rer": "rerun", "python ma": "main.py"}.items():
        command = ["fish", "--no-config", "-c", f"source complete.fish; complete -C '{line}'"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert [words.split("\t")[0] for words in found.stdout.splitlines()] == [expected], line


def test_a_wall_time_budget_is_planned_from_measured_throughput(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = ["--goal", "beat LSTM on point-robot", "--budget", "2h", "--llm", "offline", "--dry-run"]
    assert main.main([*goal, "--data-dir", str(tmp_path / "data")]) == 0
    output = capsys.readouterr().out
    assert "env steps/s a run with" in output
    assert "of 2h" in output
    assert not (tmp_path / "data").exists()


def _campaign(data: Path, status: str) -> None:
    """A campaign row without runs."""
    from experiments.campaign.begin import create_campaign
    from experiments.campaign.plan import Budget, make_plan
    from experiments.campaign.question import parse_goal
    from experiments.ledger import Ledger
    from experiments.ledger.models import Campaign

    data.mkdir()
    ledger = Ledger(f"sqlite:///{data / 'ledger.db'}")
    plan = make_plan(
        Budget(env_steps=10**6), iteration_steps=1280, horizon=20, tuned_arms=2, workers=2, steps_per_s=None
    )
    number = create_campaign(ledger, parse_goal("beat LSTM on point-robot"), plan, seed=0, llm="offline")
    with ledger.session() as session:
        session.get_one(Campaign, number).status = status
    ledger.close()


def test_a_word_for_a_running_campaign_is_kept_as_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    _campaign(data, "running")
    place = ["--data-dir", str(data)]
    assert main.main(["instruct", "c-1", "try smaller state sizes", *place]) == 0
    assert main.main(["pause", "c-1", *place]) == 0
    with sqlite3.connect(data / "ledger.db") as connection:
        events = connection.execute("select kind, actor, payload from events order by id").fetchall()
    assert events == [("instruct", "human", '{"text": "try smaller state sizes"}'), ("pause", "human", "{}")]
    assert main.main(["instruct", "c-1", " ", *place]) == 2
    assert "from 1 to 2000" in capsys.readouterr().err


def test_a_dry_resume_says_what_is_left_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    _campaign(data, "paused")
    before = (data / "ledger.db").read_bytes()
    assert main.main(["resume", "c-1", "--dry-run", "--json", "--data-dir", str(data)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["status"], found["runs_finished"], found["held_by"]) == ("baseline", "paused", 0, "nobody")  # fmt: skip
    assert found["runs_left"] > 0
    assert 0 < found["env_steps_left"] <= 10**6
    assert (data / "ledger.db").read_bytes() == before


def test_a_campaign_that_does_not_run_cannot_be_paused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _campaign(tmp_path / "data", "paused")
    assert main.main(["pause", "c-1", "--data-dir", str(tmp_path / "data")]) == 2
    assert "python main.py resume c-0001" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    """So that it is there at once: the engine, the database and the crew are imported inside the commands."""
    code = "import sys, main; main.main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Research a goal" not in found.stdout  # the help of the command line as a whole
    assert "rerun" in found.stdout
    imported = set(found.stderr.replace("'", "").strip("[]\n").split(", "))
    assert imported.isdisjoint({"numpy", "torch", "pydantic", "sqlalchemy", "matplotlib", "crewai", "markdown_it", "experiments", "multi_agent"})  # fmt: skip


def test_the_installed_command_is_the_same_and_names_itself(tmp_path: Path) -> None:
    """The script that pip writes for [project.scripts], written by hand."""
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[INSTALLED].partition(":")
    script = tmp_path / INSTALLED
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    shown = [subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path) for arguments in (["list", "--help"], ["list", "taks"])]  # fmt: skip
    assert [found.returncode for found in shown] == [0, 2]
    assert shown[0].stdout.startswith(f"Usage: {INSTALLED} list")
    assert f"See: {script} --help" in shown[1].stderr  # not on PATH
