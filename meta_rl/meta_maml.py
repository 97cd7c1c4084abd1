"""MAML and its relatives: an initialisation from which a few gradient steps solve a new task.

    phi_i = theta - alpha grad L_support_i(theta)              (inner loop, `adapt_task`)
    theta <- theta - beta grad_theta mean_i L_query_i(phi_i)   (outer loop, `meta_update`)

Source: Finn, Abbeel, Levine 2017 (arXiv 1703.03400), equation 1 and algorithm 1. Variants, chosen by `MAMLConfig`:
"maml"; "fomaml" (ibid. section 5.2: the inner gradient taken as a constant); "reptile" (see `reptile.py`); "anil" (only
the head moves: Raghu et al. 2020, arXiv 1909.09157); "meta-sgd" (a learned rate for every number: Li et al. 2017, arXiv
1707.09835, equation 2); "maml++" (learned rates per tensor and step, multi-step loss, derivative-order annealing:
Antoniou et al. 2019, arXiv 1810.09502, section 4); "imaml" (see `imaml.py`); "cavia" (only context numbers appended to
the input move: Zintgraf et al. 2019, arXiv 1810.03642, equations 4 to 6).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map

from adaptation.test_time_adaptation import check_fit, kept_buffers
from core.config import FrozenConfig
from core.errors import InputError, bad_value
from core.stack import LayerNorm
from meta_rl.imaml import hessian_by_graph, hessian_by_transform, implicit_gradient
from meta_rl.reptile import reptile_gradient

Params = dict[str, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]
Task = tuple[Tensor, Tensor, Tensor, Tensor]
LossOf = Callable[[Params], Tensor]  # the loss on one set as a function of the weights
Variant = Literal["maml", "fomaml", "reptile", "anil", "meta-sgd", "maml++", "imaml", "cavia"]
CONTEXT = "context"  # the name of CAVIA's parameters among the fast weights
PATH_FREE = ("reptile", "imaml")  # their meta-gradient follows from where the inner loop ended


class Derivatives(NamedTuple):
    """How to differentiate: through the ordinary graph, or by function transforms, which vmap can see through."""

    gradient: Callable[[LossOf, Params, bool], tuple[Tensor, Params]]
    """(loss, weights, create_graph) to the loss's value and gradient."""
    hessian: Callable[[LossOf, Params], Callable[[Params], Params]]
    """(loss, weights) to the function v -> H v."""


class MAMLConfig(FrozenConfig):
    """Which member of the family, and its settings."""

    variant: Variant = "maml"
    """The algorithm."""
    inner_steps: int = Field(default=1, ge=1, le=1000)
    """Gradient steps on the support set in `meta_update`."""
    head: str | None = None
    """ANIL: prefix of the parameters that move. None: the module of the last parameter."""
    context_dim: int = Field(default=5, ge=1)
    """CAVIA: numbers appended to the input; the model's input size is the data's plus this."""
    proximal: float = Field(default=2.0, gt=0)
    """iMAML: lambda, the pull towards theta in the inner loop."""
    cg_steps: int = Field(default=5, ge=1)
    """iMAML: products in the conjugate gradient."""
    first_order_updates: int = Field(default=0, ge=0)
    """MAML++: meta-updates at the start that use first-order gradients."""
    multi_step_updates: int = Field(default=1000, ge=1)
    """MAML++: meta-updates over which the loss of the early inner steps fades out."""
    vectorize: bool | None = None
    """Run tasks of equal shape under vmap, where the model allows it. None: yes, and a loop where it fails."""


class MetaMAML:
    """Meta-learns the parameters of any module, with memory (`init_hidden`) or without.

    model: called as `model(x)` or, with memory, `model(x, hidden) -> (output, next_hidden)`; x is (B, D) or (B, T, D).
    inner_lr, outer_lr: rates alpha and (Adam's) beta. first_order: the same as the variant "fomaml", for any variant.
    Raises InputError, before anything is changed, for rates that are not positive, an empty support set, data of a size
    that the model does not take or give, a model whose parameters are all frozen, and an inner loop that explodes.
    Statistics that the model keeps of its data (batch norm's) stay as they are, whatever is called: each forward pass gets
    its own copy of them. In training mode, where batch norm does not read them, nothing else changes.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float = 0.01,
        outer_lr: float = 0.001,
        first_order: bool = False,
        config: MAMLConfig | None = None,
    ) -> None:
        for name, rate in (("inner_lr", inner_lr), ("outer_lr", outer_lr)):
            if not 0.0 < rate <= 1e38:
                raise bad_value(name, rate, "a positive number, at most 1e38")
        self.model, self.inner_lr, self.outer_lr = model, inner_lr, outer_lr
        self.config = config or MAMLConfig()
        self.first_order = first_order or self.config.variant == "fomaml"
        self.stateful = hasattr(model, "init_hidden")
        self.updates = 0
        self._vmap_works = True
        self._fitting: set[tuple] = set()
        self._statistics: set[str] = set()  # buffers that a forward pass writes to
        self._theta: Params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._theta:
            raise bad_value(
                "model",
                type(model).__name__,
                "a model with a parameter that requires a gradient",
                hint="All are frozen.",
            )
        self._fast_names = self._which_move()
        variant, steps = self.config.variant, self.config.inner_steps
        self._rates = initial_rates(variant, self._theta, inner_lr, steps)
        self._context = next(iter(self._theta.values())).new_zeros(self.config.context_dim)
        learned = [*self._theta.values(), *self._rates.values()]
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in learned)
        self.meta_optimizer = torch.optim.Adam(learned, lr=outer_lr, fused=fused)

    # What users call --------------------------------------------------------------------------------------------------
    def functional_forward(
        self, x: Tensor, hidden: Tensor | None, params: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The model's output with `params` in place of its own, and the next hidden state (None without memory)."""
        weights = {name: value for name, value in params.items() if name != CONTEXT}
        if CONTEXT in params:
            x = torch.cat([x, params[CONTEXT].expand(*x.shape[:-1], -1)], dim=-1)
        if self._statistics:
            weights |= {n: b.clone() for n, b in self.model.named_buffers() if n in self._statistics}
        if not self.stateful:
            return functional_call(self.model, weights, (x,)), None
        return functional_call(self.model, weights, (x, hidden))

    def adapt_task(
        self,
        support_x: Tensor,
        support_y: Tensor,
        initial_hidden_state: Tensor | None = None,
        loss_fn: LossFn | None = None,
        num_steps: int = 1,
    ) -> OrderedDict[str, Tensor]:
        """Fast weights after `num_steps` inner steps from the present parameters; the model itself is not changed.

        They are differentiable in the model's parameters unless first-order. loss_fn: mean squared error by default.
        """
        if num_steps < 1:
            raise bad_value("num_steps", num_steps, "1 or more")
        self._check_set("support", support_x, support_y)
        hidden = self._hidden(initial_hidden_state, len(support_x), 0, 1)
        self._check_fit(support_x, support_y, hidden, loss_fn)
        loss_of = self._loss_on(support_x, support_y, hidden, loss_fn)
        losses, weights = [], self._theta
        with torch.enable_grad():
            for weights, loss in self._inner(self._theta, loss_of, num_steps, GRAPH):  # noqa: B007
                losses.append(loss.detach())
        self._check_finite([*losses, *weights.values()])
        return OrderedDict(weights)

    def meta_update(
        self,
        tasks: Sequence[Task],
        initial_hidden_state: Tensor | None = None,
        loss_fn: LossFn | None = None,
        num_steps: int | None = None,
    ) -> float:
        """One outer step on `tasks`, a list of (support_x, support_y, query_x, query_y); returns the mean query loss.

        initial_hidden_state: for one task's batch (shared by all tasks), or for all tasks' batches one after another.
        """
        loss, gradient = self.meta_gradient(tasks, initial_hidden_state, loss_fn, num_steps)
        for name, parameter in {**self._theta, **self._rates}.items():
            parameter.grad = gradient[name]
        self.meta_optimizer.step()
        self.updates += 1
        return loss

    def meta_gradient(
        self,
        tasks: Sequence[Task],
        initial_hidden_state: Tensor | None = None,
        loss_fn: LossFn | None = None,
        num_steps: int | None = None,
    ) -> tuple[float, Params]:
        """The mean query loss after adaptation, and the meta-gradient by name; changes nothing."""
        steps, hidden = num_steps or self.config.inner_steps, self._check_tasks(tasks, initial_hidden_state, loss_fn)
        leaves = {**self._theta, **self._rates}
        if self.config.variant in PATH_FREE:
            with torch.no_grad():
                losses, each = self._over_tasks(self._end_point, self._fixed(), tasks, hidden, loss_fn, steps)
            gradients = {name: g.mean(0) for name, g in each.items()}
        else:
            with torch.enable_grad():
                losses, objectives = self._over_tasks(self._path, self._theta, tasks, hidden, loss_fn, steps)
                given = torch.autograd.grad(objectives.mean(), list(leaves.values()), allow_unused=True)
            gradients = {
                name: torch.zeros_like(leaf) if g is None else g
                for (name, leaf), g in zip(leaves.items(), given, strict=True)
            }
        self._check_finite([losses.detach(), *gradients.values()])
        return float(losses.detach().mean()), gradients

    @torch.no_grad()
    def evaluate(
        self,
        tasks: Sequence[Task],
        initial_hidden_state: Tensor | None = None,
        loss_fn: LossFn | None = None,
        num_steps: int = 10,
        measure: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The query loss after 0, 1, ... `num_steps` inner steps: (tasks, num_steps + 1, ...); changes nothing.

        measure: what to report of (output, query_y) in place of the loss, a tensor of any one shape.
        """
        hidden = self._check_tasks(tasks, initial_hidden_state, loss_fn)

        def curve(theta: Params, on_support: LossOf, on_query: LossOf, steps: int, by: Derivatives) -> tuple:
            trail = [params for params, _ in self._inner(theta, on_support, steps, by)]
            return (torch.stack([on_query(params) for params in [self._with_context(theta), *trail]]),)

        return self._over_tasks(curve, self._fixed(), tasks, hidden, loss_fn, num_steps, measure)[0]

    def start(self) -> OrderedDict[str, Tensor]:
        """The weights before any inner step, as `functional_forward` takes them."""
        return OrderedDict(self._with_context(self._theta))

    @torch.no_grad()
    def loss(
        self,
        weights: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        hidden: Tensor | None = None,
        loss_fn: LossFn | None = None,
    ) -> float:
        """The loss of given weights on one set."""
        state = self._hidden(hidden, len(x), 0, 1)
        return float((loss_fn or nn.functional.mse_loss)(self.functional_forward(x, state, weights)[0], y))

    # The inner loop ---------------------------------------------------------------------------------------------------
    def _inner(self, theta: Params, loss_of: LossOf, steps: int, by: Derivatives) -> Iterator[tuple[Params, Tensor]]:
        """After every step all weights, and the support loss before the step."""
        moving = {name: theta[name] for name in self._fast_names if name != CONTEXT}
        if self.config.variant == "cavia":
            moving = {CONTEXT: self._context}
        first_order = self._is_first_order()
        for step in range(steps):
            if first_order:  # the gradient is a constant: nothing of how it was computed is kept
                fixed = {name: value.detach() for name, value in theta.items()}
                point = {name: value.detach() for name, value in moving.items()}
                with torch.no_grad():
                    loss, grads = by.gradient(lambda moved: loss_of({**fixed, **moved}), point, False)  # noqa: B023
            else:
                loss, grads = by.gradient(lambda moved: loss_of({**theta, **moved}), moving, True)
            if self.config.variant == "imaml":
                pull = self.config.proximal
                grads = {name: g + pull * (moving[name] - theta[name]).detach() for name, g in grads.items()}
            moving = {name: value - self._rate(name, step) * grads[name] for name, value in moving.items()}
            yield {**theta, **moving}, loss

    def _path(self, theta: Params, on_support: LossOf, on_query: LossOf, steps: int, by: Derivatives) -> tuple:
        """Final query loss, and what to differentiate along the path of the inner loop."""
        scored = []
        trail = self._inner(theta, on_support, steps, by)
        for (params, _), weight in zip(trail, self._step_weights(steps), strict=True):
            if weight > 0:
                scored.append((on_query(params), weight))
        loss = scored[-1][0]
        if len(scored) == 1:  # all but MAML++: the last step alone, with weight 1
            return loss, loss
        return loss, torch.stack([weight * value for value, weight in scored]).sum()

    def _end_point(self, theta: Params, on_support: LossOf, on_query: LossOf, steps: int, by: Derivatives) -> tuple:
        """Reptile and iMAML: final query loss, and the meta-gradient from the inner loop's end point alone."""
        phi = theta
        for phi, _ in self._inner(theta, on_support, steps, by):  # noqa: B007
            pass
        loss, query_gradient = by.gradient(on_query, phi, False)
        if self.config.variant == "reptile":
            return loss, reptile_gradient(theta, phi, self.inner_lr)
        return loss, implicit_gradient(
            by.hessian(on_support, phi), query_gradient, lam=self.config.proximal, cg_steps=self.config.cg_steps
        )

    def _over_tasks(
        self,
        solve: Callable[..., tuple],
        theta: Params,
        tasks: Sequence[Task],
        hidden: Sequence[tuple[Tensor | None, Tensor | None]],
        loss_fn: LossFn | None,
        steps: int,
        measure: LossFn | None = None,
    ) -> Any:
        """What `solve` gives for each task, stacked; all at once under vmap where shapes and model allow."""

        def one(by: Derivatives, theta: Params, sx: Any, sy: Any, qx: Any, qy: Any, sh: Any, qh: Any) -> tuple:
            on_support, on_query = self._loss_on(sx, sy, sh, loss_fn), self._loss_on(qx, qy, qh, measure or loss_fn)
            return solve(theta, on_support, on_query, steps, by)

        solve_one: Any = one
        same = len({tuple(part.shape for part in task) for task in tasks}) == 1
        if same and len(tasks) > 1 and self._may_vectorize():
            stacked = [torch.stack(parts) for parts in zip(*tasks, strict=True)]
            states: list[Any] = [None, None]
            if self.stateful:
                states = [torch.stack([cast(Tensor, pair[i]) for pair in hidden]) for i in range(2)]
            at = 0 if self.stateful else None
            try:
                batched: Any = vmap(lambda *parts: solve_one(TRANSFORM, *parts), in_dims=(None, 0, 0, 0, 0, at, at))
                return batched(theta, *stacked, *states)
            except (RuntimeError, NotImplementedError):
                # A module with data-dependent control flow or an operation without a batching rule.
                if self.config.vectorize:
                    raise
                self._vmap_works = False
        each = [solve_one(GRAPH, theta, *task, *pair) for task, pair in zip(tasks, hidden, strict=True)]
        return tree_map(lambda *values: torch.stack(values), *each)

    def _may_vectorize(self) -> bool:
        """Whether vmap gives the same numbers: it does not where torch's own norms are differentiated twice.

        Their batched backward takes mean and deviation as constants (torch 2.13: meta-gradients up to 5 % off, no error).
        """
        if not self._vmap_works or self.config.vectorize is False:
            return False
        return self._is_first_order() or not any(
            isinstance(part, nn.modules.batchnorm._NormBase)
            or (isinstance(part, nn.LayerNorm) and not isinstance(part, LayerNorm))
            for part in self.model.modules()
        )

    def _loss_on(self, x: Tensor, y: Tensor, hidden: Tensor | None, loss_fn: LossFn | None) -> LossOf:
        """The loss on one set as a function of the weights."""
        measure = loss_fn or nn.functional.mse_loss
        return lambda params: measure(self.functional_forward(x, hidden, params)[0], y)

    def _fixed(self) -> Params:
        """The parameters as constants."""
        return {name: value.detach() for name, value in self._theta.items()}

    def _with_context(self, theta: Params) -> Params:
        """`theta`, and CAVIA's context before any step."""
        return {**theta, CONTEXT: self._context} if self.config.variant == "cavia" else dict(theta)

    # What the variants differ in --------------------------------------------------------------------------------------
    def _which_move(self) -> list[str]:
        names = list(self._theta)
        if self.config.variant == "cavia":
            return [CONTEXT]
        if self.config.variant != "anil":
            return names
        head = self.config.head if self.config.head is not None else names[-1].rpartition(".")[0]
        moving = [name for name in names if name == head or name.startswith(f"{head}.")]
        if not moving:
            raise bad_value("head", head, f"a prefix of one of {', '.join(names)}")
        return moving

    def _rate(self, name: str, step: int) -> Tensor | float:
        return rate_of(self.config.variant, self._rates, name, step, self.inner_lr)

    def _is_first_order(self) -> bool:
        annealing = self.config.variant == "maml++" and self.updates < self.config.first_order_updates
        return self.first_order or annealing or self.config.variant in PATH_FREE

    def _step_weights(self, steps: int) -> list[float]:
        """How much each inner step's query loss counts: the last alone, or MAML++'s fading mixture (section 4)."""
        fade = max(0.0, 1.0 - self.updates / self.config.multi_step_updates) if self.config.variant == "maml++" else 0.0
        early = fade / steps
        return [early] * (steps - 1) + [1.0 - early * (steps - 1)]

    # Checks -----------------------------------------------------------------------------------------------------------
    def _check_tasks(
        self, tasks: Sequence[Task], initial_hidden_state: Tensor | None, loss_fn: LossFn | None
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """Each task's hidden states for support and query; raises InputError for a set that cannot be learned from."""
        if not tasks:
            raise bad_value("tasks", "an empty list", "one task or more")
        hidden = []
        for index, (support_x, support_y, query_x, query_y) in enumerate(tasks):
            self._check_set("support", support_x, support_y)
            self._check_set("query", query_x, query_y)
            support_h, query_h = (
                self._hidden(initial_hidden_state, len(x), index, len(tasks)) for x in (support_x, query_x)
            )
            self._check_fit(support_x, support_y, support_h, loss_fn)
            self._check_fit(query_x, query_y, query_h, loss_fn)
            hidden.append((support_h, query_h))
        return hidden

    def _hidden(self, given: Tensor | None, batch: int, index: int, num_tasks: int) -> Tensor | None:
        """The initial hidden state (batch, S) of task `index`."""
        if not self.stateful:
            return None
        if given is None:
            return self.model.init_hidden(batch)  # pyright: ignore[reportCallIssue]
        rows = len(given)
        if rows == batch:
            return given
        if rows == batch * num_tasks:
            return given[index * batch : (index + 1) * batch]
        if rows >= 1 and bool((given == given[:1]).all()):  # equal rows, as init_hidden gives: any number of them
            return given[:1].expand(batch, *given.shape[1:])
        allowed = f"{batch} rows, or {batch * num_tasks} (one batch for each task), or equal rows"
        raise bad_value("initial_hidden_state", f"{rows} rows", allowed)

    @staticmethod
    def _check_set(name: str, x: Tensor, y: Tensor) -> None:
        if x.ndim < 2 or x.numel() == 0 or len(x) != len(y):
            found = f"x of shape {tuple(x.shape)}, y of shape {tuple(y.shape)}"
            raise bad_value(f"{name} set", found, "x (B, D) or (B, T, D) with B >= 1, and y with the same B")

    def _check_fit(self, x: Tensor, y: Tensor, hidden: Tensor | None, loss_fn: LossFn | None) -> None:
        """Try each new combination of shapes once, so that a wrong size is named and not met half-way."""
        key = (x.shape, y.shape, None if hidden is None else hidden.shape, loss_fn is None, self.model.training)
        if key in self._fitting:
            return
        with kept_buffers(self.model) as written, torch.no_grad():
            check_fit(lambda: self.functional_forward(x, hidden, self.start())[0], x, y, compare=loss_fn is None)
        self._statistics |= written
        self._fitting.add(key)

    def _check_finite(self, values: Sequence[Tensor]) -> None:
        # Of all numbers one sum: it is finite if they are, save where finite numbers add up to infinity.
        if not bool(torch.stack([value.detach().sum() for value in values]).isfinite().all()):
            raise InputError(
                f"inner_lr: got {self.inner_lr}, the loss after the inner loop or its gradient is not finite. Allowed: a "
                f"rate small enough for the inner loop to converge; try {self.inner_lr / 10:g}."
            )


# Learned inner rates, also those of `meta_rl.maml_ppo` ---------------------------------------------------------------
def initial_rates(kind: str, parameters: Mapping[str, Tensor], inner_lr: float, steps: int) -> dict[str, Tensor]:
    """`rate.NAME` of each parameter, all `inner_lr`: one for every number for "meta-sgd" (Li et al. 2017, equation 2), one for every
    step, (steps,), for "maml++" (Antoniou et al. 2019, section 4); none for another kind."""
    if kind == "meta-sgd":
        return {f"rate.{n}": torch.full_like(p, inner_lr).requires_grad_() for n, p in parameters.items()}
    if kind == "maml++":
        return {f"rate.{n}": p.new_full((steps,), inner_lr).requires_grad_() for n, p in parameters.items()}
    return {}


def rate_of(kind: str, rates: Mapping[str, Tensor], name: str, step: int, inner_lr: float) -> Tensor | float:
    """The rate of a parameter in an inner step, counted from 0; steps past the learned ones go on at the last one's."""
    if kind == "meta-sgd":
        return rates[f"rate.{name}"]
    if kind == "maml++":
        own = rates[f"rate.{name}"]
        return own[min(step, len(own) - 1)]
    return inner_lr


# How to differentiate -------------------------------------------------------------------------------------------------
def _autograd(loss_of: LossOf, params: Params, create_graph: bool) -> tuple[Tensor, Params]:
    """Loss and gradient through the ordinary graph."""
    with torch.enable_grad():
        params = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
        loss = loss_of(params)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph, allow_unused=True)
    return loss, {
        name: torch.zeros_like(params[name]) if g is None else g for name, g in zip(params, grads, strict=True)
    }


def _functional(loss_of: LossOf, params: Params, create_graph: bool) -> tuple[Tensor, Params]:
    """The same by a function transform; whether the graph is kept depends on what the parameters require."""
    grads, loss = grad_and_value(loss_of)(params)
    return loss, grads


GRAPH = Derivatives(_autograd, hessian_by_graph)
TRANSFORM = Derivatives(_functional, hessian_by_transform)
