"""Train by hand: a recorded configuration again, a preset or file, several models with equal effort; evaluate a kept model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from cli.execution import Execution
from cli.files import read_text
from cli.options import Changes, FileName, Flag, LedgerOptions, Memory, Seeds, Words, memory_limit
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
    limit_mb = memory_limit(memory)
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
    execution = Execution(options, ledger, limit_mb)
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
    memory: Memory = None,
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
    env_steps
        Training budget of a run, such as 300k (a preset's own: 1M).
    seed
        Another seed (a preset's own: 0).
    dry_run
        Show what would be trained and how long it would take, and stop.
    """
    limit_mb = memory_limit(memory)
    wanted = _changed(_named_spec(spec, preset), set, seed=seed, seeds=seeds, env_steps=env_steps)
    if dry_run:
        recorded = options.read_if_there()
        _show_intention(options, recorded, wanted, _chosen_seeds(recorded, wanted, "search", seeds), "search")
        return 0
    from experiments.runs.runner import queue_run

    ledger = options.create()
    run_ids = [
        queue_run(ledger, wanted.model_copy(update={"seed": chosen}), purpose="manual", pool="search", proposer="human")
        for chosen in _chosen_seeds(ledger, wanted, "search", seeds)
    ]
    return Execution(options, ledger, limit_mb).train_and_show(run_ids, together=seeds is not None)


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

    limit_mb = memory_limit(memory)
    spaces = tuning.tuning_spaces(task, models, like=named_preset(like) if like else None, only=only)
    ledger, output = options.create(), options.output
    execution = Execution(options, ledger, limit_mb)

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
    """
    from pathlib import Path

    from experiments.runs.few_shot import few_shot_table, model_of_run, spec_of_run

    ledger = None if Path(model).exists() else options.read_if_there()
    kept = model if ledger is None else model_of_run(ledger, options.paths(), model)
    spec = None if ledger is None else spec_of_run(ledger, model)
    options.output.table(few_shot_table(kept, spec=spec, shots=shots, pool=pool, seed=seed))


def _named_spec(file_name: str | None, preset: str | None) -> RunSpec:
    """The specification in a JSON file, or a stored one."""
    if (file_name is None) == (preset is None):
        hint = f"See: {command('list', 'presets')}"
        raise bad_value("run", "both" if file_name else "neither", "either --spec FILE or --preset NAME", hint=hint)
    if file_name is None:
        from experiments.presets import named_preset

        return named_preset(preset or "")
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

    plan = intention(ledger, spec, seeds, pool, min(available_workers(), len(seeds)))
    if plan.expected_s is None:
        time = "no recorded run of this model on this task says how long"
    else:
        time = f"about {format_seconds(plan.expected_s)} by what this ledger recorded"
    options.output.result(
        plan,
        f"{spec.policy.model.kind} on {spec.task}, {plan.parameters:,} parameters, learner {spec.learner.kind}, {pool} pool."
        f"{spec.conditions}".rstrip("."),
        f"{len(seeds)} run{'s' if len(seeds) > 1 else ''} of {format_count(spec.env_steps)} env steps "
        f"({format_count(plan.env_steps_total)} in all), {time}",
        f"seeds {', '.join(map(str, seeds))}",
        *([f"recorded already: {', '.join(plan.already)}"] if plan.already else []),
        "Dry run: nothing was started.",
    )
