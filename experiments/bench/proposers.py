"""Who proposes configurations best at equal trials: `python main.py bench proposers --arms random,tpe,hybrid --searches 8`.

On a recorded table of real runs (`--on table`, minutes), on random hills over the real space (`--on landscape`, minutes) or by
training (`--on real`, hours). `--record FILE` makes such a
table. Arms with the name of a crew (`five`, `architect+critic`, `single`) are a campaign's search with that `--crew`. The arms without
agents live in `experiments/bench/searches.py`; those with agents are handed in by the caller, since this package knows no crew. Intervals are 95 % bootstrap intervals over whole searches, and differences are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import unknown_name
from experiments.bench.landscape import Landscape
from experiments.bench.recorded_table import RecordedTable, load_table, record
from experiments.bench.registered import register_bench
from experiments.bench.searches import RULES, ArmResult, RealWorld, Searcher, TableWorld, World, compare, run_searches
from experiments.campaign.question import parse_goal, parse_task
from experiments.campaign.sides import parse_model
from experiments.search.sizing import count_parameters
from experiments.search.space import MARKS, SearchSpace
from meta_rl.learner import DEFAULT_LEARNER

AgentArms = Callable[[argparse.Namespace, Sequence[str], Callable[[str], None]], Mapping[str, Searcher]]
"""(options, names of the wanted arms, where to write remarks) -> their searches."""
DEFAULT_ARMS = "default,random,tpe,optimizer"
SIZES = {"env_steps": 5_120, "configurations": 257}


@register_bench("proposers")
def main(arguments: Sequence[str], agent_arms: AgentArms | None = None, agent_arm_names: Sequence[str] = ()) -> int:
    """Run the command. agent_arms: makes the searches of `agent_arm_names`."""
    options = parse(arguments, agent_arm_names)
    say = _speaker(options)
    if options.record:
        record(
            Path(options.record),
            task=parse_task(options.task),
            model=parse_model(options.model).name,
            env_steps=options.env_steps or SIZES["env_steps"],
            configurations=options.configurations,
            first=options.first,
            say=say,
        )
        return 0
    names = [name.strip() for name in options.arms.split(",") if name.strip()]
    for name in names:
        if name not in (*RULES, *agent_arm_names):
            raise unknown_name("arm", name, (*RULES, *agent_arm_names))
    wanted = [name for name in names if name not in RULES]
    agents = agent_arms(options, wanted, say) if wanted and agent_arms is not None else {}
    arms = {name: RULES[name] if name in RULES else agents[name] for name in names}
    if options.on == "table":
        table = load_table(options.table)
        trials = options.trials if options.trials is not None else 16
        say(describe(table))
        world: Callable[[int], World] = lambda search: TableWorld(table, search)  # noqa: E731
    else:
        trials = options.trials if options.trials is not None else 8
        task, model = parse_task(options.task), parse_model(options.model)
        space = SearchSpace(model, task, learner=DEFAULT_LEARNER, marks=MARKS)
    if options.on == "landscape":
        say(f"Random hills over the space of {model.name} on {task}; a score's noise has standard deviation 1.")
        world = lambda search: Landscape(space, search)  # noqa: E731
    elif options.on == "real":
        rival = SearchSpace(parse_goal(f"beat LSTM on {task}").baseline, task, learner=DEFAULT_LEARNER, marks=MARKS)
        size = count_parameters(rival.spec({}, env_steps=1, seed=0, parameters=None))
        steps = options.env_steps or SIZES["env_steps"]
        say(f"Every trial trains {model.name} on {task} for {steps:,} env steps.")
        world = lambda search: RealWorld(space, search, env_steps=steps, parameters=size)  # noqa: E731
    searches = run_searches(arms, world, searches=options.searches, trials=trials, seed=options.seed, say=say)
    results = compare(searches)
    if options.json:
        print(json.dumps({"options": vars(options) | {"trials": trials}, "arms": [r.model_dump() for r in results]}))
    else:
        print("\n".join(lines(results, trials)))
    return 0


def parse(arguments: Sequence[str], agent_arm_names: Sequence[str] = ()) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="main.py bench proposers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join((*RULES, *agent_arm_names))
    parser.add_argument("--arms", default=DEFAULT_ARMS, help=f"some of {known} (default: {DEFAULT_ARMS})")
    parser.add_argument("--searches", type=int, default=8, help="paired searches an arm (default: 8)")
    parser.add_argument("--trials", type=int, help="trials of each search (default: 16 on a table, 8 for real)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first search")
    parser.add_argument("--on", choices=("table", "landscape", "real"), default="table")
    parser.add_argument("--table", default="point-robot", help="a recorded table, by name or as a file")
    parser.add_argument("--llm", default="offline", help="chat model of the arms with agents, as in the main command")
    parser.add_argument("--base-url", help="another server than the vendor's; the vendor's key is never sent to it")
    parser.add_argument("--llm-key-env", metavar="NAME", help="environment variable that holds the key")
    parser.add_argument("--max-tokens", type=int, help="cap on the chat model's tokens, for each search")
    parser.add_argument(
        "--max-usd",
        type=float,
        default=1.0,
        help="cap on the chat model's cost in dollars, for each search (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--record", metavar="FILE", help="train what FILE lacks of a table, and end")
    parser.add_argument("--task", default="point-robot", help="task family of --record and --on real")
    parser.add_argument("--model", default="ssm", help="model family of --record and --on real")
    parser.add_argument("--env-steps", type=int, help="training steps of a run (default: 5120)")
    parser.add_argument(
        "--configurations", type=int, default=SIZES["configurations"], help="of --record; the default is the first"
    )
    parser.add_argument("--first", type=int, default=0, help="of --record: the configuration to begin with")
    return parser.parse_args(list(arguments))


def describe(table: RecordedTable) -> str:
    """What the table holds, and how its configurations differ against the noise of a seed."""
    facts = spread(table)
    return (
        f"{len(table)} configurations of {table.header.model} on {table.header.task}, {facts['runs']} runs of "
        f"{table.header.env_steps:,} env steps; search scores: standard deviation {facts['between']:.2f} between "
        f"configurations, {facts['within']:.2f} between the seeds of one, best {facts['best']:.2f}, default "
        f"{facts['default']:.2f}"
    )


def spread(table: RecordedTable) -> dict[str, Any]:
    """Standard deviations between configurations and between seeds (one-way analysis of variance), and levels."""
    import numpy as np

    scores = table.scores("search")
    good = scores[np.isfinite(scores).all(axis=1)]
    within = float(np.sqrt(good.var(axis=1, ddof=1).mean()))
    between = float(np.sqrt(max(good.mean(axis=1).var(ddof=1) - within**2 / good.shape[1], 0.0)))
    return {
        "runs": sum(len(rows) for rows in table.runs),
        "failed": int((~np.isfinite(scores)).sum()),
        "within": within,
        "between": between,
        "best": float(good.mean(axis=1).max()),
        "default": float(scores[table.numbers.index(0)].mean()),
    }


def lines(results: Sequence[ArmResult], trials: int) -> list[str]:
    """The comparison as text: one line an arm."""
    searches = len(results[0].worth)
    head = (
        f"{'arm':16} {'mean':>8} {'95 % interval':>18} {'minus random':>13} {'95 % interval':>18} {'better':>7} "
        f"{'trials':>7} {'wasted':>7} {'by agents':>9} {'tokens':>9} {'dollars':>8}"
    )
    out = [f"{searches} paired searches of {trials} trials; fresh score of the configuration that each chose", head]
    for r in results:
        paired = f"{'':13} {'':>18} {'':>7}"
        if r.difference is not None and r.difference_interval is not None and r.better is not None:
            paired = f"{r.difference:+13.3f} {_interval(r.difference_interval):>18} {100 * r.better:5.0f} %"
        out.append(
            f"{r.arm:16} {r.mean:8.3f} {_interval(r.interval):>18} {paired} {r.trials:7} {r.wasted:7} {r.by_models:9} {r.tokens:9,} "
            + ("unknown" if r.usd is None else f"{r.usd:.2f}").rjust(8)
        )
    return out


def _interval(pair: tuple[float, float]) -> str:
    return f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def _speaker(options: argparse.Namespace) -> Callable[[str], None]:
    """Remarks go to the terminal, not among the results."""
    return lambda text: print(text, file=sys.stderr, flush=True)
