"""Train by hand: a recorded configuration again, a preset or file, several models with equal effort; evaluate a kept model; benches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TextIO, cast

from cyclopts import Parameter
from cyclopts.validators import Number

from cli.execution import Execution
from cli.files import read_text
from cli.options import Changes, FileName, Flag, LedgerOptions, Memory, Seeds, Sinks, Words, memory_limit, named_sinks
from core.errors import bad_value
from core.pools import Pool
from core.words.commands import command

if TYPE_CHECKING:
    from experiments.ledger import Ledger
    from experiments.spec import RunSpec


def rerun(
    run: str,
    *,
    set: Changes = None,
    seed: int | None = None,
    seeds: Seeds = None,
    check: Flag = False,
    memory: Memory = None,
    sink: Sinks = None,
    dry_run: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Train a recorded configuration again.

    Parameters
    ----------
    run
        Its id, such as r-0042, @last or @best.
    seed
        Another seed.
    check
        Compare every number with the recorded ones; the exit code is 1 where they drift.
    dry_run
        Show what would be trained and how long it would take, and stop.
    """
    limit_mb, sinks = memory_limit(memory), named_sinks(sink)
    recorded = options.read()
    original_id = recorded.resolve(run, "run")
    original = recorded.get_run(original_id)
    recorded.must_show(original)
    if check and (set or seed is not None or seeds is not None):
        raise bad_value("--check", "with --set, --seed or --seeds", "the recorded configuration unchanged")
    from experiments.spec import recorded_spec

    changed = bool(set) or seed is not None
    spec = _changed(
        recorded_spec(original.spec, f"r-{original_id:04d}", original.provenance), set, seed=seed, seeds=seeds
    )
    pool: Pool = "search" if changed else original.pool  # type: ignore[assignment]
    chosen = _chosen_seeds(recorded, spec, pool, seeds)
    if dry_run:
        _show_intention(options, recorded, spec, chosen, pool)
        return 0
    recorded.close()
    ledger = options.change()
    from experiments.runs.runner import queue_run

    run_ids = [
        queue_run(
            ledger,
            spec.model_copy(update={"seed": chosen_seed}),
            purpose="rerun",
            pool=pool,
            proposer="rerun",
            claim_id=None if changed else original.claim_id,
            rerun_of=original_id,
        )
        for chosen_seed in chosen
    ]
    execution = Execution(options, ledger, limit_mb, sinks=sinks)
    if check:
        return execution.train_and_show(run_ids, checked_after=True) or execution.show_check(original_id, run_ids[0])
    return execution.train_and_show(run_ids, together=seeds is not None, original_id=original_id)


def run_spec(
    *,
    spec: FileName = None,
    preset: str | None = None,
    set: Changes = None,
    env_steps: str | None = None,
    seed: int | None = None,
    seeds: Seeds = None,
    learner: str | None = None,
    evaluate_every: str | None = None,
    out: str | None = None,
    test_tasks: int | None = None,
    test_episodes: int = 1,
    memory: Memory = None,
    sink: Sinks = None,
    dry_run: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Train one configuration by hand and evaluate it on the search pool.

    Parameters
    ----------
    spec
        A JSON file with the fields of a RunSpec; `show r-0042 --json` has one under "spec".
    preset
        Or a stored configuration, such as halfcheetah-vel.lstm; see: list presets.
    learner
        What trains a preset's model, such as maml-ppo (a preset's own: rl2).
    env_steps
        Training budget of a run, such as 300k (a preset's own: 1M).
    seed
        Another seed (a preset's own: 0).
    evaluate_every
        Score it on the way too, each time so many env steps are over, such as 50k; the best score's model is kept as well.
    out
        Folder that gets best_model, final_model, results.json and training_curves.png.
    test_tasks
        For --out: so many of the held-out tasks (without: all).
    test_episodes
        For --out: episodes on each of them.
    dry_run
        Show what would be trained and how long it would take, and stop.
    """
    from experiments.numbers import parse_count

    limit_mb, sinks = memory_limit(memory), named_sinks(sink)
    look_every = None if evaluate_every is None else parse_count(evaluate_every, "--evaluate-every")
    if out is not None and seeds is not None:
        raise bad_value("--out", out, "a folder of one run, so without --seeds")
    wanted = _changed(_named_spec(spec, preset, learner), set, seed=seed, seeds=seeds, env_steps=env_steps)
    if dry_run:
        recorded = options.read_if_there()
        _show_intention(options, recorded, wanted, _chosen_seeds(recorded, wanted, "search", seeds), "search")
        return 0
    from experiments.runs.runner import queue_run

    ledger = options.create()
    if out is not None:  # which ends on the held-out tasks
        ledger.must_not_forestall(wanted.task, "confirmation")
    run_ids = [
        queue_run(ledger, wanted.model_copy(update={"seed": chosen}), purpose="manual", pool="search", proposer="human")
        for chosen in _chosen_seeds(ledger, wanted, "search", seeds)
    ]
    code = Execution(options, ledger, limit_mb, look_every, sinks).train_and_show(run_ids, together=seeds is not None)
    if out is not None and code == 0:
        from pathlib import Path

        from experiments.reading.run_folder import write_run_folder

        written = write_run_folder(
            ledger, options.paths(), run_ids[0], Path(out), test_tasks=test_tasks, test_episodes=test_episodes
        )
        options.output.say(f"{written.folder}: {', '.join(written.files)}")
        for model, found in written.test.items():
            words = "; ".join(f"{quantity} {values['mean']:.4g}" for quantity, values in found.items())
            options.output.say(f"{model} on the held-out tasks: {words}")
    return code


def grid(
    task: str,
    /,
    *,
    models: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    learners: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    epochs: Annotated[int | None, Parameter(validator=Number(gte=1, lte=1_000_000))] = None,
    env_steps: str | None = None,
    seeds: Annotated[int, Parameter(validator=Number(gte=1, lte=100))] = 3,
    memory: Memory = None,
    sink: Sinks = None,
    dry_run: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Train models with learners side by side, at equal parameters, env steps and seeds; given again it trains only what is missing.

    Parameters
    ----------
    task
        Task family, such as halfcheetah-vel.
    models
        Sequence models, such as s5 lstm; each with its preset, sized to the LSTM's parameters.
    learners
        What trains them, such as rl2 maml-ppo.
    epochs
        Training iterations of the learner with the largest one.
    env_steps
        Or the training budget of a run, such as 300k.
    seeds
        Training seeds of each pair.
    dry_run
        Show what would be trained, and stop.
    """
    from experiments.numbers import parse_count
    from experiments.runs.grid import grid_specs, grid_table, planned_grid, queue_grid

    limit_mb, sinks = memory_limit(memory), named_sinks(sink)
    if (epochs is None) == (env_steps is None):
        raise bad_value("--epochs", epochs, "either --epochs or --env-steps")
    steps = None if env_steps is None else parse_count(env_steps)
    specs = grid_specs(task, models, learners, epochs=epochs, env_steps=steps)
    if dry_run:
        options.read_if_there()  # a place that cannot be used is said now
        options.output.table(planned_grid(specs, seeds))
        return 0
    ledger = options.create()
    groups = queue_grid(ledger, specs, seeds)
    if not Execution(options, ledger, limit_mb, sinks=sinks).train([run_id for group in groups for run_id in group]):
        options.output.say("What is trained is kept; the same command goes on.", always=True)
        return 130
    options.output.table(grid_table(ledger, groups))
    return int(any(ledger.get_run(run_id).status != "done" for group in groups for run_id in group))


def tune(
    task: str,
    /,
    *,
    models: Annotated[list[str], Parameter(negative="", consume_multiple=True)],
    trials: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 8,
    env_steps: str = "1M",
    like: str | None = None,
    only: Words = None,
    seed: int = 0,
    keep: str | None = None,
    memory: Memory = None,
    sink: Sinks = None,
    options: LedgerOptions = LedgerOptions(),
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
    """
    from pathlib import Path

    from experiments.numbers import parse_count
    from experiments.presets import named_preset
    from experiments.runs import tuning
    from experiments.runs.runner import Paused

    limit_mb, sinks = memory_limit(memory), named_sinks(sink)
    spaces = tuning.tuning_spaces(task, models, like=named_preset(like) if like else None, only=only)
    ledger, output = options.create(), options.output
    execution = Execution(options, ledger, limit_mb, sinks=sinks)

    def execute(run_ids: Sequence[int]) -> None:
        if not execution.train(run_ids):
            raise Paused

    try:
        tuned = tuning.tune(ledger, spaces, execute, trials=trials, env_steps=parse_count(env_steps), seed=seed)
    except Paused:
        output.say("What is trained is kept; the same command goes on.", always=True)
        return 130
    files = []
    for model in tuned if keep else ():
        effort = tuning.effort_text(model, like=like, models=models, only=only)
        files.append(str(tuning.keep_preset(model, effort, Path(keep or ""))))
    output.result({"models": tuned, "kept": files}, tuning.tuning_table(tuned), *(f"Kept: {file}" for file in files))
    return 0


def evaluate(
    model: str,
    /,
    *,
    shots: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (0, 1, 5, 10),
    pool: Pool = "search",
    seed: int = 0,
    prediction: Flag = False,
    options: LedgerOptions = LedgerOptions(),
) -> None:
    """Zero-shot and few-shot returns of a kept model, task by task.

    Parameters
    ----------
    model
        A folder of saved_models, a checkpoint, or a run such as r-0042 or @best.
    shots
        Episodes lived (a memory) or gradient steps made (a gradient learner) before the one that counts.
    pool
        Which of the family's fixed tasks.
    seed
        Of start states and exploration.
    prediction
        Measure too by how much adapting lowers the error of a model of what follows, while the policy acts.
    """
    from pathlib import Path

    from experiments.runs.few_shot import (
        family_of,
        few_shot_table,
        kept_model,
        model_of_run,
        must_show_model,
        spec_of_run,
    )

    ledger = None if Path(model).exists() else options.read_if_there()
    kept = model if ledger is None else model_of_run(ledger, options.paths(), model)
    judging = ledger or options.read_if_there()
    if judging is not None:
        must_show_model(judging, options.paths(), kept_model(kept))
        judging.must_not_forestall(family_of(kept_model(kept)), pool)
    spec = None if ledger is None else spec_of_run(ledger, model)
    table = few_shot_table(kept, spec=spec, shots=shots, pool=pool, seed=seed)
    if not prediction:
        options.output.table(table)
        return
    from experiments.runs.prediction import prediction_gain

    gain = prediction_gain(kept_model(kept), seed=seed)
    options.output.result({"returns": table.records(), "prediction": gain}, table, gain.sentence())


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
    from contextlib import redirect_stderr

    from core.words.text import HarmlessStream
    from experiments.bench.registered import BENCHES

    measure = BENCHES[what]
    with redirect_stderr(cast("TextIO", HarmlessStream(sys.stderr))):  # of a parser, of a chat model's server
        if what == "proposers":
            from multi_agent.workflows.proposer_arms import agent_arm_names, agent_arms

            return measure(list(options), agent_arms, agent_arm_names()) or 0
        return measure(list(options)) or 0


def _named_spec(file_name: str | None, preset: str | None, learner: str | None = None) -> RunSpec:
    """The specification in a JSON file, or a stored one."""
    if (file_name is None) == (preset is None):
        hint = f"See: {command('list', 'presets')}"
        raise bad_value("run", "both" if file_name else "neither", "either --spec FILE or --preset NAME", hint=hint)
    if file_name is None:
        from experiments.presets import named_preset

        return named_preset(preset or "", learner)
    if learner is not None:
        raise bad_value("--learner", learner, "none where --spec has one")
    from experiments.spec import parse_spec

    return parse_spec(read_text("--spec", file_name), file_name)


def _changed(
    spec: RunSpec, changes: Sequence[str] | None, *, seed: int | None, seeds: int | None, env_steps: str | None = None
) -> RunSpec:
    """A specification with what the flags change."""
    from env_runner.task_distributions import get_family
    from experiments.numbers import parse_count
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
    changed = set_fields(spec, fields) if fields else spec
    get_family(changed.task).check()
    return changed


def _chosen_seeds(ledger: Ledger | None, spec: RunSpec, pool: Pool, count: int | None) -> tuple[int, ...]:
    """The specification's own seed, or `count` fresh ones."""
    from experiments.runs.by_hand import fresh_seeds

    return (spec.seed,) if count is None else fresh_seeds(ledger, spec, pool, count)


def _show_intention(
    options: LedgerOptions, ledger: Ledger | None, spec: RunSpec, seeds: Sequence[int], pool: Pool
) -> None:
    """What a dry run says."""
    from experiments.numbers import format_count, format_seconds
    from experiments.runs.by_hand import intention
    from experiments.runs.machine import available_workers
    from experiments.search.sizing import trains

    plan = intention(ledger, spec, seeds, pool, min(available_workers(), len(seeds)))
    if plan.expected_s is None:
        time = "no recorded run of this model on this task says how long"
    else:
        time = f"about {format_seconds(plan.expected_s)} by what this ledger recorded"
    options.output.result(
        plan,
        f"{spec.policy.model.kind} on {spec.task}, {plan.parameters:,} parameters, learner {spec.learner.kind} ({trains(spec)}), {pool} pool."
        f"{spec.conditions}".rstrip("."),
        f"{len(seeds)} run{'s' if len(seeds) > 1 else ''} of {format_count(spec.env_steps)} env steps "
        f"({format_count(plan.env_steps_total)} in all), {time}",
        f"seeds {', '.join(map(str, seeds))}",
        *([f"recorded already: {', '.join(plan.already)}"] if plan.already else []),
        "Dry run: nothing was started.",
    )
