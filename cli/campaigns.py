"""Research a goal to its verdict, go on with a campaign, end it for good."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cli.background import in_background
from cli.files import read_text
from cli.options import CampaignId, CrewOptions, Detach, FileName, Flag, LedgerOptions, Memory, memory_limit
from cli.output import stopping
from core.errors import InputError, bad_value
from core.words.commands import command, quoted

if TYPE_CHECKING:
    from experiments.campaign.lab import Lab
    from experiments.campaign.question import Question
    from experiments.ledger import Ledger
    from experiments.runs.paths import Paths
    from experiments.runs.runner import ProgressListener
    from experiments.serving.notify import Hook
    from multi_agent.llm.choose import LLMChoice
    from multi_agent.workflows.crew import CrewEvent


DEFAULT_GOAL = "beat LSTM on halfcheetah-vel"
"""What is researched where nobody says what."""


def research(
    *,
    goal: str | None = None,
    question: FileName = None,
    budget: str | None = None,
    env_steps: str | None = None,
    seed: int = 0,
    memory: Memory = None,
    time_ratio: float | None = None,
    dry_run: Flag = False,
    detach: Detach = False,
    brain: CrewOptions = CrewOptions(),
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Research a goal to a verdict.

    Parameters
    ----------
    goal
        Such as "beat LSTM on halfcheetah-vel" (the default), "beat RL2 with MAML on point-robot after 2 shots", "improve LRU on
        ant-dir by 10 %".
    question
        A typed question in a JSON file in place of the goal, as --dry-run --json prints one; - is standard input.
    budget
        Wall time for everything, such as 30m (the default), 3m or 2h.
    env_steps
        Total training steps instead of wall time, such as 20M; the campaign is then deterministic.
    seed
        Seed of the whole campaign.
    time_ratio
        The challenger's env steps a second over the baseline's, for a verdict at equal training time in place of what is measured.
    dry_run
        Show what was understood and the plan, and stop.
    """
    began = time.monotonic()
    if goal is not None and question is not None:
        raise bad_value("--question", question, "either --goal or --question, not both")
    if budget is not None and env_steps is not None:
        raise bad_value("--budget", budget, "either --budget or --env-steps, not both")
    if not 0 <= seed < 2**31:
        raise bad_value("--seed", seed, "an integer from 0 to 2147483647")
    from experiments.campaign.plan import Budget
    from experiments.numbers import parse_count, parse_duration

    if env_steps is not None:
        may_spend = Budget(env_steps=parse_count(env_steps))
    else:
        may_spend = Budget(wall_s=parse_duration("30m" if budget is None else budget))
    if dry_run and detach:
        raise InputError("--detach: got --dry-run too, allowed: either --dry-run or --detach, not both")
    limit_mb = memory_limit(memory)
    if time_ratio is not None and not 0.01 <= time_ratio <= 100:
        raise bad_value(
            "--time-ratio", time_ratio, "from 0.01 to 100: the challenger's env steps a second over the baseline's"
        )
    if not dry_run:
        options.paths()  # before anything is imported that keeps a cache
    from experiments.campaign.begin import create_campaign, plan_campaign
    from experiments.campaign.question import parse_question
    from multi_agent.llm.choose import with_campaign

    output = options.output
    if question is not None:
        questions = [parse_question(read_text("--question", question), question)]
    else:
        if goal is None:
            output.say(
                f'No goal was given, so the default one is researched: "{DEFAULT_GOAL}". Ctrl-C pauses it; --help is help.'
            )
        questions = []
    choice = brain.choose()
    if choice.kind == "replay":
        with_campaign(choice, options.read())  # which must be there
    found = ""
    if not dry_run and choice.make_chat is not None:
        asked = time.monotonic()
        choice, found = brain.preflight(choice, options.paths().data)
        began += time.monotonic() - asked
    questions = questions or _understand(goal or DEFAULT_GOAL, choice, brain, options)
    for understood in questions:
        output.say(f"Understood: {understood.sentence()}")
    output.say(f"{choice.describe()} {found}".rstrip())
    part = 1 / len(questions)  # of what was given, for the runs of one question
    if choice.make_chat is not None and may_spend.wall_s is not None:
        from experiments.numbers import format_seconds
        from multi_agent.llm.calls import MODEL_SHARE

        runs_s = may_spend.wall_s / (1 + MODEL_SHARE)
        output.say(f"Of the budget, up to {format_seconds(may_spend.wall_s - runs_s)} are for the chat model.")
        may_spend, part = Budget(wall_s=runs_s), part / (1 + MODEL_SHARE)

    ledger = None
    if not dry_run:  # a ledger that cannot be used is said before anything is spent
        ledger = options.create()
        choice = with_campaign(choice, ledger)
    each = may_spend.share(len(questions))
    stop = threading.Event()
    from cli.live import plan_text

    plans = []
    for understood in questions:
        with _probing_paths(options, dry_run) as probing, stopping(stop, output.say):
            known = options.read_if_there() if ledger is None else ledger
            plan = plan_campaign(
                understood,
                each,
                probing,
                ledger=known,
                memory_limit_mb=limit_mb,
                time_ratio=time_ratio,
                stop=stop,
                say=output.say,
                part=part,
            )
        plans.append(plan)
        output.say(plan_text(understood, plan))
    if ledger is None:
        if output.json:
            planned = [{"question": one, "plan": plan} for one, plan in zip(questions, plans, strict=True)]
            output.result(planned[0] if len(planned) == 1 else {"campaigns": planned})
        output.say("Dry run: nothing was started.")
        return 0
    spent_s = time.monotonic() - began if detach else 0.0  # by this process, which then is another than the one at work
    made = [
        create_campaign(ledger, one, plan, seed=seed, llm=choice.name, spent_s=0.0 if place else spent_s)
        for place, (one, plan) in enumerate(zip(questions, plans, strict=True))
    ]
    for campaign_id in made:
        brain.keep(ledger, campaign_id, choice)
    if detach:
        return in_background(ledger, made, brain, options)
    for place, campaign_id in enumerate(made):
        code = _work(ledger, campaign_id, choice, brain, options, began if place == 0 else time.monotonic())
        if code:
            later = "; ".join(command("resume", f"c-{number:04d}") for number in made[place + 1 :])
            if later:
                output.say(f"After it: {later}", always=True)
            return code
    return 0


def resume(
    campaign: CampaignId = "@last",
    *,
    dry_run: Flag = False,
    take_over: Flag = False,
    detach: Detach = False,
    brain: CrewOptions = CrewOptions(),
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Go on with a paused or interrupted campaign.

    Parameters
    ----------
    dry_run
        Show what was spent and what is left, and stop.
    take_over
        Take it from a process on another machine that is gone; where it lives after all, it stops within seconds.
    """
    began = time.monotonic()
    output = options.output
    if dry_run and detach:
        raise InputError("--detach: got --dry-run too, allowed: either --dry-run or --detach, not both")
    if dry_run:
        from experiments.reading.queries import what_is_left

        ledger = options.read()
        left = what_is_left(ledger, ledger.resolve(campaign, "campaign"))
        output.record(left, "Dry run: nothing was started.")
        return 0
    ledger = options.change()
    campaign_id = ledger.resolve(campaign, "campaign")
    row = ledger.get_campaign(campaign_id)
    said, brain = brain, brain.as_in(ledger, campaign_id)
    choice = brain.choose()
    if row.stage == "done":
        output.say(f"Campaign c-{campaign_id:04d} is finished; its verdict stands.")
        return _conclude(_open_lab(ledger, campaign_id, options.paths()), options)
    if detach:
        return in_background(ledger, [campaign_id], said, options, take_over=take_over)
    choice, found = brain.preflight(choice, options.paths().data)
    brain.keep(ledger, campaign_id, choice)
    text = f"Going on with c-{campaign_id:04d}: {row.goal} (stage {row.stage}). {choice.describe()} {found}"
    output.say(text.rstrip())
    return _work(ledger, campaign_id, choice, brain, options, began, take_over=take_over)


def extend(
    campaign: CampaignId = "@last",
    *,
    budget: str | None = None,
    env_steps: str | None = None,
    detach: Detach = False,
    brain: CrewOptions = CrewOptions(),
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Go on with an inconclusive verdict: more fresh seeds of the same two configurations, judged together with those before.

    Parameters
    ----------
    budget
        Wall time for them, such as 1h (the default).
    env_steps
        Training steps in place of wall time, such as 20M.
    """
    began = time.monotonic()
    if budget is not None and env_steps is not None:
        raise bad_value("--budget", budget, "either --budget or --env-steps, not both")
    from experiments.campaign.extend import extend_campaign
    from experiments.numbers import parse_count, parse_duration
    from experiments.runs.machine import available_workers

    wall_s = None if env_steps is not None else parse_duration("1h" if budget is None else budget)
    steps = None if env_steps is None else parse_count(env_steps)
    ledger = options.change()
    extended = ledger.resolve(campaign, "campaign")
    said, brain = brain, brain.as_in(ledger, extended)
    choice, found = brain.preflight(brain.choose(), options.paths().data)
    workers = available_workers()
    number = extend_campaign(ledger, extended, wall_s=wall_s, env_steps=steps, workers=workers, llm=choice.name)
    brain.keep(ledger, number, choice)
    seeds = ledger.get_campaign(number).plan["design"]["confirmation_seeds"]
    text = f"c-{number:04d} extends c-{extended:04d} by {seeds} fresh seeds a side. {choice.describe()} {found}"
    options.output.say(text.rstrip())
    if detach:
        return in_background(ledger, [number], said, options)
    return _work(ledger, number, choice, brain, options, began)


def stop(campaign: CampaignId = "@last", *, options: LedgerOptions = LedgerOptions()) -> int:
    """End a campaign for good, with a verdict on what confirmation there is; pause and resume go on instead."""
    from experiments.campaign.holder import describe_holder, if_gone, standing_of

    ledger = options.change()
    campaign_id = ledger.resolve(campaign, "campaign")
    row = ledger.get_campaign(campaign_id)
    if row.stage == "done":
        raise InputError(f"c-{campaign_id:04d} is finished: there is nothing to stop")
    ledger.record_event(campaign_id, "stop", "human", {})
    if standing_of(row) == "running":
        asked = {"campaign": f"c-{campaign_id:04d}", "asked to end": "it cancels its runs and writes its report"}
        advice = if_gone(campaign_id, row.holder)
        options.output.done(asked | ({"held by": f"{describe_holder(row.holder)}. {advice}"} if advice else {}))
        return 0
    return _end(_open_lab(ledger, campaign_id, options.paths()), options)


def _understand(goal: str, choice: LLMChoice, brain: CrewOptions, options: LedgerOptions) -> list[Question]:
    """The questions behind a goal: by the grammar, else as a chat model puts it into the grammar's words."""
    from experiments.campaign.begin import recorded_in
    from experiments.campaign.question import parse_goals

    runs = recorded_in(options.read_if_there)
    try:
        return parse_goals(goal, runs)
    except InputError as not_understood:
        if choice.make_chat is None:
            raise
        from multi_agent.translate import translate

        data_dir = options.paths().data
        try:
            return translate(goal, choice, runs=runs, data_dir=data_dir, **brain.caps)
        except InputError as error:
            raise InputError(f"{not_understood}. And {error}") from None


@contextmanager
def _probing_paths(options: LedgerOptions, dry_run: bool) -> Iterator[Paths]:
    """Where throughput is measured: the data folder, or a folder that goes away after a dry run."""
    if not dry_run:
        yield options.paths()
        return
    import tempfile

    from experiments.runs.paths import Paths

    with tempfile.TemporaryDirectory() as folder:
        yield Paths.of(folder)


def _open_lab(
    ledger: Ledger,
    campaign_id: int,
    paths: Paths,
    *,
    workers: int = 1,
    listener: ProgressListener | None = None,
    began: float | None = None,
) -> Lab:
    from experiments.campaign.lab import Lab
    from experiments.runs.executor import LocalExecutor

    executor = LocalExecutor(workers, paths.environment())
    return Lab(ledger, campaign_id, executor, paths, listener=listener, began=began)


def _work(
    ledger: Ledger,
    campaign_id: int,
    choice: LLMChoice,
    brain: CrewOptions,
    options: LedgerOptions,
    began: float,
    *,
    take_over: bool = False,
) -> int:
    """Drive a campaign to its verdict, or to a pause."""
    from cli.live import LiveView
    from experiments.campaign.steering import is_stopped
    from experiments.runs.machine import available_workers
    from experiments.runs.runner import Denied, Paused
    from experiments.serving.notify import Hook
    from experiments.serving.stream import Stream
    from multi_agent.workflows.research_workflow import run_research

    output = options.output
    hook = Hook(brain.notify, lambda words: output.say(words, always=True))
    view = LiveView(output.console, quiet=output.quiet or output.json)
    paths = options.paths()
    stream = Stream(brain.sink or (), ledger, paths, lambda words: output.say(words, always=True), campaign=campaign_id)
    listener = stream.beside(view.on_progress)
    lab = _open_lab(ledger, campaign_id, paths, workers=available_workers(), listener=listener, began=began)
    view.lab = lab
    if is_stopped(ledger, campaign_id):  # asked for while nobody worked on it
        return _end(lab, options, take_over=take_over, hook=hook)

    def hear(event: CrewEvent) -> None:
        view.on_event(event.kind, event.actor, event.text, event.payload)
        if event.kind == "waiting" and "key" in event.payload:  # recorded now; what is only shown again has none
            hook.post("waiting", lab.campaign_id, lab.question.goal)

    try:
        with lab.holding(take_over=take_over), stopping(lab.stop_event, output.say), stream, view:
            output.say(f"Campaign {lab.campaign_id} in {ledger.place}")
            try:
                run_research(
                    lab,
                    choice,
                    data_dir=lab.paths.data,
                    on_event=hear,
                    **brain.caps,
                    approve_each=brain.approve_each,
                    collaboration=brain.collaboration,
                    agents=brain.members(),
                )
            except Paused:
                raise
            except Exception:
                hook.post("failed", lab.campaign_id, lab.question.goal)
                raise
    except (Paused, KeyboardInterrupt) as paused:
        if is_stopped(ledger, campaign_id):
            return _end(lab, options, hook=hook)
        if isinstance(paused, Denied):
            output.say(f"{paused}.")
        output.say(f"Paused; nothing is lost. Go on with: {command('resume', lab.campaign_id)}", always=True)
        return 130
    return _conclude(lab, options, hook)


def _end(lab: Lab, options: LedgerOptions, *, take_over: bool = False, hook: Hook | None = None) -> int:
    """End a campaign that a person stopped, with a verdict where confirming had begun."""
    from experiments.campaign.steering import end_campaign

    with lab.holding(take_over=take_over):
        end_campaign(lab)
    return _conclude(lab, options, hook)


def _conclude(lab: Lab, options: LedgerOptions, hook: Hook | None = None) -> int:
    """Keep the better model, write the report, show the verdict; a report that fails loses no model, and a model that cannot be written
    loses neither report nor verdict. hook: who is told of it, where it is a new one."""
    from cli.live import verdict_lines, verdict_panel
    from experiments.reading.report import keep_model, write_report

    output, ledger = options.output, lab.ledger
    model, lost = None, None
    try:
        model = keep_model(ledger, lab.number, lab.paths) if lab.is_judged() else None
    except OSError as error:
        lost = InputError(f"the better model was not kept: {error}. Its run's own is in {lab.paths.data / 'models'}")
    html, _ = write_report(ledger, lab.number, lab.paths)
    shown: dict[str, Any] = {"campaign": lab.campaign_id, "verdict": None, "report": str(html), "model": None}
    if not lab.is_judged():  # a person stopped it before there was anything to judge
        narrative = ledger.get_campaign(lab.number).narrative or ""
        output.result(shown, narrative, f"Report: {html}")
        return 0
    verdict = lab.judge()
    if hook is not None:
        hook.post("verdict", lab.campaign_id, lab.question.goal, verdict)
    shown |= {"verdict": verdict, "model": str(model) if model else None}
    lines = verdict_lines(
        verdict, lab.question, lab.plan, lab.round * lab.plan.trials_at_once, lab.campaign_id, verdict.claim_id
    )
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    commands = [quoted(opener, str(html))]
    for run_id in verdict.run_ids[:1]:
        commands += [command("show", f"r-{run_id:04d}"), command("rerun", f"r-{run_id:04d}", "--check")]
    commands.append(command("runs", "--campaign", lab.campaign_id))
    output.result(shown, verdict_panel(lines, verdict.outcome), "next  " + "\n      ".join(commands))
    if lost is not None:
        raise lost
    return 0
