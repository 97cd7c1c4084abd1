"""Training and acting speed of every sequence model, as ratios to torch's nn.LSTM in the same run.

How it is measured. One layer of each model maps sequences of its own width to the same width; "training" is forward and
backward with gradients for the input and all parameters, "acting" one step of 32 worlds without gradients. One round
measures every model once, one after another, and a ratio is the median over rounds of (LSTM's time / model's time), so
that whatever else the machine does hits all of them alike; above 1 is faster than the LSTM. On CPU times are CPU time of
one thread, which leaves other programs out; on a GPU wall clock with the device synchronised.

Two comparisons: at equal width (hidden_dim; state_dim follows it as in the default configuration), and at equal
parameters (each model's width fitted to the LSTM's count). "s5 half" is s5 with gating "half"; the default is "full".
activations_mb is what the forward pass keeps for the backward, so its growth with T shows whether memory is linear.

Run: `python -m experiments.bench.models [--device cuda] [--quick] [--json]`.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from core.config import FrozenConfig
from core.errors import bad_value
from core.sequence_model import (
    MODELS,
    SequenceModelConfig,
    build_model,
    check_device,
    count_parameters,
    default_config,
    size_to_budget,
    with_width,
)
from experiments.bench.registered import register_bench

RIVAL = "torch nn.LSTM"
LENGTHS = (64, 200, 1000, 4096)


class TrainingTime(FrozenConfig):
    """Forward and backward of one layer."""

    model: str
    """Kind, with what differs from its default configuration; "torch nn.LSTM" is the yardstick."""
    match: Literal["width", "parameters"]
    """What is equal to the LSTM's."""
    width: int
    """hidden_dim of this model."""
    parameters: int
    """Trainable numbers."""
    batch: int
    """Sequences."""
    length: int
    """Steps of each sequence, T."""
    ms: float
    """Median over rounds, milliseconds."""
    speedup: float
    """LSTM's time divided by this model's: median over rounds."""
    activations_mb: float
    """Kept from forward to backward, megabytes."""


class ActingTime(FrozenConfig):
    """One step without gradients."""

    model: str
    """As in TrainingTime."""
    match: Literal["width", "parameters"]
    """What is equal to the LSTM's."""
    width: int
    """hidden_dim of this model."""
    batch: int
    """Worlds."""
    us: float
    """Median over rounds, microseconds a step."""
    speedup: float
    """LSTM's time divided by this model's: median over rounds."""


class ModelBenchmark(FrozenConfig):
    """All that was measured, and on what."""

    device: str
    """cpu (one thread) or the GPU's name."""
    machine: str
    """Processor and operating system."""
    versions: str
    """Of Python and torch."""
    load: float
    """Load average of the machine when it began: above the number of cores, other programs were in the way."""
    rounds: int
    """How often each time was taken."""
    training: tuple[TrainingTime, ...]
    """One row for each model, comparison, width and length."""
    acting: tuple[ActingTime, ...]
    """One row for each model, comparison and width."""


class _Torch(nn.Module):
    """nn.LSTM with the interface of the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.core = nn.LSTM(width, width, batch_first=True)
        self.width = width

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.core(x)[0], None

    def start(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, batch, self.width, device=device), torch.zeros(1, batch, self.width, device=device)

    def act(self, x: Tensor, state: tuple[Tensor, Tensor]) -> None:
        self.core(x.unsqueeze(1), state)


@dataclass
class _Contender:
    label: str
    match: Literal["width", "parameters"]
    width: int
    model: nn.Module


def _variants() -> list[tuple[str, SequenceModelConfig]]:
    """Every registered model in its default form but one layer deep, and the lighter gate of the dense cells."""
    configs = []
    for kind in MODELS:
        default = default_config(kind)
        config = type(default).model_validate({**default.model_dump(), "num_layers": 1})
        configs.append((kind, config))
        if kind in ("s5", "lru", "s4d"):
            light = type(config).model_validate({**config.model_dump(), "gating": "half"})
            configs.append((f"{kind} half", light))
    return configs


def _contenders(width: int, match: Literal["width", "parameters"], device: torch.device) -> list[_Contender]:
    rival = _Torch(width)
    found = [_Contender(RIVAL, match, width, rival.to(device))]
    for label, config in _variants():
        if match == "width":
            sized = with_width(config, width)
        else:
            # The maps in and out of this width are part of what is counted, as they would be in use.
            sized = size_to_budget(config, width, width, count_parameters(rival))
        found.append(_Contender(label, match, sized.hidden_dim, build_model(sized, width, width).to(device)))
    return found


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def wall() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return wall


def _train_once(model: nn.Module, x: Tensor, upstream: Tensor, clock: Callable[[], float]) -> float:
    """Milliseconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    x.grad = None
    start = clock()
    output = model(x)[0]
    output.backward(upstream)
    return (clock() - start) * 1e3


def _activations_mb(model: nn.Module, x: Tensor) -> float:
    """Bytes that the graph holds between forward and backward, each storage once, parameters and input left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters())}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no memory is freed and given out again while it is counted

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(sizes.values()) / 1e6


def _act(contender: _Contender, batch: int, device: torch.device) -> Callable[[], None]:
    """One acting step."""
    model, x = contender.model, torch.zeros(batch, contender.width, device=device)
    if isinstance(model, _Torch):
        state = model.start(batch, device)
        return lambda: model.act(x, state)
    x = torch.zeros(batch, model.input_dim, device=device)  # pyright: ignore[reportCallIssue, reportArgumentType]
    hidden = model.init_hidden(batch)  # pyright: ignore[reportCallIssue]
    return lambda: model(x, hidden)


def bench_models(
    *,
    device: str = "cpu",
    widths: Sequence[int] = (64, 128),
    lengths: Sequence[int] = LENGTHS,
    batch: int = 8,
    worlds: int = 32,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ModelBenchmark:
    """Measure every registered model. quick: one width, two lengths, few rounds.

    Raises InputError for a device that is absent or empty widths and lengths.
    """
    place = check_device(device)
    if not widths or min(widths) < 4:
        raise bad_value("widths", list(widths), "at least one width of 4 or more")
    if not lengths or min(lengths) < 1:
        raise bad_value("lengths", list(lengths), "at least one length of 1 or more")
    if quick:
        widths, lengths = widths[:1], [length for length in lengths if length <= 200] or lengths[:1]
    rounds, threads = 5 if quick else 11, torch.get_num_threads()
    tell, load = progress or (lambda text: None), os.getloadavg()[0]
    training: list[TrainingTime] = []
    acting: list[ActingTime] = []
    torch.set_num_threads(1)
    try:
        for width in widths:
            for match in ("width", "parameters"):
                contenders = _contenders(width, match, place)
                for length in lengths:
                    tell(f"training: width {width}, equal {match}, T = {length}")
                    training += _training_rows(contenders, width, batch, length, rounds, place)
                tell(f"acting: width {width}, equal {match}")
                acting += _acting_rows(contenders, worlds, rounds, place)
    finally:
        torch.set_num_threads(threads)
    return ModelBenchmark(
        device="cpu, one thread" if place.type == "cpu" else torch.cuda.get_device_name(place),
        machine=f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
        load=load,
        rounds=rounds,
        training=tuple(training),
        acting=tuple(acting),
    )


def _training_rows(
    contenders: list[_Contender], width: int, batch: int, length: int, rounds: int, device: torch.device
) -> list[TrainingTime]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, width, generator=generator).to(device).requires_grad_()
    upstream = torch.randn(batch, length, width, generator=generator).to(device)
    clock = _clock(device)
    memory = [_activations_mb(contender.model, x) for contender in contenders]
    for contender in contenders:
        _train_once(contender.model, x, upstream, clock)  # compile, and warm the caches
    times = [[_train_once(one.model, x, upstream, clock) for one in contenders] for _ in range(rounds)]
    return [
        TrainingTime(
            model=one.label,
            match=one.match,
            width=one.width,
            parameters=count_parameters(one.model),
            batch=batch,
            length=length,
            ms=statistics.median(row[i] for row in times),
            speedup=statistics.median(row[0] / row[i] for row in times),
            activations_mb=memory[i],
        )
        for i, one in enumerate(contenders)
    ]


def _acting_rows(
    contenders: list[_Contender], worlds: int, rounds: int, device: torch.device, steps: int = 100
) -> list[ActingTime]:
    clock = _clock(device)
    calls = [_act(contender, worlds, device) for contender in contenders]

    def once(call: Callable[[], None]) -> float:
        start = clock()
        for _ in range(steps):
            call()
        return (clock() - start) / steps * 1e6

    with torch.no_grad():
        for call in calls:
            once(call)
        times = [[once(call) for call in calls] for _ in range(rounds)]
    return [
        ActingTime(
            model=one.label,
            match=one.match,
            width=one.width,
            batch=worlds,
            us=statistics.median(row[i] for row in times),
            speedup=statistics.median(row[0] / row[i] for row in times),
        )
        for i, one in enumerate(contenders)
    ]


def as_text(benchmark: ModelBenchmark) -> str:
    """Tables for a terminal: one for each comparison and width, lengths side by side."""
    lines = [
        f"{benchmark.device}; {benchmark.machine}, load {benchmark.load:.1f}; {benchmark.versions}; "
        f"median of {benchmark.rounds} rounds; x = times as fast as {RIVAL}",
    ]
    lengths = sorted({row.length for row in benchmark.training})
    groups: dict[tuple[int, str], list[list[TrainingTime]]] = {}
    yardstick = 0
    for row in benchmark.training:
        yardstick = row.width if row.model == RIVAL else yardstick
        models = groups.setdefault((yardstick, row.match), [])
        same = next((rows for rows in models if rows[0].model == row.model), None)
        if same is None:
            models.append([row])
        else:
            same.append(row)
    steps = iter(benchmark.acting)
    for (width, match), models in groups.items():
        batch = models[0][0].batch
        lines += [
            "",
            f"LSTM of width {width} against the others at equal {match}, {batch} sequences, forward + backward; one step",
            f"{'model':14s} {'width':>5s} {'params':>8s}"
            + "".join(f"{'T=' + str(length):>17s}" for length in lengths)
            + f"{'step':>16s}{'kept MB':>9s}",
        ]
        for rows in models:
            step = next(steps)
            cells = "".join(f"{row.ms:9.2f}ms {row.speedup:4.2f}x" for row in rows)
            lines.append(
                f"{rows[0].model:14s} {rows[0].width:5d} {rows[0].parameters:8d}{cells}"
                f"{step.us:8.0f}us {step.speedup:4.2f}x{rows[-1].activations_mb:9.1f}"
            )
    return "\n".join(lines)


@register_bench("models")
def main(words: list[str]) -> None:
    """`python -m experiments.bench.models [--device cuda] [--quick] [--json]`."""
    device = words[words.index("--device") + 1] if "--device" in words[:-1] else "cpu"
    benchmark = bench_models(
        device=device, quick="--quick" in words, progress=lambda text: print(text, file=sys.stderr, flush=True)
    )
    print(benchmark.model_dump_json(indent=1) if "--json" in words else as_text(benchmark))


if __name__ == "__main__":
    main(sys.argv[1:])
