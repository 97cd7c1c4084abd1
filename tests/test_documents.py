"""What the documents say is so: links lead somewhere, commands parse, code compiles, queries run, references are what the code says."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import main
from cli import former
from cli.app import app
from cli.field_reference import FOLDER, PAGES, field_reference
from core.plugins import OPTION, plugins_from
from core.sequence_model import MODELS
from experiments.campaign.question import parse_goals
from experiments.ledger import Ledger
from experiments.ledger.filters import parse_where
from experiments.ledger.models import Base
from experiments.ledger.read_sql import read_sql
from experiments.ledger.store import file_url
from experiments.presets import named_preset
from experiments.search.side import Recorded
from experiments.spec import set_fields
from meta_rl.learner import LEARNERS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GENERATED = (DOCS / "commands.md", DOCS / "reference" / "configuration.md", DOCS / "reference" / "model-fields.md")
PAGES_OF_DOCS = sorted(DOCS.rglob("*.md"))
TELLING = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *(page for page in PAGES_OF_DOCS if page not in GENERATED)]  # fmt: skip
EVERY = [*sorted(ROOT.glob("*.md")), ROOT / "saved_models" / "README.md", *PAGES_OF_DOCS]
BY_NEED = [
    page for page in PAGES_OF_DOCS if page.parent.name != "design" and page.stem not in ("commands", "benchmarks")
]
PLACEHOLDER = re.compile(r"[A-Z]{1,}(?:[._][A-Z]+)*|\.\.\.|\[.*|.*path/to/.*|my_\w+\.py.*")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in any of these languages."""
    return [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) if language in languages]  # fmt: skip


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", EVERY, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):  # fmt: skip
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if target.is_file() and anchor else []
        if not target.exists() or (anchor and anchor not in map(_anchor, headings)):
            wrong.append(link)
    assert wrong == []


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    missing = [name_of(page) for page in PAGES_OF_DOCS if page.parent.name != "design" and page.name != "README.md" and f"({page.relative_to(DOCS)})" not in index]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("page", BY_NEED, ids=name_of)
def test_a_page_is_short(page: Path) -> None:
    assert page.read_text().count("\n") <= 150


# ---- commands -----------------------------------------------------------------------------------------------------


def _commands(page: Path) -> Iterator[list[str]]:
    """The words behind `python main.py` in code blocks and in `code`, without those that are only a pattern."""
    text = page.read_text()
    lines = [line for code in blocks(page, "sh", "bash") for line in code.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`((?:python main\.py|ssm-metarl) [^`]+)`", rest)]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|<>();")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word[0] not in "&|<>();":
                words.append(word)
                continue
            while words and re.fullmatch(r"nice|-n|\d+|[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words[:2] == ["python", "main.py"] or words[:1] == ["ssm-metarl"]:
                yield words[2 if words[0] == "python" else 1 :]
            words = []


def _recorded(name: str) -> Recorded:
    return Recorded(run=name, spec=named_preset("halfcheetah-vel.lstm").model_dump(mode="json"))


def _check(words: list[str]) -> None:
    """Raises what the command line would answer with, where it would refuse these words; nothing is run."""
    named = [words[place + 1] for place, word in enumerate(words) if word == OPTION]
    if any(PLACEHOLDER.fullmatch(plugin) for plugin in named):
        return
    words, _ = plugins_from(words)
    if not words or words[-1] == "--help":
        return
    _, bound, _ = app.parse_args(former.with_former_first(words), exit_on_error=False, print_error=False)
    given: dict[str, Any] = dict(bound.arguments)
    if words[0] == "bench":
        files = [*(ROOT / "experiments" / "bench").glob("*.py"), *(ROOT / "examples" / "plugins").glob("*.py")]
        (source,) = (text for text in (file.read_text() for file in files) if f'@register_bench("{words[1]}")' in text)
        assert [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in source] == []
    if given.get("goal", "...") != "...":
        parse_goals(given["goal"], _recorded)
    if isinstance(given.get("where"), str):
        parse_where(given["where"], lambda *_: 1)
    if given.get("preset") and not PLACEHOLDER.fullmatch(given["preset"].split(".")[0]):
        changes = dict(change.split("=", 1) for change in given.get("set") or [])
        set_fields(named_preset(given["preset"], given.get("learner")), changes)


@pytest.mark.parametrize("page", TELLING, ids=name_of)
def test_every_command_of_a_page_is_one_that_the_command_line_takes(
    page: Path, plugins_loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    refused = {}
    for words in _commands(page):
        if any(PLACEHOLDER.fullmatch(word) for word in words if word != "...") and words[0] != "--goal":
            continue
        try:
            if words[1:] in ([], ["..."]) and words[0] in app:  # a command that is only named
                continue
            _check(list(words))
        except Exception as error:
            refused[" ".join(words)] = str(error)
        plugins_loaded.forget()
    assert refused == {}


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for words in ("runs --wher x", "run --preset point-robot.lsmt", "--goal nothing", "bench env --quik", "runs --where x=1"):  # fmt: skip
        with pytest.raises(Exception, match=r"."):
            _check(words.split())


# ---- code ---------------------------------------------------------------------------------------------------------

PYTHON = [(page, code) for page in TELLING for code in blocks(page, "python") if not code.startswith("# examples/")]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[f"{name_of(page)}-{n}" for n, (page, _) in enumerate(PYTHON)])
def test_a_python_snippet_compiles_and_a_short_one_runs(
    page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins_loaded
) -> None:
    compiled = compile(code, name_of(page), "exec")
    if not code.startswith("# trains"):
        monkeypatch.chdir(tmp_path)
        exec(compiled, {"__name__": "snippet"})


# ---- references ---------------------------------------------------------------------------------------------------


def test_every_metric_that_a_learner_logs_is_on_its_page_and_no_other() -> None:
    logged = re.compile(r"(?:rollout|train|time|rung|eval)/[a-z_]+")
    files = [*(ROOT / "meta_rl").glob("*.py"), ROOT / "experiments/runs/runner.py", ROOT / "experiments/metrics.py"]
    in_code = {name for file in files for name in re.findall(rf'"({logged.pattern})"', file.read_text())}
    assert set(re.findall(rf"`({logged.pattern})`", (DOCS / "learners.md").read_text())) == in_code


def test_every_model_and_learner_of_the_tree_has_its_place() -> None:
    for page, registry in (("models.md", MODELS), ("learners.md", LEARNERS)):
        text = (DOCS / page).read_text()
        assert [name for name in registry if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_reference_of_fields_is_up_to_date(page: str) -> None:
    assert (FOLDER / page).read_text() == field_reference(page), "write it anew with: python -m cli.field_reference"


TYPES = {int: "int", float: "float", bool: "bool", str: "text"}


def test_the_reference_of_the_ledger_has_every_table_and_column_with_its_type() -> None:
    said: dict[str, dict[str, str]] = {}
    for line in (DOCS / "reference" / "ledger.md").read_text().splitlines():
        if line.startswith("## "):
            table = said.setdefault(line[3:].partition(":")[0], {})
        elif line.startswith("| `"):
            names, types = (cell.strip() for cell in line.strip("|").split("|")[:2])
            table |= dict(zip(re.findall(r"`(\w+)`", names), types.split(", "), strict=True))
    expected = {
        table.name: {column.name: _column_type(column) + "?" * bool(column.nullable) for column in table.columns}
        for table in Base.metadata.sorted_tables
    }
    assert said == expected


def _column_type(column: Any) -> str:
    kind = column.type.python_type if type(column.type).__name__ not in ("JSON", "Moment") else None
    return TYPES[kind] if kind else {"JSON": "json", "Moment": "moment"}[type(column.type).__name__]


def test_every_query_of_the_reference_runs_on_a_recorded_campaign(old_ledger) -> None:
    queries = blocks(DOCS / "reference" / "queries.md", "sql")
    assert len(queries) > 10
    with closing(Ledger(file_url(old_ledger("0001")), read_only=True)) as ledger:
        for query in queries:
            found = read_sql(ledger, query)
            assert found.rows or "queued" in query, query
            assert all(value is not None for row in found.rows[:1] for value in row), query


def test_every_filter_of_the_reference_runs_on_a_recorded_campaign(old_ledger, tmp_path: Path, capsys) -> None:
    shutil.move(old_ledger("0001"), tmp_path / "ledger.db")
    commands = list(_commands(DOCS / "reference" / "queries.md"))
    assert len(commands) > 7
    for words in commands:
        assert main.main([*words, "--data-dir", str(tmp_path)]) == 0, words
