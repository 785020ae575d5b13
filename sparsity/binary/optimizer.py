"""Optimize the weights of binary blocks with a variant of Adam or with Bop. Both use only the signs of the gradients.

The variant of Adam stores no second moment. Bop is an optimizer for binary networks that flips signs (see `bop`).

A weight is updated within the backward pass as soon as its gradient exists. The memory of the gradient is then
released.
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
    """Make a step of Adam (Kingma and Ba 2015) in place, under the assumption that all gradients have the same
    magnitude c.

    Adam divides the mean of the gradients by the root of their mean square. This root is c, so the second moment need
    not be stored. In the quotient c cancels out, so `grad` contains only the signs. The weights stay within [-1, 1].

    Args:
        weight: latent weights in [-1, 1].
        mean: the moving mean of the signs, without bias correction. It begins with zeros and is updated in place.
        grad: the signs of the gradients, -1 or +1.
        lr: the learning rate.
        step: the number of this step. The first step has the number 1.
    """
    now = _moved(mean, grad, 1 - BETA_1)
    weight.copy_(weight.to(now.dtype).sub_(now, alpha=lr / (1 - BETA_1**step)).clamp_(-1, 1))


def bop(weight: Tensor, mean: Tensor, grad: Tensor, gamma: float, tau: float) -> None:
    """Flip the signs of weights in place. A weight flips if the moving mean of its gradient has a magnitude above tau
    and the same sign as the weight (Helwegen et al. 2019, arXiv 1906.02107). Here, the mean is computed from the signs
    of the gradients.

    Args:
        weight: -1 or +1.
        mean: the exponential moving mean of the signs of gradients. It begins with zeros and is updated in place.
        grad: the signs of the gradients, -1 or +1.
        gamma: the share of `grad` in the new mean, in (0, 1].
        tau: the threshold for a flip.
    """
    now = _moved(mean, grad, gamma)
    weight.copy_(torch.where((now.abs() > tau) & ((now > 0) == (weight > 0)), -weight, weight))


def _moved(mean: Tensor, grad: Tensor, share: float) -> Tensor:
    """Update a mean in place, with the share `share` of `grad`. Return the new mean in float32, or in float64 for a
    mean in float64."""
    wide = torch.promote_types(mean.dtype, torch.float32)
    now = torch.lerp(mean.to(wide), grad.to(wide), share)
    mean.copy_(now)
    return now


class BinaryOptimizer(torch.optim.Optimizer):
    """Updates binary weights within the backward pass, and all other parameters with Adam in `step()`.

    Args:
        weights: the weights of binary blocks.
        others: the other parameters.
        lr: the learning rate of Adam.
        flips: how binary weights are updated: "signs" for the variant of Adam (see `adam_of_signs`), "bop" for Bop (see
            `bop`).
        gamma, tau: the arguments of `bop`.
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
        if flips == "bop":  # Bop has no latent weights
            for weight in weights:
                weight.data = signs(weight.data).to(weight.dtype)
        self._follow_gradients()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the state of a copied optimizer, and add hooks to the weights, because copied weights have no hooks."""
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
        """End the updates: remove the hooks of the weights, and clear the state of the optimizer."""
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
        """Update the parameters that are not binary, with their current gradients."""
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
