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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from core.config import search
from core.errors import bad_value
from core.fused import channel_system, dense_system, split, ssm_block
from core.sequence_model import (
    SequenceModel,
    SequenceModelConfig,
    check_device,
    default_config,
    default_generator,
    linear,
    parse_model_config,
    register_model,
)


class SSMConfig(SequenceModelConfig):
    """What all state space kinds share."""

    state_dim: int = Field(default=64, ge=2, le=65536, json_schema_extra=search(choices=(32, 64, 128)))
    """Real numbers of state a layer carries (two for each complex state)."""
    gating: Literal["none", "half", "full"] = "full"
    """After the cell: none (SiLU only), half (y * sigmoid(W y)) or full (GLU with both halves mixed)."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalisation in front of each cell; none is usual in reinforcement learning."""

    @model_validator(mode="after")
    def _even(self) -> SSMConfig:
        if self.state_dim % self.state_multiple(self.hidden_dim):
            raise ValueError(f"state_dim must be a multiple of {self.state_multiple(self.hidden_dim)}")
        return self

    def state_multiple(self, hidden_dim: int) -> int:
        """state_dim must be a multiple of this."""
        return 2

    def state_dim_for_width(self, width: int) -> int:
        """The state size that keeps the present ratio to hidden_dim at another width."""
        multiple = self.state_multiple(width)
        return max(1, round(self.state_dim * width / self.hidden_dim / multiple)) * multiple


class S5Config(SSMConfig):
    """S5: dense B and C around one complex diagonal state, HiPPO-LegS initialisation."""

    kind: Literal["s5"] = "s5"
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """How the continuous system becomes a discrete one."""
    dt_min: float = Field(default=0.01, gt=0, le=10, json_schema_extra=search(low=0.003, high=0.1, log=True))
    """Smallest initial step; a time constant is 2 / dt steps."""
    dt_max: float = Field(default=1.0, gt=0, le=10)
    """Largest initial step; a time constant is 2 / dt steps."""
    hippo_blocks: int = Field(default=8, ge=1)
    """Copies of a smaller HiPPO matrix along the diagonal (S5, section 4.3): more copies, lower frequencies."""


class S4DConfig(SSMConfig):
    """S4D: one small complex diagonal system a channel; channels are mixed by the gate."""

    kind: Literal["s4d"] = "s4d"
    state_dim: int = Field(default=256, ge=2, le=65536)
    """Real numbers of state a layer carries: a multiple of 2 * hidden_dim, the same number for each channel."""
    discretization: Literal["zoh", "bilinear"] = "zoh"
    """How the continuous system becomes a discrete one."""
    dt_min: float = Field(default=0.01, gt=0, le=10, json_schema_extra=search(low=0.003, high=0.1, log=True))
    """Smallest initial step; a time constant is 2 / dt steps."""
    dt_max: float = Field(default=1.0, gt=0, le=10)
    """Largest initial step; a time constant is 2 / dt steps."""
    init: Literal["legs", "lin"] = "legs"
    """Eigenvalues at the start: of the normal part of HiPPO-LegS, or -1/2 + i pi n (S4D-Lin)."""

    def state_multiple(self, hidden_dim: int) -> int:
        return 2 * hidden_dim


class LRUConfig(SSMConfig):
    """LRU: eigenvalues on a ring inside the unit circle, stable by construction, inputs normalised by gamma."""

    kind: Literal["lru"] = "lru"
    r_min: float = Field(default=0.4, ge=0, lt=1)
    """Inner radius of the ring; r is a time constant of -1 / ln r steps."""
    r_max: float = Field(default=0.995, gt=0, lt=1, json_schema_extra=search(choices=(0.98, 0.995, 0.999)))
    """Outer radius of the ring."""
    max_phase: float = Field(default=0.628, gt=0, le=2 * math.pi)
    """Largest initial phase, in radians a step."""


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
    """Dense B (S, H) and C (H, S), diagonal A and D: the form that S5 and LRU share; see `core.fused.discretize`."""

    form = "dense"
    dynamics: tuple[str, str, str]
    method: str

    B: nn.Parameter
    C: nn.Parameter
    D: nn.Parameter
    state_size: int

    def parameters_for(self) -> tuple[Tensor, ...]:
        """What the fused block takes."""
        return (*(getattr(self, name) for name in self.dynamics), self.B, self.C)

    def step_matrix(self) -> Float[Tensor, "SH SH2"]:
        """M with [state | u] @ M = [next state | y]: one product is the whole linear system."""
        a, b_bar = dense_system(*self.parameters_for()[:4], self.method)
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
        self.log_decay = nn.Parameter(torch.from_numpy(np.log(-eigenvalues.real)).float())
        self.frequency = nn.Parameter(torch.from_numpy(eigenvalues.imag).float())
        self.log_dt = nn.Parameter(log_uniform((count,), config.dt_min, config.dt_max, generator))
        self.B = nn.Parameter(split(b, 0))
        # y = 2 Re(C h): the factor of the conjugate pair and the sign of i * i live in the stored matrix.
        self.C = nn.Parameter(2 * torch.cat([c.real, -c.imag], 1))
        self.D = nn.Parameter(torch.randn(width, generator=generator))
        self.method, self.state_size = config.discretization, config.state_dim


class LRUCell(DiagonalCell):
    """LRU (Orvieto et al. 2023, section 3 and appendix A): a = exp(-exp(nu) + i exp(theta)), h_t = a h_{t-1} + gamma B u_t."""

    dynamics = ("log_nu", "log_theta", "log_gamma")

    def __init__(self, config: LRUConfig, generator: torch.Generator) -> None:
        super().__init__()
        width, count = config.hidden_dim, config.state_dim // 2
        if config.r_min >= config.r_max:
            raise bad_value("r_min", config.r_min, f"less than r_max = {config.r_max}")
        draw = torch.rand(count, generator=generator)
        # Uniform on the ring's area (lemma 3.2): nu = -1/2 log(u (r_max^2 - r_min^2) + r_min^2).
        nu = -0.5 * torch.log(draw * (config.r_max**2 - config.r_min**2) + config.r_min**2)
        theta = config.max_phase * torch.rand(count, generator=generator).clamp_min(1e-4)
        self.log_nu = nn.Parameter(nu.log())
        self.log_theta = nn.Parameter(theta.log())
        self.log_gamma = nn.Parameter(0.5 * torch.log1p(-torch.exp(-2 * nu)))
        self.B = nn.Parameter(torch.randn(2 * count, width, generator=generator) / math.sqrt(2 * width))
        self.C = nn.Parameter(torch.randn(width, 2 * count, generator=generator) / math.sqrt(count))
        self.D = nn.Parameter(torch.randn(width, generator=generator))
        self.method, self.state_size = "exponential", config.state_dim


class S4DCell(nn.Module):
    """S4D (Gu et al. 2022): H independent systems of N / H complex states; B is one, its gain folds into C.

    States are stored (pairs, H) so that channels lie side by side in memory.
    """

    form = "channel"
    dynamics = ("log_decay", "frequency", "log_dt")

    def __init__(self, config: S4DConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        pairs = config.state_dim // (2 * width)
        values = hippo_legs_eigenvalues(2 * pairs)[0]
        if config.init == "lin":
            values = -0.5 + 1j * math.pi * np.arange(pairs)
        eigenvalues = np.repeat(values[:, None], width, 1)
        self.log_decay = nn.Parameter(torch.from_numpy(np.log(-eigenvalues.real)).float())
        self.frequency = nn.Parameter(torch.from_numpy(eigenvalues.imag).float())
        self.log_dt = nn.Parameter(log_uniform((width,), config.dt_min, config.dt_max, generator))
        self.C = nn.Parameter(torch.randn(2, pairs, width, generator=generator) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(width, generator=generator))
        self.method, self.state_size, self.pairs, self.width = config.discretization, config.state_dim, pairs, width

    def parameters_for(self) -> tuple[Tensor, ...]:
        """What the fused block takes."""
        return self.log_decay, self.frequency, self.log_dt, self.C

    def step_system(self) -> tuple[Tensor, Tensor, Tensor]:
        """a re and im (pairs, H), readout (2 pairs, H)."""
        a, readout = channel_system(*self.parameters_for(), self.method)
        return a[0], a[1], readout.flatten(0, 1)


CELLS = {"s5": S5Cell, "lru": LRUCell, "s4d": S4DCell}


# --------------------------------------------------------------------------------------------------------- the block
class SSMBlock(nn.Module):
    """Residual block: x + GLU(SiLU(cell(norm(x)))), the block of S4, S5 and LRU.

    They use GELU; SiLU has its shape and costs a fifth on CPU. The norm is optional.
    """

    def __init__(self, config: SSMConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_dim
        self.norm = {"none": lambda: None, "layer": lambda: nn.LayerNorm(width), "rms": lambda: nn.RMSNorm(width)}[
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
        return ssm_block(
            cell.form, cell.method, u, residual, state, keep, cell.D, weight, bias, *cell.parameters_for()
        )

    def mix(self, y: Tensor) -> Tensor:
        """The pointwise map after the cell, for one step."""
        y = F.silu(y)
        if self.gate is None:
            return y
        mixed = torch.addmm(self.gate.bias, y, self.gate.weight.T)
        return F.glu(mixed) if self.gating == "full" else y * torch.sigmoid(mixed)

    def prepare_step(self) -> tuple[Tensor, ...]:
        """What one step needs and only parameters decide: computed once, kept until a parameter changes."""
        if isinstance(self.cell, S4DCell):
            return self.cell.step_system()
        return (self.cell.step_matrix(),)

    def step(self, x: Tensor, state: Tensor, prepared: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """x (B, H), state (B, S): one step without gradients, in as few operations as can be."""
        u = x if self.norm is None else self.norm(x)
        if isinstance(self.cell, S4DCell):
            a_re, a_im, c = prepared
            re, im = state.unflatten(1, (2, *a_re.shape)).unbind(1)
            state = torch.cat([torch.addcmul(a_re * re + u.unsqueeze(1), a_im, im, value=-1), a_re * im + a_im * re], 1)
            y = torch.addcmul((state * c).sum(1), u, self.cell.D)
            state = state.flatten(1)
        else:
            both = torch.cat([state, u], 1) @ prepared[0]
            state, y = both[:, : self.state_size], both[:, self.state_size :]
        return x + self.mix(y), state


class StepCache:
    """Keeps what acting steps share while the parameters stay as they are.

    A parameter is unchanged when it is the same tensor with the same version counter and memory. Writing through
    `.data` or a NumPy view escapes the counter; a forward pass with gradients therefore also clears the cache.
    """

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.value: Any = None

    def get(self, parameters: list[Tensor], compute: Any) -> Any:
        key = tuple([(id(p), p._version, p.data_ptr()) for p in parameters])
        if self.value is None or key != self.key:
            with torch.no_grad():
                self.value = compute()
            self.key = key
            self.holders = parameters  # held, so that an id cannot be given to another tensor
        return self.value

    def clear(self) -> None:
        self.value = None

    def __deepcopy__(self, memo: dict) -> StepCache:
        return StepCache()

    def __reduce__(self) -> tuple[type, tuple]:
        return StepCache, ()


# --------------------------------------------------------------------------------------------------------- the model
@register_model("s4d", S4DConfig)
@register_model("lru", LRUConfig)
@register_model("s5", S5Config)
class StateSpaceModel(SequenceModel):
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
        config: SSMConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if config is None:
            base = default_config(cell)
            if not isinstance(base, SSMConfig):
                raise bad_value("cell", cell, ", ".join(CELLS))
            for name, value in (("state_dim", state_dim), ("hidden_dim", hidden_dim), ("num_layers", num_layers)):
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise bad_value(name, value, "an integer of 1 or more")
            multiple = base.state_multiple(hidden_dim)
            if state_dim % multiple:
                raise bad_value("state_dim", state_dim, f"a multiple of {multiple} for cell {cell!r}")
            fields = {"kind": cell, "state_dim": state_dim, "hidden_dim": hidden_dim, "num_layers": num_layers}
            config = parse_model_config(fields)  # pyright: ignore[reportAssignmentType]
        assert isinstance(config, SSMConfig)
        super().__init__(config, input_dim, output_dim)
        generator = generator or default_generator()
        width = config.hidden_dim
        self.encoder = None if input_dim == width else linear(input_dim, width, generator)
        self.blocks = nn.ModuleList(SSMBlock(config, generator) for _ in range(config.num_layers))
        self.decoder = None if output_dim == width else linear(width, output_dim, generator)
        self.sizes = [block.state_size for block in self.blocks]
        self.hidden_size = sum(self.sizes)
        self._cache = StepCache()
        self.to(check_device(device))

    @classmethod
    def from_config(
        cls, config: SSMConfig, input_dim: int, output_dim: int, *, generator: torch.Generator
    ) -> StateSpaceModel:
        return cls(config.state_dim, input_dim, output_dim, config=config, generator=generator)

    def _sequence(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            self._cache.clear()
        x = x if self.encoder is None else self.encoder(x)
        states = []
        for block, state in zip(self.blocks, hidden.split(self.sizes, 1), strict=True):
            x, state = block(x, state, keep)
            states.append(state)
        return x if self.decoder is None else self.decoder(x), states[0] if len(states) == 1 else torch.cat(states, 1)

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        prepared = self._cache.get(
            list(self.blocks.parameters()), lambda: [block.prepare_step() for block in self.blocks]
        )
        x = x if self.encoder is None else self.encoder(x)
        states = []
        for block, state, ready in zip(self.blocks, hidden.split(self.sizes, 1), prepared, strict=True):
            x, state = block.step(x, state, ready)
            states.append(state)
        return x if self.decoder is None else self.decoder(x), states[0] if len(states) == 1 else torch.cat(states, 1)
