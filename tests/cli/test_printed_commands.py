"""Every command that a message names is whole: run as it is printed, it does what it says, on the same ledger."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main
from cli.options import LedgerOptions
from core.words.commands import Invocation, add_to_commands, command, printed_as, quoted
from experiments.ledger import Ledger
from experiments.ledger.models import Campaign
from experiments.ledger.store import file_url
from experiments.runs.paths import CHECKOUT
from experiments.vocabulary import readable_id

PRINTED = re.compile(r"(?:PGPASSWORD=\.\.\. )?python main\.py[^\n]*")
URL = "postgresql+psycopg://me:s3:cr/et@host/db?connect_timeout=1&password=s3cret"


@pytest.fixture
def data(old_ledger, tmp_path: Path) -> Path:
    """A stored small campaign in a data folder whose name a shell would take apart."""
    folder = tmp_path / "it's a $HOME #1?%20"
    folder.mkdir()
    shutil.move(old_ledger("0001"), folder / "ledger.db")
    return folder


def _printed(text: str) -> list[list[str]]:
    """The commands that a text offers, as the words that a shell would pass on; what it quotes in backticks it only tells of."""
    found = []
    for line in PRINTED.findall(re.sub(r"`[^`\n]*`", "", text)):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";,<>")
        lexer.whitespace_split = True
        words = []
        for word in lexer:
            if word[0] in ";,<>":
                break
            words.append(word)
        found.append(words)
    return found


def _call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main.main(words)
    output = capsys.readouterr()
    return code, output.out + output.err


ASKED = {
    "an id that the ledger has not": ["show", "r-9999"],
    "a campaign that the ledger has not": ["show", "c-9999"],
    "a proposal that the ledger has not": ["show", "p-9999"],
    "a claim that the ledger has not": ["show", "k-9999"],
    "a verdict that the ledger has not": ["show", "v-9999"],
    "a word that is no id": ["show", "it's"],
    "a row of another kind": ["rerun", "c-0001"],
    "a run for a campaign": ["report", "r-0001"],
    "a question about no row": ["ask", "c-0001", "why was r-9999 pruned?"],
    "no approval": ["approve", "c-0001"],
    "a model that is unknown": ["--goal", "beat LTSM on point-robot"],
    "a task that is unknown": ["--goal", "beat LSTM on point-robt"],
    "a preset that is unknown": ["run", "--preset", "x"],
    "neither preset nor spec": ["run"],
    "presets": ["list", "presets"],
    "a recording that is none": ["--goal", "beat LSTM on point-robot", "--llm", "replay:x"],
    "an option that is unknown": ["runs", "--where", "x=1"],
    "a tag that is kept": ["tag", "r-0001", "archived"],
    "what can go": ["gc"],
    "a stranger's option": ["show", "r-0001", "--gaol"],
    "models that are missing": ["doctor"],
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_what_an_answer_names_is_run_as_printed_on_the_same_ledger(asked: list[str], data: Path, capsys) -> None:
    if asked == ["gc"]:
        assert _call(capsys, "archive", "r-0001", "--data-dir", str(data))[0] == 0
        (data / "logs").mkdir()
        (data / "logs" / "r-0001.log").write_text("x")
    _, text = _call(capsys, *asked, "--data-dir", str(data))
    commands = _printed(text)
    assert commands or asked[0] == "runs", text
    for words in commands:
        assert words[:2] == ["python", "main.py"]
        if words[2] not in ("list", "--help"):
            assert words[-2:] == ["--data-dir", str(data)], text
        dry = ["--dry-run"] if words[2] in ("rerun", "run", "--goal", "resume") else []
        code, answer = _call(capsys, *words[2:], *dry)
        assert code == (1 if words[2] == "doctor" else 0), answer


def test_a_folder_without_a_ledger_is_given_one_there_by_the_command_that_is_named(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a b"
    code, text = _call(capsys, "runs", "--data-dir", str(folder))
    ((*_, goal, option, named),) = _printed(text)
    assert (code, option, named) == (2, "--data-dir", str(folder))
    assert _call(capsys, "--goal", goal, option, named, "--dry-run", "--env-steps", "20M", "--llm", "offline")[0] == 0


def test_open_campaigns_and_dead_holders_are_answered_with_whole_commands(data: Path, capsys) -> None:
    ledger = Ledger(file_url(data / "ledger.db"))
    campaign = ledger.get_campaign(1)
    values = {
        name: getattr(campaign, name)
        for name in ("goal", "question", "plan", "seed", "llm", "provenance", "created_at")
    }
    holder = {"pid": 2**22 + 1, "host": os.uname().nodename, "since": "2026-01-01T00:00:00", "start": "1"}
    names = [readable_id("c", ledger.add(Campaign(**values, stage="search", status="running", holder=holder)))]
    ledger.record_event(2, "waiting", "workflow", {"key": "stage:search", "what": "the search."})
    ledger.close()
    _, text = _call(capsys, "status", "--data-dir", str(data))
    assert ["resume", *names, "--data-dir", str(data)] in [words[2:] for words in _printed(text)]
    assert ["approve", *names, "--data-dir", str(data)] in [words[2:] for words in _printed(text)]
    code, answer = _call(capsys, "resume", *names, "--data-dir", str(data), "--dry-run")
    assert code == 0, answer
    _, text = _call(capsys, "doctor", "--data-dir", str(data))
    assert ["resume", *names, "--data-dir", str(data)] in [words[2:] for words in _printed(text)]
    _, text = _call(capsys, "pause", "c-0001", "--data-dir", str(data))
    assert not _printed(text)  # it is finished: nothing goes on with it


def test_a_report_names_commands_for_its_own_ledger(data: Path, capsys) -> None:
    _, text = _call(capsys, "report", "c-0001", "--data-dir", str(data), "--json")
    files = json.loads(text)
    page = Path(files["markdown"]).read_text().replace("`", "\n").replace("\\", "")
    page += html.unescape(re.sub("<[^>]*>", "\n", Path(files["html"]).read_text()))
    named = _printed(page)
    assert {"report", "runs", "rerun", "plot"} <= {words[2] for words in named}
    for words in named:
        assert words[-2:] == ["--data-dir", str(data)], words
        dry = ["--dry-run"] if words[2] == "rerun" else []
        code, answer = _call(capsys, *words[2:], *dry)
        assert code == 0 or "the recorded configuration unchanged" in answer, answer


def test_a_password_is_shown_in_no_command_and_its_variable_is_named(capsys) -> None:
    with printed_as(Invocation()):
        LedgerOptions(ledger=URL).name_in_commands()
        text = command("resume", "c-0001")
        assert command("list", "models") == "python main.py list models"
    assert "s3" not in text
    assert (
        text
        == "PGPASSWORD=... python main.py resume c-0001 --ledger 'postgresql+psycopg://me@host/db?connect_timeout=1&'"
    )
    pytest.importorskip("psycopg")
    code, answer = _call(capsys, "runs", "--ledger", URL.replace("host", "127.0.0.1:1"))
    assert code == 2
    assert "s3" not in answer


def test_a_ledger_on_a_server_opens_by_its_printed_url() -> None:
    from sqlalchemy.engine import make_url

    with printed_as(Invocation()):
        LedgerOptions(ledger=URL).name_in_commands()
        printed = shlex.split(command("runs"))[-1]
    given, named = make_url(URL), make_url(printed)
    assert (named.username, named.host, named.database) == (given.username, given.host, given.database)
    assert named.password is None
    assert dict(named.query) == {"connect_timeout": "1"}


def test_plugins_and_places_are_in_every_command_and_only_while_it_lasts() -> None:
    before = command("runs")
    with printed_as(Invocation(("ssm-metarl",))):
        add_to_commands(plugins=("--plugin", "/a b/mgu.py"))
        LedgerOptions(data_dir="-odd", ledger="sqlite:///x", json=True).name_in_commands()
        assert command("runs") == "ssm-metarl runs --data-dir=-odd --ledger sqlite:///x --plugin '/a b/mgu.py'"
        assert command("list", "models") == "ssm-metarl list models --plugin '/a b/mgu.py'"
    assert command("runs") == before == "python main.py runs"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    "name", [b"a b", b"it's", b'say "x"', b"a\nb", b"\xff\xfe", "bidi \u202e".encode(), b"$HOME", b"back\\\n'", b"*"]
)
def test_a_shell_reads_a_printed_name_back_to_the_last_byte(name: bytes) -> None:
    line = quoted(os.fsdecode(name))
    assert line.isprintable()
    heard = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
    assert heard.stdout == name


def test_a_command_is_printed_as_this_program_was_called(tmp_path: Path) -> None:
    call = [sys.executable, str(CHECKOUT / "main.py"), "runs", "--data-dir", "x y"]
    shown = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    words = shlex.split(shown.stderr.partition("Start one with: ")[2])
    assert words[:2] == call[:2]
    again = subprocess.run(
        [*words, "--dry-run", "--env-steps", "20M", "--llm", "offline"], cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
