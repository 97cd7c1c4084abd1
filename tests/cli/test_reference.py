"""docs/commands.md says what the command line says."""

from __future__ import annotations

import re

import main
from cli.app import app
from cli.reference import FILE, reference


def test_the_command_reference_is_up_to_date() -> None:
    assert FILE.read_text() == reference(), "write it anew with: python -m cli.reference"


def test_every_command_and_every_option_of_the_printed_help_is_in_the_reference(capsys, monkeypatch) -> None:
    """The second truth is the help as a person sees it, command by command."""
    monkeypatch.setenv("COLUMNS", "300")
    text = FILE.read_text()
    seen = 0
    commands = [name for name in app if not name.startswith("-")]
    assert len(commands) > 25
    for name in commands:
        assert main.main([name, "--help"]) == 0
        options = re.findall(
            r"^│ (?:\*  |   )?(?:[A-Z]+ )?(--[a-z][a-z-]+)", capsys.readouterr().out, flags=re.MULTILINE
        )
        seen += len(options)
        chapter = re.search(rf"### `python main.py {name}[ `].*?(?=\n##|\Z)", text, flags=re.DOTALL)
        assert chapter is not None, name
        for option in options:
            shared = option in ("--data-dir", "--ledger", "--json", "--quiet") and "[ledger]" in chapter[0]
            model = (
                option in ("--llm", "--base-url", "--llm-key-env", "--max-usd", "--max-tokens")
                and "[model]" in chapter[0]
            )
            assert shared or model or f"- `{option}`" in chapter[0], f"{name} {option}"
    assert seen > 100
