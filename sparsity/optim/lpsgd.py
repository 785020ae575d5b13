"""Define LpSGD: stochastic gradient descent on the unit Lp sphere, and ordinary SGD or AdamW for other parameters.

On the sphere, the parameter that the network uses is gain * w: the row w of each neuron has the Lp norm 1, and the gain
is a number for each neuron. The optimizer's state is the dual image v = sign(w)|w|^(p-1). To prune, give masks to the
optimizer, or multiply the parameters by masks after each step.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from tune_sparsity.sparsity.optim import adamw, fused
from tune_sparsity.sparsity.optim.foreach import ForeachStep
from tune_sparsity.sparsity.optim.fused import FusedStep
from tune_sparsity.sparsity.optim.row_ops import Rows, descend
from tune_sparsity.sparsity.orientation import STANDARD, Orientation
from tune_sparsity.sparsity.sphere import check_p, from_dual, project, row_norm, to_dual
from tune_sparsity.sparsity.torch_internals import GLOBAL_STEP_HOOKS

LR_MAX = 0.25
"""Largest learning rate on the sphere. With this rate, v keeps at least 1 - 2 x 0.25 = 1/2 of its norm in a step. The
sum of |v|^q then stays far above float32's smallest number for every supported p, and needs no second rescaling."""

# The first gain of a row of zeros. The first step gives its w the norm 1. A small gain keeps the row near zero.
_GAIN_OF_ZEROS = 1e-4


class LpSGD(torch.optim.Optimizer):
    """SGD with (Nesterov) momentum on the unit Lp sphere (arXiv 2103.16013).

    Groups with an exponent `p` are sphere groups. Each row of a parameter is gain * w, with ||w||_p = 1. The optimizer
    stores v = sign(w)|w|^(p-1) instead of w. The norm is over all entries of w, pruned entries included: a pruned entry
    is zero in the parameter, but has a value in v. The rows are the first dimension of a parameter, one row for each
    neuron. The other dimensions are the fan-in. The argument `orientation` can change this. With q = p/(p-1), and the
    direction d that SGD with momentum computes from the gradients, one step is::

        v <- (1 - lr) v - lr d/||d||_q;   v <- v/||v||_q;   w <- sign(v)|v|^(1/(p-1));   parameter <- gain * w

    At the beginning, the gain of a row is its norm ||.||_p, so that the parameter does not change before the first
    step.

    Only the direction of d matters, so that gradients may have any scale. A row with d = 0 does not change. Groups with
    p = None use ordinary SGD or AdamW.

    Args:
        params: parameters or groups, as for any torch optimizer.
        lr: learning rate. For sphere groups it must lie in [0, 0.25]. The default 2/256 is the largest value of the
            published schedule.
        p: exponent in [1.02, 2], or None for an ordinary group.
        momentum: in [0, 1).
        nesterov: whether to use Nesterov's form of momentum. It needs momentum > 0 to have an effect.
        weight_decay: L2 coefficient of ordinary groups, and of the gains in sphere groups. It has no meaning for
            weights on the sphere, and must be 0 there if the gains are constant.
        gain: for sphere groups, whether ordinary SGD trains the gains with the rate `gain_lr`. If False, the gains are
            constant. Constant gains suit rows that a normalisation follows, because the scale of such a row has no
            effect.
        gain_lr: learning rate of the gains, >= 0.
        foreach: for sphere groups, whether one operation copies all gradients into a flat tensor, and one operation
            copies all new values into the parameters. This reduces the number of kernels. If None, this is done only on
            a GPU.
        orientation: for sphere groups whose neurons are not the first dimension, a tuple of the two attributes of
            `Orientation`: the fan-in dimensions and the number of groups of a convolution. The parameters' memory is
            then put in the order of their rows, if possible. If None, the orientation is that of nn.Linear and
            nn.Conv2d.
        adamw: for ordinary groups, whether to use AdamW instead of SGD. Its beta_1 is the momentum, and its weight
            decay is decoupled.

    Raises:
        ValueError: if a value is out of range, or if a sphere parameter has fewer than 2 dimensions.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2 / 256,
        *,
        p: float | None = None,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        gain: bool = False,
        gain_lr: float = 0.1,
        foreach: bool | None = None,
        orientation: tuple[tuple[int, ...], int] | None = None,
        adamw: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "p": p,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "gain": gain,
            "gain_lr": gain_lr,
            "foreach": foreach,
            "orientation": orientation,
            "adamw": adamw,
        }
        self._masks: dict[Tensor, Tensor] = {}
        self._forget_blocks()
        super().__init__(params, defaults)

    def _forget_blocks(self) -> None:
        # Group -> the parameters that had gradients, and the objects that make their steps.
        self._blocks: dict[int, tuple[list[Tensor], list[ForeachStep | FusedStep]]] = {}
        # The number of times that the memory of a step has changed its address.
        self.arrangement: int = self.__dict__.get("arrangement", 0) + 1
        self._memory: dict[tuple[int, ...], dict[str, Rows]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_masks": self._masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._forget_blocks()
        super().__setstate__({"_masks": self.__dict__.get("_masks", {}), **state})
        for group in self.param_groups:
            group.setdefault("foreach", None)
            group.setdefault("orientation", None)
            group.setdefault("adamw", False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check and add a group as torch does. For a sphere group, compute v and the gains from the parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        if group["p"] is not None:
            for param in group["params"]:
                self._enter_sphere(param, group)

    def express(self) -> None:
        """Compute v and the gains again from the current values of the parameters in sphere groups: gain = ||row||_p,
        and v is the dual image of w = row/gain. The momentum does not change."""
        for group in self.param_groups:
            for param in group["params"] if group["p"] is not None else ():
                self.state[param].pop("latent", None)
                self._enter_sphere(param, group)

    @torch.no_grad()
    def _enter_sphere(self, param: Tensor, group: dict[str, Any]) -> None:
        orientation = _orientation(group)
        rows = orientation.rows(param.detach()).contiguous()
        exact = rows if param.dtype == torch.float64 else rows.float()
        norm = row_norm(exact, group["p"])
        state = self.state[param]
        state["v"] = to_dual(project(exact, group["p"]), group["p"])
        state["gain"] = norm.masked_fill_(norm == 0, _GAIN_OF_ZEROS if group["gain"] else 1.0)
        if orientation != STANDARD:
            # The parameter becomes a view of the rows, so that no step copies them. With several `groups` in the
            # orientation, such a view is not possible, and every step copies the rows.
            param.data = orientation.turned_back(rows, param.shape)

    def sphere_weights(self, param: Tensor) -> Tensor:
        """Return w of a parameter in a sphere group, shape (rows, fan-in). Neither the gain nor the mask is applied."""
        p = self._group_of(param)["p"]
        return from_dual(self.state[param]["v"], p)

    @torch.no_grad()
    def set_masks(self, masks: Mapping[Tensor, Tensor], *, as_loaded: bool = False) -> None:
        """Prune parameters in sphere groups. A weight whose mask is 0 is zero, and has no gradient and no momentum. A
        step only multiplies its dual image v by a number, which is the same for all masked weights of a row.

        A parameter without an entry in `masks` loses its mask. If you change the values of a mask in place, call this
        method again. The state_dict does not contain the masks.

        Instead of calling this method, you can multiply gradients and parameters by masks yourself at every step.
        However, if most weights are masked, steps on a CPU are much faster with this method.

        Args:
            masks: a dict from parameters to masks of zeros and ones in the shapes of the parameters.
            as_loaded: whether the optimizer's state was just loaded and was saved with these masks. The parameters and
                the state then do not change.
        """
        states = self.state
        for param, mask in masks.items() if not as_loaded else ():
            param.mul_(mask)
            states[param].pop("latent", None)
            if "momentum_buffer" in states[param]:
                states[param]["momentum_buffer"].mul_(_orientation(self._group_of(param)).rows(mask))
        if not (
            self._stay(masks) and all(isinstance(block, ForeachStep) for _, of in self._blocks.values() for block in of)
        ):
            self._blocks.clear()
            self.arrangement += 1
        self._masks = dict(masks)

    def _stay(self, masks: Mapping[Tensor, Tensor]) -> bool:
        """Return whether the parameters have the same mask tensors as before. The contents of the masks may differ."""
        return {id(param): id(mask) for param, mask in masks.items()} == {
            id(param): id(mask) for param, mask in self._masks.items()
        }

    def gain(self, param: Tensor) -> Tensor:
        """Return the gain of each row of a parameter in a sphere group, shape (rows, 1)."""
        return self.state[param]["gain"]

    def log_magnitude(self, param: Tensor) -> Tensor:
        """Return log2(gain |w|) of a parameter in a sphere group, in its shape. The values are comparable across rows
        and layers. They do not underflow, while |w| = |v|^(1/(p-1)) itself can."""
        group, state = self._group_of(param), self.state[param]
        log_w = state["v"].abs().log2() / (group["p"] - 1)
        return _orientation(group).turned_back(log_w + state["gain"].log2(), param.shape)

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if group["p"] is not None and any(param is other for other in group["params"]):
                return group
        raise ValueError("this parameter belongs to no sphere group of this optimizer")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step for every parameter that has a gradient.

        Args:
            closure: computes the loss again and returns it, as for any torch optimizer.

        Raises:
            FloatingPointError: if a gradient is NaN or infinite, or if its momentum overflows. The message names the
                parameter. A parameter with a NaN or infinite gradient has not changed. On a GPU, the gradients are not
                checked, because the check would stall the device. The parameter then becomes NaN. Call
                SparseTraining.check_finite once an epoch to detect this.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step()
        return loss

    def quick_step(self) -> None:
        """Make a step as `step` does. Call this method only while autograd is off. If hooks are registered, it calls
        `step`. Otherwise it skips the code that torch wraps around `step`. In a small network this code takes as much
        time as the update itself."""
        if self.hooked:
            self.step()
        else:
            self._step()

    @property
    def hooked(self) -> bool:
        """Return whether hooks are registered that torch must call at every step."""
        hooks = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks, *GLOBAL_STEP_HOOKS)
        return "step" in self.__dict__ or any(hooks)  # a learning rate scheduler counts steps by replacing the method

    def _step(self) -> None:
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            steps = self._ordinary_step if group["p"] is None else self._sphere_step
            bad = steps(params, group)
            if bad is not None:
                raise FloatingPointError(f"the gradient of {_name(bad, group)} is NaN or infinite")

    def _sphere_step(self, params: list[Tensor], group: dict[str, Any]) -> Tensor | None:
        """Make one step for the parameters on the sphere. Return the first parameter whose gradient was found to be NaN
        or infinite, or None."""
        for block in self._blocks_of(params, group):
            bad = block.step(group)
            if bad is not None:
                return bad
        return None

    def _ordinary_step(self, params: list[Tensor], group: dict[str, Any]) -> Tensor | None:
        """Make the step of torch.optim.SGD or AdamW. Return the first parameter whose gradient was found to be NaN or
        infinite, or None."""
        others = []
        for param in params:
            if group["adamw"] or not fused.fits(param):
                others.append(param)
            elif not fused.descend(param, self.state[param], group):
                return param
        grads = [param.grad for param in others if param.grad is not None]
        for param, grad in zip(others, grads, strict=True):
            # The sum is the fastest check. It may overflow although all entries are finite.
            if grad.device.type == "cpu" and not (cmath.isfinite(grad.sum().item()) or grad.isfinite().all()):
                return param
        if others and group["adamw"]:
            adamw.descend(others, grads, self.state, group)
        elif others:
            self._descend(others, grads, group)
        return None

    def _descend(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        """Make the step of torch.optim.SGD, in its order of operations."""
        momentum = group["momentum"]
        if group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if momentum:
            for param in params:
                if "momentum_buffer" not in self.state[param]:
                    self.state[param]["momentum_buffer"] = torch.zeros_like(param)
            buffers = [self.state[param]["momentum_buffer"] for param in params]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads)
            grads = list(torch._foreach_add(grads, buffers, alpha=momentum)) if group["nesterov"] else buffers
        descend(params, grads, group["lr"])

    def _blocks_of(self, params: list[Tensor], group: dict[str, Any]) -> list[ForeachStep | FusedStep]:
        """Return the objects that make the steps of a sphere group: one FusedStep for each parameter that fits the
        compiled code, and one ForeachStep for all other parameters with the same device and dtype."""
        known, blocks = self._blocks.get(id(group), ([], []))
        if len(known) == len(params) and all(a is b for a, b in zip(known, params, strict=True)):
            return blocks
        blocks, alike, orientation = [], dict[Any, list[Tensor]](), _orientation(group)
        for param in params:
            v, mask = self.state[param]["v"], self._masks.get(param)
            rows = param if orientation == STANDARD else orientation.rows(param)
            if fused.fits(rows) and fused.fits(v) and not group["foreach"]:
                blocks.append(FusedStep(param, self.state[param], mask, orientation))
            else:
                alike.setdefault((v.device, v.dtype, mask is not None), []).append(param)
        blocks += [self._block_of(members, group["foreach"], orientation) for members in alike.values()]
        self._blocks[id(group)] = params, blocks
        self.arrangement += 1
        return blocks

    def _block_of(self, members: list[Tensor], foreach: bool | None, orientation: Orientation) -> ForeachStep:
        masks = [self._masks[param] for param in members] if members[0] in self._masks else None
        memory = self._memory.setdefault(tuple(id(param) for param in members), {})
        return ForeachStep(members, [self.state[param] for param in members], masks, foreach, memory, orientation)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as torch does, with two differences. The tensors of the state, such as the dual image v of the
        weights, keep their dtypes. torch would convert them to the dtype of the parameter, which may be half precision.
        The tensors are copied. torch would share them with `state_dict`."""
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        for index, saved in state_dict["state"].items():
            state = self.state[params[index]]
            for key, value in saved.items():
                if isinstance(value, Tensor):
                    state[key] = value.to(state[key].device, copy=True)
            if "v" in state and "gain" not in state:  # earlier versions had only trained gains
                state["gain"] = torch.ones_like(state["v"][:, :1])


def _orientation(group: Mapping[str, Any]) -> Orientation:
    return STANDARD if group["orientation"] is None else Orientation(*group["orientation"])


def _check_group(group: dict[str, Any]) -> None:
    """Raise ValueError if a setting is out of range."""
    sphere = group["p"] is not None
    if sphere:
        check_p(group["p"])
    limit = LR_MAX if sphere else float("inf")
    if not 0.0 <= group["lr"] <= limit:
        raise ValueError(
            f"lr of {'a sphere' if sphere else 'an ordinary'} group must lie in [0, {limit}], got {group['lr']}"
        )
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
    if group["gain_lr"] < 0.0 or group["weight_decay"] < 0.0:
        raise ValueError("gain_lr and weight_decay must not be negative")
    if sphere and group["weight_decay"] != 0.0 and not group["gain"]:
        raise ValueError("weight_decay has no meaning on a sphere whose gains are constant: set it to 0")
    if sphere and any(param.dim() < 2 for param in group["params"]):
        raise ValueError("a sphere parameter needs at least 2 dimensions: its rows are the neurons' fan-in weights")
    for param in group["params"] if sphere else ():
        if not _orientation(group).suits(param.shape):
            raise ValueError(
                f"orientation {group['orientation']} does not suit the shape {tuple(param.shape)} of a parameter"
            )


def _name(param: Tensor, group: dict[str, Any]) -> str:
    """Return the parameter's name if the group has names, otherwise its shape."""
    names = group.get("param_names")
    index = next(i for i, other in enumerate(group["params"]) if other is param)
    return str(names[index]) if names else f"a parameter of shape {tuple(param.shape)}"
