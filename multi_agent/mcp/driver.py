"""What an MCP client does with campaigns: open one, take its turns, see how it stands. Nothing here waits long or trains.

A campaign that is opened here is the command line's own, in a process of its own that this one does not end: planned by the same
`begin.py`, held, journaled and resumed like any other.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from sqlalchemy import select
from sqlalchemy.engine import URL

from core.errors import InputError
from core.words.commands import command
from experiments.campaign.begin import recorded_in
from experiments.campaign.holder import standing_of
from experiments.campaign.plan import Budget, Plan
from experiments.campaign.question import parse_goals
from experiments.campaign.steering import Waiting, open_wait
from experiments.judging.claim import ClaimContent
from experiments.ledger.models import Campaign, Claim, Verdict
from experiments.ledger.store import Ledger, now
from experiments.numbers import parse_count, parse_duration
from experiments.reading.queries import what_is_left
from experiments.runs.paths import CHECKOUT, Paths
from experiments.vocabulary import readable_id
from multi_agent.mcp.mailbox import Hand, OpenTurn, is_worked_on, open_turn
from multi_agent.mcp.openings import ON_PURPOSE, Opening, Openings
from multi_agent.mcp.values import AGAIN_S, OpenArguments, Standing, State, Status


@dataclass
class Client:
    """One session of a client of this server, and the campaign that it works on."""

    name: str = ""
    campaign: int | None = None
    opening: Opening | None = None
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    took: set[int] = field(default_factory=set[int])
    """Campaigns in which it took a turn."""
    asked: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    """(campaign, what its person was asked to approve)."""


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

    def __post_init__(self) -> None:
        self.openings = Openings(self.paths.data / "mcp", lambda: self.writable)
        """The campaign processes that servers of this data folder have started."""

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
        return Hand(self.ledger, self.writable, client.name, client.session, self.agents)

    def leave(self, client: Client) -> None:
        """Give back the turns of a client whose session is over."""
        for campaign in client.took:
            self.hand(client).leave(campaign)

    @property
    def llm(self) -> str:
        """What a campaign that is opened here says of its model."""
        return f"mcp:{','.join(self.agents)}" if self.agents else "mcp"

    # ---- opening and resuming -----------------------------------------------------------

    def open(self, client: Client, asked: OpenArguments) -> None:
        """Start a campaign's process, or join the one that was started in the same words and is at work: a call that was cut off and is
        repeated, in this session or another, starts no second one. InputError for a goal or a budget that the command line would
        refuse, while another campaign has the goal, and while the client's last campaign is at work."""
        if asked.budget is not None and asked.env_steps is not None:
            raise InputError("budget: got env_steps too, allowed: either budget or env_steps, not both")
        if asked.env_steps is not None:
            Budget(env_steps=parse_count(asked.env_steps))
        elif asked.budget is not None:
            Budget(wall_s=parse_duration(asked.budget))
        ledger = self.ledger
        parse_goals(asked.goal, recorded_in(lambda: ledger))
        words = [f"--goal={asked.goal}", f"--seed={asked.seed}", f"--llm={self.llm}"]
        words += [f"--approve-each={asked.approve_each}", f"--collaboration={asked.collaboration}"]
        words += [f"--{name}={value}" for name, value in (("budget", asked.budget), ("env-steps", asked.env_steps)) if value]  # fmt: skip
        with self.openings.alone():
            living = self.openings.living()
            opening = next((o for o in living if o.words == (*self.program, *words, *self.options)), None)
            if opening is None:
                self._must_be_free(client, asked.goal, living)
                opening = self.openings.start([*self.program, *words, *self.options], asked.goal, self._newest() or 0)
        client.campaign, client.opening = opening.campaign, None if opening.campaign else opening

    def _must_be_free(self, client: Client, goal: str, living: Sequence[Opening]) -> None:
        """InputError where the client's own campaign, or one with this goal, is at work."""
        own = client.campaign
        if own is not None and is_worked_on(self.ledger, own):
            name = readable_id("c", own)
            raise InputError(f"{name} is at work already: ask next_turn. To end it first: {command('stop', name)}")
        if client.opening is not None and not client.opening.has_ended:
            name = "a campaign of yours" if own is None else readable_id("c", own)
            raise InputError(f"{name} is at work already: ask next_turn")
        with self.ledger.session() as session:
            rows = session.scalars(select(Campaign).where(Campaign.status == "running").order_by(Campaign.id))
            at_work = [row for row in rows if standing_of(row) == "running"]
        alike = [row for row in at_work if _same(row.goal, goal)]
        if alike:
            name = readable_id("c", alike[-1].id)
            raise InputError(
                f"{name} has this goal and is at work: join it with next_turn and campaign {name}. "
                f"To end it first: {command('stop', name)}"
            )
        if any(_same(opening.goal, goal) and opening.campaign is None for opening in living):
            again = AGAIN_S["planning"]
            raise InputError(f"a campaign with this goal is being planned: ask next_turn in {again} s to join it")

    def resume(self, client: Client, named: str | None) -> None:
        """Go on with a campaign that no process works on. InputError where it is finished or one does."""
        number = self.campaign(client, named)
        name = readable_id("c", number)
        row = self.ledger.get_campaign(number)
        if row.stage == "done":
            raise InputError(f"{name} is finished: its verdict stands. Ask campaign_status for it")
        words = [] if row.llm.startswith("mcp") else [f"--llm={self.llm}"]
        with self.openings.alone():
            if is_worked_on(self.ledger, number):
                raise InputError(f"{name} is being worked on already: ask next_turn")
            going = next((o for o in self.openings.living() if o.campaign == number), None)
            if going is None:
                words = [*self.program, "resume", str(name), *words, *self.options]
                going = self.openings.start(words, row.goal, number, number)
        client.campaign, client.opening = number, going

    def _settle(self, client: Client) -> bool:
        """Whether the campaign that a client opened is there by now. InputError, in its process's words, where it was refused or died."""
        opening = client.opening
        if opening is None:
            return True
        ended, code = opening.has_ended, opening.code
        if opening.campaign is None and (made := self._made_by(opening, ended=ended)) is not None:
            self.openings.made(opening, made)
        client.campaign = number = opening.campaign
        there = number is not None and (ended or is_worked_on(self.ledger, number))
        if there or ended:
            client.opening = None
        if ended and (number is None or code in (1, 2)):
            raise InputError(opening.last_words())
        return there

    def _made_by(self, opening: Opening, *, ended: bool) -> int | None:
        """The campaign that a process made: it holds it, or has let it go again."""
        with self.ledger.session() as session:
            query = select(Campaign).where(Campaign.id > opening.newest).order_by(Campaign.id)
            made = [(c.id, c.holder, c.llm) for c in session.scalars(query)]
        held = [number for number, holder, _ in made if holder is not None and holder["pid"] == opening.process["pid"]]
        own = held or [number for number, holder, llm in made if ended and holder is None and llm == self.llm]
        return own[0] if own else None

    def _newest(self) -> int | None:
        with self.ledger.session() as session:
            return session.scalar(select(Campaign.id).order_by(Campaign.id.desc()).limit(1))

    # ---- what a client sees ---------------------------------------------------------------

    def campaign(self, client: Client, named: str | None) -> int:
        """The campaign that a client named now or last, else the newest that is at work and asks MCP clients, else the newest. InputError
        where there is none."""
        if named is not None:
            client.campaign, client.opening = self.ledger.resolve(named, "campaign"), None
        if client.campaign is not None:
            return client.campaign
        if client.opening is not None:
            raise InputError(f"the campaign is being planned: ask next_turn in {AGAIN_S['planning']} s")
        with self.ledger.session() as session:
            rows = list(session.scalars(select(Campaign).order_by(Campaign.id.desc())))
        if not rows:
            raise InputError("there is no campaign yet: start one with the tool open_campaign")
        asking = (c.id for c in rows if c.llm.startswith("mcp") and standing_of(c) == "running")
        return next(asking, rows[0].id)

    def turn(self, client: Client) -> OpenTurn | None:
        """The turn that is this client's; one that waits for anybody becomes its own. None where there is none, or another session has it."""
        if not self._settle(client):
            return None
        turn = self._served_turn(self.campaign(client, None))
        if turn is None:
            return None
        hand = self.hand(client)
        if turn.holder is None:
            client.took.add(turn.campaign)
            turn = hand.take(turn.campaign, turn.number)
        return turn if turn is not None and hand.has(turn) else None

    def _served_turn(self, campaign: int) -> OpenTurn | None:
        """The turn that waits for clients of this server, whoever has it."""
        turn = open_turn(self.ledger, campaign)
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
        taken = self._served_turn(number) if state == "training" else None
        if taken is not None and taken.holder is not None:
            state = "another's turn"
        again = AGAIN_S.get(state)
        ask = f"Ask next_turn again in {again} s."
        newest = self._newest() or number  # a goal of several questions is a campaign each, one after another
        more = (
            f" {readable_id('c', newest)} is at work: name it in next_turn."
            if is_worked_on(self.ledger, newest)
            else ""
        )
        words = {
            "finished": f"finished: campaign_status has the verdict.{more}",
            "not running": self._why_not_running(number),
            "waits for approval": f"waiting for a person's approval: {command('approve', name)}. {ask}",
        }.get(state, f"at work (stage {self.ledger.get_campaign(number).stage}), nobody's turn waits for you. {ask}")
        if taken is not None and taken.holder is not None:
            until = f"{now() + timedelta(seconds=taken.seconds_left):%H:%M:%S} UTC"
            words = (
                f"at work; another session, of the client {taken.holder.client}, has the turn of {taken.agent} until {until}, and longer "
                f"if it says something before. {ask}"
            )
        return Standing(campaign=name, state=state, text=f"{name} is {words}", again_s=again)

    def _why_not_running(self, number: int) -> str:
        """That no process works on a campaign, what to do, and what the last one said where it ended against its will."""
        status, name = standing_of(self.ledger.get_campaign(number)), readable_id("c", number)
        words = f"{status}: no process works on it. Go on with the tool resume_campaign, or: {command('resume', name)}"
        last = self.openings.of(number)
        if last is None or not last.has_ended or last.code in ON_PURPOSE:
            return words
        return f"{words} Before, {last.last_words()}"

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
            **{name: left[name] for name in left if name != "campaign"},
            campaign=left["campaign"],
            state=self._state(number),
            trials=Plan.model_validate(row.plan).trials,
            waits_for=None if waits is None else waits.what,
            claim=None if claim is None else ClaimContent.model_validate(claim.content).hypothesis,
            verdict=None if verdict is None else verdict.outcome,
            reason=None if verdict is None else verdict.reason,
            narrative=row.narrative,
        )


def _same(goal: str, other: str) -> bool:
    """Whether two goals are one, however they are spaced and capitalised."""
    return goal.casefold().split() == other.casefold().split()
