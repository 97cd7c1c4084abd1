"""What an MCP client does with campaigns: open one, take its turns, see how it stands. Nothing here waits long or trains.

A campaign that is opened here is the command line's own, in a process of its own that this one does not end: planned by the same
`begin.py`, held, journaled and resumed like any other.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import URL

from core.errors import InputError
from core.words.commands import command
from experiments.campaign.begin import recorded_in
from experiments.campaign.plan import Budget, Plan
from experiments.campaign.question import parse_goals
from experiments.campaign.steering import Waiting, open_wait
from experiments.judging.claim import ClaimContent
from experiments.ledger.models import Campaign, Claim, Verdict
from experiments.ledger.store import Ledger
from experiments.numbers import parse_count, parse_duration
from experiments.reading.queries import what_is_left
from experiments.runs.paths import CHECKOUT, Paths
from experiments.vocabulary import readable_id
from multi_agent.mcp.mailbox import Hand, OpenTurn, is_worked_on, open_turn
from multi_agent.mcp.values import AGAIN_S, OpenArguments, Standing, State, Status


@dataclass
class Client:
    """One client of this server, and the campaign that it works on."""

    name: str
    campaign: int | None = None
    opening: Opening | None = None
    asked: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    """(campaign, what its person was asked to approve)."""


@dataclass
class Opening:
    """A campaign's process that has not written its campaign yet."""

    process: subprocess.Popen[bytes]
    log: Path
    newest: int
    """The newest campaign before it."""


@dataclass
class Driver:
    """Campaigns of one ledger for clients that are all agents, or those named.

    url, paths: the ledger and its data folder. options: words that name both for a campaign's process. agents: whom clients are.
    """

    url: str | URL
    paths: Paths
    options: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    program: tuple[str, ...] = (sys.executable, str(CHECKOUT / "main.py"))

    @cached_property
    def writable(self) -> Ledger:
        """The ledger to write in, made where there is none."""
        self.paths.ensure()
        return Ledger(self.url)

    @cached_property
    def ledger(self) -> Ledger:
        """The same for reading, which waits for nobody."""
        return Ledger(self.writable.url, read_only=True)

    def hand(self, client: Client) -> Hand:
        """What a client writes with."""
        return Hand(self.ledger, self.writable, client.name, self.agents)

    @property
    def llm(self) -> str:
        """What a campaign that is opened here says of its model."""
        return f"mcp:{','.join(self.agents)}" if self.agents else "mcp"

    # ---- opening and resuming -----------------------------------------------------------

    def open(self, client: Client, asked: OpenArguments) -> None:
        """Start a campaign's process. InputError for a goal or a budget that the command line would refuse, and while the client's last
        campaign is at work: a call that was cut off and is repeated starts no second one."""
        own = client.campaign
        if client.opening is not None or (own is not None and is_worked_on(self.ledger, own)):
            name = "a campaign of yours" if own is None else readable_id("c", own)
            raise InputError(f"{name} is at work already: ask next_turn. To end it first: {command('stop')}")
        if asked.budget is not None and asked.env_steps is not None:
            raise InputError("budget: got env_steps too, allowed: either budget or env_steps, not both")
        if asked.env_steps is not None:
            Budget(env_steps=parse_count(asked.env_steps))
        elif asked.budget is not None:
            Budget(wall_s=parse_duration(asked.budget))
        ledger = self.ledger
        parse_goals(asked.goal, recorded_in(lambda: ledger))
        with ledger.session() as session:
            newest = session.scalar(select(Campaign.id).order_by(Campaign.id.desc()).limit(1)) or 0
        words = [f"--goal={asked.goal}", f"--seed={asked.seed}", f"--llm={self.llm}"]
        words += [f"--approve-each={asked.approve_each}", f"--collaboration={asked.collaboration}"]
        words += [f"--{name}={value}" for name, value in (("budget", asked.budget), ("env-steps", asked.env_steps)) if value]  # fmt: skip
        client.campaign, client.opening = None, self._start(words, newest)

    def resume(self, client: Client, named: str | None) -> None:
        """Go on with a campaign that is not worked on. InputError where it is finished or is worked on."""
        number = self.campaign(client, named)
        name = readable_id("c", number)
        row = self.ledger.get_campaign(number)
        if row.stage == "done":
            raise InputError(f"{name} is finished: its verdict stands. Ask campaign_status for it")
        if is_worked_on(self.ledger, number):
            raise InputError(f"{name} is being worked on already: ask next_turn")
        words = [] if row.llm.startswith("mcp") else [f"--llm={self.llm}"]
        client.campaign, client.opening = number, self._start(["resume", str(name), *words], number)

    def _start(self, words: list[str], newest: int) -> Opening:
        """The command line in a process of its own, which outlives this one; what it says goes into a log."""
        folder = self.paths.data / "mcp"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.program, *words, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Opening(process, log, newest)

    def _settle(self, client: Client) -> bool:
        """Whether the campaign that a client opened is there by now. InputError, in its process's words, where it was refused."""
        opening = client.opening
        if opening is None:
            return True
        code = opening.process.poll()
        if client.campaign is None:
            with self.ledger.session() as session:
                query = select(Campaign).where(Campaign.id > opening.newest).order_by(Campaign.id)
                made = [(c.id, c.holder, c.llm) for c in session.scalars(query)]
            pid = opening.process.pid
            held = [number for number, holder, _ in made if holder is not None and holder["pid"] == pid]
            own = held or [number for number, _, llm in made if code is not None and llm == self.llm]
            client.campaign = own[0] if own else None
        there = client.campaign is not None and (is_worked_on(self.ledger, client.campaign) or code is not None)
        if there or code is not None:
            client.opening = None
        if code in (1, 2) or (code is not None and client.campaign is None):
            lines = opening.log.read_text(errors="replace").splitlines()
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise InputError(errors[-1] if errors else f"the campaign's process ended with {code}; see {opening.log}")
        return there

    # ---- what a client sees ---------------------------------------------------------------

    def campaign(self, client: Client, named: str | None) -> int:
        """The campaign that a client named now or last, else the newest. InputError where there is none."""
        if named is not None:
            client.campaign, client.opening = self.ledger.resolve(named, "campaign"), None
        if client.campaign is not None:
            return client.campaign
        if client.opening is not None:
            raise InputError(f"the campaign is being planned: ask next_turn in {AGAIN_S['planning']} s")
        with self.ledger.session() as session:
            newest = session.scalar(select(Campaign.id).order_by(Campaign.id.desc()).limit(1))
        if newest is None:
            raise InputError("there is no campaign yet: start one with the tool open_campaign")
        return newest

    def turn(self, client: Client) -> OpenTurn | None:
        """The turn that waits for this client, None where none does."""
        if not self._settle(client):
            return None
        turn = open_turn(self.ledger, self.campaign(client, None))
        return turn if turn is not None and (not self.agents or turn.agent in self.agents) else None

    def waits(self, campaign: int) -> Waiting | None:
        """What a campaign wants a person to approve."""
        with self.ledger.session() as session:
            return open_wait(session, campaign)

    def standing(self, client: Client, turn: OpenTurn | None) -> Standing:
        """What the client's campaign wants of it now."""
        if client.opening is not None:
            name = readable_id("c", client.campaign)
            again = AGAIN_S["planning"]
            words = f"The campaign is being planned. Ask next_turn again in {again} s."
            return Standing(campaign=name, state="planning", text=words, again_s=again)
        number = self.campaign(client, None)
        name = str(readable_id("c", number))
        if turn is not None:
            kind = str(turn.turn.get("kind"))
            last = "It is the last turn: finish_turn with the narrative ends the campaign." if kind == "report" else ""
            words = f"You are {turn.agent} of {name}. Do what the prompt asks with the tools named, then call finish_turn. {last}"
            return Standing(
                campaign=name,
                state="your turn",
                text=words.strip(),
                agent=turn.agent,
                kind=kind,
                prompt=turn.prompt,
                tools=turn.tools,
                deadline_s=turn.seconds_left,
            )
        state = self._state(number)
        again = AGAIN_S.get(state)
        ask = f"Ask next_turn again in {again} s."
        with self.ledger.session() as session:  # a goal of several questions is a campaign each, one after another
            newest = session.scalar(select(Campaign.id).order_by(Campaign.id.desc()).limit(1)) or number
        more = (
            f" {readable_id('c', newest)} is at work: name it in next_turn."
            if is_worked_on(self.ledger, newest)
            else ""
        )
        words = {
            "finished": f"finished: campaign_status has the verdict.{more}",
            "not running": f"not worked on. Go on with the tool resume_campaign, or: {command('resume', name)}",
            "waits for approval": f"waiting for a person's approval: {command('approve', name)}. {ask}",
        }.get(state, f"at work (stage {self.ledger.get_campaign(number).stage}), nobody's turn waits for you. {ask}")
        return Standing(campaign=name, state=state, text=f"{name} is {words}", again_s=again)

    def _state(self, number: int) -> State:
        if self.ledger.get_campaign(number).stage == "done":
            return "finished"
        if not is_worked_on(self.ledger, number):
            return "not running"
        return "waits for approval" if self.waits(number) else "training"

    def status(self, number: int) -> Status:
        """How a campaign stands; of a confirmation nothing but its verdict."""
        left, row = what_is_left(self.ledger, number), self.ledger.get_campaign(number)
        with self.ledger.session() as session:
            claim = session.scalar(select(Claim).where(Claim.campaign_id == number))
            verdict = session.scalar(select(Verdict).where(Verdict.claim_id == claim.id)) if claim else None
        waits = self.waits(number)
        return Status(
            **{name: left[name] for name in left if name not in ("status", "campaign")},
            campaign=left["campaign"],
            state=self._state(number),
            trials=Plan.model_validate(row.plan).trials,
            waits_for=None if waits is None else waits.what,
            claim=None if claim is None else ClaimContent.model_validate(claim.content).hypothesis,
            verdict=None if verdict is None else verdict.outcome,
            reason=None if verdict is None else verdict.reason,
            narrative=row.narrative,
        )
