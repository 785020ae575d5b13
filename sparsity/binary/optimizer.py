"""Optimizers of binary weights, whose gradients are signs: Adam without a second moment, and Bop.

A weight is stepped within the backward pass as soon as its gradient is there, and its gradient is then gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.binary.bits import signs
from tune_sparsity.sparsity.binary.blocks import in_parts

BETA_1, BETA_2, _EPS = 0.9, 0.999, 1e-8
FLIPS = ("signs", "bop")


def adam_of_signs(weight: Tensor, mean: Tensor, grad: Tensor, lr: float, step: int) -> None:
    """Take a step of Adam (Kingma and Ba 2015) in place, for gradients that are always -c or +c. The root of their mean
    square is c, so that none is kept, and c falls out: `grad` has signs. Weights stay within [-1, 1].

    Args:
        mean: of the signs, not corrected; zeros at first.
        step: from 1.
    """
    now = _moved(mean, grad, 1 - BETA_1)
    weight.copy_(weight.to(now.dtype).sub_(now, alpha=lr / (1 - BETA_1**step)).clamp_(-1, 1))


def bop(weight: Tensor, mean: Tensor, grad: Tensor, gamma: float, tau: float) -> None:
    """Flip signs in place, where the mean of gradients is larger than tau and of the same sign (Helwegen et al. 2019,
    arXiv 1906.02107).

    Args:
        weight: -1 or +1.
        mean: an exponential moving one, of signs; zeros at first.
    """
    now = _moved(mean, grad, gamma)
    weight.copy_(torch.where((now.abs() > tau) & ((now > 0) == (weight > 0)), -weight, weight))


def _moved(mean: Tensor, grad: Tensor, share: float) -> Tensor:
    """Move a mean in place; return it as float32 at least, in which it is computed."""
    wide = torch.promote_types(mean.dtype, torch.float32)
    now = torch.lerp(mean.to(wide), grad.to(wide), share)
    mean.copy_(now)
    return now


class BinaryOptimizer(torch.optim.Optimizer):
    """Steps binary weights within the backward pass, and all else, by Adam, in `step()`.

    Args:
        weights: of binary blocks.
        others: the other parameters.
        flips: how signs change, in FLIPS.
        gamma, tau: of Bop.
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        flips: str = "signs",
        gamma: float = 1e-2,
        tau: float = 0.05,
    ) -> None:
        weights = list(weights)
        groups = [{"params": weights, "binary": True}, {"params": list(others), "binary": False}]
        super().__init__(groups, {"lr": lr, "flips": flips, "gamma": gamma, "tau": tau})
        if flips == "bop":  # there is nothing latent
            for weight in weights:
                weight.data = signs(weight.data).to(weight.dtype)
        self._follow_gradients()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, also that of a copy, whose weights have no hooks."""
        super().__setstate__(state)
        self._follow_gradients()

    def _follow_gradients(self) -> None:
        self._let_go()
        weights = self.param_groups[0]["params"]
        self._hooks = [weight.register_post_accumulate_grad_hook(self._step_weight) for weight in weights]

    def _let_go(self) -> None:
        for hook in getattr(self, "_hooks", ()):
            hook.remove()

    def close(self) -> None:
        """Let the weights go, with what is known of them."""
        self._let_go()
        self.state.clear()

    @torch.no_grad()
    def _step_weight(self, weight: Tensor) -> None:
        group, state, grad = self.param_groups[0], self.state[weight], weight.grad
        weight.grad = None
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight))
        state["step"] += 1
        assert grad is not None
        for rows in in_parts(weight):
            own = weight[rows], state["mean"][rows], grad[rows]
            if group["flips"] == "bop":
                bop(*own, group["gamma"], group["tau"])
            else:
                adam_of_signs(*own, group["lr"], state["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step the parameters that are not binary, on the gradients at hand."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[1]
        for param in group["params"]:
            if param.grad is not None:
                self._adam(param, param.grad, group["lr"])
        return loss

    def _adam(self, param: Tensor, grad: Tensor, lr: float) -> None:
        state = self.state[param]
        if not state:
            state.update(step=0, mean=torch.zeros_like(param), square=torch.zeros_like(param))
        state["step"] += 1
        mean = state["mean"].lerp_(grad, 1 - BETA_1).div(1 - BETA_1 ** state["step"])
        square = state["square"].lerp_(grad.square(), 1 - BETA_2).div(1 - BETA_2 ** state["step"])
        param.addcdiv_(mean, square.sqrt_().add_(_EPS), value=-lr)
