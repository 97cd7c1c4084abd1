"""State space models: linear recurrences with learnable A, B, C, D between gated pointwise maps.

    x_{t+1} = A x_t + B u_t,   y_t = C x_t + D u_t        (here y_t reads the state that has consumed u_t)

Cells: S4D (Gu et al. 2022, arXiv 2206.11893), S5 (Smith et al. 2023, arXiv 2208.04933), LRU (Orvieto et al. 2023,
arXiv 2303.06349). All are complex and diagonal; one of each conjugate pair is kept, so `state_dim` real numbers
are state_dim / 2 complex ones, in split layout [re | im].

Glossary: u input of a cell (B, T, H), H hidden_dim, S state_dim in real numbers, N = S / 2 complex states,
lambda continuous eigenvalues, a discrete ones, dt step size.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.config import search
from core.errors import bad_value, unknown_name
from core.fused.bounded_block import bounded_block, bounded_output
from core.fused.discretization import discretize, split
from core.fused.linear_cells import channel_system, dense_system
from core.fused.ssm_block import block_output, ssm_block
from core.scan import split_scan
from core.sequence_model import (
    MODELS,
    SequenceModelConfig,
    check_device,
    default_generator,
    linear,
    register_model,
)
from core.stack import BLOCKS, BlockStack, LayerNorm

SLOWEST = 1e-6
"""Least pace of a selective state: slower is standing still in single precision, and a logarithm is taken of it."""


def check_time_steps(config: Any) -> None:
    """Refuse a range of time steps that ends before it begins. Raises ValueError."""
    low, high = getattr(config, "dt_min", 0.0), getattr(config, "dt_max", math.inf)
    if low > high:
        raise ValueError(f"dt_min {low} must be at most dt_max {high}")


class SSMConfig(SequenceModelConfig):
    """What all state space kinds share."""

    state_dim: int = Field(default=64, ge=2, le=65536, json_schema_extra=search(choices=(32, 64, 128)))
    """Real numbers of state a layer carries (two for each complex state)."""
    gating: Literal["none", "half", "full", "bounded"] = Field(
        default="full", json_schema_extra=search(choices=("full", "bounded"), since=3)
    )
    """After the cell: none (SiLU only), half (y * sigmoid(W y)), full (GLU with both halves mixed), each added to the block's input, or
    bounded (sigmoid(W u) * tanh(y), and no residual)."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalisation in front of each cell; none is usual in reinforcement learning."""

    @model_validator(mode="after")
    def _even(self) -> SSMConfig:
        if self.state_dim % self.state_multiple(self.hidden_dim):
            raise ValueError(f"state_dim must be a multiple of {self.state_multiple(self.hidden_dim)}")
        return self

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> SSMConfig:
        check_time_steps(self)
        return self

    @classmethod
    def state_multiple(cls, hidden_dim: int) -> int:
        """state_dim must be a multiple of this."""
        return 2

    @classmethod
    def for_state_dim(cls, state_dim: int, hidden_dim: int, num_layers: int) -> SSMConfig:
        """The configuration whose layers carry `state_dim` real numbers."""
        if state_dim % cls.state_multiple(hidden_dim):
            multiple = cls.state_multiple(hidden_dim)
            raise bad_value(
                "state_dim", state_dim, f"a multiple of {multiple} for cell {cls.model_fields['kind'].default!r}"
            )
        return cls(state_dim=state_dim, hidden_dim=hidden_dim, num_layers=num_layers)  # pyright: ignore[reportCallIssue]

    def state_dim_for_width(self, width: int) -> int:
        """The state size that keeps the present ratio to hidden_dim at another width."""
        multiple = self.state_multiple(width)
        return max(1, round(self.state_dim * width / self.hidden_dim / multiple)) * multiple


class DenseConfig(SSMConfig):
    """What S5 and LRU share."""

    integrators: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        json_schema_extra=search(choices=(0.0, 0.125, 0.25), since=3, only_if=("selective", (False,))),
        exclude_if=lambda share: share == 0,
    )
    """Share of the states that only add, a = 1 exactly, and are not trained to do otherwise: sums forget nothing, and grow."""

    selective: bool = Field(
        default=False,
        json_schema_extra=search(choices=(False, True), since=3),
        exclude_if=lambda selective: not selective,
    )
    """Whether the input sets the pace of each state: what is read stretches or shortens the step, so that a state may keep what it has."""

    @model_validator(mode="after")
    def _one_form(self) -> DenseConfig:
        if self.selective and self.integrators:
            raise ValueError("a selective model has no integrators: those have no step to stretch; set one of the two")
        return self

    def integrator_count(self) -> int:
        """How many of the state_dim / 2 complex states; at least one stays on the ring."""
        return round(self.integrators * (self.state_dim // 2))


class S5Config(DenseConfig):
    """S5: dense B and C around one complex diagonal state, HiPPO-LegS initialisation."""

    kind: Literal["s5"] = "s5"
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """How the continuous system becomes a discrete one."""
    dt_min: float = Field(default=0.01, ge=1e-5, le=10, json_schema_extra=search(low=0.003, high=0.1, log=True))
    """Smallest initial step; a time constant is 2 / dt steps."""
    dt_max: float = Field(default=1.0, ge=1e-5, le=10)
    """Largest initial step; a time constant is 2 / dt steps."""
    hippo_blocks: int = Field(default=16, ge=1)
    """Copies of a smaller HiPPO matrix along the diagonal (S5, section 4.3): more copies, lower frequencies."""
    normalize_input: bool = True
    """Scale B at the start so that every state has the same variance under white noise (LRU's gamma): without it slow
    states start faint, in proportion to their step."""


class S4DConfig(SSMConfig):
    """S4D: one small complex diagonal system a channel; channels are mixed by the gate."""

    kind: Literal["s4d"] = "s4d"
    state_dim: int = Field(default=256, ge=2, le=65536)
    """Real numbers of state a layer carries: a multiple of 2 * hidden_dim, the same number for each channel."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """How the continuous system becomes a discrete one."""
    dt_min: float = Field(default=0.01, ge=1e-5, le=10, json_schema_extra=search(low=0.003, high=0.1, log=True))
    """Smallest initial step; a time constant is 2 / dt steps."""
    dt_max: float = Field(default=1.0, ge=1e-5, le=10)
    """Largest initial step; a time constant is 2 / dt steps."""
    init: Literal["legs", "lin"] = "legs"
    """Eigenvalues at the start: of the normal part of HiPPO-LegS, or -1/2 + i pi n (S4D-Lin)."""

    @classmethod
    def state_multiple(cls, hidden_dim: int) -> int:
        """Whole complex states for each channel."""
        return 2 * hidden_dim


class LRUConfig(DenseConfig):
    """LRU: eigenvalues on a ring inside the unit circle, stable by construction, inputs normalised by gamma."""

    kind: Literal["lru"] = "lru"
    r_min: float = Field(default=0.4, ge=0, lt=1)
    """Inner radius of the ring; r is a time constant of -1 / ln r steps."""
    r_max: float = Field(default=0.995, ge=1e-3, le=1 - 1e-6, json_schema_extra=search(choices=(0.98, 0.995, 0.999)))
    """Outer radius of the ring."""
    spacing: Literal["ring", "log"] = "log"
    """Initial radii: uniform on the ring's area as in the paper (most states forget fast), or time constants spread
    log-uniformly between those of the two radii."""
    max_phase: float = Field(default=0.628, ge=1e-6, le=2 * math.pi)
    """Largest initial phase, in radians a step."""

    @model_validator(mode="after")
    def _ring(self) -> LRUConfig:
        if self.r_min >= self.r_max:
            raise ValueError(f"r_min {self.r_min} must be less than r_max {self.r_max}")
        return self


# --------------------------------------------------------------------------------------------------------- the cells
def hippo_legs_eigenvalues(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues with positive imaginary part (size / 2,) of HiPPO-LegS's normal part, and their vectors.

    A_nk = -1/2 sqrt(2n+1) sqrt(2k+1) below the diagonal, the opposite above, -1/2 on it (S5, appendix B.1.1).
    """
    root = np.sqrt(2 * np.arange(size) + 1.0)
    skew = -0.5 * np.tril(np.outer(root, root), -1)
    values, vectors = np.linalg.eigh(-1j * (skew - skew.T))
    return -0.5 + 1j * values[size // 2 :], vectors[:, size // 2 :]


def log_uniform(size: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """log of a log-uniform draw from [low, high]."""
    return torch.rand(size, generator=generator) * (math.log(high) - math.log(low)) + math.log(low)


class DiagonalCell(nn.Module):
    """Dense B (S, H) and C (H, S), diagonal A and D: the form that S5 and LRU share; see `core.fused.discretization.discretize`."""

    form = "dense"
    dynamics: tuple[str, str, str]
    method: str
    integrators: int
    """The last of the states, which only add. They share the gain of the slowest state that the ring may start with, gamma = sqrt(1 - |a|^2):
    no gain makes the variance of a sum stand still, but with this one white noise brings it to one, where the other states are,
    after 1 / gamma^2 steps (about that state's time constant), and to t gamma^2 after t."""

    B: nn.Parameter
    C: nn.Parameter
    D: nn.Parameter
    state_size: int
    pace: nn.Linear | None

    def add_pace(self, config: DenseConfig, generator: torch.Generator) -> None:
        """For a selective model the map from u to the pace of each state, one where u is zero: softplus(ln(e - 1)) = 1."""
        self.pace = None
        if config.selective:
            self.pace = linear(config.hidden_dim, config.state_dim // 2, generator)
            nn.init.constant_(self.pace.bias, math.log(math.e - 1))

    def selective(self, u: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """y (B, T, H) and the last state (B, S) where the step depends on the input (after Mamba, arXiv 2312.00752, section 3.2):

        p_t = softplus(W_p u_t + b_p),   a_t = exp(lambda dt p_t),   h_t = k_t a_t h_{t-1} + gain_t B u_t,   y_t = C h_t

        S5: gain_t is that of a step of dt p_t (zoh, or with a_t bilinear). LRU, where dt = 1: gain_t = gamma sqrt((1 - |a_t|^2) / (1 - |a|^2)), as
        RG-LRU has it. Both fall to zero with p_t and stay bounded where it is large; at p_t = 1 this is the model without selection.
        """
        assert self.pace is not None
        first, second, third = (getattr(self, name) for name in self.dynamics)
        pace = F.softplus(self.pace(u)).clamp_min(SLOWEST)
        if self.method == "exponential":
            twice = (2 * first.exp()).clamp_min(SLOWEST**2)  # a radius that has reached one has a ratio too
            share = (torch.expm1(-twice * pace) / torch.expm1(-twice)).clamp_min(SLOWEST)
            a, gain = discretize(first + pace.log(), second + pace.log(), third + 0.5 * share.log(), self.method)
        else:
            a, gain = discretize(first, second, third + pace.log(), self.method)
        re, im = F.linear(u, self.B).chunk(2, -1)
        drive = torch.cat([gain.real * re - gain.imag * im, gain.real * im + gain.imag * re], -1)
        states = split_scan(split(a), drive, state, keep, is_complex=True)
        return F.linear(states, self.C), states[:, -1]

    def parameters_for(self) -> tuple[Tensor, ...]:
        """What the fused block takes."""
        return (*(getattr(self, name) for name in self.dynamics), self.B, self.C)

    def step_matrix(self) -> Float[Tensor, "SH SH2"]:
        """M with [state | u] @ M = [next state | y]: one product is the whole linear system."""
        a, b_bar = dense_system(*self.parameters_for()[:4], method=self.method)
        half = a.shape[0] // 2
        re, im = torch.diag(a[:half]), torch.diag(a[half:])
        transition = torch.cat([torch.cat([re, im], 1), torch.cat([-im, re], 1)])
        to_state = torch.cat([transition, b_bar.T])
        to_output = to_state @ self.C.T
        to_output[2 * half :] += torch.diag(self.D)
        return torch.cat([to_state, to_output], 1)


class S5Cell(DiagonalCell):
    """S5 (Smith et al. 2023): one multi-input multi-output system; B and C start in the HiPPO basis."""

    dynamics = ("log_decay", "frequency", "log_dt")

    def __init__(self, config: S5Config, generator: torch.Generator) -> None:
        super().__init__()
        width, count = config.hidden_dim, config.state_dim // 2
        blocks = max(b for b in range(1, min(config.hippo_blocks, count) + 1) if count % b == 0)
        block = config.state_dim // blocks
        values, vectors = hippo_legs_eigenvalues(block)
        eigenvalues = np.tile(values, blocks)
        v = torch.from_numpy(vectors).to(torch.complex64)
        b = torch.randn(blocks, block, width, generator=generator) / math.sqrt(width)
        c = torch.randn(width, blocks, block, generator=generator) / math.sqrt(config.state_dim)
        b = (v.conj().T @ b.to(torch.complex64)).reshape(count, width)
        c = (c.to(torch.complex64) @ v).reshape(width, count)
        self.integrators = config.integrator_count()
        ring = count - self.integrators
        self.log_decay = nn.Parameter(torch.from_numpy(np.log(-np.real(eigenvalues[:ring]))).float())
        self.frequency = nn.Parameter(torch.from_numpy(np.imag(eigenvalues[:ring])).float())
        log_dt = log_uniform((count,), config.dt_min, config.dt_max, generator)
        log_dt[ring:] = 0.5 * math.log(-math.expm1(-config.dt_min))  # |a| = exp(-dt / 2) of the slowest
        self.log_dt = nn.Parameter(log_dt)
        self.method, self.state_size = config.discretization, config.state_dim
        if config.normalize_input:
            with torch.no_grad():
                a, gain = discretize(self.log_decay, self.frequency, self.log_dt[:ring], self.method)
                b[:ring] *= ((1 - a.abs().square()).sqrt() / gain.abs()).unsqueeze(1)
        self.B = nn.Parameter(split(b, 0))
        # y = 2 Re(C h): the factor of the conjugate pair and the sign of i * i live in the stored matrix.
        self.C = nn.Parameter(2 * torch.cat([c.real, -c.imag], 1))
        self.D = nn.Parameter(torch.randn(width, generator=generator))
        self.add_pace(config, generator)


class LRUCell(DiagonalCell):
    """LRU (Orvieto et al. 2023, section 3 and appendix A): a = exp(-exp(nu) + i exp(theta)), h_t = a h_{t-1} + gamma B u_t."""

    dynamics = ("log_nu", "log_theta", "log_gamma")

    def __init__(self, config: LRUConfig, generator: torch.Generator) -> None:
        super().__init__()
        width, count = config.hidden_dim, config.state_dim // 2
        draw = torch.rand(count, generator=generator)
        # Uniform on the ring's area (lemma 3.2): nu = -1/2 log(u (r_max^2 - r_min^2) + r_min^2).
        # A radius of 0, which r_min = 0 can draw, has no logarithm: 1e-3 forgets as much in a step.
        area = (draw * (config.r_max**2 - config.r_min**2) + config.r_min**2).clamp_min(1e-6)
        nu = -0.5 * torch.log(area)
        if config.spacing == "log":
            low, high = math.log(-math.log(config.r_max)), math.log(-math.log(max(config.r_min, 1e-3)))
            nu = torch.exp(low + (high - low) * draw)
        theta = config.max_phase * torch.rand(count, generator=generator).clamp_min(1e-4)
        self.integrators = config.integrator_count()
        ring = count - self.integrators
        self.log_nu = nn.Parameter(nu[:ring].log())
        self.log_theta = nn.Parameter(theta[:ring].log())
        log_gamma = 0.5 * torch.log1p(-torch.exp(-2 * nu))
        log_gamma[ring:] = 0.5 * math.log1p(-(config.r_max**2))
        self.log_gamma = nn.Parameter(log_gamma)
        self.B = nn.Parameter(torch.randn(2 * count, width, generator=generator) / math.sqrt(2 * width))
        self.C = nn.Parameter(torch.randn(width, 2 * count, generator=generator) / math.sqrt(count))
        self.D = nn.Parameter(torch.randn(width, generator=generator))
        self.method, self.state_size = "exponential", config.state_dim
        self.add_pace(config, generator)


class S4DCell(nn.Module):
    """S4D (Gu et al. 2022): H independent systems of N / H complex states; B is one, its gain folds into C.

    States are stored (pairs, H) so that channels lie side by side in memory.
    """

    form = "channel"
    integrators, pace = 0, None
    dynamics = ("log_decay", "frequency", "log_dt")

    def __init__(self, config: S4DConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        pairs = config.state_dim // (2 * width)
        values = hippo_legs_eigenvalues(2 * pairs)[0]
        if config.init == "lin":
            values = -0.5 + 1j * math.pi * np.arange(pairs)
        eigenvalues = np.repeat(values[:, None], width, 1)
        self.log_decay = nn.Parameter(torch.from_numpy(np.log(-np.real(eigenvalues))).float())
        self.frequency = nn.Parameter(torch.from_numpy(np.imag(eigenvalues)).float())
        self.log_dt = nn.Parameter(log_uniform((width,), config.dt_min, config.dt_max, generator))
        self.C = nn.Parameter(torch.randn(2, pairs, width, generator=generator) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(width, generator=generator))
        self.method, self.state_size, self.pairs, self.width = config.discretization, config.state_dim, pairs, width

    def parameters_for(self) -> tuple[Tensor, ...]:
        """What the fused block takes."""
        return self.log_decay, self.frequency, self.log_dt, self.C

    def step_system(self) -> tuple[Tensor, Tensor, Tensor]:
        """a re and im (pairs, H), readout (2 pairs, H)."""
        a, readout = channel_system(*self.parameters_for(), method=self.method)
        return a[0], a[1], readout.flatten(0, 1)


CELLS = {"s5": S5Cell, "lru": LRUCell, "s4d": S4DCell}


# --------------------------------------------------------------------------------------------------------- the block
@BLOCKS.register("s4d")
@BLOCKS.register("lru")
@BLOCKS.register("s5")
class SSMBlock(nn.Module):
    """Residual block: x + GLU(SiLU(cell(norm(x)))), the block of S4, S5 and LRU; or with a bounded output as `core.fused.bounded_block`.

    They use GELU; SiLU has its shape and costs a fifth on CPU. The norm is optional.
    """

    def __init__(self, config: SSMConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        self.norm = {"none": lambda: None, "layer": lambda: LayerNorm(width), "rms": lambda: nn.RMSNorm(width)}[
            config.norm
        ]()
        self.cell = CELLS[config.kind](config, generator)
        self.gate = None
        if config.gating != "none":
            self.gate = linear(width, width * (2 if config.gating == "full" else 1), generator)
        self.gating, self.state_size = config.gating, self.cell.state_size

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, H), state (B, S) to the same shapes."""
        u = x if self.norm is None else self.norm(x)
        residual = None if self.norm is None else x
        weight, bias = (None, None) if self.gate is None else (self.gate.weight, self.gate.bias)
        cell = self.cell
        if isinstance(cell, DiagonalCell) and cell.pace is not None:
            y, state = cell.selective(u, state, keep)
            if self.gating == "bounded":
                assert weight is not None
                assert bias is not None
                return bounded_output(y, u, cell.D, weight, bias), state
            return block_output(y, u, x, cell.D, weight, bias), state
        if self.gating == "bounded":
            assert weight is not None
            assert bias is not None
            return bounded_block(cell.form, cell.method, u, state, keep, cell.D, weight, bias, *cell.parameters_for())
        return ssm_block(cell.form, cell.method, u, residual, state, keep, cell.D, weight, bias, *cell.parameters_for())

    def prepare_step(self) -> tuple[Tensor | None, ...]:
        """What one step needs and only parameters decide: computed once, kept until a parameter changes."""
        if self.cell.pace is not None:
            return ()
        weight, bias = (None, None) if self.gate is None else (self.gate.weight.T, self.gate.bias)
        system = self.cell.step_system() if isinstance(self.cell, S4DCell) else (self.cell.step_matrix(),)
        return weight, bias, *system

    def step(self, x: Tensor, state: Tensor, prepared: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """x (B, H), state (B, S): one step without gradients, in as few operations as can be."""
        if not prepared:
            y, state = self.forward(x.unsqueeze(1), state, None)
            return y.squeeze(1), state
        u = x if self.norm is None else self.norm(x)
        weight, bias, first, *rest = prepared
        if rest:
            a_im, readout = rest
            re, im = state.unflatten(1, (2, *first.shape)).unbind(1)
            state = torch.cat(
                [torch.addcmul(first * re + u.unsqueeze(1), a_im, im, value=-1), first * im + a_im * re], 1
            )
            y = torch.addcmul((state * readout).sum(1), u, self.cell.D)
            state = state.flatten(1)
        else:
            both = torch.mm(torch.cat([state, u], 1), first)
            state, y = both.tensor_split((self.state_size,), 1)
        if self.gating == "bounded":
            return torch.addmm(bias, u, weight).sigmoid_().mul_(y.tanh()), state
        y = F.silu(y)
        if weight is None:
            return x + y, state
        mixed = torch.addmm(bias, y, weight)
        if self.gating == "full":
            return F.glu(mixed).add_(x), state
        return torch.addcmul(x, y, mixed.sigmoid_()), state


# --------------------------------------------------------------------------------------------------------- the model
@register_model("s4d", S4DConfig)
@register_model("lru", LRUConfig)
@register_model("s5", S5Config)
class StateSpaceModel(BlockStack):
    """A stack of state space blocks between an input and an output map (each the identity where widths agree).

    StateSpaceModel(state_dim, input_dim, output_dim, hidden_dim=..., device=...) is one S5 layer;
    `build_model` makes any configuration. `hidden` is every layer's state side by side, (B, num_layers * state_dim).
    """

    def __init__(
        self,
        state_dim: int,
        input_dim: int,
        output_dim: int,
        hidden_dim: int = 64,
        device: torch.device | str = "cpu",
        *,
        cell: str = "s5",
        num_layers: int = 1,
        config: SequenceModelConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if config is None:
            for name, value in (("state_dim", state_dim), ("hidden_dim", hidden_dim), ("num_layers", num_layers)):
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise bad_value(name, value, "an integer of 1 or more")
            sized = getattr(MODELS[cell].config_type, "for_state_dim", None)
            if sized is None:
                cells = [kind for kind in MODELS if hasattr(MODELS[kind].config_type, "for_state_dim")]
                raise unknown_name("cell", cell, cells)
            config = sized(state_dim, hidden_dim, num_layers)
        assert config is not None
        blocks = [(config.kind, config)] * config.num_layers
        super().__init__(config, input_dim, output_dim, blocks, generator or default_generator())
        self.to(check_device(device))

    @classmethod
    def from_config(
        cls, config: SequenceModelConfig, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> StateSpaceModel:
        """Build from a configuration, as `build_model` does."""
        return cls(0, input_dim, output_dim, config=config, generator=generator)  # the configuration knows its state
