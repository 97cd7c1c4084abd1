"""The command line: parse, call one function, draw a view. Heavy imports stay inside the commands."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from core.errors import InputError
from core.plugins import plugins_from
from core.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from cli.live import LiveView
    from experiments.campaign.lab import Lab
    from experiments.ledger import Ledger
    from experiments.runs.paths import Paths
    from experiments.tables import TableView
    from multi_agent.llm.choose import LLMChoice

DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
app = App(
    name="main.py",
    help="Ask a research question about sequence models in meta-reinforcement learning; a crew runs the experiments, code judges.",
    help_epilogue="With any command: --plugin FILE|MODULE (may be repeated) takes in models, tasks, learners, agents and benches from there.",
    version_flags=["--version"],
    result_action="return_value",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Where the ledger is and how results are shown."""

    data_dir: str | None = None
    """Folder for everything that is written (default: runs/ in the checkout)."""
    ledger: str | None = None
    """Database URL of the ledger (default: ledger.db in the data folder)."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Print JSON instead of a table."""
    quiet: Annotated[bool, Parameter(negative="")] = False
    """Print the result alone."""

    def paths(self) -> Paths:
        from experiments.runs.paths import Paths

        paths = Paths.of(self.data_dir)
        for name, value in paths.environment().items():  # before numba and matplotlib are imported
            os.environ.setdefault(name, value)
        return paths

    def open(self, *, read_only: bool = True) -> tuple[Ledger, Paths]:
        from experiments.ledger import Ledger

        paths = self.paths()
        if not read_only:
            paths.ensure()
        return Ledger(self.ledger or paths.ledger_url, read_only=read_only), paths

    def open_if_there(self) -> Ledger | None:
        """The ledger for reading, None where there is none yet."""
        from pathlib import Path

        from sqlalchemy.engine import make_url

        url = self.ledger or self.paths().ledger_url
        if url.startswith("sqlite") and not Path(make_url(url).database or "").is_file():
            return None
        return self.open()[0]

    def change(self) -> Ledger:
        """The existing ledger, open for writing; none is created."""
        ledger, _ = self.open()
        ledger.close()
        return self.open(read_only=False)[0]


@Parameter(name="*")
@dataclass(frozen=True)
class Brain:
    """Which chat model is used, and what it may cost."""

    llm: str = "auto"
    """offline, auto, openai:MODEL, anthropic:MODEL, google:MODEL, ollama:MODEL or replay:CAMPAIGN."""
    base_url: str | None = None
    """An OpenAI-compatible server to use instead of the vendor's."""
    max_usd: float | None = None
    """Cap on the chat model's cost."""
    max_tokens: int | None = None
    """Cap on the chat model's tokens."""


@Parameter(name="*")
@dataclass(frozen=True)
class CrewOptions(Brain):
    """The chat model of a campaign's crew, and what waits for a person."""

    approve_each: Literal["none", "stage", "run"] | None = None
    """Wait for `approve` before every stage, or before every group of runs that is trained together."""


@app.default
def research(
    *,
    goal: str | None = None,
    budget: str | None = None,
    env_steps: str | None = None,
    seed: int = 0,
    memory: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    brain: CrewOptions | None = None,
    place: Place | None = None,
) -> int:
    """Research a goal to a verdict.

    Parameters
    ----------
    goal
        Such as "beat LSTM on halfcheetah-vel", "compare S5 and GRU on halfcheetah-dir", "improve LRU on ant-dir by 10 %".
    budget
        Wall time for everything, such as 30m (the default), 3m or 2h.
    env_steps
        Total training steps instead of wall time, such as 20M; the campaign is then deterministic.
    seed
        Seed of the whole campaign.
    memory
        What one run may occupy, such as 4G (default: an equal part of most of the machine's memory).
    dry_run
        Show what was understood and the plan, and stop.
    """
    brain, place = brain or CrewOptions(), place or Place()
    if goal is None:
        app.help_print([])
        return 0
    from core.errors import bad_value

    if budget is not None and env_steps is not None:
        raise bad_value("--budget", budget, "either --budget or --env-steps, not both")
    if not 0 <= seed < 2**31:
        raise bad_value("--seed", seed, "an integer from 0 to 2147483647")
    from core.numbers import parse_count, parse_duration
    from experiments.campaign.plan import Budget

    wanted = (
        Budget(env_steps=parse_count(env_steps)) if env_steps is not None else Budget(wall_s=parse_duration(budget or "30m"))
    )  # fmt: skip
    limit = _memory_limit(memory)
    return _new_campaign(goal, wanted, seed, limit, dry_run, brain, place)


def _new_campaign(
    goal: str, budget: Any, seed: int, memory_limit_mb: int | None, dry_run: bool, brain: CrewOptions, place: Place
) -> int:
    import threading
    import time

    began = time.monotonic()
    from experiments.runs.paths import Paths

    paths = Paths.of(place.data_dir) if dry_run else place.paths()
    from experiments.campaign.question import parse_goal

    question = parse_goal(goal)
    from multi_agent.llm.choose import choose_llm

    choice = choose_llm(brain.llm, brain.base_url)
    _check_caps(brain)
    console = _console(place)
    say = _speaker(console, place)
    say(f"Understood: {question.sentence()}")
    say(choice.describe())

    ledger = None
    if not dry_run:  # a ledger that cannot be used is said before anything is spent
        ledger, paths = place.open(read_only=False)
        if choice.kind == "replay":
            ledger.resolve(choice.name.partition(":")[2], "campaign")
    stop = threading.Event()
    with _probing_paths(paths, dry_run) as probe, _stopping(stop, say):
        plan = _make_plan(question, budget, memory_limit_mb, probe, stop, say)
    from cli.live import plan_text

    say(plan_text(question, plan))
    if dry_run:
        _print_json(place, {"question": question.model_dump(mode="json"), "plan": plan.model_dump(mode="json")})
        say("Dry run: nothing was started.")
        return 0
    from experiments.campaign.lab import create_campaign

    assert ledger is not None
    number = create_campaign(ledger, question, plan, seed=seed, llm=choice.name)
    return _work(ledger, paths, number, choice, brain, place, console, began)


def _check_caps(brain: Brain) -> None:
    """Caps that make no sense are refused before anything is spent."""
    from multi_agent.llm.meter import Meter

    Meter("", {}, max_tokens=brain.max_tokens, max_usd=brain.max_usd)


def _make_plan(question: Any, budget: Any, memory_limit_mb: int | None, paths: Paths, stop: Any, say: Any) -> Any:
    from env_runner.task_distributions import get_family
    from experiments.campaign.lab import plan_unit
    from experiments.campaign.plan import make_plan
    from experiments.search.space import SearchSpace
    from meta_rl.learner import LEARNERS

    families = [question.challenger, question.baseline]
    spaces = [SearchSpace(family, question.task, learner=question.learner) for family in families]
    workers = _workers()
    rate = startup = None
    if budget.wall_s is not None:
        from experiments.runs.throughput import measure_throughput

        say("Measuring this machine's training throughput ...")
        measured = measure_throughput(spaces, paths, workers, stop)
        rate, startup = measured.steps_per_s, measured.startup_s
        say(
            f"Measured {rate:,.0f} env steps/s a run with {workers} at once, {startup:.1f} s of start and evaluation a run."
        )
    return make_plan(
        budget,
        iteration_steps=plan_unit(spaces),
        horizon=get_family(question.task).horizon,
        tuned_arms=2 if question.baseline_is_tuned else 1,
        workers=workers,
        steps_per_s=rate,
        memory_limit_mb=memory_limit_mb,
        learning_episodes=LEARNERS[question.learner].config_type.learning_episodes,
        **({} if startup is None else {"startup_s": startup}),
    )


def _work(
    ledger: Ledger,
    paths: Paths,
    number: int,
    choice: LLMChoice,
    brain: CrewOptions,
    place: Place,
    console: Console,
    began: float,
) -> int:
    """Drive a campaign to its verdict, or to a pause."""
    from cli.live import LiveView
    from experiments.campaign.lab import Lab, Paused
    from experiments.campaign.steering import is_stopped
    from experiments.ledger import readable_id
    from experiments.runs.executor import LocalExecutor
    from experiments.runs.runner import Denied
    from multi_agent.workflows.research_workflow import run_research

    say = _speaker(console, place)
    view = LiveView(console, quiet=place.quiet or place.json)
    lab = Lab(
        ledger, number, LocalExecutor(_workers(), paths.environment()), paths, listener=view.on_progress, began=began
    )
    view.lab = lab
    name = readable_id("c", number)
    if is_stopped(ledger, number):  # asked for while nobody worked on it
        return _end(lab, paths, place, console)
    try:
        with lab.holding(), _stopping(lab.stop_event, say), view:
            say(f"Campaign {name} in {ledger.path or ledger.url}")
            run_research(
                lab,
                choice,
                data_dir=paths.data,
                on_event=lambda event: view.on_event(event.kind, event.actor, event.text, event.payload),
                max_tokens=brain.max_tokens,
                max_usd=brain.max_usd,
                approve_each=brain.approve_each,
            )
    except (Paused, KeyboardInterrupt) as paused:
        if is_stopped(ledger, number):
            return _end(lab, paths, place, console)
        if isinstance(paused, Denied):
            say(f"{paused}.")
        say(f"Paused; nothing is lost. Go on with: python main.py resume {name}{_flags(place)}", always=True)
        return 130
    return _conclude(lab, paths, place, console)


def _end(lab: Lab, paths: Paths, place: Place, console: Console) -> int:
    """End a campaign that a person stopped, with a verdict where confirming had begun."""
    from experiments.campaign.steering import end_campaign

    with lab.holding():
        end_campaign(lab)
    return _conclude(lab, paths, place, console)


def _conclude(lab: Lab, paths: Paths, place: Place, console: Console) -> int:
    """Write the report, keep the better model, show the verdict."""
    from cli.live import verdict_lines, verdict_panel
    from experiments.reading.report import keep_model, write_report

    html, _ = write_report(lab.ledger, lab.number, paths)
    if not lab.ledger.runs(
        lab.number, purpose="confirmation"
    ):  # a person stopped it before there was anything to judge
        if place.json:
            _print_json(place, {"campaign": lab.campaign_id, "verdict": None, "report": str(html), "model": None})
        else:
            print(f"{lab.ledger.get_campaign(lab.number).narrative or ''}\nReport: {html}")
        return 0
    verdict = lab.judge()
    kept = keep_model(lab.ledger, lab.number, paths)
    flags = _flags(place)
    commands = [f"open {html}"]
    if verdict.run_ids:
        run = verdict.run_ids[0]
        commands += [
            f"python main.py show r-{run:04d}{flags}",
            f"python main.py rerun r-{run:04d} --check{flags}",
        ]
    commands.append(f"python main.py runs --campaign {lab.campaign_id}{flags}")
    if place.json:
        _print_json(place, {"campaign": lab.campaign_id, "verdict": verdict.model_dump(mode="json"), "report": str(html), "model": str(kept) if kept else None})  # fmt: skip
        return 0
    lines = verdict_lines(verdict, lab.question, lab.plan, lab.round, lab.campaign_id, verdict.claim_id)
    console.print(verdict_panel(lines, verdict.outcome, commands))
    return 0


@app.command
def resume(
    campaign: str = "@last",
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    brain: CrewOptions | None = None,
    place: Place | None = None,
) -> int:
    """Go on with a paused or interrupted campaign.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    dry_run
        Show what was spent and what is left, and stop.
    """
    import time

    brain, place = brain or CrewOptions(), place or Place()
    began = time.monotonic()
    if dry_run:
        return _show_left(campaign, place)
    from multi_agent.llm.choose import choose_llm

    ledger, paths = place.change(), place.paths()
    number = ledger.resolve(campaign, "campaign")
    row = ledger.get_campaign(number)
    name = brain.llm if brain.llm != "auto" else row.llm
    console = _console(place)
    choice = choose_llm(name, brain.base_url)
    _check_caps(brain)
    if row.stage == "done":
        _speaker(console, place)(f"Campaign c-{number:04d} is finished; its verdict stands.")
    else:
        _speaker(console, place)(f"Going on with c-{number:04d}: {row.goal} (stage {row.stage}). {choice.describe()}")
    if row.stage == "done":
        from experiments.campaign.lab import Lab
        from experiments.runs.executor import LocalExecutor

        return _conclude(Lab(ledger, number, LocalExecutor(1), paths), paths, place, console)
    return _work(ledger, paths, number, choice, brain, place, console, began)


def _show_left(campaign: str, place: Place) -> int:
    """What a dry resume says."""
    from experiments.reading.queries import what_is_left
    from experiments.tables import described_parts

    ledger, _ = place.open()
    found = what_is_left(ledger, ledger.resolve(campaign, "campaign"))
    _print_json(place, found)
    if not place.json:
        for part in described_parts(found):
            _console(place).print(part, soft_wrap=isinstance(part, str), markup=False)
        print("Dry run: nothing was started.")
    return 0


@app.command
def pause(campaign: str = "@last", *, place: Place | None = None) -> int:
    """Ask a campaign that is being worked on elsewhere to save and pause; go on with resume.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    """
    return _steer(campaign, "pause", {}, place or Place())


@app.command
def instruct(campaign: str, text: str, /, *, place: Place | None = None) -> int:
    """Say something to the crew of a running campaign; every agent hears it at the next round.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    text
        Such as "try smaller state sizes".
    """
    from core.errors import bad_value

    if not 1 <= len(text.strip()) <= 2000:
        raise bad_value("text", f"{len(text)} characters", "from 1 to 2000 characters")
    return _steer(campaign, "instruct", {"text": text.strip()}, place or Place())


@app.command
def approve(campaign: str = "@last", *, deny: str | None = None, place: Place | None = None) -> int:
    """Approve what a campaign waits for (see --approve-each), also while it is paused.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    deny
        Refuse instead, with a reason that the crew gets: a search round is proposed anew by a chat model; else it pauses.
    """
    place = place or Place()
    from experiments.campaign.steering import approve as answer

    if deny is not None and not 1 <= len(deny.strip()) <= 2000:
        raise InputError(f"--deny: got {len(deny)} characters, allowed: a reason of 1 to 2000 characters")
    ledger = place.change()
    number = ledger.resolve(campaign, "campaign")
    waiting = answer(ledger, number, deny=None if deny is None else deny.strip())
    done = {"campaign": f"c-{number:04d}", "approved" if deny is None else "denied": waiting.what}
    _say_done(place, done)
    return 0


@app.command
def stop(campaign: str = "@last", *, place: Place | None = None) -> int:
    """End a campaign for good, with a verdict on what confirmation there is; pause and resume go on instead.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    """
    place = place or Place()
    from experiments.campaign.holder import is_alive
    from experiments.campaign.lab import Lab
    from experiments.runs.executor import LocalExecutor

    ledger, paths = place.change(), place.paths()
    number = ledger.resolve(campaign, "campaign")
    row = ledger.get_campaign(number)
    if row.stage == "done":
        raise InputError(f"c-{number:04d} is finished: there is nothing to stop")
    ledger.record_event(number, "stop", "human", {})
    if row.status == "running" and is_alive(row.holder):
        _say_done(place, {"campaign": f"c-{number:04d}", "asked to end": "it cancels its runs and writes its report"})
        return 0
    return _end(Lab(ledger, number, LocalExecutor(1, paths.environment()), paths), paths, place, _console(place))


@app.command
def ask(campaign: str, question: str, /, *, brain: Brain | None = None, place: Place | None = None) -> int:
    """Ask about a campaign; the answer comes from read-only SQL and names its rows.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    question
        Such as "why was r-0042 pruned?".
    """
    brain, place = brain or Brain(), place or Place()
    from multi_agent.ask import ask as answer_question
    from multi_agent.llm.choose import choose_llm

    _check_caps(brain)
    ledger, paths = place.open()
    number = ledger.resolve(campaign, "campaign")
    found = answer_question(
        ledger,
        number,
        question,
        choose_llm(brain.llm, brain.base_url),
        data_dir=paths.data,
        max_tokens=brain.max_tokens,
        max_usd=brain.max_usd,
    )
    if place.json:
        _print_json(place, found.model_dump(mode="json"))
        return 0
    console = _console(Place())
    from rich.text import Text

    rows = f"rows: {', '.join(found.rows) or 'none'}; answered by {found.by}"
    for line in (found.text, rows):
        console.print(Text(line), soft_wrap=not console.is_terminal)
    return 0


def _steer(campaign: str, kind: str, payload: dict[str, str], place: Place) -> int:
    """Leave a person's word for a campaign as an event."""
    ledger = place.change()
    number = ledger.resolve(campaign, "campaign")
    row = ledger.get_campaign(number)
    if row.stage == "done":
        raise InputError(f"c-{number:04d} is finished: there is nothing to {kind}")
    if kind == "pause" and row.status != "running":
        raise InputError(
            f"c-{number:04d} is not running ({row.status}). Go on with: python main.py resume c-{number:04d}"
        )
    ledger.record_event(number, kind, "human", payload)
    done = "asked to pause" if kind == "pause" else "the crew hears it at the next round"
    if place.json:
        _print_json(place, {"campaign": f"c-{number:04d}", kind: done})
    elif not place.quiet:
        print(f"c-{number:04d}: {done}")
    return 0


@app.command
def runs(
    *,
    campaign: str | None = None,
    purpose: str | None = None,
    status: str | None = None,
    where: str | None = None,
    group: str | None = None,
    sort: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    all: Annotated[bool, Parameter(negative="")] = False,
    limit: int = 40,
    place: Place | None = None,
) -> int:
    """List recorded runs, newest last.

    Parameters
    ----------
    campaign
        Only those of one campaign, such as c-0007 or @last.
    purpose
        Only baseline, search, selection, confirmation, manual or rerun.
    status
        Only those with a status, such as done or failed.
    where
        Conditions such as "task=halfcheetah-vel and status=done,failed and score>=-50".
    group
        Columns to aggregate over, such as variant, or arm,purpose.
    sort
        A column, such as seed, or -score for the largest first.
    all
        Archived runs too.
    limit
        How many at most.
    """
    place = place or Place()
    from experiments.reading.queries import list_runs

    ledger, _ = place.open()
    number = None if campaign is None else ledger.resolve(campaign, "campaign")
    found = list_runs(
        ledger, campaign=number, purpose=purpose, status=status, where=where, group=group, sort=sort, everything=all, limit=limit
    )  # fmt: skip
    _show_table(place, found.columns, found.rows, found.note)
    return 0


@app.command
def campaigns(*, place: Place | None = None) -> int:
    """List campaigns with their stage and verdict."""
    place = place or Place()
    from experiments.reading.queries import list_campaigns

    ledger, _ = place.open()
    found = list_campaigns(ledger)
    _show_table(place, found.columns, found.rows, found.note)
    return 0


@app.command
def show(id: str, *, place: Place | None = None) -> int:
    """Show one run, campaign, claim or verdict with everything recorded about it.

    Parameters
    ----------
    id
        Such as r-0042, c-0007, k-0001, v-0001, @last (the last run) or @best.
    """
    place = place or Place()
    from experiments.reading.queries import describe_row

    ledger, _ = place.open()
    described = describe_row(ledger, id)
    if place.json:
        _print_json(place, described)
        return 0
    from experiments.tables import described_parts

    console = _console(place)
    for part in described_parts(described):
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
    return 0


@app.command
def status(*, place: Place | None = None) -> int:
    """Show open campaigns with who works on them, and the runs that are training."""
    place = place or Place()
    from experiments.reading.queries import list_active

    ledger, _ = place.open()
    campaigns, runs = list_active(ledger)
    if place.json:
        _print_json(place, {"campaigns": campaigns.records(), "runs": runs.records()})
        return 0
    for found in (campaigns, runs):
        _show_found(place, found)
    return 0


@app.command
def compare(
    first: str, second: str, /, *, all: Annotated[bool, Parameter(negative="")] = False, place: Place | None = None
) -> int:
    """Compare two runs: what differs, and their scores paired by task and by shared seed.

    Parameters
    ----------
    first
        A run, such as r-0042.
    second
        Another one.
    all
        Every field and every task, not only what differs and the means.
    """
    place = place or Place()
    from experiments.reading.compare import compare as compare_runs
    from experiments.reading.compare import sentence

    ledger, _ = place.open()
    found = compare_runs(ledger, first, second, everything=all)
    if place.json:
        _print_json(place, found.model_dump(mode="json"))
        return 0
    _show_found(place, found.differences)
    if all and found.tasks is not None:
        _show_found(place, found.tasks)
    for paired, unit in ((found.by_task, "tasks"), (found.by_seed, "shared seeds")):
        if paired is not None:
            print(sentence(paired, found, unit))
    for note in found.notes:
        print(note)
    return 0


@app.command
def diff(
    first: str, second: str, /, *, all: Annotated[bool, Parameter(negative="")] = False, place: Place | None = None
) -> int:
    """Show what differs between two runs or two campaigns, and nothing else.

    Parameters
    ----------
    first
        A run or a campaign, such as r-0042.
    second
        Another one of the same kind.
    all
        Fields that are the same, too.
    """
    place = place or Place()
    from experiments.reading.compare import diff as find_differences

    ledger, _ = place.open()
    _show_found(place, find_differences(ledger, first, second, everything=all))
    return 0


@app.command
def note(
    target: str | None = None, words: str | None = None, /, *, author: str = "human", place: Place | None = None
) -> int:
    """Keep a remark about a row, or list remarks.

    Parameters
    ----------
    target
        What it is about, such as r-0042 or c-0007; alone it lists the remarks about it.
    words
        The remark. The judge never reads it.
    author
        Who says it.
    """
    place = place or Place()
    from experiments.reading.doctor import add_note, list_notes

    if target is None or words is None:
        ledger, _ = place.open()
        _show_found(place, list_notes(ledger, target))
        return 0
    ledger = place.change()
    _say_done(place, {"note": words, "about": add_note(ledger, target, words, author)})
    return 0


@app.command
def tag(
    target: str | None = None,
    word: str | None = None,
    /,
    *,
    remove: Annotated[bool, Parameter(negative="")] = False,
    place: Place | None = None,
) -> int:
    """Put a label on a row, or list labels.

    Parameters
    ----------
    target
        Such as r-0042 or c-0007; alone it lists its labels.
    word
        The label.
    remove
        Take it off.
    """
    place = place or Place()
    from experiments.reading.doctor import list_tags, set_tag

    if target is None or word is None:
        ledger, _ = place.open()
        _show_found(place, list_tags(ledger, target))
        return 0
    ledger = place.change()
    name = set_tag(ledger, target, word, remove=remove)
    _say_done(place, {"removed" if remove else "tag": word, "about": name})
    return 0


@app.command
def archive(*targets: str, undo: Annotated[bool, Parameter(negative="")] = False, place: Place | None = None) -> int:
    """Hide runs or whole campaigns from lists; no row changes or goes away.

    Parameters
    ----------
    targets
        Such as r-0042 c-0007.
    undo
        Show them again.
    """
    place = place or Place()
    if not targets:
        raise InputError("archive: got nothing, allowed: runs and campaigns, such as r-0042 c-0007")
    from experiments.reading.doctor import archive as put_away

    ledger = place.change()
    _say_done(place, {"shown again" if undo else "archived": ", ".join(put_away(ledger, targets, undo=undo))})
    return 0


@app.command
def export(
    *,
    format: str = "csv",
    table: str = "runs",
    campaign: str | None = None,
    where: str | None = None,
    out: str | None = None,
    place: Place | None = None,
) -> int:
    """Write a table of the ledger as a file.

    Parameters
    ----------
    format
        csv, jsonl or parquet.
    table
        runs, metrics, evals, campaigns, proposals, claims, verdicts, events, artifacts, notes or tags.
    campaign
        Only what belongs to one campaign.
    where
        Only these runs and what belongs to them, as in runs --where.
    out
        The file (default: exports/ in the data folder).
    """
    place = place or Place()
    from pathlib import Path

    from experiments.ledger.export import export as write_export

    ledger, paths = place.open()
    number = None if campaign is None else ledger.resolve(campaign, "campaign")
    file = Path(out) if out else paths.data / "exports" / f"{table}.{format}"
    count = write_export(ledger, file, what=table, format=format, campaign=number, where=where)
    _say_done(place, {"file": str(file), "rows": count})
    return 0


@app.command
def sql(statement: str, /, *, limit: int = 1000, place: Place | None = None) -> int:
    """Ask the ledger anything with one select statement; nothing can be written.

    Parameters
    ----------
    statement
        Such as "select model, avg(score) from runs where status = 'done' group by model".
    limit
        How many rows at most.
    """
    place = place or Place()
    from experiments.ledger.read_sql import read_sql

    ledger, _ = place.open()
    _show_found(place, read_sql(ledger, statement, limit=limit))
    return 0


@app.command
def doctor(*, fix: Annotated[bool, Parameter(negative="")] = False, place: Place | None = None) -> int:
    """Check the ledger and its files; the exit code is 1 where something is wrong.

    Parameters
    ----------
    fix
        Mend what can be: an older schema is migrated, runs that nobody works on any more become crashed.
    """
    place = place or Place()
    from experiments.reading.doctor import examine

    paths = place.paths()
    findings = examine(place.ledger or paths.ledger_url, paths, fix=fix)
    if place.json:
        _print_json(place, [finding.model_dump() for finding in findings])
    for finding in [] if place.json else findings:
        print(f"{'mended' if finding.fixed else 'problem'}: {finding.what}\n  {finding.way_out}")
    if not findings and not place.json:
        print("The ledger and its files are in order.")
    return int(any(not finding.fixed for finding in findings))


@app.command
def gc(*, yes: Annotated[bool, Parameter(negative="")] = False, place: Place | None = None) -> int:
    """Remove models, checkpoints and logs of archived and of crashed runs; their rows stay.

    Parameters
    ----------
    yes
        Really remove them; without it they are only listed.
    """
    place = place or Place()
    from experiments.reading.doctor import removable_files, remove_files
    from experiments.tables import TableView

    ledger, paths = place.open()
    items = removable_files(ledger, paths)
    size = sum(item.size for item in items)
    if yes and items:
        ledger.close()
        remove_files(place.change(), paths, items)
    if place.json:
        _print_json(place, {"removed": yes, "bytes": size, "runs": [item.model_dump() for item in items]})
        return 0
    rows = tuple((item.run, item.why, len(item.files), round(item.size / 1e6, 2)) for item in items)
    words = f"{size / 1e6:,.1f} MB of {len(items)} runs"
    note = f"Removed {words}." if yes else f"{words} can go; remove them with: python main.py gc --yes{_flags(place)}"
    _show_found(
        place, TableView(columns=("run", "why", "files", "MB"), rows=rows, note=note if items else "Nothing to remove.")
    )
    return 0


@app.command
def rerun(
    run: str,
    *,
    set: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    seed: int | None = None,
    seeds: int | None = None,
    check: Annotated[bool, Parameter(negative="")] = False,
    memory: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    place: Place | None = None,
) -> int:
    """Train a recorded configuration again.

    Parameters
    ----------
    run
        Its id, such as r-0042, @last or @best.
    set
        Fields to change, such as model.state_dim=64.
    seed
        Another seed.
    seeds
        So many fresh seeds instead, two at once; their mean, IQM and intervals come at the end.
    check
        Compare every number with the recorded ones; the exit code is 1 where they drift.
    memory
        What one run may occupy, such as 4G (default: an equal part of most of the machine's memory).
    dry_run
        Show what would be trained and how long it would take, and stop.
    """
    place = place or Place()
    limit = _memory_limit(memory)
    from core.errors import bad_value
    from experiments.runs.by_hand import fresh_seeds
    from experiments.runs.runner import queue_run
    from experiments.spec import recorded_spec

    ledger, paths = place.open()
    number = ledger.resolve(run, "run")
    original = ledger.get_run(number)
    ledger.must_show(original)
    if check and (set or seed is not None or seeds is not None):
        raise bad_value("--check", "with --set, --seed or --seeds", "the recorded configuration unchanged")
    recorded = recorded_spec(original.spec, f"r-{number:04d}", original.provenance)
    spec = _changed(recorded, set, seed=seed, seeds=seeds)
    changed = bool(set) or seed is not None
    pool: Any = "search" if changed else original.pool
    chosen = (spec.seed,) if seeds is None else fresh_seeds(ledger, spec, pool, seeds)
    if dry_run:
        return _show_intention(place, ledger, spec, chosen, pool)
    ledger.close()
    ledger = place.change()
    queued = [
        queue_run(
            ledger,
            spec.model_copy(update={"seed": one}),
            purpose="rerun",
            pool=pool,
            proposer="rerun",
            claim_id=None if changed else original.claim_id,
            rerun_of=number,
        )
        for one in chosen
    ]
    if seeds is not None:
        return _execute_several(ledger, paths, queued, place, limit, original=number)
    code = _execute_one(ledger, paths, queued[0], place, limit, silent=check)
    return code if not check or code else _show_check(place, ledger, number, queued[0])


def _show_check(place: Place, ledger: Ledger, number: int, new: int) -> int:
    """Whether a rerun reproduced the recorded numbers."""
    from experiments.runs.runner import compare_reruns

    result = compare_reruns(ledger, number, new)
    if place.json:
        _print_json(place, result.model_dump(mode="json"))
    elif result.matches:
        print(f"{result.rerun} matches {result.original}: {result.compared} numbers are the same.")
    else:
        print(f"{result.rerun} drifts from {result.original}:")
        for d in result.differences:
            print(f"  {d.where}: {d.recorded} recorded, {d.rerun} now")
        for reason in result.reasons or ("no difference in code, packages or machine explains it",):
            print(f"  reason: {reason}")
    return 0 if result.matches else 1


@app.command(name="run")
def run_spec(
    *,
    spec: str | None = None,
    preset: str | None = None,
    set: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    env_steps: str | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    memory: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    place: Place | None = None,
) -> int:
    """Train one configuration by hand and evaluate it on the search pool.

    Parameters
    ----------
    spec
        A JSON file with the fields of a RunSpec; `show r-0042 --json` has one under "spec".
    preset
        Or a stored configuration, such as halfcheetah-vel.lstm; see: list presets.
    set
        Fields to change, such as model.state_dim=64.
    env_steps
        Training budget of a run, such as 300k (a preset's own: 1M).
    seed
        Another seed (a preset's own: 0).
    seeds
        So many fresh seeds instead, two at once; their mean, IQM and intervals come at the end.
    memory
        What one run may occupy, such as 4G (default: an equal part of most of the machine's memory).
    dry_run
        Show what would be trained and how long it would take, and stop.
    """
    place = place or Place()
    limit = _memory_limit(memory)
    from pathlib import Path

    from core.errors import bad_value
    from experiments.spec import parse_spec

    if (spec is None) == (preset is None):
        raise bad_value("run", "both" if spec else "neither", "either --spec FILE or --preset NAME (see: python main.py list presets)")  # fmt: skip
    if spec is not None:
        file = Path(spec)
        if not file.is_file():
            raise InputError(f"--spec: {spec} does not exist")
        parsed = parse_spec(file.read_text(), spec)
    else:
        from experiments.presets import named_preset

        parsed = named_preset(preset or "")
    parsed = _changed(parsed, set, seed=seed, seeds=seeds, env_steps=env_steps)
    from experiments.runs.by_hand import fresh_seeds
    from experiments.runs.runner import queue_run

    if dry_run:
        recorded = place.open_if_there()
        chosen = (parsed.seed,) if seeds is None else fresh_seeds(recorded, parsed, "search", seeds)
        return _show_intention(place, recorded, parsed, chosen, "search")
    ledger, paths = place.open(read_only=False)
    chosen = (parsed.seed,) if seeds is None else fresh_seeds(ledger, parsed, "search", seeds)
    queued = [
        queue_run(ledger, parsed.model_copy(update={"seed": one}), purpose="manual", pool="search", proposer="human")
        for one in chosen
    ]
    if seeds is None:
        return _execute_one(ledger, paths, queued[0], place, limit)
    return _execute_several(ledger, paths, queued, place, limit)


def _changed(
    spec: Any, changes: Sequence[str] | None, *, seed: int | None, seeds: int | None, env_steps: str | None = None
) -> Any:
    """A specification with what the flags change."""
    from core.errors import bad_value
    from core.numbers import parse_count
    from experiments.spec import set_fields

    if seed is not None and seeds is not None:
        raise bad_value("--seed", seed, "either --seed or --seeds, not both")
    if seed is not None and not 0 <= seed < 2**31:
        raise bad_value("--seed", seed, "an integer from 0 to 2147483647")
    fields: dict[str, str] = {}
    for item in changes or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise bad_value("--set", item, "field=value, such as model.state_dim=64")
        fields[name] = value
    if seed is not None:
        fields["seed"] = str(seed)
    if env_steps is not None:
        fields["env_steps"] = str(parse_count(env_steps))
    return set_fields(spec, fields) if fields else spec


def _show_intention(place: Place, ledger: Ledger | None, spec: Any, seeds: Sequence[int], pool: Any) -> int:
    """What a dry run says."""
    from core.numbers import format_count, format_seconds
    from experiments.runs.by_hand import intention

    found = intention(ledger, spec, seeds, pool, min(_workers(), len(seeds)))
    if place.json:
        _print_json(place, found.model_dump(mode="json"))
        return 0
    time = "no recorded run of this model on this task says how long" if found.expected_s is None else f"about {format_seconds(found.expected_s)} by what this ledger recorded"  # fmt: skip
    print(
        f"{spec.policy.model.kind} on {spec.task}, {found.parameters:,} parameters, learner {spec.learner.kind}, {pool} pool\n"
        f"{len(seeds)} run{'s' if len(seeds) > 1 else ''} of {format_count(spec.env_steps)} env steps "
        f"({format_count(found.env_steps_total)} in all), {time}\nseeds {', '.join(map(str, seeds))}"
    )
    if found.already:
        print(f"recorded already: {', '.join(found.already)}")
    print("Dry run: nothing was started.")
    return 0


@app.command
def report(campaign: str = "@last", *, place: Place | None = None) -> int:
    """Write a campaign's report anew, as one HTML file and as Markdown.

    Parameters
    ----------
    campaign
        Its id, such as c-0007, or @last.
    """
    place = place or Place()
    from experiments.reading.report import write_report

    ledger, paths = place.open()
    number = ledger.resolve(campaign, "campaign")
    html, markdown = write_report(ledger, number, paths)
    if place.json:
        _print_json(place, {"html": str(html), "markdown": str(markdown)})
    else:
        print(f"{html}\n{markdown}")
    return 0


@app.command
def plot(
    *targets: str,
    what: Literal["curves", "differences", "tasks", "profile", "shots"] | None = None,
    out: str | None = None,
    place: Place | None = None,
) -> int:
    """Draw a campaign's arms, or runs, from their recorded rows; runs of one configuration become one line with its interval.

    Parameters
    ----------
    targets
        A campaign (default: the last one), or runs such as r-0001 r-0002.
    what
        curves (training return by env steps, the default), differences (paired, seed by seed), tasks (return by evaluation task),
        profile (share of scores above a return) or shots (return by episode on one task).
    out
        An .svg or .png file, or an .html file with every figure that the rows hold (default: an .svg in the data folder).
    """
    place = place or Place()
    from experiments.reading.plot_files import write_plot

    ledger, paths = place.open()
    found = write_plot(ledger, paths, targets or ("c@last",), what=what, out=out)
    if place.json:
        _print_json(place, found.model_dump(mode="json"))
    elif place.quiet:
        print(found.file)
    else:
        print("\n".join([found.file, *(f"  {figure.title}: {figure.rows}" for figure in found.figures)]))
    return 0


@app.command(name="list")
def list_names(
    what: Literal["tasks", "models", "learners", "presets", "agents", "benches", "plugins"],
    *,
    place: Place | None = None,
) -> int:
    """List what can be named in a goal, a specification or a command.

    Parameters
    ----------
    what
        tasks, models, learners, presets, agents, benches, or plugins: what is loaded from outside the tree.
    """
    place = place or Place()
    if what == "agents":
        from multi_agent.agents.agent import list_agents

        found = list_agents()
    elif what == "benches":
        from experiments.bench.registered import list_benches

        found = list_benches()
    else:
        from experiments.reading.queries import list_registered

        found = list_registered(what)
    _show_found(place, found)
    return 0


@app.command
def completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> int:
    """Print a shell completion script; `source <(python main.py completion --shell bash)` uses it at once.

    Parameters
    ----------
    shell
        Which shell (default: the one of $SHELL).
    """
    from cli.shell_completion import NAME, SHELLS, tie
    from core.errors import bad_value

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    for known in SHELLS:
        if name == known:
            print(tie(app.generate_completion(prog_name=NAME, shell=known), known))
            return 0
    raise bad_value("--shell", name, ", ".join(SHELLS))


@app.command
def evaluate(
    model: str,
    /,
    *,
    shots: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (0, 1, 5, 10),
    pool: Pool = "search",
    seed: int = 0,
    place: Place | None = None,
) -> int:
    """Zero-shot and few-shot returns of a kept model, task by task.

    Parameters
    ----------
    model
        A folder of saved_models, or a checkpoint.
    shots
        Episodes lived (a memory) or gradient steps made (a gradient learner) before the one that counts.
    pool
        Which of the family's fixed tasks.
    seed
        Of start states and exploration.
    """
    place = place or Place()
    from experiments.runs.few_shot import few_shot_table

    _show_found(place, few_shot_table(model, shots=shots, pool=pool, seed=seed))
    return 0


@app.command
def bench(
    what: str,
    /,
    *options: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> int:
    """Measure speed against named rivals, as ratios in one run.

    Parameters
    ----------
    what
        Which measurement, such as models, env or train; `list benches` shows all.
    options
        Passed on, such as --quick or --help.
    """
    from experiments.bench.registered import BENCHES

    measure = BENCHES[what]
    if what == "proposers":
        from multi_agent.workflows.proposer_arms import AGENT_ARMS, agent_arms

        return measure(list(options), agent_arms, AGENT_ARMS) or 0
    return measure(list(options)) or 0


@app.command
def tune(
    task: str,
    /,
    *,
    models: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    trials: int = 8,
    env_steps: str = "1M",
    like: str | None = None,
    only: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    seed: int = 0,
    keep: str | None = None,
    memory: str | None = None,
    place: Place | None = None,
) -> int:
    """Tune models on a task with equal effort, on the search pool; given again it trains only what is missing.

    Parameters
    ----------
    task
        Task family, such as halfcheetah-vel.
    models
        Sequence models, such as s5 lstm.
    trials
        Configurations a model, the default among them.
    env_steps
        Training budget of a trial, such as 300k.
    like
        A preset whose settings all models start from, such as halfcheetah-vel.s5 (without: each from its own).
    only
        Fields to search, such as learner.learning_rate (without: all).
    seed
        Seed of the search and of every trial's training.
    keep
        Folder that gets the best configurations as presets (without: none is written).
    memory
        What one run may occupy, such as 4G (default: an equal part of most of the machine's memory).
    """
    from pathlib import Path

    from core.numbers import parse_count
    from experiments.presets import named_preset
    from experiments.runs.runner import Paused
    from experiments.runs.tuning import effort_text, keep_preset, tune, tuning_spaces, tuning_table

    place = place or Place()
    limit = _memory_limit(memory)
    spaces = tuning_spaces(task, models, like=named_preset(like) if like else None, only=only)
    ledger, paths = place.open(read_only=False)

    def execute(numbers: Sequence[int]) -> None:
        if not _execute(ledger, paths, numbers, place, limit):
            raise Paused

    try:
        found = tune(ledger, spaces, execute, trials=trials, env_steps=parse_count(env_steps), seed=seed)
    except Paused:
        _speaker(_console(place), place)("What is trained is kept; the same command goes on.", always=True)
        return 130
    files = []
    for one in found if keep else ():
        effort = effort_text(one, like=like, models=models, only=only)
        files.append(str(keep_preset(one, effort, Path(keep or ""))))
    if place.json:
        _print_json(place, {"models": [one.model_dump(mode="json") for one in found], "kept": files})
    else:
        _show_found(place, tuning_table(found))
        for file in files:
            print(f"Kept: {file}")
    return 0


def _execute_one(
    ledger: Ledger, paths: Paths, number: int, place: Place, memory_limit_mb: int | None, *, silent: bool = False
) -> int:
    """Train one queued run with a live view, and print its result unless `silent` and done."""
    from experiments.ledger import readable_id

    if not _execute(ledger, paths, [number], place, memory_limit_mb):
        return 130
    name, row = readable_id("r", number), ledger.get_run(number)
    code = 0 if row.status == "done" else 1
    if place.json:
        if code or not silent:
            _print_json(place, {"run": name, "status": row.status, "cause": row.cause, "score": row.score})
        return code
    score = "" if row.score is None else f", mean first-episode return on the {row.pool} tasks {row.score:.2f}"
    cause = "" if row.cause is None else f" ({row.cause})"
    print(f"{name}: {row.status}{cause}{score}")
    return code


def _execute_several(
    ledger: Ledger,
    paths: Paths,
    numbers: Sequence[int],
    place: Place,
    memory_limit_mb: int | None,
    *,
    original: int | None = None,
) -> int:
    """Train queued runs of one configuration, two at once, and print their scores together."""
    from experiments.runs.by_hand import seed_scores

    finished = _execute(ledger, paths, numbers, place, memory_limit_mb)
    found = seed_scores(ledger, numbers, original)
    if not finished and all(row.score is None for row in found.rows):
        return 130
    if place.json:
        _print_json(place, found.model_dump(mode="json"))
    else:
        columns = ("run", "seed", "status", "score", "worst_task", "train_s")
        rows = [tuple(getattr(row, name) for name in columns) for row in found.rows]
        _show_table(place, [name.replace("_", " ") for name in columns], rows)
        print(found.sentence())
        for row in found.rows:
            if row.cause:
                print(f"{row.run}: {row.cause}")
    if not finished:
        return 130
    return 0 if all(row.status == "done" for row in found.rows) else 1


def _execute(ledger: Ledger, paths: Paths, numbers: Sequence[int], place: Place, memory_limit_mb: int | None) -> bool:
    """Train queued runs with a live view; those that a Ctrl-C stops are cancelled, and the answer is False."""
    import threading

    from cli.live import LiveView
    from experiments.ledger import readable_id
    from experiments.runs.executor import LocalExecutor
    from experiments.runs.runner import Paused, cancel_run, execute_runs

    console = _console(place)
    say = _speaker(console, place)
    stop = threading.Event()
    view: LiveView = LiveView(console, quiet=place.quiet or place.json)
    executor = LocalExecutor(min(_workers(), len(numbers)), paths.environment())
    try:
        with _stopping(stop, say), view:
            execute_runs(
                ledger,
                executor,
                paths,
                numbers,
                stop=stop,
                listener=view.on_progress,
                memory_limit_mb=memory_limit_mb,
            )
    except (Paused, KeyboardInterrupt):
        stopped = [number for number in numbers if cancel_run(ledger, number)]
        names = ", ".join(readable_id("r", number) for number in stopped)
        say(f"{names} {'was' if len(stopped) == 1 else 'were'} cancelled.", always=True)
        return False
    return True


def _memory_limit(memory: str | None) -> int | None:
    """MiB that a run may occupy, from what was typed."""
    from core.numbers import parse_memory

    return None if memory is None else parse_memory(memory)


def _workers() -> int:
    """Runs at once: one a core that this process may use, two at most."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(2, available))


def _console(place: Place) -> Console:
    from rich.console import Console

    return Console(stderr=place.json, highlight=False)


def _speaker(console: Console, place: Place) -> Any:
    """Prints plain words about the work; with --json they go to standard error, with --quiet only those of `always` do."""
    from rich.text import Text

    def say(words: str, *, always: bool = False) -> None:
        if place.quiet and not place.json:
            if always:
                print(words, file=sys.stderr)
        else:
            console.print(Text(words), soft_wrap=not console.is_terminal)

    return say


@contextmanager
def _probing_paths(paths: Paths, dry_run: bool) -> Iterator[Paths]:
    """Where throughput is measured: the data folder, or a folder that goes away after a dry run."""
    if not dry_run:
        yield paths
        return
    import tempfile

    from experiments.runs.paths import Paths as PathsType

    with tempfile.TemporaryDirectory() as folder:
        yield PathsType.of(folder)


@contextmanager
def _stopping(stop: Any, say: Any) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a clean pause, the second ends at once."""

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("Stopping: saving checkpoints (once more to stop at once) ...")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flags(place: Place) -> str:
    """The flags that name another place, for commands that are printed."""
    data = f" --data-dir {place.data_dir}" if place.data_dir else ""
    return data + (f" --ledger {place.ledger}" if place.ledger else "")


def _print_json(place: Place, value: Any) -> None:
    if place.json:
        from experiments.ledger.store import write_json

        print(write_json(value, indent=2, default=str))


def _show_table(place: Place, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    if place.json:
        _print_json(place, [dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.text import Text

    from experiments.tables import narrowed, table

    console = _console(place)
    if console.width < 110:  # what is the same in all rows is said once
        columns, rows, common = narrowed(columns, rows)
        note = "; ".join(part for part in (common, note) if part)
    console.print(table(columns, rows))
    if note:
        console.print(Text(note))


def _show_found(place: Place, found: TableView) -> None:
    """A table; where it is empty, only what it says about that."""
    if found.rows or place.json:
        _show_table(place, found.columns, found.rows, found.note)
    else:
        print(found.note or "No rows.")


def _say_done(place: Place, done: dict[str, Any]) -> None:
    """What a command changed, in one line."""
    if place.json:
        _print_json(place, done)
    elif not place.quiet:
        print(", ".join(f"{name}: {value}" for name, value in done.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed or drifted, 2 bad input, 130 stopped."""
    from cyclopts import CycloptsError

    try:
        words, _ = plugins_from(sys.argv[1:] if arguments is None else arguments)
        return app(words, exit_on_error=False, print_error=False) or 0
    except CycloptsError as error:
        print(f"error: {error}\nSee: python main.py --help", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in DISK_REFUSES:
            raise
        place = f" {error.filename}" if error.filename else ""
        print(
            f"error: cannot write{place} ({error.strerror}): free some space or choose another --data-dir; "
            "what is in the ledger is kept, go on with: python main.py resume",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        from experiments.runs.runner import Paused  # not above: it loads the learners, which most commands do without

        if isinstance(error, Paused):
            return 130
        raise


if __name__ == "__main__":
    sys.exit(main())
