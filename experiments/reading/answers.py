"""Answers to a person's questions about one campaign, from read-only SQL, with the ids of the rows they rest on.

No language model is needed: the questions that this file understands are listed in `CAN`. Each is answered by a few
select statements, which the answer names. The score of a confirmation run stays hidden until the verdict.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from typing import Any

from core.config import FrozenConfig
from core.errors import InputError
from core.words.commands import command
from experiments.ledger.ids import LARGEST, named_rows
from experiments.ledger.read_sql import read_sql
from experiments.ledger.store import Ledger, readable_id
from experiments.numbers import format_count, format_seconds
from experiments.tables import flatten

CAN = (
    'why a run failed, diverged, was pruned or is slow ("why was r-0042 pruned?")',
    'who proposed a run and why ("who proposed r-0042?")',
    'what is best ("what is the best configuration?")',
    'what changed between two runs ("what changed between r-0003 and r-0042?")',
    "what failed",
    "how much is spent",
    "what happens now",
    "what the verdict is",
)
TABLES = {"r": "runs", "c": "campaigns", "p": "proposals", "k": "claims", "v": "verdicts"}
RUN = (
    "select r.id, r.campaign_id, r.purpose, r.pool, r.arm, r.trial, r.proposer, r.model, r.parameters, r.seed, r.status, "
    "r.cause, r.env_steps, r.train_s, r.wall_s, r.spec, case when r.pool = 'confirmation' and not exists "
    "(select 1 from verdicts v where v.claim_id = r.claim_id) then null else r.score end as score from runs r"
)
ENDS = {"pruned", "diverged", "failed", "timeout", "crashed", "cancelled"}


class Answer(FrozenConfig):
    """Words, the rows that they rest on, and the statements that found them."""

    text: str
    rows: tuple[str, ...]
    statements: tuple[str, ...]
    by: str = "code"
    """Who answered: code, or the name of a chat model."""


def answer(ledger: Ledger, campaign: int, question: str) -> Answer:
    """The answer to `question` about a campaign. ledger: opened read-only. InputError for an id that is not there."""
    return _Answerer(ledger, campaign).answer(question)


def known_ids(ledger: Ledger, text: str) -> tuple[list[str], list[str]]:
    """(ids in `text` that name a row of the ledger, ids that name none), in order and once each."""
    known: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for row_id in named_rows(text):
        letter, _, digits = row_id.partition("-")
        fits = len(digits) < 20 and int(digits) <= LARGEST
        stored = fits and read_sql(ledger, f"select 1 from {TABLES[letter]} where id = {int(digits)}").rows
        (known if stored else unknown)[row_id] = None
    return list(known), list(unknown)


class _Answerer:
    def __init__(self, ledger: Ledger, campaign: int) -> None:
        self.ledger, self.campaign = ledger, campaign
        self.statements: list[str] = []
        self.rows: dict[str, None] = {}

    def select(self, statement: str) -> list[dict[str, Any]]:
        self.statements.append(statement)
        return read_sql(self.ledger, statement).records()

    def cite(self, letter: str, number: Any) -> str:
        name = readable_id(letter, int(number))
        self.rows[name] = None
        return name

    def answer(self, question: str) -> Answer:
        words = question.lower()
        named, missing = known_ids(self.ledger, question)
        if missing:
            raise InputError(f"the ledger has no {missing[0]}. List its rows: {command('runs')}")
        runs = [int(name[2:]) for name in named if name.startswith("r-")]
        text = self._choose(words, runs)
        return Answer(text=text, rows=tuple(self.rows), statements=tuple(self.statements))

    def _choose(self, words: str, runs: list[int]) -> str:
        def says(*stems: str) -> bool:
            return any(re.search(rf"\b{stem}", words) for stem in stems)

        choices: list[tuple[bool, Callable[[], str]]] = [
            (len(runs) >= 2, lambda: self.changed(runs[0], runs[1])),
            (len(runs) == 1 and says("change", "differ"), lambda: self.changed_from_default(runs[0])),
            (len(runs) == 1 and says("who", "propos", "reason"), lambda: self.proposed(runs[0])),
            (len(runs) == 1, lambda: self.why(runs[0], slow=says("slow", "long", "fast"))),
            (says("best", "incumbent", "winn", "lead"), self.best),
            (says("spen[dt]", "cost", "budget", "token", "dollar", "usd", "money"), self.spent),
            (says("fail", "crash", "diverg", "prun", "wrong", "error"), self.failures),
            (says("verdict", "confirm", "refut", "outcome", "result", "conclu", "claim"), self.verdict),
            (says("now", "status", "stage", "doing", "happen", "wait", "running", "progress", "left"), self.now),
        ]
        for fits, make in choices:
            if fits:
                return make()
        return "This question is not understood without a chat model (--llm). It can be asked:\n- " + "\n- ".join(CAN)

    def run(self, number: int) -> dict[str, Any]:
        (row,) = self.select(f"{RUN} where r.id = {number}")
        self.cite("r", number)
        return row

    def why(self, number: int, *, slow: bool) -> str:
        run = self.run(number)
        name = readable_id("r", number)
        planned = json.loads(run["spec"])["env_steps"]
        parts = [f"{name} ({run['purpose']}, {run['arm'] or 'no arm'}, {run['model']}) is {run['status']}"]
        if run["cause"]:
            parts[0] += f": {str(run['cause']).strip().splitlines()[-1][:400].rstrip('.')}"
        parts[0] += "."
        parts.append(f"It trained {format_count(run['env_steps'])} of {format_count(planned)} env steps.")
        if run["score"] is not None:
            parts.append(f"Its score is {run['score']:.4g}.")
        if run["status"] in ENDS:
            parts += self._last_metrics(number)
        if slow or run["status"] == "timeout":
            parts.append(self._speed(run))
        if run["status"] in ENDS:
            parts.append(self._same_model(run))
        if run["trial"] is not None:
            parts.append(self._proposals(run))
        return " ".join(filter(None, parts))

    def _last_metrics(self, number: int) -> list[str]:
        rows = self.select(
            f"select name, env_steps, value, kind from metrics where run_id = {number} and name = 'rollout/ep_rew_mean' "
            "order by env_steps desc limit 2"
        )
        broken = self.select(
            f"select name, min(env_steps) as env_steps from metrics where run_id = {number} and kind <> 'finite' "
            "group by name order by 2, 1 limit 4"
        )
        said = []
        rungs = self.select(
            f"select env_steps, value from metrics where run_id = {number} and name = 'rung/score' order by env_steps"
        )
        if rungs:
            listed = ", ".join(f"{'not finite' if r['value'] is None else format(r['value'], '.4g')} after {format_count(r['env_steps'])} steps" for r in rungs)  # fmt: skip
            said.append(f"Scores at its rungs: {listed}.")
        if rows:
            values = " then ".join("not finite" if r["value"] is None else f"{r['value']:.4g}" for r in rows[::-1])
            said.append(f"Its training return ended with {values} (at {format_count(rows[0]['env_steps'])} steps).")
        if broken:
            listed = ", ".join(f"{r['name']} from {format_count(r['env_steps'])} steps on" for r in broken)
            said.append(f"Not finite: {listed}.")
        return said

    def _speed(self, run: dict[str, Any]) -> str:
        others = self.select(
            f"select id, model, env_steps, train_s from runs where campaign_id = {run['campaign_id'] or 0} and status = 'done' "
            f"and train_s > 0 and id <> {run['id']}"
        )
        if not run["train_s"] or not others:
            return "There is no other finished run to compare its speed with." if run["train_s"] else ""
        own = run["env_steps"] / run["train_s"]
        usual = statistics.median(o["env_steps"] / o["train_s"] for o in others)
        same = [o for o in others if o["model"] == run["model"]]
        text = f"It trained {own:,.0f} env steps/s; the median of {len(others)} other finished runs is {usual:,.0f}"
        if same:
            text += f", of the {len(same)} with {run['model']} {statistics.median(o['env_steps'] / o['train_s'] for o in same):,.0f}"  # fmt: skip
        return text + "."

    def _same_model(self, run: dict[str, Any]) -> str:
        if run["campaign_id"] is None:
            return ""
        rows = self.select(
            f"select id from runs where campaign_id = {run['campaign_id']} and model = '{run['model']}' "
            f"and status = '{run['status']}' and id <> {run['id']} order by id limit 5"
        )
        listed = ", ".join(self.cite("r", r["id"]) for r in rows)
        return f"The same happened to {run['model']} in {listed}." if rows else ""

    def proposed(self, number: int) -> str:
        run = self.run(number)
        name = readable_id("r", number)
        if run["campaign_id"] is None:
            return f"{name} was started by hand ({run['proposer']})."
        words = self._proposals(run)
        return f"{name} is trial {run['trial']} of the {run['arm']}, proposed by {run['proposer']}. {words}".strip()

    def _proposals(self, run: dict[str, Any]) -> str:
        if run["trial"] is None or run["campaign_id"] is None:
            return ""
        rows = self.select(
            f"select id, role, source, reason, predicted_effect, evidence from proposals where campaign_id = "
            f"{run['campaign_id']} and arm = '{run['arm']}' and trial = {run['trial']} and not superseded order by id"
        )
        said = []
        for row in rows:
            text = f"{self.cite('p', row['id'])}: {row['role']} took it from {'its own judgement' if row['source'] == 'agent' else 'the ' + row['source']}"  # fmt: skip
            if row["reason"]:
                text += f', because "{str(row["reason"])[:240]}"'
            if row["predicted_effect"] and row["source"] == "agent":
                text += f', expecting "{str(row["predicted_effect"])[:160]}"'
            evidence = row["evidence"] if isinstance(row["evidence"], list) else json.loads(row["evidence"] or "[]")
            if evidence:
                text += f", on {', '.join(map(str, evidence[:6]))}"
            said.append(text)
        return "Proposals: " + "; ".join(said) + "." if said else ""

    def changed(self, first: int, second: int) -> str:
        a, b = self.run(first), self.run(second)
        left, right = (flatten(json.loads(run["spec"])) for run in (a, b))
        differing = [k for k in sorted(left.keys() | right.keys()) if left.get(k) != right.get(k)]
        listed = "; ".join(f"{k} from {left.get(k)} to {right.get(k)}" for k in differing[:24])
        text = f"Between {readable_id('r', first)} and {readable_id('r', second)} changed: {listed or 'nothing'}."
        if a["score"] is not None and b["score"] is not None:
            text += f" The score went from {a['score']:.4g} to {b['score']:.4g}."
        return text

    def changed_from_default(self, number: int) -> str:
        run = self.run(number)
        rows = self.select(
            f"select id from runs where campaign_id = {run['campaign_id'] or 0} and arm = '{run['arm']}' and trial = 0 "
            f"and pool = 'search' and id <> {number} order by id limit 1"
        )
        if not rows:
            return f"{readable_id('r', number)} is its arm's default configuration, or has none to be held against."
        return self.changed(rows[0]["id"], number)

    def best(self) -> str:
        said = []
        arms = self.select(
            f"select distinct arm from runs where campaign_id = {self.campaign} and arm is not null order by arm desc"
        )
        for arm in sorted(
            (row["arm"] for row in arms), key=lambda arm: (arm.startswith("rival"), arm != "challenger", arm)
        ):
            rows = self.select(
                f"select id, trial, model, score, proposer from runs where campaign_id = {self.campaign} and arm = '{arm}' "
                "and pool = 'search' and status = 'done' and score is not null order by score desc, id limit 1"
            )
            for row in rows:
                said.append(f"{arm}: {self.cite('r', row['id'])} ({row['model']}) with {row['score']:.4g}, proposed by {row['proposer']}")  # fmt: skip
        if not said:
            return "No search run of this campaign has a score yet."
        text = f"Best in the search, on one seed: {'; '.join(said)}."
        seeds = self.select(
            f"select id, score from runs where campaign_id = {self.campaign} and purpose = 'baseline' and arm = 'baseline' and score is not null"
        )
        if len(seeds) > 1:
            floor = statistics.stdev(row["score"] for row in seeds)
            text += f" The noise floor is {floor:.3g} ({', '.join(self.cite('r', row['id']) for row in seeds)}); a smaller difference is none."  # fmt: skip
        return f"{text} {self.verdict()}"

    def verdict(self) -> str:
        rows = self.select(
            "select v.id, v.claim_id, v.outcome, v.reason from verdicts v join claims k on k.id = v.claim_id "
            f"where k.campaign_id = {self.campaign} order by v.id"
        )
        if rows:
            row = rows[-1]
            return f"The verdict {self.cite('v', row['id'])} on {self.cite('k', row['claim_id'])} is {row['outcome']}: {row['reason']}."  # fmt: skip
        claims = self.select(f"select id from claims where campaign_id = {self.campaign}")
        if claims:
            return f"There is no verdict yet; {self.cite('k', claims[0]['id'])} is being confirmed, and no score of it is shown before."  # fmt: skip
        return "There is no claim and no verdict yet."

    def failures(self) -> str:
        listed = "', '".join(sorted(ENDS))
        rows = self.select(
            f"select id, arm, model, status, cause from runs where campaign_id = {self.campaign} and status in ('{listed}') "
            "order by id desc limit 12"
        )
        if not rows:
            return "No run of this campaign failed, diverged, crashed, timed out or was pruned or cancelled."
        said = [f"{self.cite('r', r['id'])} ({r['arm']}, {r['model']}) {r['status']}: {(str(r['cause'] or 'no cause is recorded').strip().splitlines() or [''])[-1][:160]}" for r in rows]  # fmt: skip
        return "; ".join(said) + "."

    def spent(self) -> str:
        (row,) = self.select(f"select spent_s, plan, llm from campaigns where id = {self.campaign}")
        (runs,) = self.select(
            f"select count(*) as runs, coalesce(sum(env_steps), 0) as steps from runs where campaign_id = {self.campaign}"
        )

        def field(name: str) -> str:
            path = f"json_extract(payload, '$.{name}')" if self.ledger.backend == "sqlite" else f"(payload->>'{name}')::float"  # fmt: skip
            return f"coalesce(sum({path}), 0)"

        (calls,) = self.select(
            f"select count(*) as calls, {field('input_tokens')} as sent, {field('output_tokens')} as received, {field('usd')} "
            f"as usd from events where campaign_id = {self.campaign} and kind = 'llm_call'"
        )
        self.cite("c", self.campaign)
        plan = json.loads(row["plan"]) if isinstance(row["plan"], str) else row["plan"]
        wall = plan["budget"]["wall_s"]
        text = f"Spent: {format_seconds(row['spent_s'])}" + (f" of {format_seconds(wall)}" if wall else "")
        text += f", {format_count(runs['steps'])} env steps in {runs['runs']} runs, {calls['calls']} model calls"
        if row["llm"] == "offline":
            return text + " of the offline researcher, which cost nothing."
        text += f" with {calls['sent'] + calls['received']:,.0f} tokens"
        return text + (f" for {calls['usd']:.4f} US dollars." if calls["usd"] else "; their price is not known.")

    def now(self) -> str:
        from experiments.campaign.steering import open_wait

        (row,) = self.select(f"select stage, status, goal from campaigns where id = {self.campaign}")
        text = f'{self.cite("c", self.campaign)} ("{row["goal"]}") is at the stage {row["stage"]}, {row["status"]}.'
        running = self.select(
            f"select id, purpose, arm, model, env_steps from runs where campaign_id = {self.campaign} and status = 'running' "
            "order by id"
        )
        if running:
            listed = [f"{self.cite('r', r['id'])} ({r['purpose']}, {r['arm']}, {r['model']}) at {format_count(r['env_steps'])} env steps" for r in running]  # fmt: skip
            text += f" Training: {'; '.join(listed)}."
        with self.ledger.session() as session:
            waiting = open_wait(session, self.campaign)
        return text + (f" It waits for approval of {waiting.what}" if waiting else "")
