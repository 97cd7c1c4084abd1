"""What a person sees while a campaign runs: one line for a call and its result, and nothing that a terminal would obey."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from cli.live import LiveView, plain
from experiments.runs.runner import RunProgress

HOSTILE = (
    "[bold red]x[/] \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m \u202eevil \x07\r\n{$x} \x00 [link=file:///]y[/link]"
)


def _shown(*, terminal: bool, width: int = 80) -> str:
    """The output of a few events and a run."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, height=40, highlight=False, color_system="standard" if terminal else None)  # fmt: skip
    view = LiveView(console)
    with view:
        view.on_progress(RunProgress(9, "challenger", "search", "s5", "running", 2560, 6400, 1234.5, -12.3, None))
        view.on_event("llm_call", "Coordinator", "x", {"tokens_so_far": 12_345, "max_tokens": 50_000, "usd_so_far": 0.0123, "max_usd": 2.0})  # fmt: skip
        view.on_event("tool_call", "Meta-Learning", "ledger_query(view=top, arm=null, limit=3)")
        view.on_event("tool_result", "Meta-Learning", "3 rows: run r-0004, score -5")
        view.on_event("agent", "Meta-Learning", HOSTILE + " word" * 60)
        view.on_event("waiting", "workflow", "Waits for approval of round 3. python main.py approve c-0001")
        if terminal:
            assert view._live is not None
            view._live.refresh()
    return out.getvalue()


def test_text_of_a_model_is_shown_as_it_is_and_controls_nothing() -> None:
    assert plain(HOSTILE) == "[bold red]x[/] red 31m evil {$x} [link=file:///]y[/link]"
    for terminal in (True, False):
        shown = _shown(terminal=terminal)
        assert "[bold red]x[/] red" in shown
        assert not {"\x07", "\u202e", "\x00", "\x9b"} & set(shown)
        assert "\x1b]0" not in shown
        assert "\x1b[31m" not in shown


def test_a_call_and_its_result_are_one_line() -> None:
    (line,) = [line for line in _shown(terminal=False).splitlines() if "ledger_query" in line]
    assert line == "Meta-Learning: ledger_query(view=top, limit=3) → 3 rows: run r-0004, score -5"


def test_a_pipe_gets_lines_without_colours_or_redrawing() -> None:
    shown = _shown(terminal=False)
    assert "\x1b" not in shown
    assert "approve c-0001" in shown


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_gets_runs_budgets_and_what_is_waited_for_within_its_width(width: int) -> None:
    from rich.ansi import AnsiDecoder

    shown = _shown(terminal=True, width=width)
    lines = [text.plain for text in AnsiDecoder().decode(shown)]
    assert max(len(line) for line in lines) <= width
    assert any("r-0009" in line and "40 %" in line for line in lines)
    assert any("Waits for approval" in line for line in lines)


def test_what_is_rendered_is_changed_under_the_lock_alone() -> None:
    """Threads that speak, call tools and end runs, while another renders without a pause: no dictionary changes under it."""
    view = LiveView(Console(file=io.StringIO(), force_terminal=True, width=80))
    failed: list[BaseException] = []
    over = threading.Event()

    def render() -> None:
        try:
            while not over.is_set():
                view._render()
        except BaseException as error:
            failed.append(error)

    def speak(number: int) -> None:
        for turn in range(300):
            actor = f"agent {number} {turn}"
            view.on_event("tool_call", actor, "tool(x=1)")
            view.on_event("waiting", actor, "for somebody")
            view.on_event("tool_result", actor, "1 row")

    renderer = threading.Thread(target=render)
    speakers = [threading.Thread(target=speak, args=(number,)) for number in range(3)]
    for thread in (renderer, *speakers):
        thread.start()
    for thread in speakers:
        thread.join()
    over.set()
    renderer.join()
    assert failed == []
    assert view._asked == {}


def test_a_finished_run_says_its_score_in_the_unit_of_its_metric() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, force_terminal=False, width=200, highlight=False))
    for metric, score in (("return_first_episode", -12.34), ("steps_to_-50_first_episode", -123456.0)):
        view.on_progress(RunProgress(9, "challenger", "search", "s5", "done", 6400, 6400, None, None, score, metric))
    assert "s5: done, return -12.3" in out.getvalue()
    assert "s5: done, 123,456 env steps to a return of -50" in out.getvalue()
