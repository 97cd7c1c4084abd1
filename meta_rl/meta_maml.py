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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from core.config import FrozenConfig
from core.errors import InputError, bad_value
from meta_rl.imaml import implicit_gradient
from meta_rl.reptile import reptile_gradient

Params = dict[str, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]
Task = tuple[Tensor, Tensor, Tensor, Tensor]
Gradient = Callable[..., tuple[Tensor, Params]]  # (loss of the weights, weights, create_graph) -> loss and gradient
Variant = Literal["maml", "fomaml", "reptile", "anil", "meta-sgd", "maml++", "imaml", "cavia"]
CONTEXT = "context"  # the name of CAVIA's parameters among the fast weights


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
    """Run tasks of equal shape under vmap. None: yes wherever the model allows it."""


class MetaMAML:
    """Meta-learns the parameters of any module, with memory (`init_hidden`) or without.

    model: called as `model(x)` or, with memory, `model(x, hidden) -> (output, next_hidden)`; x is (B, D) or (B, T, D).
    inner_lr, outer_lr: rates alpha and (Adam's) beta. first_order: the same as the variant "fomaml", for any variant.
    Raises InputError for rates that are not positive, an empty support set, and an inner loop that explodes.
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
            if not 0.0 < rate < float("inf"):
                raise bad_value(name, rate, "a positive number")
        self.model, self.inner_lr, self.outer_lr = model, inner_lr, outer_lr
        self.config = config or MAMLConfig()
        self.first_order = first_order or self.config.variant == "fomaml"
        self.stateful = hasattr(model, "init_hidden")
        self.updates = 0
        self._vmap_works = True
        self._theta: Params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._fast_names = self._which_move()
        self._rates = self._initial_rates()
        self._context = next(iter(self._theta.values())).new_zeros(self.config.context_dim)
        self.meta_optimizer = torch.optim.Adam([*self._theta.values(), *self._rates.values()], lr=outer_lr)

    # What users call --------------------------------------------------------------------------------------------------
    def functional_forward(
        self, x: Tensor, hidden: Tensor | None, params: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The model's output with `params` in place of its own, and the next hidden state (None without memory)."""
        weights = {name: value for name, value in params.items() if name != CONTEXT}
        if CONTEXT in params:
            x = torch.cat([x, params[CONTEXT].expand(*x.shape[:-1], -1)], dim=-1)
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
        self._check_set("support", support_x, support_y)
        if num_steps < 1:
            raise bad_value("num_steps", num_steps, "1 or more")
        hidden = self._hidden(initial_hidden_state, len(support_x), 0, 1)
        with torch.enable_grad():
            weights, losses = self._inner(
                self._theta, support_x, support_y, hidden, loss_fn or nn.functional.mse_loss, num_steps, _autograd
            )
        self._check_finite(torch.stack(losses))
        return OrderedDict(weights[-1])

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
        if not tasks:
            raise bad_value("tasks", "an empty list", "one task or more")
        for support_x, support_y, query_x, query_y in tasks:
            self._check_set("support", support_x, support_y)
            self._check_set("query", query_x, query_y)
        loss_fn, steps = loss_fn or nn.functional.mse_loss, num_steps or self.config.inner_steps
        hidden = [
            tuple(self._hidden(initial_hidden_state, len(part), i, len(tasks)) for part in (task[0], task[2]))
            for i, task in enumerate(tasks)
        ]
        with torch.enable_grad():
            if self.config.variant in ("reptile", "imaml"):
                return self._gradient_without_graph(tasks, hidden, loss_fn, steps)
            objectives, losses = self._objectives(tasks, hidden, loss_fn, steps)
            self._check_finite(losses)
            leaves = {**self._theta, **self._rates}
            gradients = torch.autograd.grad(objectives.mean(), list(leaves.values()), allow_unused=True)
        return float(losses.detach().mean()), {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }

    def start(self) -> OrderedDict[str, Tensor]:
        """The weights before any inner step, as `functional_forward` takes them."""
        context = {CONTEXT: self._context} if self.config.variant == "cavia" else {}
        return OrderedDict({**self._theta, **context})

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
    def _inner(
        self,
        theta: Params,
        x: Tensor,
        y: Tensor,
        hidden: Tensor | None,
        loss_fn: LossFn,
        steps: int,
        gradient: Gradient,
    ) -> tuple[list[Params], list[Tensor]]:
        """All weights after every step, and the support loss before every step."""
        moving = {name: theta[name] for name in self._fast_names if name != CONTEXT}
        if self.config.variant == "cavia":
            moving = {CONTEXT: self._context}
        first_order = self._is_first_order()
        trail, losses = [], []
        for step in range(steps):

            def loss_of(moved: Params) -> Tensor:
                return loss_fn(self.functional_forward(x, hidden, {**theta, **moved})[0], y)

            loss, grads = gradient(loss_of, moving, create_graph=not first_order)
            if first_order:
                grads = {name: g.detach() for name, g in grads.items()}
            if self.config.variant == "imaml":
                pull = self.config.proximal
                grads = {name: g + pull * (moving[name] - theta[name]).detach() for name, g in grads.items()}
            moving = {name: value - self._rate(name, step) * grads[name] for name, value in moving.items()}
            trail.append({**theta, **moving})
            losses.append(loss)
        return trail, losses

    def _objectives(self, tasks: Sequence[Task], hidden: list, loss_fn: LossFn, steps: int) -> tuple[Tensor, Tensor]:
        """What to differentiate and the final query loss, (n_tasks,) each; under vmap where shapes and model allow."""
        weights = self._step_weights(steps)

        def one(gradient: Gradient, theta: Params, *parts: Tensor | None) -> tuple[Tensor, Tensor]:
            sx, sy, qx, qy, sh, qh = cast(Any, parts)
            trail, _ = self._inner(theta, sx, sy, sh, loss_fn, steps, gradient)
            scored = [
                loss_fn(self.functional_forward(qx, qh, params)[0], qy)
                for params, w in zip(trail, weights, strict=True)
                if w > 0
            ]
            objective = torch.stack([w * s for w, s in zip([w for w in weights if w > 0], scored, strict=True)]).sum()
            return objective, scored[-1]

        same = len({tuple(part.shape for part in task) for task in tasks}) == 1
        if same and len(tasks) > 1 and self._vmap_works and self.config.vectorize is not False:
            stacked = [torch.stack([task[i] for task in tasks]) for i in range(4)]
            states = [None if not self.stateful else torch.stack([pair[i] for pair in hidden]) for i in range(2)]
            in_dims = (None, 0, 0, 0, 0, *((0, 0) if self.stateful else (None, None)))
            try:
                each: Any = one
                batched: Any = vmap(lambda *parts: each(_functional, *parts), in_dims=in_dims)
                return batched(self._theta, *stacked, *states)
            except (RuntimeError, NotImplementedError):
                # A module with data-dependent control flow or an operation without a batching rule.
                if self.config.vectorize:
                    raise
                self._vmap_works = False
        pairs = [one(_autograd, self._theta, *task, *pair) for task, pair in zip(tasks, hidden, strict=True)]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])

    def _gradient_without_graph(
        self, tasks: Sequence[Task], hidden: list, loss_fn: LossFn, steps: int
    ) -> tuple[float, Params]:
        """Reptile and iMAML: the meta-gradient from the inner loop's end point alone."""
        total = {name: torch.zeros_like(p) for name, p in self._theta.items()}
        loss_sum = 0.0
        for (support_x, support_y, query_x, query_y), (support_h, query_h) in zip(tasks, hidden, strict=True):
            on_support = self._loss_at(support_x, support_y, support_h, loss_fn)
            on_query = self._loss_at(query_x, query_y, query_h, loss_fn)
            phi = {name: p.detach().clone().requires_grad_() for name, p in self._theta.items()}
            for _ in range(steps):
                _, grads = _autograd(on_support, phi, False)
                if self.config.variant == "imaml":
                    grads = {n: g + self.config.proximal * (phi[n] - self._theta[n]).detach() for n, g in grads.items()}
                phi = {n: (p - self.inner_lr * grads[n]).detach().requires_grad_() for n, p in phi.items()}
            loss, query_gradient = _autograd(on_query, phi, False)
            self._check_finite(loss)
            loss_sum += float(loss.detach())
            if self.config.variant == "reptile":
                task_gradient = reptile_gradient(self._theta, phi, self.inner_lr)
            else:
                task_gradient = implicit_gradient(
                    on_support, phi, query_gradient, lam=self.config.proximal, cg_steps=self.config.cg_steps
                )
            total = {name: total[name] + task_gradient[name] / len(tasks) for name in total}
        return loss_sum / len(tasks), total

    def _loss_at(self, x: Tensor, y: Tensor, hidden: Tensor | None, loss_fn: LossFn) -> Callable[[Params], Tensor]:
        """The loss on one set as a function of the weights."""
        return lambda params: loss_fn(self.functional_forward(x, hidden, params)[0], y)

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

    def _initial_rates(self) -> Params:
        """Learned inner rates: one a number (Meta-SGD) or one a tensor and step (MAML++)."""
        if self.config.variant == "meta-sgd":
            return {f"rate.{n}": torch.full_like(p, self.inner_lr).requires_grad_() for n, p in self._theta.items()}
        if self.config.variant == "maml++":
            steps = self.config.inner_steps
            return {f"rate.{n}": p.new_full((steps,), self.inner_lr).requires_grad_() for n, p in self._theta.items()}
        return {}

    def _rate(self, name: str, step: int) -> Tensor | float:
        if self.config.variant == "meta-sgd":
            return self._rates[f"rate.{name}"]
        if self.config.variant == "maml++":  # steps past the trained ones go on at the last one's rate
            return self._rates[f"rate.{name}"][min(step, self.config.inner_steps - 1)]
        return self.inner_lr

    def _is_first_order(self) -> bool:
        annealing = self.config.variant == "maml++" and self.updates < self.config.first_order_updates
        return self.first_order or annealing or self.config.variant in ("reptile", "imaml")

    def _step_weights(self, steps: int) -> list[float]:
        """How much each inner step's query loss counts: the last alone, or MAML++'s fading mixture (section 4)."""
        fade = max(0.0, 1.0 - self.updates / self.config.multi_step_updates) if self.config.variant == "maml++" else 0.0
        early = fade / steps
        return [early] * (steps - 1) + [1.0 - early * (steps - 1)]

    # Checks -----------------------------------------------------------------------------------------------------------
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

    def _check_finite(self, losses: Tensor) -> None:
        if not bool(torch.isfinite(losses).all()):
            raise InputError(
                f"inner_lr: got {self.inner_lr}, the loss after the inner loop is not finite. Allowed: a rate small "
                f"enough for the inner loop to converge; try {self.inner_lr / 10:g}."
            )


def _autograd(loss_of: Callable[[Params], Tensor], params: Params, create_graph: bool) -> tuple[Tensor, Params]:
    """Loss and gradient through the ordinary graph."""
    params = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
    loss = loss_of(params)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph, allow_unused=True)
    return loss, {
        name: torch.zeros_like(params[name]) if g is None else g for name, g in zip(params, grads, strict=True)
    }


def _functional(loss_of: Callable[[Params], Tensor], params: Params, create_graph: bool) -> tuple[Tensor, Params]:
    """The same by a function transform, which vmap can see through; the graph is always kept."""
    grads, loss = grad_and_value(loss_of)(params)
    return loss, grads
