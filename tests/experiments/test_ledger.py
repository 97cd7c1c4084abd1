"""The ledger's contract over SQLite and PostgreSQL, and what it says when its file cannot be used."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_rows import add_campaign, add_claim, add_run
from sqlalchemy import event, func, inspect, select, text
from sqlalchemy.exc import IntegrityError

from core.errors import InputError
from experiments.ledger import Ledger, LedgerError, parse_id, readable_id
from experiments.ledger import store as store_module
from experiments.ledger.ids import EVERY_KIND
from experiments.ledger.models import Base, Campaign, Event, Metric, Note, Run, Tag, Verdict
from experiments.ledger.store import HEAD, MIGRATIONS, join_value, now, split_value

DATA = Path(__file__).parent / "data"


# ---- the contract, over both databases --------------------------------------------------


def test_the_migrations_make_the_tables_that_the_models_describe(ledger: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with ledger.engine.connect() as connection:
        held = {"compare_type": ledger.backend == "postgresql"}  # SQLite holds no text to a length
        assert compare_metadata(MigrationContext.configure(connection, opts=held), Base.metadata) == []
    assert ledger.schema() == HEAD


def test_the_newest_schema_is_the_one_that_the_store_names() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_ids_count_up_and_are_readable(ledger: Ledger) -> None:
    campaign = add_campaign(ledger)
    numbers = [add_run(ledger, campaign_id=campaign) for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert readable_id("r", 3) == "r-0003"
    assert [parse_id(v, "run") for v in ("r-0003", "r3", "3", "R-0003")] == [3] * 4


def test_ids_that_a_person_types_are_found_or_answered_with_the_nearest(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no run yet"):
        ledger.resolve("@last", "run")
    for score in (1.0, 5.0, 3.0):
        add_run(ledger, returns=[[score]])
    assert ledger.resolve("@last", "run") == 3
    assert ledger.resolve("@best", "run") == 2
    with pytest.raises(InputError, match=r"no run r-0033.* nearest is r-0003"):
        ledger.resolve("r-0033", "run")
    with pytest.raises(InputError, match=r"'r-x; drop table runs', allowed: such as r-0042"):
        ledger.resolve("r-x; drop table runs", "run")


SPELLINGS = ("r-{n:04d}", "r-{n}", "R{n}", "{n}", "r-{n:06d}", " r-{n:04d} ")


@given(number=st.integers(1, 40), spelling=st.sampled_from(SPELLINGS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_spelling_of_an_id_finds_its_row_or_the_nearest(file_ledger: Ledger, number: int, spelling: str) -> None:
    while len(file_ledger.runs()) < 12:
        add_run(file_ledger, config_hash="e" * 64)
    typed = spelling.format(n=number)
    if number <= 12:
        assert file_ledger.resolve(typed, "run") == number
        assert file_ledger.locate(typed) == ("run", number)
    else:
        with pytest.raises(InputError, match=rf"no run r-0*{number}\b.*nearest is r-00.*python main.py runs"):
            file_ledger.resolve(typed, "run")


@given(st.one_of(st.text(max_size=30), st.from_regex(r"[rckpvx]?-?@?[0-9a-f]{0,30}(last|best)?", fullmatch=True)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_names_a_row_or_gets_one_sentence(file_ledger: Ledger, typed: str) -> None:
    if not file_ledger.runs():
        add_claim(file_ledger, add_campaign(file_ledger))
        add_run(file_ledger, returns=[[1.0]])
    for kinds in (("run",), ("campaign",), EVERY_KIND):
        try:
            kind, number = file_ledger.locate(typed, kinds)
        except InputError as error:
            sentence = str(error).replace(repr(typed), "")
            if "\n" in sentence:
                pytest.fail(f"more than one line: {sentence!r}")
        else:
            assert (kind in kinds, number) == (True, 1)


@given(
    hashes=st.lists(st.text("0a", min_size=5, max_size=5), min_size=1, max_size=6),
    prefix=st.text("0a", min_size=4, max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_the_start_of_a_hash_names_a_configuration_where_only_one_fits(hashes: list[str], prefix: str) -> None:
    memory = Ledger("sqlite://")
    for start in hashes:
        add_run(memory, config_hash=start.ljust(64, "f"))
    fits = sorted({h for h in hashes if h.startswith(prefix)})
    numbered = int(prefix) if prefix.isdigit() and 0 < int(prefix) <= len(hashes) else None
    if numbered is not None:
        assert memory.resolve(prefix, "run") == numbered
    elif len(fits) == 1:
        assert memory.resolve(prefix, "run") == hashes.index(fits[0]) + 1  # the first run of it; others repeat it
    else:
        with pytest.raises(InputError) as error:
            memory.resolve(prefix, "run")
        named = {f"r-{hashes.index(h) + 1:04d} ({h.ljust(12, 'f')})" for h in fits}
        assert all(words in str(error.value) for words in named)
        assert ("could be" in str(error.value)) == bool(fits)


def test_a_row_of_another_kind_is_told_apart_from_one_that_does_not_exist(ledger: Ledger) -> None:
    claim = add_claim(ledger, add_campaign(ledger))
    add_run(ledger, config_hash="c0ffee".ljust(64, "0"))
    with pytest.raises(InputError, match=r"run id: got 'c-0001', which names a campaign.*runs --campaign c-0001"):
        ledger.resolve("c-0001", "run")
    assert ledger.locate("k1") == ("claim", claim)
    assert ledger.locate("c@last") == ("campaign", 1)
    assert ledger.locate("@last") == ("run", 1)
    assert ledger.locate("c0ffee") == ledger.locate("c0ff") == ("run", 1)
    assert ledger.locate("0000") == ("claim", 1)  # the hash of the claim in ledger_rows.py
    with pytest.raises(InputError, match=r"no verdict v-0001.* It has none yet"):
        ledger.locate("v-1")
    with pytest.raises(InputError, match=r"'@worst', allowed: @last or @best"):
        ledger.resolve("@worst", "run")
    with pytest.raises(InputError, match="such as r-0042"):
        ledger.resolve("@last; drop table runs", "run")


def test_numbers_larger_than_any_row_are_answered(ledger: Ledger) -> None:
    add_run(ledger)
    for number in (2**31, 2**63, 10**40):
        with pytest.raises(InputError, match="no run r-"):
            ledger.resolve(str(number), "run")


def test_the_best_run_is_on_the_newest_task_and_neither_hidden_nor_archived(ledger: Ledger) -> None:
    with pytest.raises(InputError, match="no run with a score yet"):
        ledger.resolve("@best", "run")
    add_run(ledger, returns=[[900.0]], task="other")
    for score in (1.0, 5.0, 7.0):
        add_run(ledger, returns=[[score]])
    claim = add_claim(ledger, add_campaign(ledger))
    add_run(ledger, returns=[[99.0]], pool="confirmation", purpose="confirmation", claim_id=claim)
    assert ledger.resolve("@best", "run") == 4
    with ledger.session() as session:
        session.add(Tag(target="r-0004", tag="archived", created_at=now()))
    assert ledger.resolve("@best", "run") == 3
    ledger.add(Verdict(claim_id=claim, outcome="refuted", reason="", content={}, created_at=now()))
    assert ledger.resolve("@best", "run") == 5  # judged: no longer hidden


def test_the_best_run_is_one_of_those_whose_scores_have_the_newest_ones_unit(ledger: Ledger) -> None:
    plain = {"env_steps": 1000, "seed": 1}
    broken = {**plain, "changes": {"failure_step": 9}}
    trained = {**plain, "changes": {"failure_step": 9, "in_training": True}}
    quick = {**plain, "scored_by": "steps_to_-5_first_episode"}
    for score, spec in ((-2.0, plain), (-30.0, broken), (-20.0, trained), (-900.0, quick), (-700.0, quick)):
        add_run(ledger, score=score, spec=spec)
    assert ledger.resolve("@best", "run") == 5
    add_run(ledger, score=-25.0, spec=broken)
    assert ledger.resolve("@best", "run") == 3
    add_run(ledger, score=-3.0, spec=plain)
    assert ledger.resolve("@best", "run") == 1


def test_the_best_campaign_is_the_one_with_the_best_judged_mean(ledger: Ledger) -> None:
    add_campaign(ledger)
    with pytest.raises(InputError, match="no campaign with judged scores"):
        ledger.resolve("@best", "campaign")
    for task, challenger, baseline in (("other", 50.0, 1.0), ("point-robot", -3.0, -1.0), ("point-robot", -2.0, -4.0)):
        claim = add_claim(ledger, add_campaign(ledger, question={"task": task}))
        content = {"challenger": {"mean": challenger}, "baseline": {"mean": baseline}}
        ledger.add(Verdict(claim_id=claim, outcome="refuted", reason="", content=content, created_at=now()))
    assert ledger.resolve("@best", "campaign") == 3


def test_numbers_that_are_not_finite_come_back_as_they_were(ledger: Ledger) -> None:
    values = [1.5, math.nan, math.inf, -math.inf, 0.0, 1e-300]
    number = add_run(ledger, returns=[[v] for v in values], finish=None)
    ledger.add_metrics(number, 100, [(f"m{i}", v) for i, v in enumerate(values)])
    for rows in (ledger.evals([number]), ledger.metrics(number)):
        found = [join_value(row.value, row.kind) for row in rows]
        assert [str(v) for v in found] == [str(v) for v in values]
    assert [split_value(None), join_value(None, "nan") != join_value(None, "nan")] == [(None, "nan"), True]


def test_an_event_with_odd_content_comes_back(ledger: Ledger) -> None:
    campaign = add_campaign(ledger)
    payload = {"loss": math.nan, "best": [math.inf, {"x": -math.inf}], "text": "'; drop table runs; -- \u2028 ünïcode"}
    ledger.record_event(campaign, "message", "agent", payload)
    with ledger.session() as session:
        found = session.scalars(select(Event)).one().payload
    assert found == {"loss": "NaN", "best": ["Infinity", {"x": "-Infinity"}], "text": payload["text"]}


def test_times_are_in_utc_and_know_it(ledger: Ledger) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC).astimezone()
    number = add_campaign(ledger, created_at=moment)
    found = ledger.get_campaign(number).created_at
    assert found == moment
    assert found.utcoffset() == timedelta(0)


def test_a_repeated_report_replaces_what_it_repeats(ledger: Ledger) -> None:
    number = add_run(ledger, finish=None)
    for steps in (100, 200, 300):
        ledger.add_metrics(number, steps, [("a", steps), ("b", 1.0)])
    ledger.add_metrics(number, 200, [("a", -1.0)])  # a run that went on from a checkpoint at 100
    assert [(m.env_steps, m.value) for m in ledger.metrics(number, "a")] == [(100, 100.0), (200, -1.0)]
    assert [m.env_steps for m in ledger.metrics(number, "b")] == [100]


def test_a_clock_that_goes_backwards_changes_no_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = add_campaign(ledger)
    for day in (5, 3, 1):
        add_run(ledger, campaign_id=campaign, created_at=datetime(2026, 1, day, tzinfo=UTC))
    assert [run.id for run in ledger.runs(campaign)] == [1, 2, 3]
    assert ledger.resolve("@last", "run") == 3


FORBIDDEN = {
    "change the score of a finished run": "UPDATE runs SET score = 99 WHERE id = 1",
    "open a finished run again": "UPDATE runs SET status = 'running' WHERE id = 1",
    "delete a finished run": "DELETE FROM runs WHERE id = 1",
    "delete a queued run": "DELETE FROM runs WHERE id = 2",
    "change the configuration of a queued run": "UPDATE runs SET config_hash = 'x' WHERE id = 2",
    "change the seed of a queued run": "UPDATE runs SET seed = 5 WHERE id = 2",
    "move a queued run to the confirmation pool": "UPDATE runs SET pool = 'confirmation' WHERE id = 2",
    "call a queued run a confirmation run": "UPDATE runs SET purpose = 'confirmation' WHERE id = 2",
    "give a run another number": "UPDATE runs SET id = 77 WHERE id = 2",
    "add a metric to a finished run": "INSERT INTO metrics VALUES (1, 999, 'm', 1.0, 'finite')",
    "change a metric of a finished run": "UPDATE metrics SET value = 0 WHERE run_id = 1",
    "move a metric into a finished run": "UPDATE metrics SET run_id = 1, env_steps = 555 WHERE run_id = 2",
    "delete a metric of a finished run": "DELETE FROM metrics WHERE run_id = 1",
    "add an evaluation to a finished run": "INSERT INTO evals VALUES (1, 'search', 9, 0, 'return', 1.0, 'finite')",
    "change an evaluation of a finished run": "UPDATE evals SET value = 0 WHERE run_id = 1",
    "move an evaluation into a finished run": "UPDATE evals SET run_id = 1, task_index = 8 WHERE run_id = 2",
    "delete an evaluation of a finished run": "DELETE FROM evals WHERE run_id = 1",
    "change a claim": "UPDATE claims SET content_hash = 'x'",
    "delete a claim": "DELETE FROM claims",
    "change a verdict": "UPDATE verdicts SET outcome = 'confirmed'",
    "delete a verdict": "DELETE FROM verdicts",
    "change an event": "UPDATE events SET actor = 'judge'",
    "delete an event": "DELETE FROM events",
    "delete a campaign": "DELETE FROM campaigns",
    "change a campaign's goal": "UPDATE campaigns SET goal = 'x'",
    "change a campaign's seed": "UPDATE campaigns SET seed = 9",
    "replace a claim": "{replace} claims SELECT id, campaign_id, content, 'x', created_at FROM claims",
    "replace an event": "{replace} events SELECT id, campaign_id, kind, 'x', payload, created_at FROM events",
    "replace a verdict": "{replace} verdicts SELECT id, claim_id, 'x', reason, content, created_at FROM verdicts",
    "write a second verdict on a claim": "{replace} verdicts SELECT 9, claim_id, 'x', reason, content, created_at FROM verdicts",
}


def _filled(ledger: Ledger) -> None:
    campaign = add_campaign(ledger)
    claim = add_claim(ledger, campaign)
    for number in (1, 2):
        assert add_run(ledger, campaign_id=campaign, returns=[[1.0], [2.0]], finish=None) == number
        ledger.add_metrics(number, 100, [("m", 1.0)])
    with ledger.session() as session:
        session.get_one(Run, 1).status = "done"
    ledger.add(Verdict(claim_id=claim, outcome="refuted", reason="", content={}, created_at=now()))
    ledger.record_event(campaign, "message", "agent", {})


def _everything(ledger: Ledger) -> dict[str, list]:
    with ledger.engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table))]
            for table in Base.metadata.sorted_tables
        }


def test_every_forbidden_change_is_refused_by_the_database_itself(ledger: Ledger) -> None:
    _filled(ledger)
    before = _everything(ledger)
    for deed, statement in FORBIDDEN.items():
        replace = "INSERT OR REPLACE INTO" if ledger.backend == "sqlite" else "INSERT INTO"
        with ledger.engine.connect() as connection:
            try:
                connection.execute(text(statement.format(replace=replace)))
                connection.commit()
            except IntegrityError:
                continue
        pytest.fail(f"it was possible to {deed}")
    assert _everything(ledger) == before


def test_a_run_is_never_replaced(file_ledger: Ledger) -> None:
    _filled(file_ledger)
    for source in (1, 2):
        with pytest.raises(IntegrityError, match="never replaced"), file_ledger.engine.begin() as connection:
            connection.execute(text(f"INSERT OR REPLACE INTO runs SELECT * FROM runs WHERE id = {source}"))


def test_tables_are_never_emptied_at_once(ledger: Ledger) -> None:
    if ledger.backend == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    for table in ("runs", "evals", "events"):
        with pytest.raises(IntegrityError, match="never emptied"), ledger.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {table} CASCADE"))


def test_a_confirmation_run_needs_a_claim_that_was_written_before_it(ledger: Ledger) -> None:
    campaign = add_campaign(ledger)
    forgeries: tuple[dict[str, Any], ...] = (
        {"pool": "confirmation"},
        {"purpose": "confirmation"},
        {"pool": "confirmation", "purpose": "confirmation", "claim_id": 77},
    )
    for forged in forgeries:
        with pytest.raises(IntegrityError, match="claim"):
            add_run(ledger, campaign_id=campaign, **forged)
    claim = add_claim(ledger, campaign)
    assert add_run(ledger, campaign_id=campaign, pool="confirmation", purpose="confirmation", claim_id=claim) > 0


def test_what_may_change_about_finished_rows_does(ledger: Ledger) -> None:
    _filled(ledger)
    ledger.add_note("r-0001", "human", "looks odd")
    ledger.add_artifact("model", "models/r-0001.safetensors", "0" * 64, run_id=1)
    with ledger.session() as session:
        session.add(Tag(target="r-0001", tag="archived", created_at=now()))
        session.execute(text("UPDATE runs SET env_steps = 5, heartbeat_at = NULL WHERE id = 2"))
        session.execute(text("DELETE FROM metrics WHERE run_id = 2"))
        session.get_one(Campaign, 1).stage = "done"
    with ledger.session() as session:
        session.execute(text("DELETE FROM tags"))
        assert session.scalar(select(func.count()).select_from(Note)) == 1


def test_a_read_only_ledger_reads_and_refuses_to_write(ledger: Ledger, ledger_url: str) -> None:
    add_campaign(ledger)
    reader = Ledger(ledger_url, read_only=True)
    assert reader.get_campaign(1).goal == "beat LSTM on point-robot"
    with pytest.raises(LedgerError, match=r"read-?only"):
        add_campaign(reader)
    reader.close()


def test_many_writers_and_readers_lose_nothing(ledger: Ledger, ledger_url: str) -> None:
    campaign = add_campaign(ledger)
    seen: list[int] = []
    failures: list[BaseException] = []

    def write(place: int) -> None:
        try:
            own = Ledger(ledger_url)
            for number in range(40):
                own.record_event(campaign, "message", f"writer {place}", {"number": number})
            own.close()
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        try:
            own = Ledger(ledger_url, read_only=True)
            for _ in range(20):
                with own.session() as session:
                    seen.append(session.scalar(select(func.count()).select_from(Event)) or 0)
            own.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with ledger.session() as session:
        found = [(e.actor, e.payload["number"]) for e in session.scalars(select(Event).order_by(Event.id))]
    assert sorted(found) == sorted((f"writer {i}", n) for i in range(4) for n in range(40))


def test_what_a_transaction_read_still_holds_when_it_writes(ledger_url: str, ledger: Ledger) -> None:
    """Counting up from two threads through read, then write, loses no step."""
    if ledger.backend != "sqlite":
        pytest.skip(
            "PostgreSQL's default isolation allows it; the ledger's own writers there are one process a campaign"
        )
    campaign = add_campaign(ledger, spent_s=0.0)

    def count() -> None:
        own = Ledger(ledger_url)
        for _ in range(50):
            with own.session() as session:
                row = session.get_one(Campaign, campaign)
                row.spent_s = row.spent_s + 1
        own.close()

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.get_campaign(campaign).spent_s == 150


WRITER = """
import sys
from experiments.ledger import Ledger
url, place, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ledger = Ledger(url)
sys.stdin.readline()
for number in range(count):
    ledger.record_event(1, "message", place, {"number": number})
"""
READER = """
import sys
from sqlalchemy import func, select
from experiments.ledger import Ledger
from experiments.ledger.models import Event
ledger = Ledger(sys.argv[1], read_only=True)
sys.stdin.readline()
last = 0
while last < int(sys.argv[3]):
    with ledger.session() as session:
        found = session.scalar(select(func.count()).select_from(Event)) or 0
    assert found >= last, (found, last)
    last = found
"""


@pytest.mark.slow
def test_eight_writers_and_four_readers_do_ten_thousand_transactions_and_lose_none(ledger: Ledger, ledger_url: str) -> None:  # fmt: skip
    add_campaign(ledger)
    each, writers = 1250, 8
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, ledger_url, str(place), str(each if code is WRITER else each * writers)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code, number in ((WRITER, writers), (READER, 4))
        for place in range(number)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors[-2000:]
    with ledger.session() as session:
        found = [(e.actor, e.payload["number"]) for e in session.scalars(select(Event))]
    assert len(found) == 10_000
    assert sorted(found) == sorted((str(w), n) for w in range(writers) for n in range(each))


def test_several_processes_may_create_the_same_ledger_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    failures: list[BaseException] = []

    def create() -> None:
        try:
            Ledger(url).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Ledger(url, read_only=True).schema() == HEAD


# ---- files that cannot be used ----------------------------------------------------------


def _one_sentence(error: pytest.ExceptionInfo[LedgerError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_a_missing_file_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as error:
        Ledger(f"sqlite:///{tmp_path / 'no.db'}", read_only=True)
    _one_sentence(error, "no ledger at", "--goal")
    assert not (tmp_path / "no.db").exists()


def test_an_empty_file_says_how_to_start(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    with pytest.raises(LedgerError) as error:
        Ledger(f"sqlite:///{tmp_path / 'empty.db'}", read_only=True)
    _one_sentence(error, "is empty", "--goal")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as error:
        Ledger(f"sqlite:///{tmp_path}")
    _one_sentence(error, "is a folder", "ledger.db")


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"these are not the rows you are looking for " * 100)
    before = path.read_bytes()
    with pytest.raises(LedgerError) as error:
        Ledger(f"sqlite:///{path}", read_only=read_only)
    _one_sentence(error, "damaged or is no SQLite database", "restore a copy")
    assert path.read_bytes() == before


def _read_all_events(path: Path) -> None:
    with Ledger(f"sqlite:///{path}", read_only=True).session() as session:
        list(session.scalars(select(Event)))


def test_a_truncated_file_is_named(file_ledger: Ledger, tmp_path: Path) -> None:
    campaign = add_campaign(file_ledger)
    for number in range(50):
        file_ledger.record_event(campaign, "message", "agent", {"words": "x" * 500, "number": number})
    file_ledger.close()
    assert file_ledger.path is not None
    whole = file_ledger.path.read_bytes()
    path = tmp_path / "cut" / "ledger.db"
    path.parent.mkdir()
    for share in (0.02, 0.3, 0.7):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(LedgerError) as error:
            _read_all_events(path)
        _one_sentence(error, "damaged")


def test_a_newer_schema_is_named_and_left_alone(file_ledger: Ledger) -> None:
    with file_ledger.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    file_ledger.close()
    with pytest.raises(LedgerError) as error:
        Ledger(file_ledger.url)
    _one_sentence(error, "newer version (schema 9999", "update this checkout")


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(LedgerError) as error:
        Ledger(f"sqlite:///{path}")
    _one_sentence(error, "something else", "photos")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


def test_a_locked_file_is_named_after_a_wait(file_ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = add_campaign(file_ledger)
    monkeypatch.setattr(store_module, "BUSY_S", 0.1)
    assert file_ledger.path is not None
    other = sqlite3.connect(file_ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    blocked = Ledger.__new__(Ledger)
    with pytest.raises(LedgerError) as error:
        blocked.__init__(file_ledger.url)
    _one_sentence(error, "locked", "close that program or try again")
    reader = Ledger(file_ledger.url, read_only=True)
    assert reader.get_campaign(campaign).id == campaign  # who only reads is not held up
    other.execute("ROLLBACK")
    other.close()


def test_a_full_disk_is_named_and_loses_nothing(file_ledger: Ledger) -> None:
    campaign = add_campaign(file_ledger)
    file_ledger.engine.dispose()

    @event.listens_for(file_ledger.engine, "connect")
    def _small(connection, _) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    written: list[int] = []
    with pytest.raises(LedgerError) as error:
        written.extend(
            file_ledger.record_event(campaign, "message", "agent", {"words": "x" * 900}) for _ in range(1000)
        )
    _one_sentence(error, "the disk is full", "resume")
    with Ledger(file_ledger.url, read_only=True).session() as session:
        assert session.scalar(select(func.count()).select_from(Event)) == len(written) > 0


ALONE = """
import sys
from sqlalchemy import func, select
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.ledger.models import Event
written = 0
try:
    {before}
    ledger = Ledger(sys.argv[1])
    for number in range(2000):
        ledger.record_event(1, "message", "agent", {{"words": "x" * 900}})
        written += 1
except InputError as error:
    print(error)
print(written)
"""


def _in_a_process(url: str, before: str) -> tuple[str, int]:
    """What a process that writes until it is refused says, and how many rows it was told are written."""
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", ALONE.format(before=before), url], capture_output=True, text=True, timeout=250, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr[-1500:]
    words, _, count = result.stdout.strip().rpartition("\n")
    return words, int(count)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_without_write_permission_is_named(file_ledger: Ledger) -> None:
    import pwd
    import tempfile

    add_campaign(file_ledger)
    file_ledger.close()
    assert file_ledger.path is not None
    before = "pass"
    if os.geteuid() == 0:  # the superuser may write anywhere, so the process becomes somebody else
        numbers = {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()}
        if "nobody" not in numbers:
            pytest.skip("the superuser may write anywhere and there is no user nobody")
        user, group = numbers["nobody"]
        before = f"import os; os.setgroups([]); os.setgid({group}); os.setuid({user})"
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        path = Path(name) / "ledger.db"
        shutil.copyfile(file_ledger.path, path)
        path.chmod(0o444)
        Path(name).chmod(0o755)
        words, written = _in_a_process(f"sqlite:///{path}", before)
        assert "read-only" in words or "readonly" in words
        assert "chmod u+w" in words
        assert ("\n" in words, written) == (False, 0)


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_process_that_may_write_no_more_says_so_and_loses_nothing(file_ledger: Ledger) -> None:
    add_campaign(file_ledger)
    file_ledger.close()
    assert file_ledger.path is not None
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))"
    words, written = _in_a_process(file_ledger.url, limit)
    assert "the disk refuses it: check free space" in words or "the disk is full" in words
    assert "\n" not in words
    reader = Ledger(file_ledger.url, read_only=True)
    with reader.session() as session:
        assert session.scalar(select(func.count()).select_from(Event)) == written > 0
    assert sqlite3.connect(file_ledger.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "allowed: a database URL"),
        ("postgresql+psycopg://someone:secret@127.0.0.1:port/x", "allowed: a database URL"),
        ("postgresql+psycopg://someone:a@secret@127.0.0.1:1/x", "it is written %40"),
        ("postgresql+psycopg://someone@127.0.0.1:1/x?password=secret", "check that the server runs"),
        ("mysql://localhost/x", "allowed: sqlite:///FILE, postgresql+psycopg://"),
        ("postgresql+psycopg://someone:secret@127.0.0.1:1/x", "check that the server runs"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url: str, words: str) -> None:
    if "psycopg" in url:
        pytest.importorskip("psycopg")
    with pytest.raises(LedgerError) as error:
        Ledger(url)
    _one_sentence(error, words)
    assert "secret" not in str(error.value)


# ---- older files ------------------------------------------------------------------------

NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "0003", "0002", None, None
def upgrade():
    op.add_column("runs", sa.Column("colour", sa.String(8)))
    {rest}
"""


def _with_next_schema(folder: Path, monkeypatch: pytest.MonkeyPatch, rest: str = "") -> None:
    """The migrations with one more, in a copy."""
    copy = folder / "migrations"
    shutil.copytree(MIGRATIONS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "versions" / "v0003_next.py").write_text(NEXT.format(rest=rest))
    monkeypatch.setattr(store_module, "MIGRATIONS", copy)
    monkeypatch.setattr(store_module, "HEAD", "0003")
    monkeypatch.setattr(store_module, "READ_ALIKE", ("0003",))


def test_a_migration_copies_the_file_first_with_all_its_rows(file_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert file_ledger.path is not None
    add_campaign(file_ledger)  # still open: this row is in the write-ahead log alone
    _with_next_schema(tmp_path, monkeypatch)
    with pytest.raises(LedgerError, match=r"older schema 0002.*doctor --fix"):
        Ledger(file_ledger.url, read_only=True)
    newer = Ledger(file_ledger.url)
    assert newer.schema() == "0003"
    with sqlite3.connect(file_ledger.path.with_name("ledger.db.bak-0002")) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
        assert copy.execute("SELECT count(*) FROM campaigns").fetchone() == (1,)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with sqlite3.connect(file_ledger.path) as connection:
        assert "colour" in [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
        assert connection.execute("SELECT count(*) FROM campaigns").fetchone() == (1,)


def test_a_migration_that_fails_leaves_the_file_as_it_was(file_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    add_campaign(file_ledger)
    file_ledger.close()
    with monkeypatch.context() as patched:
        _with_next_schema(tmp_path, patched, 'op.execute("INSERT INTO nowhere VALUES (1)")')
        with pytest.raises(LedgerError):
            Ledger(file_ledger.url)
    again = Ledger(file_ledger.url)
    assert again.schema() == "0002"
    with again.engine.connect() as connection:
        assert "colour" not in [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(runs)")]


def test_a_metric_row_is_found_by_its_run_without_a_second_index(file_ledger: Ledger) -> None:
    with file_ledger.engine.connect() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT * FROM metrics WHERE run_id = 1 AND env_steps >= 5"
        )
        assert "PRIMARY KEY (run_id=? AND env_steps>?)" in plan.all()[0][-1]
    assert [column.name for column in inspect(Metric).primary_key] == ["run_id", "env_steps", "name"]


@pytest.mark.parametrize("schema", ["0001"])
def test_a_file_of_every_released_schema_opens_with_all_its_rows(old_ledger, schema: str) -> None:
    path = old_ledger(schema)
    assert len(Ledger(f"sqlite:///{path}", read_only=True).runs()) == 17  # before anything is migrated
    opened = Ledger(f"sqlite:///{path}")
    assert opened.schema() == schema  # 0002 changes nothing in a file, which an earlier checkout goes on reading
    runs = opened.runs()
    assert [run.status for run in runs] == ["done"] * 17
    assert len(opened.evals([run.id for run in runs], name=None)) == 3240
    assert {m.name for m in opened.metrics(1)} > {"rollout/ep_rew_mean", "train/policy_loss"}
    assert opened.get_campaign(1).goal == "beat LSTM on point-robot"


def test_words_of_people_have_any_length_in_every_database(ledger: Ledger) -> None:
    line = "command:" + "/a/long/path/to/a/program --with 'many words' " * 20
    number = add_campaign(ledger, llm=line)
    event = ledger.record_event(number, "message", "an agent of a plugin " * 10, {})
    ledger.add_note("c-0001", "somebody with a long name " * 10, "a note")
    assert ledger.get_campaign(number).llm == line
    assert len(ledger.events(number, after=event - 1)[0].actor) == 210
    with ledger.engine.connect() as connection:
        types = {
            (t, c["name"]): str(c["type"])
            for t in ("campaigns", "notes", "events")
            for c in inspect(connection).get_columns(t)
        }
    if ledger.backend == "postgresql":
        assert [types[place] for place in (("campaigns", "llm"), ("notes", "author"), ("events", "actor"))] == [
            "TEXT"
        ] * 3


def test_a_postgresql_ledger_of_the_first_schema_is_migrated_with_its_rows(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ledger.backend != "postgresql":
        pytest.skip("SQLite holds no text to a length")
    add_campaign(ledger, llm="offline")
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE campaigns ALTER COLUMN llm TYPE VARCHAR(120)")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    assert Ledger(ledger.url, read_only=True).get_campaign(1).llm == "offline"
    again = Ledger(ledger.url)
    assert (again.schema(), again.get_campaign(1).llm) == (HEAD, "offline")
    assert again.get_campaign(add_campaign(again, llm="command:" + "x" * 500)).llm.endswith("x")
