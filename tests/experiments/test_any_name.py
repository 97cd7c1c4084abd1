"""Folders with any name that a file system allows, and texts of any bytes: what is written lands where it was asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ledger_rows import add_campaign, add_run

from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import InputError
from core.words.text import storable, without_password
from experiments.ledger import Ledger, LedgerError
from experiments.ledger import store as store_module
from experiments.ledger.marks import add_note, list_notes
from experiments.ledger.read_sql import read_sql
from experiments.ledger.store import MIGRATIONS, file_url, ledger_file
from experiments.runs import paths as paths_module
from experiments.runs.paths import Paths

NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)
ODD = (b"a b", b"what?", b"what?x=1", b"#", b"50%", b"%20", b"%(here)s", b"it's \"", b"a\nb", b"\xff", "ü".encode(), b"~x", b"file:x", b":memory:")  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
def test_a_ledger_lies_in_the_data_folder_that_was_named_whatever_its_name(name: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    folder = Path(os.fsdecode(os.path.join(os.fsencode(root), name)))
    paths = Paths.of(folder)
    paths.ensure()
    Ledger(paths.ledger_url).close()
    reader = Ledger(paths.ledger_url, read_only=True)
    assert [tuple(row) for row in read_sql(reader, "select count(*) from runs").rows] == [(0,)]
    reader.close()
    assert os.listdir(os.fsencode(root)) == [name]
    assert (folder / "ledger.db").stat().st_size > 0
    assert ledger_file(paths.ledger_url) == folder / "ledger.db"


for _name in ODD:  # what a person is likely to have, each time
    test_a_ledger_lies_in_the_data_folder_that_was_named_whatever_its_name = example(name=_name)(
        test_a_ledger_lies_in_the_data_folder_that_was_named_whatever_its_name
    )


def test_a_url_that_a_person_writes_says_a_question_mark_by_its_code(tmp_path: Path) -> None:
    Ledger(f"sqlite:///{tmp_path}/what%3F%25.db").close()
    assert (tmp_path / "what?%.db").is_file()
    with pytest.raises(LedgerError, match="%3F"):
        Ledger(f"sqlite:///{tmp_path}/what?.db")
    assert not (tmp_path / "what").exists()


def test_the_tables_are_made_where_the_path_of_the_code_holds_a_percent_sign(tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "100%(here)s%"
    shutil.copytree(MIGRATIONS, copy)
    monkeypatch.setattr(store_module, "MIGRATIONS", copy)
    Ledger(file_url(tmp_path / "ledger.db")).close()


def test_a_checkout_whose_name_numba_cannot_take_is_refused_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(paths_module, "CHECKOUT", Path("/somewhere/\udcff"))
    with pytest.raises(InputError, match=r"not UTF-8.*move it"):
        Paths.of(None)


def test_a_checkpoint_is_read_from_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    import torch

    file = tmp_path / os.fsdecode(b"\xff") / "state"
    save_checkpoint(file, {"w": torch.tensor([1.5])}, {})
    assert load_checkpoint(file)[0]["w"].tolist() == [1.5]


def test_texts_of_any_bytes_are_kept_in_every_table(ledger: Ledger) -> None:
    odd = os.fsdecode(b"caf\xff\xc3\xa9") + "\ud800\0!"
    campaign = add_campaign(ledger)
    run = add_run(ledger, campaign_id=campaign, provenance={"command": [odd]})
    ledger.record_event(campaign, "instruct", "human", {"text": odd})
    add_note(ledger, f"r-{run:04d}", odd, odd)
    assert [(row[1], row[3]) for row in list_notes(ledger).rows] == [("caf?é?!", "caf?é?!")]
    assert ledger.get_run(run).provenance["command"][0].startswith("caf?é?")


def test_a_statement_of_any_bytes_is_answered(file_ledger: Ledger) -> None:
    reader = Ledger(file_ledger.url, read_only=True)
    assert read_sql(reader, "select '\udcff' as x").rows == (("?",),)
    reader.close()


@given(text=st.text(st.characters(codec=None, categories=None) | st.characters(categories=["Cs"])))
def test_a_stored_text_can_be_encoded_and_is_the_same_where_it_could_be_before(text: str) -> None:
    kept = storable(text)
    kept.encode()
    assert storable(kept) == kept
    if "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert kept == text


@given(
    password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6).filter(
        lambda p: p not in "postgresql://me:***@host/db"
    )
)
def test_no_password_of_a_url_is_left_whatever_its_letters(password: str) -> None:
    assert without_password(f"postgresql://me:{password}@host/db") == "postgresql://me:***@host/db"
