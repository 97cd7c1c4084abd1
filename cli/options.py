"""Options that many commands share: where the ledger is, how results are shown, which chat model is used."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypedDict

from cyclopts import Parameter
from cyclopts.validators import Number

from cli.output import Output
from core.errors import bad_value
from core.words.commands import add_to_commands
from core.words.text import url_without_password

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import URL

    from experiments.ledger import Ledger
    from experiments.runs.paths import Paths
    from multi_agent.llm.choose import LLMChoice

LARGEST_LIMIT = 10**9
Flag = Annotated[bool, Parameter(negative="")]
"""A switch without a `--no-` twin."""
Words = Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)]
"""One or more words after the option."""
FileName = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
"""A file, or - for standard input."""
Limit = Annotated[int, Parameter(validator=Number(gte=1, lte=LARGEST_LIMIT))]
"""How many rows at most."""
Seed = Annotated[int, Parameter(validator=Number(gte=0, lte=2**31 - 1))]
CampaignId = Annotated[str, Parameter(help="Its id, such as c-0007, or @last.")]
Detach = Annotated[bool, Parameter(negative="", help="Work in the background, also once the terminal is closed; attach shows it live.")]  # fmt: skip
Sinks = Annotated[list[Literal["wandb", "trackio"]] | None, Parameter(negative="", consume_multiple=True, help="Also send each run's metrics there as it trains.")]  # fmt: skip
Changes = Annotated[Words, Parameter(help="Fields to change, such as model.state_dim=64.")]
Seeds = Annotated[int | None, Parameter(help="So many fresh seeds instead, two at once; their mean, IQM and intervals come at the end.")]  # fmt: skip
Memory = Annotated[str | None, Parameter(help="What one run may occupy, such as 4G (default: an equal part of most of the machine's memory).")]  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True)
class LedgerOptions:
    """Where the ledger is and how results are shown."""

    data_dir: str | None = None
    """Folder for everything that is written (default: runs/ in the checkout)."""
    ledger: str | None = None
    """Database URL of the ledger (default: ledger.db in the data folder)."""
    json: Flag = False
    """Print JSON instead of a table."""
    quiet: Flag = False
    """Print the result alone."""

    @property
    def output(self) -> Output:
        return Output(json=self.json, quiet=self.quiet)

    @property
    def ledger_url(self) -> str | URL:
        paths = self.paths()
        return self.ledger or paths.ledger_url

    def paths(self) -> Paths:
        """The data folder's paths; from here on the caches of libraries lie in it too."""
        from experiments.runs.paths import Paths

        paths = Paths.of(self.data_dir)
        for name, value in paths.environment().items():  # before numba and matplotlib are imported
            os.environ.setdefault(name, value)
        return paths

    def words(self) -> tuple[str, ...]:
        """The options that name the same ledger and data folder to another process of this program."""
        named = [f"--data-dir={self.paths().data}"] if self.data_dir is not None else []
        return tuple(named + ([f"--ledger={self.ledger}"] if self.ledger is not None else []))

    def read(self) -> Ledger:
        """The existing ledger, for reading alone."""
        from experiments.ledger import Ledger

        return Ledger(self.ledger_url, read_only=True)

    def read_if_there(self) -> Ledger | None:
        """The ledger for reading, None where there is none yet."""
        from experiments.ledger.store import ledger_file

        file = ledger_file(self.ledger_url)
        return None if file is not None and not file.is_file() else self.read()

    def change(self) -> Ledger:
        """The existing ledger, open for writing; none is created."""
        self.read().close()
        return self.create()

    def create(self) -> Ledger:
        """The ledger, open for writing; where there is none yet it is created with its folder."""
        from experiments.ledger import Ledger

        self.paths().ensure()
        return Ledger(self.ledger_url, read_only=False)

    def name_in_commands(self) -> None:
        """From here on commands are printed with the ledger that was named, without its password."""
        named = {"--data-dir": self.data_dir, "--ledger": url_without_password(self.ledger) if self.ledger else None}
        words: list[str] = []
        for option, value in named.items():
            if value is not None:  # one that begins with a dash would be read as an option
                words += [f"{option}={value}"] if value.startswith("-") else [option, value]
        secret = "PGPASSWORD" if named["--ledger"] != self.ledger else ""
        add_to_commands(ledger=tuple(words), secret=secret)


class Caps(TypedDict):
    """What a chat model may spend over all sittings of a campaign."""

    max_tokens: int | None
    max_usd: float | None


@Parameter(name="*")
@dataclass(frozen=True)
class BrainOptions:
    """Which chat model is used, and what it may cost."""

    llm: str = "auto"
    """offline, auto, openai:MODEL, anthropic:MODEL, google:MODEL, ollama:MODEL, command:PROGRAM, replay:CAMPAIGN or mcp[:AGENT]."""
    base_url: str | None = None
    """Another server than the vendor's, for any that speaks its protocol; the vendor's key is never sent to it."""
    llm_key_env: str | None = None
    """Environment variable that holds the key (default: the vendor's, such as OPENAI_API_KEY; with --base-url SSM_LLM_KEY)."""
    max_usd: float | None = None
    """Cap on the chat model's cost (default: 1)."""
    max_tokens: int | None = None
    """Cap on the chat model's tokens."""

    def choose(self) -> LLMChoice:
        """The chat model. Caps that make no sense are refused."""
        from multi_agent.llm.choose import choose_llm
        from multi_agent.llm.meter import Meter

        Meter("", {}, **self.caps)
        return choose_llm(self.llm, self.base_url, self.llm_key_env)

    def preflight(self, choice: LLMChoice, data_dir: Path) -> tuple[LLMChoice, str]:
        """The chat model as the crew can use it, and what one small call of it found. InputError where it gives no answer."""
        from multi_agent.llm.meter import Meter, read_prices
        from multi_agent.llm.preflight import preflight

        return preflight(choice, Meter(choice.price_name, read_prices(data_dir / "prices.json")[1], **self.caps))

    @property
    def caps(self) -> Caps:
        """What may be spent, as the crew takes it."""
        from multi_agent.llm.meter import DEFAULT_MAX_USD

        return {"max_tokens": self.max_tokens, "max_usd": DEFAULT_MAX_USD if self.max_usd is None else self.max_usd}

    def as_in(self, ledger: Ledger, campaign: int) -> Self:
        """These options, and where nothing is said those that the campaign was last worked on with: its model at its address, its caps."""
        then = next((event.payload for event in reversed(ledger.events(campaign, ["model"]))), {})
        llm = ledger.get_campaign(campaign).llm if self.llm == "auto" else self.llm
        kept = ["max_usd", "max_tokens"]
        if llm == then.get("llm") and self.base_url is None:  # a key is for the address that it was named with
            kept += ["base_url", "llm_key_env"]
        return replace(self, llm=llm, **{name: then.get(name) for name in kept if getattr(self, name) is None})

    def keep(self, ledger: Ledger, campaign: int, choice: LLMChoice) -> None:
        """Record what `as_in` reads: the key's variable, never the key, and an address without a password."""
        from multi_agent.llm.choose import keep_choice

        keep_choice(ledger, campaign, choice, **self.caps)


@Parameter(name="*")
@dataclass(frozen=True)
class CrewOptions(BrainOptions):
    """The chat model of a campaign's crew, who is in it, how they work together, and what waits for a person."""

    approve_each: Literal["none", "stage", "run"] | None = None
    """Wait for `approve` before every stage, or before every group of runs that is trained together."""
    collaboration: Literal["sequential", "debate", "emergent"] | None = None
    """How the agents work together in a round: one after another (at first), all unheard and then a revision, or whoever is
    written to speaks again."""
    crew: str | None = None
    """Who takes part: five (at first: one agent a role and a Coordinator), architect+critic (one proposes over all, one vetoes what was tried) or
    single (one agent with everything); `list agents` shows all."""
    agents: Words = None
    """Agents that take part, such as Meta-Learning State-Modeling, in place of a crew; the optimizer chooses for the others."""
    notify: str | None = None
    """Webhook that gets one JSON post at the verdict, at a failure, and where a person is waited for; of Slack, Discord or any
    other. It is kept nowhere, so resume takes it anew."""

    sink: Sinks = None
    """Also send each run's metrics there as it trains: wandb or trackio, or both; a confirmation's scores after its verdict. Kept nowhere either."""

    def choose(self) -> LLMChoice:
        """The chat model; caps that make no sense, agents that nobody knows, what is no webhook and a sink that is not installed are refused."""
        from multi_agent.agents.agent import choose_members

        choose_members(self.members())
        if self.notify is not None:
            from experiments.serving.notify import check_address

            check_address(self.notify)
        named_sinks(self.sink)
        choice = BrainOptions.choose(self)
        if choice.kind == "mcp":
            from multi_agent.mcp.mailbox import served

            served(choice)
        return choice

    def words(self) -> list[str]:
        """The options that say the same to another process of this program; what nobody said it reads from the campaign."""
        said = [
            (option.name, value) for option in fields(self) if (value := getattr(self, option.name)) != option.default
        ]
        each = [(name, item) for name, value in said for item in (value if isinstance(value, list) else [value])]
        return [f"--{name.replace('_', '-')}={item}" for name, item in each]

    def members(self) -> list[str] | None:
        """The agents that were asked for, by name; None where nothing was said."""
        if self.crew is None:
            return self.agents
        if self.agents is not None:
            raise bad_value("--crew", self.crew, "either --crew or --agents, not both")
        from multi_agent.agents.agent import crew_members

        return [member.name for member in crew_members(self.crew)]


def memory_limit(typed: str | None) -> int | None:
    """MiB that a run may occupy, from what was typed; None where nothing was."""
    from experiments.numbers import parse_memory

    return None if typed is None else parse_memory(typed)


def named_sinks(typed: list[Literal["wandb", "trackio"]] | None) -> tuple[str, ...]:
    """The sinks that were typed, each once; one that is not installed is refused."""
    if not typed:
        return ()
    from experiments.serving.sinks import check_sinks

    return check_sinks(typed)
