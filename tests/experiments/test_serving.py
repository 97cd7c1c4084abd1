"""The pages over the ledger: what the commands say, hidden where they hide it, safe to look at, and read-only."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import chromium
import pytest
from sqlalchemy import insert, select, text
from starlette.testclient import TestClient

import main
from core.errors import InputError
from experiments.ledger import Ledger
from experiments.ledger.models import Base
from experiments.serving.drawing import Line, best_line, chart
from experiments.serving.guard import LOOPBACK, OWN, Guarded
from experiments.serving.server import listen
from experiments.serving.site import make_site

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["/", "/runs", "/runs?where=model=lstm&sort=-score", "/c-0001", "/c-0001/space", "/r-0001", "/r-0009", "/p-0001", "/k-0001", "/v-0001",
         "/compare", "/compare?runs=r-0001,r-0003+r-0005", "/list/presets", "/list/models", "/list/tasks", "/list/learners", "/@last"]  # fmt: skip
HOSTILE = "\x1b[31mred \x9b2J \u202eevil\u202c \u2066x\u2069 \ufeff \x7f <script>alert(1)</script> <b onclick='x'> \" ' {{ 7 * 7 }}"


@pytest.fixture
def file(old_ledger) -> Path:
    """The stored small campaign."""
    return old_ledger("0001")


@pytest.fixture
def site(file: Path) -> Iterator[TestClient]:
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    yield _client(ledger)
    ledger.close()


def _client(ledger: Ledger, hosts: Sequence[str] = LOOPBACK, token: str = "", port: int = 8000) -> TestClient:
    guarded = Guarded(make_site(ledger), hosts=hosts, token=token, port=port)
    return TestClient(guarded, base_url="http://localhost", follow_redirects=False)  # type: ignore[arg-type]


def _nearly(number: str) -> float:
    """To nine digits: a database adds in an order of its own."""
    return float(f"{float(number):.9g}")


def _as_json(page: str) -> str:
    return page + ("&" if "?" in page else "?") + "format=json"


def _change(file: Path, *statements: str) -> None:
    """Write past the triggers, as nothing of the program may."""
    with closing(sqlite3.connect(file)) as connection:
        for (trigger,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            connection.execute(f"drop trigger {trigger}")
        for statement in statements:
            connection.execute(statement, [HOSTILE] * statement.count("?"))
        connection.commit()


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_there_and_as_json_too_under_a_strict_policy(page: str, site: TestClient) -> None:
    answer = site.get(page)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), answer.text
    assert {name: answer.headers[name] for name in OWN} == OWN
    assert not re.search(r'style="|<style|<script>|\son\w+=|(src|href)="(?!/|\?|#)', answer.text)
    path, _, query = page.partition("?")
    both = [site.get(_as_json(page)), site.get(f"{path if path != '/' else '/index'}.json?{query}")]
    assert [one.headers["content-type"] for one in both] == ["application/json"] * 2
    assert both[1].json()


@pytest.mark.parametrize(("page", "name", "words"), [
    ("/c-0001", "show", ["show", "c-0001"]), ("/c-0001", "resume", ["resume", "c-0001", "--dry-run"]),
    ("/c-0001", "transcript", ["transcript", "c-0001"]), ("/c-0001", "runs", ["runs", "--campaign", "c-0001"]),
    ("/r-0009", "show", ["show", "r-0009"]), ("/v-0001", "show", ["show", "v-0001"]), ("/index", "campaigns", ["campaigns"]),
    ("/index", "status", ["status"]), ("/list/models", "list", ["list", "models"]),
])  # fmt: skip
def test_a_page_holds_what_the_command_prints_as_json(page: str, name: str, words: list[str], site: TestClient, file: Path, capsys) -> None:  # fmt: skip
    assert main.main([*words, "--json", "--ledger", f"sqlite:///{file}"]) == 0
    assert site.get(f"{page}.json").json()[name] == json.loads(capsys.readouterr().out)


def test_a_page_shows_no_score_of_a_confirmation_run_before_its_verdict(file: Path) -> None:
    scores = "update runs set score = -7000 - id where pool = 'confirmation'"
    values = "update evals set value = -7000 - run_id where pool = 'confirmation'"
    looks = "insert into metrics (run_id, name, env_steps, value, kind) select id, 'eval/return', env_steps, -7000 - id, 'finite' from runs where pool = 'confirmation'"
    _change(file, scores, values, looks)
    pages = [
        *PAGES,
        *(f"/r-{number:04d}" for number in range(8, 18)),
        "/compare?runs=r-0008,r-0009",
        "/runs?sort=-score",
    ]
    ledger = Ledger(f"sqlite:///{file}", read_only=True)

    def seen(pages: list[str]) -> list[str]:
        site = _client(ledger)
        return [
            page for page in pages if re.search(r"-7,?0[01]\d\b", site.get(page).text + site.get(_as_json(page)).text)
        ]

    judged = ["/c-0001", "/r-0008", "/k-0001", "/compare?runs=r-0008,r-0009"]
    assert seen(judged) == judged
    _change(file, "delete from verdicts", "update campaigns set stage = 'confirmation'")
    assert seen(pages) == []
    assert "score is not shown before the verdict" in _client(ledger).get("/r-0008").text
    refused = _client(ledger).get("/compare?runs=r-0008,r-0009")
    assert (refused.status_code, "before the verdict on" in refused.text) == (404, True)
    ledger.close()


def test_text_of_anybody_is_neither_markup_nor_obeyed(file: Path) -> None:
    _change(
        file,
        "update campaigns set goal = ?, narrative = ?, llm = ?, question = json_set(question, '$.goal', ?), stage = 'search'",
        "update runs set proposer = ?, cause = ?, model = ?",
        "update proposals set reason = ?, predicted_effect = ?",
        "update verdicts set reason = ?, content = json_set(content, '$.reason', ?)",
        "update claims set content = json_set(content, '$.hypothesis', ?)",
        "insert into notes (target, author, text, created_at) values ('r-0001', ?, ?, '2026-01-01 00:00:00')",
        "insert into events (campaign_id, kind, actor, payload, created_at) values (1, 'agent', ?, json_object('text', ?, 'to', ?), '2026-01-01 00:00:00')",
    )
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    site = _client(ledger)
    typed = quote(HOSTILE, safe="")
    for page in [
        *PAGES,
        f"/{typed}",
        f"/compare?runs={typed}",
        f"/runs?where={typed}",
        f"/runs?campaign={typed}",
    ]:
        for asked in (page, _as_json(page)):
            shown = site.get(asked).text
            assert {c for c in shown if not c.isprintable() and c not in "\n\t"} == set(), page
            assert asked != page or ("<script>" not in shown and "<b onclick" not in shown), page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in site.get("/c-0001").text
    ledger.close()


@pytest.mark.parametrize("page", ["/r-9999", "/c-0042", "/nonsense", "/a/b/c", "/list/nothing", "/static/../server.py", "/runs?limit=0", "/runs?where=moodel=x"])  # fmt: skip
def test_what_is_not_there_is_one_sentence(page: str, site: TestClient) -> None:
    answer = site.get(page)
    assert answer.status_code == 404
    assert answer.text.count('class="said"') == 1
    if page == "/r-9999":
        assert "The nearest is" in answer.text
        assert "main.py runs" in answer.text


def test_nothing_can_be_sent_to_a_page(site: TestClient) -> None:
    assert {site.request(method, "/c-0001").status_code for method in ("POST", "PUT", "DELETE", "PATCH")} == {405}
    assert site.head("/c-0001").status_code == 200


@pytest.mark.parametrize(("host", "code"), [
    ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:1", 200), ("[::1]:8000", 200), ("LOCALHOST", 200), ("evil.example", 421),
    ("evil.example:8000", 421), ("localhost.evil.example", 421), ("", 421), ("127.0.0.1.nip.io", 421), ("<script>", 421),
])  # fmt: skip
def test_a_name_that_was_given_this_machines_address_is_refused(host: str, code: int, site: TestClient) -> None:
    answer = site.get("/", headers={"host": host})
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (code, "nosniff")


def test_with_a_token_a_page_is_for_who_has_it_alone(file: Path) -> None:
    ledger = Ledger(f"sqlite:///{file}", read_only=True)
    site = _client(ledger, token="secret-word", hosts=(), port=8000)
    tries = [
        {},
        {"params": {"token": "secret-wor"}},
        {"headers": {"authorization": "Bearer no"}},
        {"headers": {"cookie": "serve-8000=\u00e9".encode()}},
    ]
    assert [site.get("/c-0001", **one).status_code for one in tries] == [401] * 4  # type: ignore[arg-type]
    assert site.get("/c-0001", headers={"authorization": "Bearer secret-word"}).status_code == 200
    moved = site.get("http://localhost//evil.example", params={"token": "secret-word", "format": "json"})
    assert (moved.status_code, moved.headers["location"]) == (303, "/evil.example?format=json")
    assert {"httponly", "samesite=strict"} <= set(moved.headers["set-cookie"].lower().split("; "))
    assert site.get("/c-0001").status_code == 200  # with the cookie
    assert "secret-word" not in site.get("/c-0001").text
    ledger.close()


def test_sqlite_and_postgresql_give_the_same_pages(file: Path, ledger: Ledger, ledger_url: str) -> None:
    stored = Ledger(f"sqlite:///{file}", read_only=True)
    with stored.engine.connect() as source, ledger.engine.begin() as target:
        if ledger.backend == "postgresql":
            target.execute(text("set session_replication_role = replica"))  # a finished run takes no numbers
        else:
            for (trigger,) in target.execute(text("select name from sqlite_master where type = 'trigger'")).all():
                target.execute(text(f"drop trigger {trigger}"))
        for table in Base.metadata.sorted_tables:
            rows = [dict(row) for row in source.execute(select(table)).mappings()]
            if rows:
                target.execute(insert(table), rows)
    copied = Ledger(ledger_url, read_only=True)
    for page in ("/", "/c-0001", "/r-0009", "/k-0001", "/v-0001", "/runs", "/compare?runs=r-0001,r-0003"):
        one, other = (_client(each).get(_as_json(page)).json(parse_float=_nearly) for each in (stored, copied))
        assert "error" not in one
        assert one == other, page
    with pytest.raises(InputError, match="read"):
        copied.add_note("r-0001", "x", "y")
    stored.close()
    copied.close()


def test_an_address_that_cannot_be_taken_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for host, number, with_token, said in (
            ("127.0.0.1", port, False, "another program listens there"),
            ("127.0.0.1", 65536, False, "allowed: 0"),
            ("127.0.0.1", -1, False, "allowed: 0"),
            ("nowhere.invalid", 0, False, "an address of this machine"),
            ("0.0.0.0", 0, False, "add --token"),
            ("::", 0, False, "add --token"),
            ("192.0.2.1", 0, True, "cannot listen there"),
        ):
            with pytest.raises(InputError, match=re.escape(said)):
                listen(host, number, with_token=with_token)
    with closing(listen("0.0.0.0", 0, with_token=True).socket) as opened:
        assert opened.getsockname()[1] > 0


def test_the_best_so_far_never_falls_and_ends_at_the_best() -> None:
    corners = best_line([(1.0, -3.0), (2.0, -5.0), (3.0, -1.0), (4.0, -2.0)])
    assert corners == [(1.0, -3.0), (2.0, -3.0), (3.0, -3.0), (3.0, -1.0), (4.0, -1.0)]


def test_a_chart_has_its_points_where_its_axes_say() -> None:
    drawn = str(chart([Line("a <b>", [(0.0, 0.0), (float("nan"), 1.0), (50.0, 5.0), (100.0, 10.0)], 0)], x="x", y="y"))
    (line,) = re.findall(r'<polyline class="c0" points="([^"]+)"/>', drawn)
    low, middle, high = (tuple(map(float, point.split(","))) for point in line.split())
    assert middle == pytest.approx(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2), abs=0.1)
    heights = {float(y): float(at) - 4 for at, y in re.findall(r'<text class="end" x="[\d.]+" y="([\d.]+)">([-\d.]+)</text>', drawn) for at, y in [(at, y)]}  # fmt: skip
    assert (heights[0.0], heights[10.0]) == pytest.approx((low[1], high[1]), abs=0.1)
    assert "a &lt;b&gt;" in drawn
    assert str(chart([], x="x", y="y")) == ""


# ---- the command, as a process of its own, and a browser ----------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `serve` shows a campaign that is not finished, as a process that Ctrl-C ends without a word."""
    import gzip

    data = tmp_path_factory.mktemp("served")
    dump = gzip.decompress((ROOT / "tests/experiments/data/ledger_0001.sql.gz").read_bytes()).decode()
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        connection.executescript(dump)
        connection.execute("pragma journal_mode = wal")
    _change(
        data / "ledger.db", "delete from verdicts", "update campaigns set stage = 'confirmation', status = 'paused'"
    )
    shutil.copy(data / "ledger.db", data / "before.db")
    command = [sys.executable, str(ROOT / "main.py"), "serve", "--port", "0", "--quiet", "--data-dir", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest, said) == (0, "", "")


needs_chromium = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="Chromium is not installed: apt-get install -y chromium"
)


@needs_chromium
def test_every_page_fits_a_phone_and_a_desk_and_its_console_stays_empty(address: str) -> None:
    with chromium.open_browser() as browser:
        for page in [
            "",
            "c-0001",
            "r-0001",
            "r-0009",
            "k-0001",
            "compare?runs=r-0001,r-0003",
            "runs",
            "list/presets",
            "c-0001/space",
        ]:
            for width in (390, 1200):
                browser.open(address + page, width=width, dark=width < 600)
                size = browser.evaluate(
                    "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor, document.title]"
                )
                assert size[0] <= width, (page, size)
                assert size[1] == ("rgb(18, 23, 27)" if width < 600 else "rgb(255, 255, 255)")
                assert size[2]
        browser.open(address + "c-0001", width=390)
        live = """(async () => {
            document.querySelector("details").open = true;
            document.querySelector("h1").textContent = "changed meanwhile";
            await refresh();
            return [document.querySelector("h1").textContent, document.querySelector("details").open];
        })()"""
        assert browser.evaluate(live) == ["beat LSTM on point-robot", True]
        assert browser.complaints == []
        browser.open(address + "r-9999", width=390)
        assert "The nearest is" in browser.evaluate("document.querySelector('.said').textContent")
