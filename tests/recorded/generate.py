"""How the golden artifacts beside this file were made, with the code before its files were moved.

The code was at commit e1e03a85e0e05511320d950d87d0bfbddb2c8c28 (`git -C /work/old rev-parse HEAD`), in a clone at /work/old:

    cd /work/old
    export PYTHONPATH=/work/old OMP_NUM_THREADS=1
    python /work/golden/generate.py rows          # rows.jsonl: half a minute
    python /work/golden/generate.py ledger        # data.tar.xz, paused_campaign_end.json, evaluate.json: ten minutes
    python /work/golden/generate.py ledger --from evaluate    # only what comes after the data folder was packed

It imports the old layout and is kept to be read: with the new layout it does not run, and it need not.
What a row holds is what `rerun --check` compares (experiments/runner.py, `_numbers`): every evaluation and every training
metric but those of time and memory. Floats are JSON's, which Python writes and reads back exactly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parent
OLD = Path("/work/old")
BUILD = GOLDEN / "build"  # working space, not kept

# ---- rows.jsonl: trainings --------------------------------------------------------------------------------------------
TINY = {"kind": "rl2", "num_worlds": 4, "minibatches": 2, "epochs": 2}
"""Two whole iterations of the point robot are 160 env steps."""


def training(
    task: str, model: dict | str, learner: dict | None = None, *, env_steps: int, **other: Any
) -> dict[str, Any]:
    """The specification of a run, as JSON; every field that is not named has its default."""
    policy = {"model": {"kind": model} if isinstance(model, str) else model, **other.pop("policy", {})}
    return {
        "task": task,
        "policy": policy,
        "learner": {**TINY, **learner}
        if learner is not None and learner.get("kind") != "maml-ppo"
        else learner or TINY,
        "env_steps": env_steps,
        "seed": 3,
        "evaluation_episodes": 2,
        **other,
    }


MAML = {"kind": "maml-ppo", "tasks_per_update": 2, "episodes_per_task": 2, "epochs": 2}
CHEETAH = {"num_worlds": 4, "minibatches": 2, "epochs": 2}
KINDS = ("gru", "hybrid", "lru", "lstm", "mamba", "mlp", "s4d", "s5", "transformer")

TRAININGS: dict[str, dict[str, Any]] = {
    # Every registered model with RL2: the compiled policy around it, the compiled memory where there is one.
    **{f"{kind} on the point robot": training("point-robot", kind, env_steps=240) for kind in KINDS},
    # Other paths through the same learner.
    "two layers of gru": training("point-robot", {"kind": "gru", "num_layers": 2}, env_steps=160),
    "two layers of lstm with forget bias 2": training(
        "point-robot", {"kind": "lstm", "num_layers": 2, "forget_bias": 2.0}, env_steps=160
    ),
    "a lstm wider than the encoder": training("point-robot", {"kind": "lstm", "hidden_dim": 80}, env_steps=160),
    "one layer of s5, bilinear": training(
        "point-robot", {"kind": "s5", "num_layers": 1, "discretization": "bilinear"}, env_steps=160
    ),
    "s5 with half a gate and rms": training(
        "point-robot", {"kind": "s5", "gating": "half", "norm": "rms"}, env_steps=160
    ),
    "s5 without a gate, layer norm": training(
        "point-robot", {"kind": "s5", "gating": "none", "norm": "layer"}, env_steps=160
    ),
    "s5 narrower than the encoder": training(
        "point-robot", {"kind": "s5", "hidden_dim": 48, "state_dim": 32}, env_steps=160
    ),
    "s5 with a privileged critic": training("point-robot", "s5", {"privileged_critic": True}, env_steps=160),
    "gru with a privileged critic and linear heads": training(
        "point-robot", "gru", {"privileged_critic": True}, env_steps=160, policy={"head_dim": 0}
    ),
    "s5 with linear heads": training("point-robot", "s5", env_steps=160, policy={"head_dim": 0}),
    "s5 without the skip": training("point-robot", "s5", env_steps=160, policy={"skip": False, "encoder_dim": 64}),
    "lru on a ring, layer norm": training(
        "point-robot", {"kind": "lru", "spacing": "ring", "norm": "layer"}, env_steps=160
    ),
    "s4d with linear eigenvalues": training(
        "point-robot", {"kind": "s4d", "init": "lin", "discretization": "bilinear"}, env_steps=160
    ),
    "a wide mamba": training(
        "point-robot", {"kind": "mamba", "expand": 2.0, "norm": "rms", "states_per_channel": 4}, env_steps=160
    ),
    "a transformer that sees 8 steps": training(
        "point-robot", {"kind": "transformer", "context": 8, "num_layers": 1}, env_steps=160
    ),
    "a hybrid of five blocks": training(
        "point-robot",
        {
            "kind": "hybrid",
            "blocks": ["s5", "mamba", "attention", "mlp", "s4d"],
            "context": 6,
            "num_heads": 2,
            "norm": "rms",
        },
        env_steps=160,
    ),
    "short trials, a ceiling on the kl, two rates": training(
        "point-robot",
        "s5",
        {
            "short_trials": 0.5,
            "kl_ceiling": 1e-3,
            "final_learning_rate": 1e-4,
            "dynamics_lr_scale": 0.3,
            "adam_beta2": 0.95,
        },
        env_steps=480,
    ),
    "passes that stop at a target kl": training(
        "point-robot", "lru", {"target_kl": 1e-4, "epochs": 6, "learning_rate": 3e-3}, env_steps=160
    ),
    "two episodes a trial of the tabular mdp": training("tabular-mdp", "s5", {"episodes_per_trial": 2}, env_steps=240),
    "two episodes a trial that cross the border": training(
        "t-maze", "lru", {"episodes_per_trial": 2, "advantage_border": "cross", "entropy_coef": 3e-3}, env_steps=480
    ),
    "gru on the bandit": training("bandit", "gru", env_steps=800, evaluation_episodes=1),
    "mamba on the t-maze": training("t-maze", "mamba", env_steps=240),
    "mlp on the pendulum": training("Pendulum-v1", "mlp", env_steps=1600, evaluation_episodes=1),
    "s5 on the cart pole": training("CartPole-v1", "s5", {"num_worlds": 2}, env_steps=1000, evaluation_episodes=1),
    # MuJoCo.
    "lru on the hopper with other bodies": training("hopper-params", "lru", env_steps=1600, evaluation_episodes=1),
    # Gradient-based meta-RL.
    "maml-ppo with s5": training("point-robot", "s5", MAML, env_steps=320),
    "maml-ppo with a mlp, first order, two inner steps": training(
        "point-robot", "mlp", {**MAML, "first_order": True, "inner_steps": 2}, env_steps=480
    ),
    "e-maml with a lstm": training("point-robot", "lstm", {**MAML, "correction": "e-maml"}, env_steps=320),
    "maml-ppo with a mlp on the tabular mdp": training("tabular-mdp", "mlp", MAML, env_steps=160),
}
PRESETS = ("s5", "gru", "lstm", "hybrid", "mamba")
"""Stored presets of halfcheetah-vel, made small; they have short trials and a ceiling on the KL."""
TRAINED_FIRST = "s5 with half a gate and rms"
POOLS = {"s5 on the point robot": "confirmation", "lstm on the point robot": "selection"}
"""The others are evaluated on the search pool."""


def trainings() -> Iterator[tuple[str, dict[str, Any]]]:
    from experiments.presets import named_preset

    yield from TRAININGS.items()
    for kind in PRESETS:
        spec = named_preset(f"halfcheetah-vel.{kind}").model_dump(mode="json")
        spec["learner"] |= CHEETAH
        yield f"the preset halfcheetah-vel.{kind}", {**spec, "env_steps": 1200, "evaluation_episodes": 1, "seed": 5}


def train(name: str, data: dict[str, Any], pool: str) -> dict[str, Any]:
    """Train as `experiments/worker.py` does, in this process, and keep every number that the specification decides."""
    from experiments.space import count_parameters

    from core.seeding import seed_sequence
    from env_runner.task_distributions import get_family
    from experiments.spec import RunSpec
    from meta_rl.learner import build_learner

    spec = RunSpec.model_validate(data)
    learner = build_learner(spec.task, spec.policy, spec.learner, env_steps=spec.env_steps, seed=spec.seed)
    reports = []
    for report in learner.train():
        kept = {k: float(v) for k, v in report.metrics.items() if not k.startswith(("time/", "memory/"))}
        reports.append([report.env_steps, dict(sorted(kept.items()))])
    tasks = get_family(spec.task).eval_tasks(pool)  # type: ignore[arg-type]
    seed = int(seed_sequence(spec.seed, "evaluation", pool).generate_state(1)[0])
    result = learner.evaluate(tasks, episodes=spec.evaluation_episodes, seed=seed, deterministic=True)
    with tempfile.TemporaryDirectory() as folder:
        sha256 = learner.save(Path(folder) / "model")
    return {
        "name": name,
        "kind": "training",
        "spec": spec.model_dump(mode="json"),
        "pool": pool,
        "config_hash": spec.config_hash,
        "variant_hash": spec.variant_hash,
        "parameters": count_parameters(spec),
        "reports": reports,
        "evals": {"return": result.returns.tolist(), **{k: v.tolist() for k, v in sorted(result.extras.items())}},
        "score": float(result.returns[:, 0].mean()),
        "state_sha256": sha256,
    }


# ---- rows.jsonl: what is decided without training ------------------------------------------------------------------------
SPACES = {
    "s5 on the point robot": ("s5", "point-robot"),
    "lstm on the point robot": ("lstm", "point-robot"),
    "ssm on halfcheetah-vel": ("ssm", "halfcheetah-vel"),
    "gru on halfcheetah-vel": ("gru", "halfcheetah-vel"),
    "transformer on ant-dir": ("transformer", "ant-dir"),
    "mamba on the tabular mdp": ("mamba", "tabular-mdp"),
    "hybrid on t-maze": ("hybrid", "t-maze"),
}
BUDGETS = (
    {"env_steps": 80_000}, {"env_steps": 1_000_000}, {"env_steps": 20_000_000}, {"env_steps": 200_000_000},
    {"wall_s": 180.0}, {"wall_s": 1800.0}, {"wall_s": 7200.0}, {"wall_s": 86_400.0},
)  # fmt: skip
GOALS = (
    "beat LSTM on halfcheetah-vel", "compare S5 and LRU on halfcheetah-dir", "find the best SSM on point-robot",
    "improve LRU on halfcheetah-vel by 10 %", "beat GRU with mamba on point-robot",
)  # fmt: skip


def unit_points(count: int, size: int) -> list[list[float]]:
    """Points of the unit cube that every version of every library agrees on."""
    golden = (math.sqrt(5) - 1) / 2
    return [[(0.1 + (i * size + j + 1) * golden) % 1.0 for j in range(size)] for i in range(count)]


def space(name: str) -> Any:
    from experiments.question import parse_model
    from experiments.space import SearchSpace

    model, task = SPACES[name]
    return SearchSpace(parse_model(model), task)


def describe_space(name: str) -> dict[str, Any]:
    """Parameters, unit, configurations at fixed points and the hashes of their specifications, sized and unsized."""
    from experiments.space import plan_unit

    one = space(name)
    found = []
    for point in unit_points(4, len(one.parameters)):
        values = one.from_unit(point)
        spec = one.spec(values, env_steps=10_000, seed=1, parameters=None)
        sized = one.spec(values, env_steps=10_000, seed=1, parameters=40_000)
        back = [None if math.isnan(x) else x for x in one.to_unit(values).tolist()]
        found.append([point, values, back, spec.config_hash, sized.config_hash, sized.policy.model.hidden_dim])
    return {
        "arguments": SPACES[name],
        "parameters": [p.model_dump(mode="json") for p in one.parameters],
        "default": one.default_values(),
        "default_hash": one.spec({}, env_steps=10_000, seed=1, parameters=None).config_hash,
        "plan_unit": plan_unit([one]),
        "points": found,
    }


def suggestions(name: str) -> dict[str, Any]:
    """The optimizer's suggestions along a history whose scores come from a formula; some trials fail or are pruned."""
    from experiments.optimizer import Tried, suggest

    one, history, found = space(name), [], []
    for number in range(14):
        given = suggest(one, history, seed=5, arm="challenger", noise_floor=0.3)
        again = suggest(one, history, seed=5, arm="challenger", noise_floor=0.3, refused=[given.values])
        found.append([given.values, given.source, again.values])
        point = [0.5 if math.isnan(x) else x for x in one.to_unit(one.complete(given.values)).tolist()]
        score = -sum((x - 0.3) ** 2 for x in point) - (10.0 if number > 7 else 0.0)  # from then on a plateau
        tried = Tried(one.complete(given.values), score)
        if number in (3, 6):
            tried = Tried(tried.values, None, (1000, score) if number == 6 else None)
        history.append(tried)
    return {
        "arguments": SPACES[name],
        "seed": 5,
        "noise_floor": 0.3,
        "history": [[t.values, t.score, t.rung] for t in history],
        "suggestions": found,
    }


def plans() -> list[Any]:
    from experiments.plan import Budget, make_plan

    from core.errors import InputError

    found = []
    for budget in BUDGETS:
        for unit, horizon in ((2560, 20), (51_200, 200)):
            for arms in (1, 2):
                rate = None if "env_steps" in budget else 9000.0
                arguments = {
                    "iteration_steps": unit, "horizon": horizon, "tuned_arms": arms, "workers": 2, "steps_per_s": rate,
                    "memory_limit_mb": 4000,
                }  # fmt: skip
                try:
                    plan = make_plan(Budget(**budget), **arguments)
                    result: Any = {**plan.model_dump(mode="json"), "runs": plan.runs, "total": plan.env_steps_total}
                except InputError as error:
                    result = str(error)
                found.append([budget, arguments, result])
    return found


def presets() -> dict[str, Any]:
    from experiments.space import count_parameters

    from core.sequence_model import MODELS
    from experiments.presets import list_presets, named_preset

    names = [str(row[0]) for row in list_presets().rows]
    names += [f"{task}.{kind}" for task in ("point-robot", "ant-vel", "t-maze") for kind in MODELS.names()]
    found = {}
    for name in names:
        spec = named_preset(name)
        found[name] = [spec.config_hash, spec.variant_hash, count_parameters(spec)]
    return found


def families() -> dict[str, Any]:
    """Every family's fixed tasks and first training tasks, as hashes of their bytes, and what never changes about it."""
    from core.errors import InputError
    from core.seeding import numpy_stream
    from env_runner.task_distributions import FAMILIES, get_family

    found = {}
    for name in sorted([*FAMILIES, "MountainCar-v0"]):
        if name.startswith("metaworld"):
            continue
        try:
            family = get_family(name)
        except InputError:
            continue
        tasks = [family.eval_tasks(pool) for pool in ("search", "selection", "confirmation")]
        tasks.append(family.sample_tasks(numpy_stream(0, "golden", name), 8))
        found[name] = [
            family.horizon, family.obs_dim, list(family.action), list(family.param_names), family.revision,
            dict(family.anchors), [[list(t.shape), hashlib.sha256(t.tobytes()).hexdigest()] for t in tasks],
        ]  # fmt: skip
    return found


def streams() -> dict[str, Any]:
    import torch

    from core.seeding import numpy_stream, seed_sequence, torch_stream

    return {
        "seed_sequence": seed_sequence(7, "evaluation", "search").generate_state(4).tolist(),
        "numpy": numpy_stream(7, "tasks", 3).random(4).tolist(),
        "torch": torch.rand(4, generator=torch_stream(7, "actions", 3), dtype=torch.float64).tolist(),
    }


def claim_and_rows(case: str) -> tuple[Any, list[Any]]:
    """A claim about ten seeds, and its rows: `lead` is how far the challenger is ahead."""
    from experiments.judge import ArmClaim, ClaimContent, ConfirmationRow, sequential_looks

    lead = {"ahead": 3.0, "level": 0.02, "behind": -3.0, "dropped": 3.0, "unfinished": 3.0}[case]
    seeds = tuple(range(200_000_001, 200_000_011))
    arms = {
        arm: ArmClaim(
            variant_hash=arm, model=model, parameters=40_000, tuner="tpe", search_trials=8, tuning_env_steps=100_000
        )
        for arm, model in (("challenger", "s5"), ("baseline", "lstm"))
    }
    claim = ClaimContent(
        hypothesis="S5 is better than LSTM", task="point-robot", task_version="1", seeds=seeds, env_steps=5120, num_tasks=4,
        floor=-20.0, floor_name="standing still", looks=sequential_looks(10), **arms,
    )  # fmt: skip
    rows = []
    for number, seed in enumerate(seeds):
        for arm in ("challenger", "baseline"):
            noise = unit_points(2, 20)[arm == "baseline"][number] - 0.5
            returns = tuple(-10.0 + noise + 0.1 * task + (lead if arm == "challenger" else 0.0) for task in range(4))
            status = "failed" if case == "unfinished" and number == 1 else "done"
            rows.append(
                ConfirmationRow(
                    run_id=len(rows) + 1,
                    arm=arm,
                    seed=seed,
                    variant_hash=arm,
                    task="point-robot",
                    task_version="1",
                    status=status,
                    env_steps=5120,
                    returns=returns,
                )
            )
    return claim, rows[:-1] if case == "dropped" else rows


def verdict(case: str) -> dict[str, Any]:
    from experiments.judge import judge, seeds_to_run

    claim, rows = claim_and_rows(case)
    return {
        "claim": claim.model_dump(mode="json"),
        "content_hash": claim.content_hash,
        "rows": [row.model_dump(mode="json") for row in rows],
        "verdict": judge(claim, rows).model_dump(mode="json"),
        "seeds_to_run": [list(seeds_to_run(claim, rows[:n])) for n in (0, 10, 20)],
    }


def sinusoids(variant: str) -> dict[str, Any]:
    """Six meta-updates of one member of the MAML family on sinusoids, and its errors on twenty fresh tasks."""
    from core.seeding import torch_stream
    from meta_rl.meta_maml import MAMLConfig, MetaMAML
    from meta_rl.sinusoid import score_on_sinusoids, sinusoid_network, train_on_sinusoids

    config = MAMLConfig.model_validate({"variant": variant, "inner_steps": 2, "multi_step_updates": 4})
    network = sinusoid_network(torch_stream(2, "golden"), context_dim=config.context_dim if variant == "cavia" else 0)
    maml = MetaMAML(network, config=config)
    losses = train_on_sinusoids(maml, updates=6, shots=5, meta_batch=4, seed=2)
    result = score_on_sinusoids(maml, shots=5, steps=3, num_tasks=20, seed=2)
    return {"variant": variant, "losses": [float(x) for x in losses], "errors": result.errors[:, :, 0].tolist()}


def facts() -> Iterator[dict[str, Any]]:
    from typing import get_args

    from experiments.question import parse_goal

    from meta_rl.meta_maml import Variant

    yield {"name": "streams of random numbers", "kind": "streams", "value": streams()}
    yield {"name": "tasks of every family", "kind": "families", "value": families()}
    yield {"name": "presets", "kind": "presets", "value": presets()}
    yield {"name": "plans", "kind": "plans", "value": plans()}
    goals = [[goal, parse_goal(goal).model_dump(mode="json")] for goal in GOALS]
    yield {"name": "questions", "kind": "questions", "value": goals}
    for name in SPACES:
        yield {"name": f"search space of {name}", "kind": "space", "value": describe_space(name)}
    for name in ("s5 on the point robot", "ssm on halfcheetah-vel"):
        yield {"name": f"suggestions for {name}", "kind": "suggestions", "value": suggestions(name)}
    for case in ("ahead", "level", "behind", "dropped", "unfinished"):
        yield {"name": f"the verdict where the challenger is {case}", "kind": "verdict", "value": verdict(case)}
    for variant in get_args(Variant):
        yield {"name": f"{variant} on sinusoids", "kind": "sinusoids", "value": sinusoids(variant)}


def machine() -> dict[str, Any]:
    """On what the rows were recorded: numbers are equal bit for bit where all of this is."""
    import llvmlite.binding as llvm
    import torch
    from experiments.provenance import provenance

    found = provenance()
    assert found["git_patch_sha256"] is None, "the tree differs from its commit"
    packages = ("torch", "numpy", "mujoco", "gymnasium", "numba", "scipy", "optuna")
    return {
        "name": "machine",
        "kind": "machine",
        "must_equal": {
            "processor": found["machine"]["processor"],
            "torch's instructions": torch.backends.cpu.get_cpu_capability(),
            "numba's processor": f"{llvm.get_host_cpu_name()} {_digest(llvm.get_host_cpu_features().flatten())}",
            **{name: found["packages"][name] for name in packages},
        },
        "provenance": found,
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_rows() -> None:
    import torch

    torch.set_num_threads(1)
    # The last bits of a compiled S5 or LRU memory depend on whether this process has loaded the scan's own kernel before.
    train(TRAINED_FIRST, TRAININGS[TRAINED_FIRST], "search")
    lines = [{**machine(), "trained_first": TRAINED_FIRST}]
    lines += facts()
    for name, data in trainings():
        began = time.monotonic()
        lines.append(train(name, data, POOLS.get(name, "search")))
        print(f"{time.monotonic() - began:6.2f} s  {lines[-1]['score']:10.3f}  {name}", flush=True)
    names = [line["name"] for line in lines]
    assert len(set(names)) == len(names)
    (GOLDEN / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# ---- data.tar.xz: a data folder of the old layout -------------------------------------------------------------------------
NO_KEYS = {"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": "", "GOOGLE_API_KEY": "", "OMP_NUM_THREADS": "1"}
DATA = BUILD / "data"
FINISHED = ("--goal", "beat LSTM on point-robot", "--env-steps", "75k", "--llm", "offline", "--seed", "7")
PAUSED = ("--goal", "compare S5 and GRU on point-robot", "--env-steps", "80k", "--llm", "offline", "--seed", "11")
SMALL = {"encoder_dim": 16, "head_dim": 16}


def command(*arguments: str, data: Path = DATA) -> list[str]:
    return [sys.executable, str(OLD / "main.py"), *arguments, "--data-dir", str(data)]


def call(*arguments: str, data: Path = DATA) -> str:
    print("main.py", *arguments, flush=True)
    environment = {**os.environ, **NO_KEYS, "NUMBA_CACHE_DIR": str(BUILD / "numba-cache")}
    result = subprocess.run(command(*arguments, data=data), cwd=OLD, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{arguments}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result.stdout


def query(sql: str, data: Path = DATA) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{data / 'ledger.db'}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def by_hand() -> None:
    """Runs by hand with small models, their reruns, a note, a tag and an archived run."""
    specs = {
        "s5": training("point-robot", {"kind": "s5", "hidden_dim": 16, "state_dim": 16}, {"num_worlds": 8}, env_steps=960, policy=SMALL),
        "maml": training("point-robot", {"kind": "lstm", "hidden_dim": 16}, MAML, env_steps=320, policy=SMALL),
        "cheetah": training("halfcheetah-vel", {"kind": "gru", "hidden_dim": 16}, {"short_trials": 0.4}, env_steps=2400, policy=SMALL),
    }  # fmt: skip
    for name, data in specs.items():
        file = BUILD / f"{name}.json"
        file.write_text(json.dumps(data))
        call("run", "--spec", str(file))  # r-0001 to r-0003
    call("rerun", "r-0001", "--seeds", "2")  # r-0004, r-0005
    call("rerun", "r-0001", "--set", "model.state_dim=8", "--seed", "4")  # r-0006
    call("note", "r-0001", "the first run of the old layout")
    call("tag", "r-0001", "kept")
    call("archive", "r-0006")


def pause_in_the_second_round() -> None:
    """Start the campaign c-0002 and press Ctrl-C while both runs of its second round are in training."""
    environment = {**os.environ, **NO_KEYS, "NUMBA_CACHE_DIR": str(BUILD / "numba-cache")}
    process = subprocess.Popen(command(*PAUSED), cwd=OLD, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    sql = "select count(*) from runs where campaign_id = 2 and trial = 1 and status = 'running' and env_steps > 0"
    while process.poll() is None and query(sql) < [(2,)]:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code = process.wait()
    if code != 130:
        sys.exit(f"the campaign ended with exit code {code} instead of pausing")
    print(
        query("select id, trial, status, env_steps, json_extract(spec, '$.env_steps') from runs where campaign_id = 2")
    )


def tidy(data: Path, *, models: tuple[str, ...]) -> None:
    """Leave the ledger in one file, checkpoints, kept models and the models of a few runs; drop what can be made again."""
    with closing(sqlite3.connect(data / "ledger.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.execute("vacuum")
        connection.execute("pragma wal_checkpoint(truncate)")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (data / name).unlink(missing_ok=True)
    for name in ("cache", "crewai", "logs", "reports"):
        shutil.rmtree(data / name, ignore_errors=True)
    for file in (data / "models").iterdir():
        if file.stem not in models:
            file.unlink()


NUMBERS = {
    "runs": "select id, purpose, pool, arm, trial, proposer, config_hash, variant_hash, seed, parameters, status, env_steps, score "
    "from runs where campaign_id = 2 order by id",
    "evals": "select e.run_id, e.pool, e.task_index, e.episode, e.name, e.value, e.kind from evals e join runs r on r.id = e.run_id "
    "where r.campaign_id = 2 order by e.run_id, e.name, e.task_index, e.episode",
    "metrics": "select m.run_id, m.name, m.env_steps, m.value, m.kind from metrics m join runs r on r.id = m.run_id "
    "where r.campaign_id = 2 and m.name not like 'time/%' and m.name not like 'memory/%' order by m.run_id, m.name, m.env_steps",
    "proposals": "select arm, trial, role, source, [values] from proposals where campaign_id = 2 order by id",
    "claims": "select content_hash from claims where campaign_id = 2",
    "verdicts": "select v.outcome, v.content from verdicts v join claims c on c.id = v.claim_id where c.campaign_id = 2",
}
"""Of the paused campaign, all that depends on no clock. They are SQL, so they outlive any move of the code."""


def make_ledger(begin: Callable[[str], bool]) -> None:
    BUILD.mkdir(exist_ok=True)
    if begin("data"):
        shutil.rmtree(DATA, ignore_errors=True)
        by_hand()
        call(*FINISHED)  # c-0001, ends with a verdict and a kept model
    if begin("paused"):
        pause_in_the_second_round()
    if begin("pack"):
        tidy(DATA, models=("r-0001", "r-0002", "r-0003"))
        with (
            lzma.open(GOLDEN / "data.tar.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as file,
            tarfile.open(fileobj=file, mode="w") as tar,
        ):
            tar.add(DATA, "data")
    if begin("end"):
        copy = BUILD / "resumed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(DATA, copy)
        call("resume", "c-0002", data=copy)
        found = {name: [list(row) for row in query(sql, copy)] for name, sql in NUMBERS.items()}
        content = {"queries": NUMBERS, "numbers": found}
        with lzma.open(GOLDEN / "paused_campaign_end.json.xz", "wt", preset=9 | lzma.PRESET_EXTREME) as file:
            json.dump(content, file)
        print(found["runs"], found["verdicts"], sep="\n")
    if begin("evaluate"):
        (kept,) = (DATA / "saved_models").iterdir()
        found = {}
        for model in (f"saved_models/{kept.name}", "models/r-0002", "models/r-0003", *checkpoints()):
            for pool in ("search", "confirmation"):
                options = ("--shots", "0", "1", "--pool", pool, "--seed", "9", "--json")
                found[f"{model} {pool}"] = [
                    model, list(options), json.loads(call("evaluate", str(DATA / model), *options)), exact(DATA / model, pool)
                ]  # fmt: skip
        (GOLDEN / "evaluate.json").write_text(json.dumps(found))
    if begin("views"):
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(GOLDEN / "data.tar.xz") as tar:
                tar.extractall(folder, filter="data")
            data = Path(folder) / "data"
            found = {
                name: [list(words), json.loads(call(*words, "--json", data=data))] for name, words in VIEWS.items()
            }
            text = json.dumps(found)
            assert folder not in text
            with lzma.open(GOLDEN / "views.json.xz", "wt", preset=9 | lzma.PRESET_EXTREME) as file:
                file.write(text)


VIEWS = {
    "runs": ("runs", "--limit", "100"),
    "runs and archived ones": ("runs", "--all", "--where", "status=done", "--sort", "-score", "--limit", "100"),
    "runs in groups": ("runs", "--group", "variant", "--sort", "-score"),
    "campaigns": ("campaigns",),
    "a run": ("show", "r-0001"),
    "a run of the paused campaign": ("show", "@last"),
    "the finished campaign": ("show", "c-0001"),
    "the paused campaign": ("show", "c-0002"),
    "a claim": ("show", "k-0001"),
    "a verdict": ("show", "v-0001"),
    "two runs side by side": ("compare", "r-0001", "r-0004", "--all"),
    "what differs between two runs": ("diff", "r-0002", "r-0003"),
    "what differs between the campaigns": ("diff", "c-0001", "c-0002"),
    "notes": ("note",),
    "tags": ("tag",),
    "what is left of the paused campaign": ("resume", "c-0002", "--dry-run"),
    "a dry rerun": ("rerun", "r-0003", "--seeds", "2", "--dry-run"),
    "a select": (
        "sql",
        "select purpose, status, count(*) as n, avg(score) as score from runs group by 1, 2 order by 1, 2",
    ),
    "an answer": ("ask", "c-0001", "which side won and why?", "--llm", "offline"),
}
"""Commands that only read; what they print as JSON."""


def checkpoints() -> list[str]:
    """The training states of the paused campaign, which are policies too."""
    return sorted(f"checkpoints/{file.stem}" for file in (DATA / "checkpoints").glob("*.json"))


def exact(model: Path, pool: str) -> list[list[float]]:
    """The returns behind what `evaluate` prints rounded to two digits."""
    import torch

    from env_runner.task_distributions import get_family
    from meta_rl.evaluate import few_shot
    from meta_rl.learner import Learner

    torch.set_num_threads(1)
    learner = Learner.load(model / "model" if model.is_dir() else model)
    tasks = get_family(learner.family_id).eval_tasks(pool)  # type: ignore[arg-type]
    result = few_shot(learner, tasks, shots=(0, 1), seed=9)
    return [values.tolist() for values in result.returns.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rows", "ledger"))
    parser.add_argument(
        "--from", dest="first", default="data", choices=("data", "paused", "pack", "end", "evaluate", "views")
    )
    arguments = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(BUILD / "numba-cache"))  # before numba is imported
    import experiments

    assert experiments.__path__[0] == str(OLD / "experiments"), "run this with PYTHONPATH=/work/old in /work/old"
    if arguments.what == "rows":
        make_rows()
    else:
        steps = ["data", "paused", "pack", "end", "evaluate", "views"]
        make_ledger(lambda step: steps.index(step) >= steps.index(arguments.first))


if __name__ == "__main__":
    main()
