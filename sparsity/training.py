"""Train a sparse network. SparseTraining combines an optimizer with a topology, the rule that changes the masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.averaging import Averaging, WeightAverage
from tune_sparsity.sparsity.few_bits import ALL_BITS, Codes, FewBits, FewBitsTraining, biases_of
from tune_sparsity.sparsity.gradients import average_gradients, make_gradients_dense
from tune_sparsity.sparsity.layers import Layer, turned_back
from tune_sparsity.sparsity.masks import grow_rate, keep_active, multiply
from tune_sparsity.sparsity.measures import Measures
from tune_sparsity.sparsity.optim.cuda_graph import RecordedSteps
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.orientation import STANDARD
from tune_sparsity.sparsity.selection import Selection, fitted
from tune_sparsity.sparsity.topology.base import LayerView, Topology
from tune_sparsity.sparsity.wrappers import plain_parameters


class SparseTraining(Measures, torch.optim.Optimizer):
    """Trains a sparse network. Use it instead of the optimizer in an ordinary training loop.

    Call `zero_grad()`, backward and `step()`. The object is a torch optimizer: gradient scalers, learning-rate
    schedulers and trainers of other libraries accept it. If a scheduler changes the learning rates, the factor
    `learning_rate` multiplies the changed rates. A step that a gradient scaler skips is not one of the `total_steps`.

    The topology changes the masks until the progress, the fraction of steps done, reaches `mask_frozen_at`. Then the
    network is projected: the smallest weights are masked until the network has exactly its final sparsity. The training
    continues with this mask. Masked weights are zero in the parameters themselves, and therefore also in copies of the
    network and in its state_dict. An average over steps, such as torch.optim.swa_utils.AveragedModel, must begin when
    the attribute `fixed` is True, because the mean of networks with different masks has fewer zeros.

    Args:
        model: the network, on its device.
        layers: its prunable layers.
        optimizer: LpSGD, or any torch optimizer over the network's parameters.
        topology: the rule that changes the masks during the training.
        masks: the initial masks, one for each layer.
        sparsity: the final sparsity over the layers' weights, in [0, 1). With blocks or neurons, it may become higher.
        total_steps: the number of calls of `step()`. The schedules depend on it.
        mask_frozen_at: the progress in [0, 1] at which the network is projected. After that, its mask stays constant.
        learning_rate: a function of progress. In every step it multiplies the learning rate of each group.
        dense_latent: whether masked weights on the sphere continue to learn from their gradients. If False, as in the
            paper, a step only multiplies their dual state v (see LpSGD) by 1 - lr before it normalises the row.
        exponent: p as a function of progress, for optimizer groups with "p_moves" = True. If None, p is constant.
        selection: chooses the weights that the projection keeps.
        averaging: how weights are averaged over steps. At the end, the network gets the average. Your code must then
            measure the running statistics of normalisation layers again (torch.optim.swa_utils.update_bn). If None, the
            network keeps the weights of the last step.
        few_bits: how weights are quantized, in additional steps after `total_steps`. If None, they are not quantized.
    """

    steps_in_backward = False
    """True if each weight is updated within the backward pass, before `step()` is called."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        masks: Sequence[Tensor],
        *,
        sparsity: float,
        total_steps: int,
        mask_frozen_at: float = 0.8,
        learning_rate: Callable[[float], float] = lambda progress: 1.0,
        dense_latent: bool = False,
        exponent: Callable[[float], float] | None = None,
        selection: Selection | None = None,
        averaging: Averaging | None = None,
        few_bits: FewBits | None = None,
    ) -> None:
        if not 0.0 <= sparsity < 1.0:
            raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
        if len(devices := {str(layer.weight.device) for layer in layers}) > 1:
            raise ValueError(
                f"the prunable weights lie on several devices: {', '.join(sorted(devices))}; move them to one device"
            )
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        super().__init__([{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups], {})
        self.model, self.layers, self.optimizer, self.topology = model, list(layers), optimizer, topology
        self.final_sparsity, self.total_steps, self.mask_frozen_at = sparsity, total_steps, mask_frozen_at
        self.learning_rate, self.dense_latent, self.exponent = learning_rate, dense_latent, exponent
        self.selection = selection or Selection()
        self.selection.pattern.check(sparsity)
        self.excess: Callable[[Sequence[Tensor]], int] | None = None  # masks -> how many more weights to prune
        self.steps, self.fixed = 0, False
        self.mask_updates = 0  # since this object was made
        self._moved = False  # whether the masks for the next step have already been made
        self.grow_rate: float | None = None  # new connections / dropped connections in the last update
        self.lr_sum = 0.0  # the sum of `lr` on the sphere; if it is far above 1, little of the first weights is left
        self.masks = [mask.to(layer.weight, copy=True) for mask, layer in zip(masks, self.layers, strict=True)]
        self._base_lr = [group["lr"] for group in optimizer.param_groups]
        self._base_gain_lr = [group.get("gain_lr", 0.0) for group in optimizer.param_groups]
        # Averages of the gradients of all weights, masked ones included, for a topology that grows connections by them.
        tracked = self.layers if getattr(topology, "needs_momentum", False) else []
        self.averages = [torch.zeros_like(layer.weight) for layer in tracked]
        params = [param for group in optimizer.param_groups for param in group["params"]]
        self.average = None if averaging is None else WeightAverage(params, averaging)
        self.few_bits = None if few_bits is None else self._few_bits_training(params, few_bits)
        self._recorded = RecordedSteps(optimizer, p_moves=exponent is not None)
        self._give_masks()
        with torch.no_grad():
            self._apply_masks()

    @property
    def progress(self) -> float:
        """Return the fraction of `total_steps` done, in [0, 1]."""
        return min(1.0, self.steps / self.total_steps)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients. This method omits torch's profiling code, which takes a tenth of a millisecond."""
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None if set_to_none or param.grad is None else torch.zeros_like(param)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise ValueError, because the training already has all parameters of the network."""
        if hasattr(self, "model"):
            raise ValueError("a sparse training has all parameters of its network: none can be added")
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one optimizer step with the current gradients. The topology may change the masks first. On a GPU, a CUDA
        graph launches all kernels of the step if possible, and the step waits for the device only if masks change. On a
        CPU, LpSGD raises FloatingPointError if a gradient is NaN or infinite."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.quick_step()
        return loss

    @torch.no_grad()
    def quick_step(self) -> None:
        """Take one step as `step()` does, without torch's hooks and profiling code."""
        if self.few_bits is not None and self.few_bits.begun:
            make_gradients_dense(param for group in self.param_groups for param in group["params"])
            self.few_bits.step()
            return
        if self.average is not None and self.average.taken:
            return  # the weights are now the average, and no step may change them
        self.move_masks()
        if not self._recorded(self._learn, self.fixed):
            self._learn()
        self._moved = False
        self.steps += 1
        if self.average is not None and self.fixed and self.average.how.due(self.steps, self.total_steps):
            self.average.add()
        if self.steps >= self.total_steps:
            self.finish()

    @torch.no_grad()
    def move_masks(self) -> None:
        """Make the first part of a step: change the masks with the current gradients, if the topology changes them in
        this step. The next `step()` makes the second part, which changes the weights. Call this method before `step()`
        to read the new masks between the two parts."""
        if self._moved:
            return
        self._moved = True
        self._follow_schedules()
        make_gradients_dense(param for group in self.optimizer.param_groups for param in group["params"])
        if self.averages and not self.fixed:
            average_gradients(self.averages, [layer.weight for layer in self.layers])
        if not self.fixed:
            self._move_masks()

    def _follow_schedules(self) -> None:
        factor = self.learning_rate(self.progress)
        if self.exponent is not None:
            self._move_exponent(self.exponent(self.progress))
        rates = zip(self.param_groups, self._base_lr, self._base_gain_lr, strict=True)
        for group, (outer, lr, gain_lr) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = outer["lr"] * factor
            if "gain_lr" in group:
                group["gain_lr"] = gain_lr * (outer["lr"] / lr if lr else 1.0) * factor
        self.lr_sum += max((g["lr"] for g in self.optimizer.param_groups if g.get("p") is not None), default=0.0)

    def _learn(self) -> None:
        """Make the second part of a step: change the weights with the current gradients. The masks do not change."""
        self._mask_gradients()
        if isinstance(self.optimizer, LpSGD):
            self.optimizer.quick_step()
        else:
            self.optimizer.step()
        self._apply_masks()

    def _move_exponent(self, p: float) -> None:
        """Set the exponent p. The next step projects the dual state v onto the new sphere. From the same v, a smaller p
        concentrates w on fewer weights."""
        for group in self.optimizer.param_groups:
            if group.get("p_moves"):
                group["p"] = p

    def _move_masks(self) -> None:
        if self.progress >= self.mask_frozen_at:
            self.project()
        elif self.topology.due(self.steps, self.total_steps):
            views = [self._view(index) for index in range(len(self.layers))]
            masks = turned_back(self.layers, self.topology.update(views, self.progress))
            self.grow_rate = grow_rate(self.masks, masks)
            self._set_masks(masks)

    def _view(self, index: int) -> LayerView:
        layer = self.layers[index]
        grad = layer.weight.grad
        gradient = torch.zeros_like(layer.weight) if grad is None else grad.clone()
        pruned = LayerView(
            layer.name,
            layer.turned(self.masks[index]),
            lambda: layer.turned(self._saliency(layer)),
            lambda: layer.turned(gradient),
            layer.sphere,
        )
        if self.averages:
            pruned.momentum = lambda: layer.turned(self.averages[index])
        return pruned

    def _saliency(self, layer: Layer) -> Tensor:
        """Return log2 of the weights' magnitudes. For weights of LpSGD these are the magnitudes without the mask."""
        if layer.sphere and isinstance(self.optimizer, LpSGD):
            return self.optimizer.log_magnitude(layer.weight)
        return layer.weight.detach().abs().log2()

    @torch.no_grad()
    def _set_masks(self, masks: Sequence[Tensor]) -> None:
        self.mask_updates += 1
        for layer, old, new in zip(self.layers, self.masks, masks, strict=True):
            if not (layer.sphere and isinstance(self.optimizer, LpSGD)):
                self._forget_dropped(layer.weight, new)
            old.copy_(new)
        self._give_masks()
        self._apply_masks()

    def _give_masks(self, *, as_loaded: bool = False) -> None:
        """Give LpSGD the masks if masked weights do not learn. LpSGD then skips these weights."""
        pairs = list(zip(self.layers, self.masks, strict=True))
        given = isinstance(self.optimizer, LpSGD) and (self.fixed or not self.dense_latent)
        if given:
            assert isinstance(self.optimizer, LpSGD)
            known: dict[Tensor, Tensor] = {layer.weight: mask for layer, mask in pairs if layer.sphere}
            self.optimizer.set_masks(known, as_loaded=as_loaded)
        # `_own`: the masks that LpSGD does not apply to weights. `_still`: those of them that also mask the gradients.
        biases = self.few_bits.bias_masks() if self.fixed and self.few_bits is not None else []
        self._own = [*biases, *((one.weight, mask) for one, mask in pairs if not (given and one.sphere))]
        spared = self.dense_latent and not self.fixed
        self._still = [*biases, *((one.weight, mask) for one, mask in pairs if not ((given or spared) and one.sphere))]

    def _forget_dropped(self, weight: Tensor, mask: Tensor) -> None:
        """Clear the momentum of newly masked weights, which would change them. On the sphere LpSGD does this itself."""
        for value in self.optimizer.state.get(weight, {}).values():  # a frozen weight has no state
            if isinstance(value, Tensor) and value.numel() == weight.numel() > 1:
                value.mul_(mask.view_as(value))

    def _mask_gradients(self) -> None:
        """Set the gradients of masked weights to zero, except on the sphere if `dense_latent` lets them learn."""
        pairs = [(weight.grad, mask) for weight, mask in self._still if weight.grad is not None]
        multiply(pairs)

    def _apply_masks(self) -> None:
        multiply(self._own)

    def _projected_masks(self) -> list[Tensor]:
        """Return masks with exactly `final_sparsity` over all weights, or with a higher sparsity if the pattern or
        `excess` requires it. The weights with the largest magnitudes stay."""
        magnitudes = [layer.turned(self._saliency(layer)) for layer in self.layers]
        masks = zip(self.layers, self.masks, strict=True)
        active = None if self.dense_latent else [layer.turned(mask) for layer, mask in masks]
        on_sphere = [layer.sphere for layer in self.layers]

        def chosen(sparsity: float) -> list[Tensor]:
            return turned_back(self.layers, self.selection(magnitudes, on_sphere, sparsity, active))

        return chosen(self.final_sparsity) if self.excess is None else fitted(chosen, self.final_sparsity, self.excess)

    @torch.no_grad()
    def project(self) -> None:
        """Mask the smallest weights so that the network has exactly its final sparsity, and fix the mask."""
        if not self.fixed:
            self._set_masks(self._projected_masks())
            self.fixed = True
            self._give_masks()
        for layer, mask in zip(self.layers, self.masks, strict=True):
            keep_active(layer.weight, mask)

    def finish(self) -> None:
        """End the training with exactly the final sparsity. The last of `total_steps` steps calls this method. If you
        stop earlier, call it yourself. With `averaging`, the network gets the average. With `few_bits`, later steps
        train quantized weights. With `averaging` alone, later steps change nothing. A second call changes nothing."""
        self.project()
        if self.average is not None and self.average.take():
            self.project()  # makes an active weight nonzero if its average is 0
            if isinstance(self.optimizer, LpSGD):
                self.optimizer.express()
        self._restore_order()
        if self.few_bits is not None:
            self.few_bits.begin()

    def _few_bits_training(self, params: Sequence[Tensor], how: FewBits) -> FewBitsTraining:
        weights = [layer.weight for layer in self.layers]
        ids = {id(weight) for weight in weights}
        others = (param for param in params if param.requires_grad and id(param) not in ids)
        named, places = dict(plain_parameters(self.model)), {layer.name: n for n, layer in enumerate(self.layers)}
        biases = [(named[name], places[weight]) for name, weight in biases_of(self.model, self.layers).items()]
        return FewBitsTraining(weights, self.masks, others, how, biases)

    @property
    def weight_bits(self) -> int:
        """Return the number of bits of each prunable weight after the training, or ALL_BITS without `few_bits`."""
        return ALL_BITS if self.few_bits is None else self.few_bits.how.bits

    def codes(self) -> dict[str, Codes]:
        """Return a dict from names of weights to `few_bits.Codes`. It is empty before the weights are quantized."""
        if self.few_bits is None or not self.few_bits.begun:
            return {}
        return {layer.name: codes for layer, codes in zip(self.layers, self.few_bits.codes(), strict=True)}

    def _restore_order(self) -> None:
        """Put the weights back into the usual order of memory. LpSGD changes this order if the neurons are not the
        first dimension. With the usual order, networks with equal weights compute equal outputs, bit for bit."""
        for layer in self.layers:
            if layer.sphere and layer.orientation != STANDARD:
                layer.weight.data = layer.weight.data.contiguous()

    @contextmanager
    def projected(self) -> Iterator[None]:
        """Return a context manager. In its `with` block, the smallest weights are masked, so that the network has its
        final sparsity. After the block, the weights have their former values."""
        if self.fixed:
            yield
            return
        weights = [layer.weight.detach().clone() for layer in self.layers]
        with torch.no_grad():
            for layer, mask in zip(self.layers, self._projected_masks(), strict=True):
                layer.weight.mul_(mask)
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, weight in zip(self.layers, weights, strict=True):
                    layer.weight.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """Return `state_beside_network` and the prunable weights. If the network's state_dict is loaded before this
        object is made, the initial masks set loaded weights to zero. `load_state_dict` restores these weights."""
        return {**self.state_beside_network(), "weights": [layer.weight.detach().clone() for layer in self.layers]}

    def state_beside_network(self) -> dict[str, Any]:
        """Return all state except the network's own state_dict. From this state and that state_dict together, a
        resumed training gives the same results as an uninterrupted training."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "masks": [mask.clone() for mask in self.masks],
            "averages": [average.clone() for average in self.averages],
            "topology": self.topology.state_dict(),
            "steps": self.steps,
            "travel": self.lr_sum,
            "grow_rate": self.grow_rate,
            "fixed": self.fixed,
            "rates": [group["lr"] for group in self.param_groups],  # which a scheduler may have changed
            **({} if self.average is None else {"average": self.average.state_dict()}),
            **({} if self.few_bits is None else {"few_bits": self.few_bits.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.lr_sum, self.fixed = state["steps"], state["travel"], state["fixed"]
        for mask, saved in zip(self.masks, state["masks"], strict=True):
            mask.copy_(saved)
        self._give_masks(as_loaded=True)
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.topology.load_state_dict(state["topology"])
        self.grow_rate = state.get("grow_rate")
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.few_bits is not None:
            self.few_bits.load_state_dict(state["few_bits"])
        with torch.no_grad():
            for layer, weight in zip(self.layers, state.get("weights", ()), strict=False):
                layer.weight.copy_(weight)
        for group, rate in zip(self.param_groups, state.get("rates", self._base_lr), strict=True):
            group["lr"] = rate
