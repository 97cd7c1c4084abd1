"""The commands of the earlier systems, each with its documented options, over the commands of today.

Each says once which command of today does the same, and then runs that. Who knew none of them misses nothing here:
`docs/former-commands.md` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from cli import campaigns, reading, training
from cli.options import BrainOptions, CrewOptions, Flag, LedgerOptions, Words
from core.words.commands import command

Count = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000_000))]
Numbers = Annotated[list[int] | None, Parameter(negative="", consume_multiple=True)]
METHODS = {"ssm": "s5", "maml": "maml-ppo"}
"""What names of then are called now."""
EVERY_METHOD = ("ssm", "lstm", "gru", "transformer", "mlp")
BENCHMARKS = ("MT10", "MT50", "ML1", "ML10", "ML45")
AGENTS = {"meta": "Meta-Learning", "adaptation": "Adaptation", "state": "State-Modeling", "environment": "Environment"}
COLLABORATION = Literal["sequential", "debate", "emergent"]


def by_environment(
    env_name: str,
    /,
    *,
    num_epochs: Annotated[Count, Parameter(name=("--num_epochs", "--num-epochs"))] = 20,
    seed: int = 0,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Meta-train on one environment, adapt, and show the returns before and after.

    Parameters
    ----------
    env_name
        A Gymnasium id or a task family, such as CartPole-v1.
    num_epochs
        Meta-updates.
    seed
        Of everything.
    """
    preset, learner = f"{env_name}.{METHODS['ssm']}", METHODS["maml"]
    steps = _epoch_steps(preset, learner) * num_epochs
    run = ["run", "--preset", preset, "--learner", learner, "--env-steps", str(steps), "--seed", str(seed)]
    _say_today(options, run, ["evaluate", "@last", "--shots", "0", "1", "--prediction"])
    code = training.run_spec(preset=preset, learner=learner, env_steps=str(steps), seed=seed, options=options)
    if code == 0:
        training.evaluate("@last", shots=(0, 1), prediction=True, options=options)
    return code


def by_task_distribution(
    task_dist: str,
    /,
    *,
    method: str = "ssm",
    benchmark_mode: Flag = False,
    few_shot: Numbers = None,
    zero_shot: Flag = False,
    train_tasks: Numbers = None,
    test_tasks: Numbers = None,
    epochs: Count = 50,
    seed: int = 0,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """Train on a distribution of tasks, and evaluate on those that are held out after none or some episodes.

    Parameters
    ----------
    task_dist
        A task family, such as metaworld-ml10 or imujoco-halfcheetah.
    method
        ssm, lstm, gru, transformer, mlp, or another sequence model.
    benchmark_mode
        Score it ten times on the way, and on the held-out tasks at the end.
    few_shot
        Evaluate after so many episodes lived on the task, such as 1 5 10.
    zero_shot
        Evaluate in the first episode.
    train_tasks
        Numbers of the tasks to train on, such as 0 1 2; with --test-tasks.
    test_tasks
        Numbers of the tasks to test on, such as 3 4; none that is trained on.
    epochs
        Training iterations.
    seed
        Of everything.
    """
    from env_runner.cut_families import cut_id

    base = "metaworld-ml1:reach-v3" if task_dist == "metaworld-ml1" else task_dist
    task = cut_id(base, train=train_tasks or (), test=test_tasks or ())
    preset = f"{task}.{METHODS.get(method, method)}"
    unit = _epoch_steps(preset, None)
    looks = unit * max(epochs // 10, 1) if benchmark_mode else None
    shots = tuple(sorted({*(few_shot or ()), *((0,) if zero_shot or not few_shot else ())}))
    run = ["run", "--preset", preset, "--env-steps", str(unit * epochs), "--seed", str(seed)]
    run += [] if looks is None else ["--evaluate-every", str(looks)]
    _say_today(options, run, ["evaluate", "@last", "--pool", "confirmation", "--shots", *map(str, shots)])
    code = training.run_spec(
        preset=preset,
        env_steps=str(unit * epochs),
        seed=seed,
        evaluate_every=None if looks is None else str(looks),
        options=options,
    )
    if code == 0:
        training.evaluate("@last", shots=shots, pool="confirmation", options=options)
    return code


def quick_benchmark(*, epochs: Count = 4, seeds: int = 2, options: LedgerOptions = LedgerOptions()) -> int:
    """Every model with RL2 on the point robot, in about a minute.

    Parameters
    ----------
    epochs
        Training iterations.
    seeds
        Training seeds of each model.
    """
    return _grid("point-robot", EVERY_METHOD, ("rl2",), epochs, seeds, options)


def serious_benchmark(
    *,
    task: str = "halfcheetah-vel",
    method: str = "all",
    epochs: Count = 50,
    seeds: int = 3,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """MAML and RL2 with one model or with all, at equal parameters, over several seeds with intervals.

    Parameters
    ----------
    task
        Task family, such as halfcheetah-vel.
    method
        ssm, lstm, gru, transformer, mlp or all.
    epochs
        Training iterations.
    seeds
        Training seeds of each pair.
    """
    methods = EVERY_METHOD if method == "all" else (method,)
    return _grid(task, methods, (METHODS["maml"], "rl2"), epochs, seeds, options)


def run_experiment(
    *,
    benchmark: str,
    num_epochs: Count = 100,
    meta_batch_size: int | None = None,
    inner_batch_size: int | None = None,
    max_steps_per_episode: int | None = None,
    hidden_dim: int | None = None,
    meta_lr: float | None = None,
    inner_lr: float | None = None,
    gamma: float | None = None,
    gae_lambda: float | None = None,
    clip_epsilon: float | None = None,
    eval_interval: Count = 10,
    num_eval_tasks: int | None = None,
    eval_episodes: int = 3,
    output_dir: str = "results",
    seed: int = 0,
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """MAML on a benchmark of Meta-World, as a folder with best_model, final_model, results.json and training_curves.png.

    Parameters
    ----------
    benchmark
        MT10, MT50, ML1 (of reach-v3), ML1:TASK, ML10, ML45, or a task family such as point-robot.
    num_epochs
        Meta-updates.
    meta_batch_size
        Tasks of a meta-update.
    inner_batch_size
        Episodes on a task before each inner step.
    max_steps_per_episode
        Control steps of an episode (without: the family's own).
    hidden_dim
        Width of the state space model.
    meta_lr
        Step size of the outer loop.
    inner_lr
        Step size of the inner loop.
    gamma
        Discount a step.
    gae_lambda
        Lambda of the advantages.
    clip_epsilon
        Clip range of the outer loop.
    eval_interval
        Epochs between two scores on the way.
    num_eval_tasks
        So many of the held-out tasks (without: all).
    eval_episodes
        Episodes on each of them.
    output_dir
        Folder to write.
    seed
        Of everything.
    """
    from env_runner.cut_families import cut_id

    kind, _, one = benchmark.partition(":")
    task = benchmark
    if kind.upper() in BENCHMARKS:
        task = f"metaworld-{kind.lower()}" + (f":{one or 'reach-v3'}" if kind.upper() == "ML1" else "")
    preset, learner = f"{cut_id(task, steps=max_steps_per_episode)}.{METHODS['ssm']}", METHODS["maml"]
    named = {
        "learner.tasks_per_update": meta_batch_size,
        "learner.episodes_per_task": inner_batch_size,
        "model.hidden_dim": hidden_dim,
        "learner.learning_rate": meta_lr,
        "learner.inner_lr": inner_lr,
        "learner.gamma": gamma,
        "learner.gae_lambda": gae_lambda,
        "learner.clip": clip_epsilon,
    }
    changes = [f"{field}={value}" for field, value in named.items() if value is not None]
    unit = _epoch_steps(preset, learner, changes)
    steps, looks = str(unit * num_epochs), str(unit * eval_interval)
    run = ["run", "--preset", preset, "--learner", learner, *(["--set", *changes] if changes else [])]
    run += ["--env-steps", steps, "--evaluate-every", looks, "--seed", str(seed), "--out", output_dir]
    run += [] if num_eval_tasks is None else ["--test-tasks", str(num_eval_tasks)]
    _say_today(options, [*run, "--test-episodes", str(eval_episodes)])
    return training.run_spec(
        preset=preset,
        learner=learner,
        set=changes or None,
        env_steps=steps,
        seed=seed,
        evaluate_every=looks,
        out=output_dir,
        test_tasks=num_eval_tasks,
        test_episodes=eval_episodes,
        options=options,
    )


def visualize_results(
    *, results_dir: str = "results", output_dir: str = "figures", options: LedgerOptions = LedgerOptions()
) -> int:
    """Draw every task's finished runs: learning curves, returns by task and by shots, performance profiles.

    Parameters
    ----------
    results_dir
        A data folder with a ledger; where it has none, the ledger of today is drawn.
    output_dir
        Folder for the figures.
    """
    from dataclasses import replace

    from experiments.reading.plot_files import write_every_plot

    if options.data_dir is None and options.ledger is None and (Path(results_dir) / "ledger.db").is_file():
        options = replace(options, data_dir=results_dir)
        options.name_in_commands()
    paths = options.paths()
    drawn = write_every_plot(options.read(), paths, Path(output_dir))
    for plotted, names in drawn[:1]:  # and so on, a command a figure
        _say_today(options, ["plot", *names, "--what", plotted.figures[0].what, "--out", plotted.file])
    files = [plotted.file for plotted, _ in drawn]
    options.output.result({"files": files}, *(files or ["No finished run of a person is in this ledger."]))
    return 0


def emergence_benchmark(
    *,
    agents: Words = None,
    task: str = "halfcheetah-vel",
    collaboration: COLLABORATION = "emergent",
    env_steps: str | None = None,
    budget: str | None = None,
    brain: BrainOptions = BrainOptions(),
    options: LedgerOptions = LedgerOptions(),
) -> int:
    """A crew of some agents researches a task to its verdict; then the strategies that it found.

    Parameters
    ----------
    agents
        Some of meta, adaptation, state and environment, with commas or spaces between (without: all).
    task
        Task family, such as halfcheetah-vel.
    collaboration
        How they work together.
    env_steps
        Training steps of the whole campaign, such as 20M.
    budget
        Or wall time, such as 30m (the default).
    """
    from dataclasses import asdict

    names = [AGENTS.get(name, name) for word in agents or [] for name in word.split(",") if name]
    goal = f"beat LSTM on {task}"
    spent = [*(["--env-steps", env_steps] if env_steps else []), *(["--budget", budget] if budget else [])]
    crew = ["--collaboration", collaboration, *(["--agents", *names] if names else [])]
    _say_today(options, ["--goal", goal, *spent, *crew], ["strategies", "@last"])
    crew_of = CrewOptions(**asdict(brain), collaboration=collaboration, agents=names or None)
    code = campaigns.research(goal=goal, env_steps=env_steps, budget=budget, brain=crew_of, options=options)
    if code == 0:
        reading.strategies("@last", options=options)
    return code


def strategy_discovery(*, results: str, analyze_novelty: Flag = False, options: LedgerOptions = LedgerOptions()) -> int:
    """Which strategies the agents of all campaigns in a folder found.

    Parameters
    ----------
    results
        A data folder with a ledger.
    analyze_novelty
        Show every configuration that agents shaped with its novelty, not the strategies alone.
    """
    from dataclasses import replace

    options = replace(options, data_dir=results)
    options.name_in_commands()
    _say_today(options, ["strategies", *([] if analyze_novelty else ["--found"])])
    reading.strategies(found=not analyze_novelty, options=options)
    return 0


def performance_comparison(*, searches: Count = 8, trials: Count = 16, llm: str = "offline", json: Flag = False) -> int:
    """The crew against a single agent, the optimizer and an ensemble of proposers, at equal trials, with intervals.

    Parameters
    ----------
    searches
        Whole searches of each.
    trials
        Configurations that each search tries.
    llm
        Chat model of the agents.
    json
        Print JSON.
    """
    arms = "random,optimizer,ensemble,single-agent,crew"
    given = ["--arms", arms, "--searches", str(searches), "--trials", str(trials), "--llm", llm]
    _say_today(LedgerOptions(json=json), ["bench", "proposers", *given])
    return training.bench("proposers", *given, *(["--json"] if json else []))


FORMER = {
    ("--env_name", "--env-name"): by_environment,
    ("--task-dist", "--task_dist"): by_task_distribution,
    ("--quick_benchmark",): quick_benchmark,
    ("--serious_benchmark",): serious_benchmark,
    ("--run_experiment",): run_experiment,
    ("--visualize_results",): visualize_results,
    ("--emergence_benchmark",): emergence_benchmark,
    ("--strategy_discovery",): strategy_discovery,
    ("--performance_comparison",): performance_comparison,
}
"""First words of a command line -> what they stand for: the two of `main.py`, and one a script in `experiments/`."""


def add_former(app: App) -> None:
    """Take the former commands into the command line; no help names them."""
    for names, function in FORMER.items():
        app.command(function, name=names, show=False)


def with_former_first(words: Sequence[str]) -> list[str]:
    """The words with the one that names a former command first, whichever place it was given among options."""
    for place, word in enumerate(words if words and words[0].startswith("-") else ()):
        name, equals, value = word.partition("=")
        if any(name in names for names in FORMER):
            return [name, *([value] if equals else []), *words[place + 1 :][:1], *words[:place], *words[place + 2 :]]
    return list(words)


def _say_today(options: LedgerOptions, *commands: Sequence[str]) -> None:
    lines = " && ".join(command(*words) for words in commands)
    options.output.say(f"The same today: {lines}")


def _grid(
    task: str,
    methods: Sequence[str],
    learners: Sequence[str],
    epochs: int,
    seeds: int,
    options: LedgerOptions,
) -> int:
    models = [METHODS.get(method, method) for method in methods]
    words = ["grid", task, "--models", *models, "--learners", *learners, "--epochs", str(epochs), "--seeds", str(seeds)]
    _say_today(options, words)
    return training.grid(task, models=models, learners=list(learners), epochs=epochs, seeds=seeds, options=options)


def _epoch_steps(preset: str, learner: str | None, changes: Sequence[str] = ()) -> int:
    """Env steps of one training iteration of a preset with some changes."""
    from env_runner.task_distributions import get_family
    from experiments.presets import named_preset
    from experiments.search.space import iteration_steps
    from experiments.spec import set_fields

    spec = named_preset(preset, learner)
    get_family(spec.task).check()  # before anything is said or spent
    return iteration_steps(set_fields(spec, dict(change.split("=", 1) for change in changes)) if changes else spec)
