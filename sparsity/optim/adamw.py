"""Compute AdamW's step (Loshchilov and Hutter 2019, arXiv 1711.05101) for parameters that LpSGD does not train on the
sphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETA_2, EPS = 0.999, 1e-8
"""The defaults of torch.optim.AdamW."""


def descend(
    params: Sequence[Tensor], grads: Sequence[Tensor], states: Mapping[Any, Any], group: Mapping[str, Any]
) -> None:
    """Make the step of torch.optim.AdamW for each parameter.

    Args:
        params: the parameters, which change in place.
        grads: one gradient for each parameter.
        states: a dict from parameters to their states. The first step adds "step", "exp_avg" and "exp_avg_sq" to each
            state.
        group: the settings of AdamW: "lr", "weight_decay", and "momentum", which is used as beta_1. beta_2 is BETA_2.
    """
    for param in params:
        if "exp_avg" not in states[param]:
            states[param]["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            states[param]["exp_avg"] = torch.zeros_like(param)
            states[param]["exp_avg_sq"] = torch.zeros_like(param)
    plain = all(param.is_floating_point() for param in params)
    averages, squares, steps = ([states[param][name] for param in params] for name in ("exp_avg", "exp_avg_sq", "step"))
    adamw(
        list(params),
        list(grads),
        averages,
        squares,
        [],
        steps,
        fused=plain,
        has_complex=not plain,
        amsgrad=False,
        beta1=group["momentum"],
        beta2=BETA_2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=EPS,
        maximize=False,
    )
