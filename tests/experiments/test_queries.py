"""Questions to the ledger, over both databases: lists, filters, comparisons, SQL, exports, housekeeping."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import add_campaign, add_claim, add_run, dead_holder
from sqlalchemy import text

from core.errors import InputError
from experiments.campaign.holder import this_process
from experiments.ledger import Ledger, marks
from experiments.ledger.export import TABLES, export
from experiments.ledger.filters import parse_where
from experiments.ledger.models import Campaign, Verdict
from experiments.ledger.read_sql import read_sql
from experiments.ledger.store import now
from experiments.reading import doctor
from experiments.reading.compare import compare, diff
from experiments.reading.figures import draw, run_sides
from experiments.reading.queries import describe_row, list_active, list_campaigns, list_runs
from experiments.runs.by_hand import seed_scores
from experiments.runs.few_shot import must_show_model
from experiments.runs.paths import Paths


def _runs(ledger: Ledger, **options) -> list[str]:
    return [str(row[0]) for row in list_runs(ledger, **options).rows]


def _several(ledger: Ledger) -> int:
    """r-0001 to r-0006: two variants on three seeds, one diverged, the last of no campaign."""
    campaign = add_campaign(ledger)
    for variant, shift in (("a", 0.0), ("b", 2.0)):
        for seed in (1, 2, 3):
            last = variant == "b" and seed == 3
            add_run(
                ledger,
                campaign_id=None if last else campaign,
                returns=[[shift + seed, 0.0], [shift + 2 * seed, 0.0]],
                variant_hash=variant * 64,
                arm="challenger" if variant == "a" else "baseline",
                model="s5" if variant == "a" else "lstm",
                seed=seed,
                trial=None if last else seed,
                finish="diverged" if last else "done",
            )
    return campaign


# ---- runs -------------------------------------------------------------------------------


FILTERS = (
    ("status=done", "12345"),
    ("status=done,diverged and seed=3", "36"),
    ("model!=s5", "456"),
    ("seed>=2 and seed<3", "25"),
    ("score>3 and arm=baseline", "45"),
    ("score>-1e3", "12345"),
    ("campaign=none", "6"),
    ("campaign!=none and trial=1", "14"),
    ("campaign=c-0001 and run<=r-0002", "12"),
    ("variant=bbbb", "456"),
    ("model~ST", "456"),
    ('task="point-robot" AND seed = 1', "14"),
    ("trial!=1", "2356"),
    ("model='x; drop table runs'", ""),
    ("model~%", ""),
)


def test_a_filter_finds_what_it_says(ledger: Ledger) -> None:
    _several(ledger)
    for where, found in FILTERS:
        assert _runs(ledger, where=where) == [f"r-000{n}" for n in found], where


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("colour=red", r"unknown column in --where 'colour'.*Allowed: arm, campaign"),
        ("scor=1", "Did you mean 'score'"),
        ("score=high", "allowed: a number"),
        ("score=nan", "allowed: a number"),
        ("seed=1e30", "allowed: a number"),
        ("run=x-1", "run id: got 'x-1'"),
        ("status", "conditions such as"),
        ("status=", "conditions such as"),
        ("status=done or status=failed", "'and' between conditions"),
        ("status=done and", "'and' between conditions"),
        ("status=done; drop table runs", "'and' between conditions"),
        ("status<done", "= != ~ for words"),
        ("seed~1", "= != < <= > >= for a number"),
        ("seed<1,2", "one value after <"),
        ("", "conditions such as"),
    ],
)
def test_a_wrong_filter_is_answered_with_what_is_allowed(where: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_where(where)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_filter_or_an_error_in_words(text: str) -> None:
    with contextlib.suppress(InputError):
        parse_where(text)


@given(value=st.text(alphabet=st.characters(exclude_characters="'", codec="utf-8", exclude_categories=["Cs", "Cc"])))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_a_filter_is_ever_sql(file_ledger: Ledger, value: str) -> None:
    if value:
        assert list_runs(file_ledger, where=f"model='{value}'").rows == ()


def test_the_newest_runs_are_listed_and_a_sort_starts_at_its_own_end(ledger: Ledger) -> None:
    _several(ledger)
    assert _runs(ledger, limit=2) == ["r-0005", "r-0006"]
    assert _runs(ledger, sort="-score", limit=2) == ["r-0005", "r-0003"]
    assert _runs(ledger, sort="score") == ["r-0001", "r-0002", "r-0004", "r-0003", "r-0005", "r-0006"]  # none is last
    assert "the first 2 of 6" in list_runs(ledger, sort="seed", limit=2).note
    with pytest.raises(InputError, match=r"column in --sort 'colour'"):
        list_runs(ledger, sort="-colour")


def test_groups_are_over_seeds_and_best_first(ledger: Ledger) -> None:
    _several(ledger)
    found = list_runs(ledger, group="variant").records()
    assert [(row["variant"], row["model"], row["runs"], row["done"], row["seeds"]) for row in found] == [
        ("bbbbbbbbbbbb", "lstm", 3, 2, 3),
        ("aaaaaaaaaaaa", "s5", 3, 3, 3),
    ]
    assert found[1]["score"] == pytest.approx(3.0)
    assert found[1]["spread"] == pytest.approx(1.5)
    assert (found[1]["best"], found[1]["worst"], found[1]["last_run"]) == (4.5, 1.5, "r-0003")
    assert [row["model"] for row in list_runs(ledger, group="model", sort="score").records()] == ["s5", "lstm"]
    assert [row["campaign"] for row in list_runs(ledger, group="campaign", sort="runs").records()] == [None, "c-0001"]
    with pytest.raises(InputError, match=r"column in --group 'varant'. Did you mean 'variant'"):
        list_runs(ledger, group="varant")


def test_archived_runs_and_campaigns_are_hidden_until_asked_for(ledger: Ledger) -> None:
    _several(ledger)
    assert marks.archive(ledger, ["r-0002", "6"]) == ["r-0002", "r-0006"]
    assert _runs(ledger) == ["r-0001", "r-0003", "r-0004", "r-0005"]
    assert "2 archived not shown" in list_runs(ledger).note
    assert len(_runs(ledger, everything=True)) == 6
    marks.archive(ledger, ["c-0001"])
    assert _runs(ledger) == []
    marks.archive(ledger, ["c-0001", "r-0006"], undo=True)
    assert _runs(ledger) == ["r-0001", "r-0003", "r-0004", "r-0005", "r-0006"]
    add_claim(ledger, 1)
    with pytest.raises(InputError, match="runs and campaigns"):
        marks.archive(ledger, ["k-0001"])


def test_the_score_of_a_confirmation_run_is_not_shown_before_its_verdict(ledger: Ledger, tmp_path: Path) -> None:
    campaign = add_campaign(ledger)
    claim = add_claim(ledger, campaign)
    for arm in ("challenger", "baseline"):
        add_run(
            ledger,
            campaign_id=campaign,
            claim_id=claim,
            pool="confirmation",
            purpose="confirmation",
            arm=arm,
            returns=[[7.0]],
        )
    assert [row["score"] for row in list_runs(ledger).records()] == [None, None]
    assert _runs(ledger, where="score>0") == []
    assert list_runs(ledger, group="arm").records()[0]["score"] is None
    with pytest.raises(InputError, match="not shown before the verdict on k-0001"):
        compare(ledger, "r-0001", "r-0002")
    assert "score" not in [row["field"] for row in diff(ledger, "r-0001", "r-0002").records()]
    out = tmp_path / "x.jsonl"
    assert export(ledger, out, what="evals", format="jsonl") == 0
    assert export(ledger, out, what="runs", format="jsonl") == 2
    assert [json.loads(line)["score"] for line in out.read_text().splitlines()] == [None, None]
    with pytest.raises(InputError, match="not shown before the verdict on k-0001"):
        ledger.must_show(ledger.get_run(1))
    paths = Paths(tmp_path, tmp_path / "saved_models")
    for name in ("r-0001", "r-0001.safetensors", "r-0001-best"):  # its model, given by its place
        with pytest.raises(InputError, match="not shown before the verdict on k-0001"):
            must_show_model(ledger, paths, tmp_path / "models" / name)
    must_show_model(ledger, paths, tmp_path / "saved_models" / "r-0001" / "model")
    with pytest.raises(InputError, match="not shown before the verdict on k-0001"):
        draw(ledger, run_sides(ledger, [1, 2]), "profile")
    with pytest.raises(
        InputError,
        match=r"'confirmation', allowed: search, selection.*c-0001 will be judged on the confirmation tasks of point-robot",
    ):
        ledger.must_not_forestall("point-robot", "confirmation")
    ledger.must_not_forestall("point-robot", "selection")
    ledger.must_not_forestall("bandit", "confirmation")
    ledger.must_not_forestall("point-robot@on=bandit", "confirmation")
    for same in ("point-robot@steps=20", "bandit@on=point-robot"):  # whose fixed tasks are those of the point robot
        with pytest.raises(InputError, match="c-0001 will be judged"):
            ledger.must_not_forestall(same, "confirmation")
    ledger.add(Verdict(claim_id=claim, outcome="inconclusive", reason="", content={}, created_at=now()))
    assert [row["score"] for row in list_runs(ledger).records()] == [7.0, 7.0]
    assert compare(ledger, "r-0001", "r-0002").by_task is not None
    assert export(ledger, out, what="evals", format="jsonl") == 2
    ledger.must_show(ledger.get_run(1))
    ledger.must_not_forestall("point-robot", "confirmation")
    for place, status in enumerate(("paused", "running", "failed", "interrupted"), start=2):  # which have no claim yet
        number = add_campaign(ledger, status=status)
        with pytest.raises(InputError, match=f"c-{place:04d}"):
            ledger.must_not_forestall("point-robot", "confirmation")
        with ledger.session() as session:
            campaign = session.get_one(Campaign, number)
            campaign.stage = campaign.status = "done"  # stopped before there was a claim
        ledger.must_not_forestall("point-robot", "confirmation")
    failed = add_campaign(ledger, status="failed", stage="confirmation")
    claim = add_claim(ledger, failed)
    add_run(ledger, campaign_id=failed, claim_id=claim, purpose="confirmation", pool="confirmation", returns=[[7.0]])
    with pytest.raises(InputError, match="c-0006"):
        ledger.must_not_forestall("point-robot", "confirmation")


def test_seeds_of_one_configuration_are_summed_up_as_the_judge_does_it(ledger: Ledger) -> None:
    import numpy as np
    from scipy import stats

    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 8))
    for seed, returns in enumerate(table):
        add_run(ledger, returns=[[float(r), 50.0] for r in returns], seed=seed)
    add_run(ledger, finish="failed", seed=9)
    found = seed_scores(ledger, [1, 2, 3, 4, 6], original=5)
    assert found.result is not None
    means = table[:4].mean(axis=1)
    assert found.result.mean == pytest.approx(means.mean())
    assert found.result.iqm == pytest.approx(stats.trim_mean(table[:4].ravel(), 0.25))
    half = stats.sem(means) * stats.t.ppf(0.975, 3)
    assert found.result.interval == pytest.approx((means.mean() - half, means.mean() + half))
    assert found.rows[0].worst_task == pytest.approx(table[0].min())
    assert "1 of 5 seeds have no score" in found.sentence()
    assert "4 seeds, 8 search tasks each" in found.sentence()
    assert f"r-0005, which is not among them, has {table[4].mean():.2f}" in found.sentence()
    assert seed_scores(ledger, [1, 6]).result is None


# ---- comparing --------------------------------------------------------------------------


def test_two_runs_are_compared_task_by_task_and_their_variants_seed_by_seed(ledger: Ledger) -> None:
    for variant, shift in (("a", 0.0), ("b", 1.0)):
        for seed in (1, 2, 3, 4 if variant == "a" else 5):
            returns = [[shift * seed + task, 99.0] for task in range(4)]
            add_run(ledger, returns=returns, variant_hash=variant * 64, seed=seed)
    found = compare(ledger, "r-0005", "r-0001")  # both seed 1
    assert found.by_task is not None
    assert (found.by_task.pairs, found.by_task.difference, found.by_task.first_better) == (4, 1.0, 4)
    assert found.seeds == (1, 2, 3)
    assert found.by_seed is not None
    assert found.by_seed.difference == pytest.approx(2.0)  # seeds 1, 2, 3 differ by 1, 2, 3
    half = 4.302653 * 1.0 / math.sqrt(3)  # Student's t with 2 degrees of freedom, from a printed table
    assert found.by_seed.interval == pytest.approx((2.0 - half, 2.0 + half), rel=1e-5)
    assert found.tasks is not None
    assert found.tasks.rows[0] == (0, 1.0, 0.0, 1.0)


def test_what_cannot_be_compared_is_said(ledger: Ledger) -> None:
    add_run(ledger, returns=[[1.0]])
    add_run(ledger, returns=[[1.0]], task="other", variant_hash="w" * 64)
    add_run(ledger, finish="failed", variant_hash="x" * 64)
    add_run(ledger, returns=[[math.nan]], variant_hash="y" * 64, env_steps=5)
    assert "not evaluated on the same tasks" in compare(ledger, "1", "2").notes[0]
    assert "r-0003 has no evaluation" in compare(ledger, "1", "3").notes[0]
    last = compare(ledger, "1", "4")
    assert last.by_task is None
    assert "They trained 1,000 and 5 env steps." in last.notes
    assert "Both are the same configuration" in compare(ledger, "1", "1").notes[0]


def test_a_diff_shows_only_what_differs_unless_asked_for_everything(ledger: Ledger) -> None:
    add_run(ledger, spec={"seed": 1, "policy": {"model": {"state_dim": 16, "gated": True}}})
    add_run(ledger, spec={"seed": 1, "policy": {"model": {"state_dim": 32, "gated": 1, "extra": "x"}}})
    found = diff(ledger, "r-0001", "r-0002")
    assert [row[0] for row in found.rows] == ["spec.policy.model.state_dim", "spec.policy.model.extra"]
    assert found.rows[1] == ("spec.policy.model.extra", None, "x")
    assert "spec.seed" in [row[0] for row in diff(ledger, "r-0001", "r-0002", everything=True).rows]
    assert diff(ledger, "r-0001", "r-0001").note == "Nothing differs."


def test_campaigns_have_a_diff_too_and_a_run_is_no_campaign(ledger: Ledger) -> None:
    add_campaign(ledger)
    add_campaign(ledger, seed=4, question={"task": "ant-dir"})
    add_run(ledger)
    assert [row[0] for row in diff(ledger, "c-1", "c-2").rows] == ["seed", "question.task"]
    with pytest.raises(InputError, match=r"two runs .* or two campaigns"):
        diff(ledger, "c-0001", "r-0001")


# ---- SQL --------------------------------------------------------------------------------


@pytest.fixture
def reader(ledger: Ledger, ledger_url: str):
    _several(ledger)
    opened = Ledger(ledger_url, read_only=True)
    yield opened
    opened.close()


def test_a_select_is_answered(reader: Ledger) -> None:
    found = read_sql(reader, "select model, count(*) as n, count(*) as n from runs group by model order by model")
    assert found.columns == ("model", "n", "n_2")
    assert found.rows == (("lstm", 3, 3), ("s5", 3, 3))
    assert read_sql(reader, "with t as (select 1 as x) select x from t").rows == ((1,),)
    assert "the first 2 rows" in read_sql(reader, "select id from runs", limit=2).note


WRITES = (
    "update runs set score = 1",
    "delete from notes",
    "insert into tags values ('r-0001', 'x', '2026-01-01')",
    "drop table notes",
    "drop index ix_runs_config",
    "create table x (y integer)",
    "select 1; delete from notes",
    "with t as (select 1) delete from notes",
    "commit",
    "begin",
    "vacuum",
)


def test_sql_that_would_write_is_refused(reader: Ledger) -> None:
    for statement in WRITES:
        with pytest.raises(InputError, match="sql only reads"):
            read_sql(reader, statement)
    assert read_sql(reader, "select count(*) from runs").rows == ((6,),)


@pytest.mark.parametrize("statement", ["pragma query_only = off", "attach 'other.db' as other", "pragma writable_schema = 1"])  # fmt: skip
def test_sqlites_own_ways_around_are_closed(file_ledger: Ledger, statement: str) -> None:
    opened = Ledger(file_ledger.url, read_only=True)
    with pytest.raises(InputError, match="sql only reads"):
        read_sql(opened, statement)


def test_postgresqls_own_ways_around_are_closed(reader: Ledger) -> None:
    if reader.backend == "sqlite":
        pytest.skip("about PostgreSQL")
    for statement in ("set transaction read write", "set default_transaction_read_only = off"):
        with pytest.raises(InputError):
            read_sql(reader, statement)
        with pytest.raises(InputError, match="sql only reads"):
            read_sql(reader, "delete from notes")


def test_wrong_sql_is_answered_with_the_tables(reader: Ledger) -> None:
    with pytest.raises(InputError, match=r"nowhere.*Tables: runs, metrics"):
        read_sql(reader, "select * from nowhere")


# ---- export -----------------------------------------------------------------------------


def test_every_table_is_exported_in_every_format(ledger: Ledger, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    _several(ledger)
    number = add_run(ledger, finish=None)
    ledger.add_metrics(number, 10, [("loss", math.nan), ("gain", math.inf), ("fine", 0.5)])
    ledger.record_event(1, "message", "agent", {"a": [1, {"b": None}]})
    marks.add_note(ledger, "r-0001", 'with "quotes",\ncommas and\nlines', "human")
    for what in TABLES:
        counts = {export(ledger, tmp_path / f"{what}.{f}", what=what, format=f) for f in ("csv", "jsonl", "parquet")}
        rows = [json.loads(line) for line in (tmp_path / f"{what}.jsonl").read_text().splitlines()]
        assert counts == {len(rows)}
        with (tmp_path / f"{what}.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == len(rows)
        assert pyarrow.parquet.read_table(tmp_path / f"{what}.parquet").num_rows == len(rows)
    metrics = pyarrow.parquet.read_table(tmp_path / "metrics.parquet").to_pylist()
    assert {m["name"]: str(m["value"]) for m in metrics} == {"loss": "nan", "gain": "inf", "fine": "0.5"}
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert (runs[0]["id"], runs[0]["spec.policy.model.kind"], runs[0]["campaign_id"]) == ("r-0001", "s5", "c-0001")
    assert not list(tmp_path.glob(".*partial"))


def test_an_export_can_be_of_one_campaign_or_of_some_runs(ledger: Ledger, tmp_path: Path) -> None:
    campaign = _several(ledger)
    out = tmp_path / "x.csv"
    assert export(ledger, out, what="runs", campaign=campaign) == 5
    assert export(ledger, out, what="evals", where="seed=1") == 8
    assert export(ledger, out, what="events", campaign=campaign) == 0
    with pytest.raises(InputError, match="notes cannot be filtered"):
        export(ledger, out, what="notes", where="seed=1")
    with pytest.raises(InputError, match="unknown format 'xls'"):
        export(ledger, out, format="xls")
    with pytest.raises(InputError, match=r"unknown table 'run'\. Did you mean 'runs'"):
        export(ledger, out, what="run")


def test_parquet_without_its_package_says_what_to_install(file_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[analysis\]"'):
        export(file_ledger, tmp_path / "x.parquet", format="parquet")


def test_an_export_that_cannot_be_written_is_named(file_ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out: cannot write"):
        export(file_ledger, tmp_path / "file" / "x.csv")


# ---- notes and tags ---------------------------------------------------------------------


def test_notes_and_tags_are_kept_about_rows_that_exist(ledger: Ledger) -> None:
    _several(ledger)
    assert marks.add_note(ledger, "@last", "odd", "human") == "r-0006"
    assert marks.add_note(ledger, "c-1", "[bold]not markup[/bold] '; drop table notes", "human") == "c-0001"
    assert [row[0] for row in marks.list_notes(ledger).rows] == ["r-0006", "c-0001"]
    assert marks.list_notes(ledger, "r-0006").rows[0][3] == "odd"
    marks.set_tag(ledger, "r-0001", "good")
    marks.set_tag(ledger, "r-0001", "good")
    assert marks.list_tags(ledger).rows == (("r-0001", "good"),)
    marks.set_tag(ledger, "r-0001", "good", remove=True)
    assert marks.list_tags(ledger, "r-0001").rows == ()
    with pytest.raises(InputError, match="nearest is r-0006"):
        marks.add_note(ledger, "r-0066", "x", "human")
    with pytest.raises(InputError, match="1 to 4000"):
        marks.add_note(ledger, "r-0001", " ", "human")
    with pytest.raises(InputError, match=r"kept by: python main\.py archive"):
        marks.set_tag(ledger, "r-0001", "archived")


# ---- files ------------------------------------------------------------------------------


def _with_files(paths: Paths, number: int) -> None:
    for stem in (paths.model(number), paths.checkpoint(number)):
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".safetensors").write_bytes(b"x" * 1000)
        stem.with_suffix(".json").write_bytes(b"y" * 10)
    paths.log(number).parent.mkdir(exist_ok=True)
    paths.log(number).write_bytes(b"z" * 5)


def test_only_files_of_archived_and_crashed_runs_are_removed(file_ledger: Ledger, tmp_path: Path) -> None:
    paths = Paths.of(tmp_path)
    for finish in ("done", "done", "crashed", None):
        _with_files(paths, add_run(file_ledger, finish=finish))
    marks.archive(file_ledger, ["r-0002", "r-0004"])
    items = doctor.removable_files(file_ledger, paths)
    assert [(item.run, item.why, len(item.files), item.size) for item in items] == [
        ("r-0002", "archived", 5, 2025),
        ("r-0003", "crashed", 5, 2025),
    ]
    assert doctor.remove_files(file_ledger, paths, items) == 4050
    assert sorted(p.stem for p in (tmp_path / "models").glob("*.safetensors")) == ["r-0001", "r-0004"]
    assert doctor.removable_files(file_ledger, paths) == []
    assert len(file_ledger.runs()) == 4


# ---- who works on what, and health ------------------------------------------------------


def test_open_campaigns_are_listed_with_who_holds_them(ledger: Ledger) -> None:
    add_campaign(ledger, status="running", holder=this_process())
    add_campaign(ledger, status="running", holder=dead_holder())
    add_campaign(ledger, status="done", stage="done")
    add_run(ledger, campaign_id=1, finish="running", env_steps=250, heartbeat_at=now() - timedelta(seconds=5))
    add_run(ledger, campaign_id=1)
    campaigns, runs = list_active(ledger)
    assert [row["campaign"] for row in campaigns.records()] == ["c-0001", "c-0002"]
    assert [row["status"] for row in campaigns.records()] == ["running", "interrupted"]
    listed = [row["status"] for row in list_campaigns(ledger).records()]  # of a dead process all commands say the same
    described = [describe_row(ledger, name)["status"] for name in ("c-0001", "c-0002", "c-0003")]
    assert listed == described == ["running", "interrupted", "done"]
    assert f"process {os.getpid()}" in str(campaigns.rows[0][4])
    assert "has ended" in str(campaigns.rows[1][4])
    assert campaigns.note.endswith("resume c-0002")
    (run,) = runs.records()
    assert (run["run"], run["status"], run["done %"]) == ("r-0001", "running", 25.0)
    assert 5 <= float(run["last report (s ago)"] or 0) < 60


def test_runs_that_nobody_works_on_become_crashed_only_when_asked(ledger: Ledger, ledger_url: str, tmp_path: Path) -> None:  # fmt: skip
    add_campaign(ledger, status="running", holder=dead_holder())
    add_campaign(ledger, status="running", holder=this_process())
    add_run(ledger, campaign_id=1, finish="running")  # r-0001: stale
    add_run(ledger, campaign_id=1, finish=None)  # r-0002: queued, waits for resume
    add_run(ledger, campaign_id=2, finish="running")  # r-0003: somebody works on it
    add_run(ledger, finish="running", heartbeat_at=now() - timedelta(hours=2))  # r-0004: stale, of no campaign
    add_run(ledger, finish="running", heartbeat_at=now())  # r-0005: alive
    add_run(ledger, finish="running", heartbeat_at=now() + timedelta(days=1))  # r-0006: the clock went backwards
    paths = Paths.of(tmp_path)
    found = doctor.examine(ledger_url, paths)
    assert [f.fixed for f in found] == [False] * 3
    assert "resume c-0001" in found[1].way_out
    assert [run.status for run in ledger.runs()] == ["running", "queued", *["running"] * 4]
    fixed = doctor.examine(ledger_url, paths, fix=True)
    assert [f.fixed for f in fixed] == [True] * 3
    assert [run.status for run in ledger.runs()] == ["crashed", "queued", "running", "crashed", "running", "running"]
    assert (ledger.get_campaign(1).status, ledger.get_campaign(1).holder) == ("paused", None)
    assert ledger.get_campaign(2).status == "running"
    assert doctor.examine(ledger_url, paths) == []


def test_a_ledger_edited_by_hand_is_found_out(old_ledger, tmp_path: Path) -> None:
    path = old_ledger("0001")
    url, paths = f"sqlite:///{path}", Paths.of(tmp_path)
    models = [f for f in doctor.examine(url, paths) if "models/" not in f.what]
    assert models == []  # nothing is wrong but that the models were not stored with it
    with Ledger(url).engine.begin() as connection:
        for trigger in ("verdicts_update", "claims_update", "evals_update"):
            connection.execute(text(f"DROP TRIGGER {trigger}"))
        connection.execute(text("UPDATE verdicts SET outcome = 'confirmed'"))
        connection.execute(text("UPDATE claims SET content_hash = 'x'"))
    words = " ".join(f.what for f in doctor.examine(url, paths))
    assert "triggers" in words
    assert "evals_update" in words
    assert "k-0001 does not match its hash" in words
    assert "says confirmed, its rows say inconclusive" in words


def test_missing_and_changed_models_are_named_but_not_those_that_gc_removed(file_ledger: Ledger, tmp_path: Path) -> None:  # fmt: skip
    paths = Paths.of(tmp_path)
    for _ in range(4):
        number = add_run(file_ledger)
        _with_files(paths, number)
        file_ledger.add_artifact("model", f"models/r-{number:04d}.safetensors", "0" * 64, run_id=number)
    paths.model(2).with_suffix(".safetensors").unlink()
    marks.archive(file_ledger, ["r-0003", "r-0004"])
    doctor.remove_files(file_ledger, paths, doctor.removable_files(file_ledger, paths))
    found = [f.what for f in doctor.examine(file_ledger.url, paths)]
    assert len(found) == 2
    assert "r-0001.safetensors is not the file that was recorded" in found[0]
    assert "r-0002.safetensors is missing" in found[1]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"nothing that SQLite knows" * 300)
    (finding,) = doctor.examine(f"sqlite:///{path}", Paths.of(tmp_path), fix=True)
    assert "damaged or is no SQLite database" in finding.what
    assert not finding.fixed


def test_damaged_pages_are_named(file_ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(60):
        add_run(file_ledger, returns=[[1.0]] * 20)
    file_ledger.close()
    assert file_ledger.path is not None
    with file_ledger.path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(4096 * 3))
    found = doctor.examine(file_ledger.url, Paths.of(tmp_path))
    assert found
    assert "ledger.db" in found[0].what


def test_a_report_before_the_verdict_has_no_confirmation_mean(old_ledger, tmp_path: Path) -> None:
    from experiments.reading.report import gather

    path = old_ledger("0001")
    before = {(g.arm, g.purpose): g for g in gather(Ledger(f"sqlite:///{path}"), 1).groups}
    with Ledger(f"sqlite:///{path}").engine.begin() as connection:
        connection.execute(text("DROP TRIGGER verdicts_delete"))
        connection.execute(text("DELETE FROM verdicts"))
    data = gather(Ledger(f"sqlite:///{path}"), 1)
    after = {(g.arm, g.purpose): g for g in data.groups}
    assert data.figures == ()
    for key, group in before.items():
        assert after[key].finished == group.finished
        assert after[key].mean == (None if key[1] == "confirmation" else group.mean)
        assert group.mean is not None
