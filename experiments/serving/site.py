"""The pages as a web application that reads a ledger: its routes, and how text becomes HTML.

Everything from rows goes through `harmless` and Jinja's escaping; the only text that is trusted is markup of `drawing.py` and
`linked`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import InputError
from core.words.commands import command
from core.words.text import escape_json, harmless, plain
from experiments.ledger.ids import ROW_ID
from experiments.ledger.store import Ledger, LedgerError, write_json
from experiments.serving import pages
from experiments.serving.pages import Page
from experiments.tables import cell, flatten, named_cell, plain_data

TEMPLATES = Path(__file__).parent / "templates"
STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
MOST_LISTED = 1000
SHORT = 24  # characters of a cell


def make_site(ledger: Ledger) -> Starlette:
    """The pages over a ledger that was opened read-only; who may see them is decided by `experiments/serving/guard.py`."""
    show = _Renderer(ledger)
    made: dict[str, Callable[[Request], Page]] = {
        "/runs": lambda request: _runs(ledger, request),
        "/compare": lambda request: pages.compare(ledger, _compared(request)),
        "/list/{what}": lambda request: pages.registered(request.path_params["what"]),
        "/{id}/space": lambda request: pages.space(ledger, request.path_params["id"]),
        "/{id}": lambda request: pages.row(ledger, request.path_params["id"]),
    }
    routes = [Route(path, show.endpoint(lambda request: pages.front(ledger))) for path in ("/", "/index.json")]
    routes.append(Route("/static/{name}", _static))
    routes += [Route(path + suffix, show.endpoint(make)) for path, make in made.items() for suffix in (".json", "")]
    return Starlette(routes=routes, exception_handlers={HTTPException: show.refusal, Exception: show.fault})


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    made.filters |= {"linked": linked, "value": shown_value, "flat": flatten, "column": _column}
    made.tests |= {"amounts": _are_amounts, "short": _are_short}
    return made


class _Renderer:
    """Pages as HTML or, where asked, as JSON."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def endpoint(self, make: Callable[[Request], Page]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                page = make(request)
            except LedgerError as error:
                return self._said(request, 503, str(error))
            except InputError as error:
                return self._said(request, 404, str(error))
            if _wants_json(request):
                return _json(page.as_json())
            return self._html(page, urlencode([*request.query_params.multi_items(), ("format", "json")]))

        return answer

    def refusal(self, request: Request, error: Exception) -> Response:
        """For what has no page, or a method that only a form of somebody else would use."""
        code = error.status_code if isinstance(error, HTTPException) else 500
        words = f"There is no page {request.url.path!r}." if code == 404 else "These pages are read and nothing else."
        return self._said(request, code, f"{words} Campaigns are listed at /.")

    def fault(self, request: Request, error: Exception) -> Response:
        return self._said(request, 500, f"This page could not be made ({type(error).__name__}). See: {command('doctor')}")  # fmt: skip

    def _said(self, request: Request, code: int, words: str) -> Response:
        """One sentence in place of a page."""
        if _wants_json(request):
            return _json({"error": words}, code)
        page = Page("said.html.j2", "Not here" if code == 404 else "Not now", {}, {"words": words})
        return self._html(page, "", code)

    def _html(self, page: Page, json_query: str, code: int = 200) -> Response:
        given = {"page": page, "json_query": json_query, "place": self.ledger.place, "listed": pages.LISTED}
        html = _templates().get_template(page.template).render(given | dict(page.views) | dict(page.shown))
        return Response(html, code, media_type="text/html")


def _wants_json(request: Request) -> bool:
    return request.query_params.get("format") == "json" or request.url.path.endswith(".json")


def _json(value: Any, code: int = 200) -> Response:
    text = escape_json(write_json(plain_data(value), indent=2, default=str))
    return Response(text + "\n", code, media_type="application/json")


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    return Response((TEMPLATES / name).read_bytes(), media_type=STATIC[name])


# ---- what is asked for --------------------------------------------------------------------------------------------


def _runs(ledger: Ledger, request: Request) -> Page:
    asked = request.query_params
    limit = asked.get("limit") or "100"
    if not re.fullmatch("[0-9]{1,4}", limit) or not 1 <= int(limit) <= MOST_LISTED:
        raise InputError(f"limit: got {limit!r}, allowed: 1 to {MOST_LISTED}")
    campaign, where, sort = (asked.get(name, "").strip() for name in ("campaign", "where", "sort"))
    return pages.runs(ledger, campaign=campaign, where=where, sort=sort, limit=int(limit))


def _compared(request: Request) -> list[str]:
    """The runs of `?runs=r-0001,r-0008` or `?run=r-0001&run=r-0008`."""
    words = [*request.query_params.getlist("runs"), *request.query_params.getlist("run")]
    return [name for word in words for name in re.split(r"[\s,]+", word) if name]


# ---- text -> HTML -------------------------------------------------------------------------------------------------


def _finalized(value: Any) -> Any:
    """Every value that a template prints: none of it can be obeyed by whoever shows the page's source, or turn text around."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else harmless(value, lines=True)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _are_amounts(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers, which stand to the right."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def _are_short(values: Sequence[Any]) -> bool:
    """Whether no cell of a column need be broken into lines."""
    return all(len(cell(value)) <= SHORT for value in values)


def linked(text: Any) -> Markup:
    """Text of anybody with the ids in it as links to their rows."""
    words = harmless(str(text), lines=True)
    parts, end = [], 0
    for match in ROW_ID.finditer(words):
        if "-" not in match[0]:  # such as the v1 of a task's version
            continue
        row = f"{match[1].lower()}-{match[2].lstrip('0'):0>4}"
        parts += [escape(words[end : match.start()]), Markup('<a href="/{}">{}</a>').format(row, match[0])]
        end = match.end()
    return Markup("").join([*parts, escape(words[end:])])


def shown_value(value: Any, name: str = "") -> Markup:
    """A value of a row as a person reads it: the same text as in a terminal, ids as links."""
    if isinstance(value, datetime):
        return Markup("{}").format(value.strftime("%Y-%m-%d %H:%M:%S UTC"))
    if isinstance(value, list | tuple):
        return Markup(", ").join(shown_value(item, name) for item in value)
    if isinstance(value, Mapping):
        pairs = [f"{key} {plain(named_cell(str(key), item))}" for key, item in flatten(dict(value)).items()]
        return linked(", ".join(pairs))
    if isinstance(value, float) and not math.isfinite(value):
        return Markup("{}").format(str(value))
    return linked(named_cell(name, value)) if isinstance(value, int | float) else linked(cell(value))
