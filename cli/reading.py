"""Look at what was recorded: lists, single rows, comparisons, SQL, reports, figures, files. Nothing here changes a row."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from cli.options import CampaignId, Flag, LedgerOptions, Limit, Seed
from core.errors import bad_value
from core.pools import Pool


def runs(
    *,
    campaign: str | None = None,
    purpose: str | None = None,
    status: str | None = None,
    where: str | None = None,
    group: str | None = None,
    sort: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    all: Flag = False,
    limit: Limit = 40,
    options: LedgerOptions = LedgerOptions(),
) -> None:
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
    from experiments.reading.queries import list_runs

    ledger = options.read()
    listed = list_runs(
        ledger,
        campaign=None if campaign is None else ledger.resolve(campaign, "campaign"),
        purpose=purpose,
        status=status,
        where=where,
        group=group,
        sort=sort,
        everything=all,
        limit=limit,
    )
    options.output.table(listed, header=True)


def campaigns(*, options: LedgerOptions = LedgerOptions()) -> None:
    """List campaigns with their stage and verdict."""
    from experiments.reading.queries import list_campaigns

    options.output.table(list_campaigns(options.read()), header=True)


def strategies(campaign: str | None = None, *, found: Flag = False, options: LedgerOptions = LedgerOptions()) -> None:
    """Show which configurations agents shaped, how far they are from all others tried, and which fresh seeds showed to be better.

    Parameters
    ----------
    campaign
        Its id, such as c-0007 or @last (without: all).
    found
        Only those that are strategies: far from all others, and better on fresh seeds.
    """
    from sqlalchemy import select

    from experiments.ledger.models import Campaign
    from experiments.reading.strategies import strategies_table

    ledger = options.read()
    if campaign is None:
        with ledger.session() as session:
            numbers = list(session.scalars(select(Campaign.id).order_by(Campaign.id)))
    else:
        numbers = [ledger.resolve(campaign, "campaign")]
    options.output.table(strategies_table(ledger, numbers, found_alone=found), header=True)


def transcript(campaign: str = "@last", *, options: LedgerOptions = LedgerOptions()) -> None:
    """Print what the crew of a campaign said: plans, ideas with their reasons in full, messages, refusals, words of people.

    Parameters
    ----------
    campaign
        Its id, such as c-0007 or @last.
    """
    from experiments.reading.crew import talk
    from experiments.reading.crew import transcript as written

    ledger = options.read()
    number = ledger.resolve(campaign, "campaign")
    if options.output.json:
        options.output.result(
            [{"event": e.id, "kind": e.kind, "actor": e.actor, **e.payload} for e in talk(ledger, number)]
        )
        return
    options.output.result(None, written(ledger, number))


def show(id: str, *, options: LedgerOptions = LedgerOptions()) -> None:
    """Show one run, campaign, claim or verdict with everything recorded about it.

    Parameters
    ----------
    id
        Such as r-0042, c-0007, k-0001, v-0001, @last (the last run) or @best.
    """
    from experiments.reading.queries import describe_row

    options.output.record(describe_row(options.read(), id))


def status(*, options: LedgerOptions = LedgerOptions()) -> None:
    """Show open campaigns with who works on them, and the runs that are training."""
    from experiments.reading.queries import list_active

    campaigns, runs = list_active(options.read())
    options.output.result({"campaigns": campaigns.records(), "runs": runs.records()}, campaigns, runs)


def compare(first: str, second: str, /, *, all: Flag = False, options: LedgerOptions = LedgerOptions()) -> None:
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
    from experiments.reading.compare import compare as compare_runs
    from experiments.reading.compare import sentence

    comparison = compare_runs(options.read(), first, second, everything=all)
    tasks = [comparison.tasks] if all and comparison.tasks is not None else []
    paired = ((comparison.by_task, "tasks"), (comparison.by_seed, "shared seeds"))
    sentences = [sentence(pairs, comparison, unit) for pairs, unit in paired if pairs is not None]
    options.output.result(comparison, comparison.differences, *tasks, *sentences, *comparison.notes)


def diff(first: str, second: str, /, *, all: Flag = False, options: LedgerOptions = LedgerOptions()) -> None:
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
    from experiments.reading.compare import diff as find_differences

    options.output.table(find_differences(options.read(), first, second, everything=all))


def sql(statement: str, /, *, limit: Limit = 1000, options: LedgerOptions = LedgerOptions()) -> None:
    """Ask the ledger anything with one select statement; nothing can be written.

    Parameters
    ----------
    statement
        Such as "select model, avg(score) from runs where status = 'done' group by model".
    limit
        How many rows at most.
    """
    from experiments.ledger.read_sql import read_sql

    options.output.table(read_sql(options.read(), statement, limit=limit))


def report(
    campaign: CampaignId = "@last", *, without_film: Flag = False, options: LedgerOptions = LedgerOptions()
) -> None:
    """Write a campaign's report anew, as one HTML file and as Markdown.

    Parameters
    ----------
    without_film
        Leave out the film of the two sides on one task, which takes some seconds.
    """
    paths = options.paths()
    from experiments.reading.report import write_report

    ledger = options.read()
    html, markdown = write_report(ledger, ledger.resolve(campaign, "campaign"), paths, film=not without_film)
    options.output.result({"html": str(html), "markdown": str(markdown)}, str(html), str(markdown))


def plot(
    *targets: str,
    what: Literal["curves", "differences", "tasks", "profile", "shots"] | None = None,
    out: str | None = None,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Draw a campaign's arms, or runs, from their recorded rows; runs of one configuration become one line with its interval.

    Parameters
    ----------
    targets
        A campaign (default: the last one), or runs such as r-0001 r-0002.
    what
        curves (training return by env steps, the default), differences (paired, seed by seed), tasks (return by evaluation task), profile (share of scores above a return) or shots (return by episode on one task).
    out
        An .svg or .png file, or an .html file with every figure that the rows hold (default: an .svg in the data folder).
    """
    paths = options.paths()
    from experiments.reading.plot_files import write_plot

    plotted = write_plot(options.read(), paths, targets or ("c@last",), what=what, out=out)
    figures = [] if options.quiet else [f"  {figure.title}: {figure.rows}" for figure in plotted.figures]
    options.output.result(plotted, plotted.file, *figures)


def watch(
    model: str,
    /,
    *,
    task: int = 0,
    pool: Pool = "search",
    episodes: int | None = None,
    seed: Seed = 0,
    out: str | None = None,
    fps: float | None = None,
    width: int = 640,
    height: int = 400,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Film a kept model on a task that it was not trained on: the episodes that `evaluate` counts, the robot and its target.

    Parameters
    ----------
    model
        A run such as r-0042 or @best, a folder of saved_models, or a checkpoint.
    task
        Which task of the pool, from 0.
    pool
        Which of the family's fixed tasks; confirmation only where no verdict on the family is due.
    episodes
        How many: a memory lives them one after another, a gradient learner adapts between them (default: what it was trained for, 2 at least).
    seed
        Of start states and exploration, as of evaluate.
    out
        A .gif, an .mp4 (needs ffmpeg), or a .png with some frames side by side (default: a .gif in the data folder).
    fps
        Frames a second (default: 20, in real time where steps have a time).
    width
        Of a frame in pixels.
    height
        Of a frame in pixels.
    """
    from experiments.reading.films import watch as write_film

    paths, ledger = options.paths(), options.read_if_there()
    options.output.say(f"Living and drawing the episodes of {model} ...")
    film = write_film(
        ledger,
        paths,
        model,
        pool=pool,
        index=task,
        episodes=episodes,
        seed=seed,
        out=out,
        fps=fps,
        width=width,
        height=height,
    )
    options.output.result(film, film.file, *(() if options.quiet else film.sentences()))


def list_names(
    what: Literal["tasks", "models", "learners", "presets", "agents", "benches", "plugins"],
    *,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """List what can be named in a goal, a specification or a command.

    Parameters
    ----------
    what
        tasks, models, learners, presets, agents, benches, or plugins: what is loaded from outside the tree.
    """
    if what == "agents":
        from multi_agent.agents.agent import list_agents

        view = list_agents()
    elif what == "benches":
        from experiments.bench.registered import list_benches

        view = list_benches()
    else:
        from experiments.reading.queries import list_registered

        view = list_registered(what)
    options.output.table(view)


def export(
    *,
    format: str = "csv",
    table: str = "runs",
    campaign: str | None = None,
    where: str | None = None,
    out: str | None = None,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Write a table of the ledger as a file, or what it holds as another program's files.

    Parameters
    ----------
    format
        csv, jsonl or parquet; optuna: a campaign's search as an SQLite storage of Optuna; tensorboard: event files, a folder a run.
    table
        runs, metrics, evals, campaigns, proposals, claims, verdicts, events, artifacts, notes or tags.
    campaign
        Only what belongs to one campaign.
    where
        Only these runs and what belongs to them, as in runs --where.
    out
        The file, or with tensorboard the folder (default: exports/ in the data folder).
    """
    from pathlib import Path

    from experiments.ledger.export import OF_OTHERS
    from experiments.ledger.export import export as write_export

    exports = options.paths().data / "exports"
    if format in OF_OTHERS and table != "runs":
        raise bad_value("--table", table, f"runs, where the format is {format}")
    ledger = options.read()
    if format == "optuna":
        if where is not None:
            raise bad_value("--where", where, "nothing where the format is optuna: a study holds a whole search")
        from experiments.serving.studies import write_studies

        number = ledger.resolve(campaign or "@last", "campaign")
        file = Path(out) if out else exports / f"c-{number:04d}.optuna.db"
        options.output.done({"file": str(file), "trials": write_studies(ledger, number, file)})
        return
    campaign_id = None if campaign is None else ledger.resolve(campaign, "campaign")
    if format == "tensorboard":
        from experiments.serving.tensorboard import write_event_files

        folder = Path(out) if out else exports / "tensorboard"
        count = write_event_files(ledger, folder, campaign=campaign_id, where=where)
        options.output.done({"folder": str(folder), "runs": count})
        return
    file = Path(out) if out else exports / f"{table}.{format}"
    count = write_export(ledger, file, what=table, format=format, campaign=campaign_id, where=where)
    options.output.done({"file": str(file), "rows": count})
