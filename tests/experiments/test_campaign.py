"""One whole campaign through the command line, on real parts: the point robot, five agents, the offline researcher."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from env_runner.task_distributions import get_family

ROOT = Path(__file__).resolve().parents[2]
STEPS = "98k"


def _command(data: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *arguments, "--data-dir", str(data)]


def _start(data: Path, home: Path, goal: str = "beat LSTM on point-robot", steps: str = STEPS) -> subprocess.Popen[str]:
    """Start the campaign in an empty working directory with an empty home."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": "", "GOOGLE_API_KEY": ""}
    command = _command(data, "--goal", goal, "--env-steps", steps, "--llm", "offline", "--seed", "7")  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _call(data: Path, *arguments: str, code: int = 0) -> str:
    result = subprocess.run(_command(data, *arguments), capture_output=True, text=True, cwd=data.parent)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def _rows(data: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{data / 'ledger.db'}?mode=ro", uri=True) as connection:
        return connection.execute(query).fetchall()


NUMBERS = (
    "select id, purpose, pool, arm, trial, proposer, config_hash, seed, parameters, status, env_steps, score from runs order by id",
    "select * from evals order by run_id, name, task_index, episode",
    "select run_id, name, env_steps, value, kind from metrics where name not like 'time/%' and name not like 'memory/%' order by run_id, name, env_steps",
    "select arm, trial, role, source, [values] from proposals order by id",
    "select content_hash from claims",
    "select outcome, content from verdicts",
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(data folder, home, what was printed) of a finished campaign."""
    folder = tmp_path_factory.mktemp("campaign")
    process = _start(folder / "data", folder / "home")
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return folder / "data", folder / "home", output


def test_it_says_what_was_understood_that_no_model_is_in_use_and_ends_in_a_verdict(campaign: tuple) -> None:
    _, _, output = campaign
    flat = " ".join(output.split())
    assert (
        "Understood: Does SSM (mingru, minlstm, s5, lru, s4d, mlstm, ssd, gated-deltanet) reach a higher return than LSTM on point-robot"
        in flat
    )
    assert "No language model is in use" in flat
    assert "--llm openai:... | anthropic:... | ollama:..." in flat
    assert any(word in output for word in ("CONFIRMED", "REFUTED", "EQUIVALENT", "INCONCLUSIVE"))
    assert "Traceback" not in output


def test_nothing_is_written_outside_the_data_folder(campaign: tuple) -> None:
    data, home, _ = campaign
    assert sorted(p.name for p in home.rglob("*")) == []
    assert sorted(p.name for p in data.parent.iterdir()) == ["data", "home"]


def test_the_verdict_is_the_one_that_a_few_independent_lines_compute(campaign: tuple) -> None:
    data, _, _ = campaign
    ((content,),) = _rows(data, "select content from verdicts")
    verdict = json.loads(content)
    returns: dict[tuple[str, int], list[float]] = {}
    query = """select r.arm, r.seed, e.value from evals e join runs r on r.id = e.run_id
               where r.purpose = 'confirmation' and e.name = 'return' and e.episode = 0"""
    for arm, seed, value in _rows(data, query):
        returns.setdefault((arm, seed), []).append(value)
    seeds = sorted({seed for _, seed in returns})
    assert all(len(v) == 40 for v in returns.values())
    mean = {key: sum(v) / len(v) for key, v in returns.items()}
    n = len(seeds)
    sides = [[mean[arm, s] for s in seeds] for arm in ("challenger", "baseline")]
    effect = sum(sides[0]) / n - sum(sides[1]) / n
    test = stats.ttest_ind(*sides, equal_var=False) if verdict.get("test") == "welch" else stats.ttest_rel(*sides)
    low, high = test.confidence_interval(0.95)
    half = (high - low) / 2
    best = max(sum(mean[a, s] for s in seeds) / n for a in ("challenger", "baseline"))
    anchors = get_family("point-robot").anchors
    floor = next((anchors[name] for name in ("task_blind", "stand_still", "random") if name in anchors), -math.inf)
    expected = "inconclusive" if best <= floor or low <= 0 <= high else "confirmed" if low > 0 else "refuted"
    ((claim,),) = _rows(data, "select content from claims")
    margin, narrow = json.loads(claim)["equivalence"], test.confidence_interval(0.9)
    if expected == "inconclusive" and best > floor and -margin < narrow[0] and narrow[1] < margin:
        expected = "equivalent"
    assert verdict["outcome"] == expected
    assert verdict["effect"] == pytest.approx(effect)
    assert verdict["interval"] == pytest.approx([low, high], abs=1e-3 * abs(half) + 1e-9)


def test_both_sides_were_treated_alike(campaign: tuple) -> None:
    data, _, _ = campaign
    query = "select arm, purpose, count(*), sum(env_steps), min(seed), max(seed) from runs where purpose in ('selection', 'confirmation') group by arm, purpose order by purpose, arm"  # fmt: skip
    rows = {(arm, purpose): rest for arm, purpose, *rest in _rows(data, query)}
    for purpose in ("selection", "confirmation"):
        assert rows["challenger", purpose] == rows["baseline", purpose]
    trials = dict(_rows(data, "select arm, count(distinct trial) from runs where trial is not null group by arm"))
    assert trials["challenger"] == trials["baseline"]
    sizes = [p for (p,) in _rows(data, "select distinct parameters from runs")]
    assert max(sizes) < 1.1 * min(sizes)


def test_pools_of_seeds_are_disjoint_and_the_claim_came_before_its_runs(campaign: tuple) -> None:
    data, _, _ = campaign
    pools: dict[str, set[int]] = {}
    for pool, seed in _rows(data, "select pool, seed from runs"):
        pools.setdefault(pool, set()).add(seed)
    assert set(pools) == {"search", "selection", "confirmation"}
    assert not pools["search"] & pools["selection"]
    assert not (pools["search"] | pools["selection"]) & pools["confirmation"]
    ((claimed,),) = _rows(data, "select created_at from claims")
    ((first,),) = _rows(data, "select min(created_at) from runs where purpose = 'confirmation'")
    assert claimed <= first


def test_all_five_agents_used_tools_and_every_trial_says_who_proposed_it(campaign: tuple) -> None:
    data, _, _ = campaign
    actors = {actor for (actor,) in _rows(data, "select distinct actor from events where kind = 'tool_call'")}
    assert actors >= {"Coordinator", "State-Modeling", "Meta-Learning", "Adaptation", "Environment"}
    roles = _rows(data, "select arm, trial, count(distinct role) from proposals where not superseded group by arm, trial")  # fmt: skip
    assert roles
    assert all(count == 4 for *_, count in roles)
    sources = dict(_rows(data, "select trial, group_concat(distinct source) from proposals group by trial"))
    assert sources[0] == "default"
    assert sources[1] == "optimizer"


def test_no_tool_call_failed(campaign: tuple) -> None:
    data, _, _ = campaign
    results = [
        json.loads(payload) for (payload,) in _rows(data, "select payload from events where kind = 'tool_result'")
    ]
    assert len(results) > 20
    assert [
        r for r in results if ("fail" in r["text"] and "failures" not in r["text"]) or "error" in r["text"].lower()
    ] == []


def test_read_commands_answer_in_words_and_in_json(campaign: tuple) -> None:
    data, _, _ = campaign
    count = _rows(data, "select count(*) from runs")[0][0]
    listed = json.loads(_call(data, "runs", "--json", "--limit", "500"))
    assert len(listed) == count
    assert "r-0001" in _call(data, "runs")
    shown = json.loads(_call(data, "show", "r-0001", "--json"))
    assert shown["status"] == "done"
    assert shown["spec"]["task"] == "point-robot"
    assert json.loads(_call(data, "show", "c-1", "--json"))["verdict"]["outcome"]
    assert json.loads(_call(data, "campaigns", "--json"))[0]["goal"] == "beat LSTM on point-robot"
    assert "the nearest is r-" in _call(data, "show", "r-9999", code=2).lower()


def test_a_rerun_gives_the_recorded_numbers(campaign: tuple) -> None:
    data, _, _ = campaign
    ((run,),) = _rows(data, "select max(id) from runs where purpose = 'confirmation'")
    assert "numbers are the same" in _call(data, "rerun", f"r-{run}", "--check")


def test_the_report_shows_the_verdict_and_every_number_has_its_rows(campaign: tuple) -> None:
    data, _, _ = campaign
    html = (data / "reports/c-0001/report.html").read_text()
    markdown = (data / "reports/c-0001/report.md").read_text()
    ((outcome,),) = _rows(data, "select outcome from verdicts")
    for text in (html, markdown):
        assert outcome in text.lower()
        for name in ("v-0001", "k-0001", "r-0001"):
            assert name in text
    assert html.count("<svg") >= 3
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://creativecommons.org", "").replace("http://purl.org", "")  # fmt: skip


def test_the_better_model_is_kept_with_its_card_and_loads(campaign: tuple) -> None:
    from meta_rl.learner import Learner

    data, _, _ = campaign
    (folder,) = (data / "saved_models").iterdir()
    assert "held-out" in (folder / "README.md").read_text()
    learner = Learner.load(folder / "model.safetensors")
    tasks = get_family("point-robot").eval_tasks("confirmation")
    assert learner.evaluate(tasks, episodes=1, seed=0).returns.shape == (40, 1)


def test_a_finished_campaign_resumes_to_the_same_verdict(campaign: tuple) -> None:
    data, _, _ = campaign
    before = _rows(data, "select * from verdicts")
    assert "its verdict stands" in _call(data, "resume", "c-0001")
    assert _rows(data, "select * from verdicts") == before


def test_killed_and_resumed_it_has_the_same_numbers_row_by_row(campaign: tuple, tmp_path: Path) -> None:
    """Same seed and env steps again; its process group killed three times with SIGKILL and once paused with SIGINT.

    test_crash.py kills fifty times, at random moments.
    """
    data, _, _ = campaign
    other = tmp_path / "data"
    _kill_and_resume(other, _start(other, tmp_path / "home"))
    for query in NUMBERS:
        assert _rows(other, query) == [row for row in _rows(data, query) if not _is_rerun(row, query, data)], query


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("goal", "steps"),
    [
        ("beat RL2 with MAML on point-robot", "900k"),
        (
            "does adapting the head at test time beat no adaptation for LSTM on point-robot with a switch of target",
            "98k",
        ),
        ("compare LSTM, GRU and MLP on point-robot", "150k"),
    ],
)
def test_other_questions_too_have_the_same_numbers_when_they_are_killed_and_resumed(
    goal: str, steps: str, tmp_path: Path
) -> None:
    """Learners, adaptation at test time, several sides; and one of their confirmation runs is trained again to the last bit."""
    data, other = tmp_path / "once" / "data", tmp_path / "killed" / "data"
    for folder in (data, other):
        folder.parent.mkdir()
    process = _start(data, tmp_path / "home", goal, steps)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    _kill_and_resume(other, _start(other, tmp_path / "home", goal, steps))
    for query in NUMBERS:
        assert _rows(other, query) == _rows(data, query), query
    ((run_id,),) = _rows(data, "select max(id) from runs where purpose = 'confirmation'")
    assert "numbers are the same" in _call(data, "rerun", f"r-{run_id:04d}", "--check")


def _kill_and_resume(data: Path, process: subprocess.Popen[str]) -> None:
    """Let a campaign come to its verdict with three SIGKILLs and one SIGINT on its way; nothing is lost, doubled or changed."""
    kept: list[tuple[Any, ...]] = []
    for finished, number in ((2, signal.SIGKILL), (5, signal.SIGKILL), (7, signal.SIGINT), (10, signal.SIGKILL)):
        _wait_for(data, finished, process)
        workers = _workers(process.pid)
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "Paused; nothing is lost" in output
        _wait_until_gone(workers)
        rows = _rows(data, "select * from runs where status = 'done' order by id")
        assert [row for row in rows if row in kept] == kept  # no row lost or changed
        assert _rows(data, "select 1 from runs group by config_hash, pool, arm having count(*) > 1") == []
        kept = rows
        process = subprocess.Popen(_command(data, "resume", "c-0001"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def _workers(pid: int) -> list[Path]:
    """The /proc folders of a process's children, who are the campaign's workers; none where there is no /proc."""
    return [
        Path(f"/proc/{child}")
        for file in Path(f"/proc/{pid}/task").glob("*/children")
        for child in file.read_text().split()
    ]


def _wait_until_gone(workers: list[Path]) -> None:
    """No orphan is left: a worker ends by itself when its parent is gone."""
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [worker for worker in workers if worker.exists()] == []


def _is_rerun(row: tuple, query: str, data: Path) -> bool:
    """Rows of the first campaign's ledger that a later test of this file added."""
    if " runs " not in query and "run_id" not in query:
        return False
    return row[0] in {i for (i,) in _rows(data, "select id from runs where purpose = 'rerun'")}


def _wait_for(data: Path, finished: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        try:
            if _rows(data, "select count(*) from runs where status = 'done'")[0][0] >= finished:
                return
        except sqlite3.Error:
            pass
        time.sleep(0.05)
    raise AssertionError(f"fewer than {finished} runs finished in time")
