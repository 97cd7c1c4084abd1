"""What bad input gets at the command line: one clear sentence, exit code 2, nothing written."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--goal", "beat LSTM on halfcheeta-vel"], ["halfcheeta-vel", "Did you mean 'halfcheetah-vel'", "Allowed:"]),
        (["--goal", "beat LTSM on halfcheetah-vel"], ["ltsm", "Did you mean 'lstm'"]),
        (["--goal", "do something"], ["was not understood", "Examples:"]),
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


@pytest.mark.parametrize("what", ["tasks", "models", "learners"])
def test_names_are_listed(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", what]) == 0
    expected = {"tasks": "halfcheetah-vel", "models": "s5", "learners": "rl2"}[what]
    assert expected in capsys.readouterr().out


def test_a_specification_with_a_wrong_field_names_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spec.json"
    file.write_text('{"task": "point-robot", "env_steps": 640, "seed": 0, "learner": {"kind": "rl2", "gamma": 3}}')
    assert main.main(["run", "--spec", str(file), "--data-dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert "gamma" in error
    assert "policy" in error
    assert not (tmp_path / "data").exists()


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
    from experiments.lab import create_campaign
    from experiments.ledger import Ledger
    from experiments.ledger.models import Campaign
    from experiments.plan import Budget, make_plan
    from experiments.question import parse_goal

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


def test_a_campaign_that_does_not_run_cannot_be_paused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _campaign(tmp_path / "data", "paused")
    assert main.main(["pause", "c-1", "--data-dir", str(tmp_path / "data")]) == 2
    assert "python main.py resume c-0001" in capsys.readouterr().err
