"""Check short trainings: gradients, training with the methods lpss and rigl, repetition with the same seed, resumption,
export, and whether the loss falls."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import load, save
from torch import Tensor

from tune_sparsity.experiments.checks.suite import (
    Check,
    Problem,
    Subject,
    count,
    first_difference,
    same,
    warning,
)
from tune_sparsity.experiments.examples import copied, length
from tune_sparsity.experiments.training import Training
from tune_sparsity.experiments.user_code import described
from tune_sparsity.sparsity import prunable_layers, with_last_layer
from tune_sparsity.sparsity.gradients import make_gradients_dense
from tune_sparsity.sparsity.wrappers import load_plain, plain_parameters, plain_state, unwrapped

_LEARNING_STEPS, _LEARNING_BATCH = 15, 16
_FEW = 4  # examples for the check of the gradients
LAST_UNKNOWN = warning(
    "the layer that makes the outputs could not be found, so the layer registered last counts as the last layer: give "
    "the names of the last layer's weights in LayerRules(last=...)"
)


def steps(subject: Subject) -> Iterator[Problem]:
    on, off = (lambda: subject.trained), (lambda: subject.training("rigl", epochs=1).epoch())
    for method, train in (("lpss", on), ("rigl", off)):  # on the sphere, and off it
        try:
            train()
        except Exception as error:  # in the user's code, or NotFinite
            yield Problem(f"training with {method} fails: {described(error)}")
            return


def gradients(subject: Subject) -> Iterator[Problem]:
    model = subject.model()
    model.train()
    x, y = subject.batch(_FEW)
    rules = subject.experiment.layers
    layers = prunable_layers(model, rules)
    pruned = {layer.name for layer in layers}
    ours: dict[str, Tensor] = {
        name: param for name, param in plain_parameters(model) if param.requires_grad or name in pruned
    }
    before = {name: param.detach().clone() for name, param in ours.items()}
    loss = subject.experiment.loss(subject.experiment.forward(model, x), y)
    if (changed := first_difference(before, ours)) is not None:
        yield Problem(
            f"a forward pass in training changes {changed}, so pruned weights may not stay zero: let only the "
            "optimizer change it"
        )
        return
    loss.backward()
    make_gradients_dense(model.parameters())
    without = [layer.name for layer in layers if layer.weight.grad is None]
    if without and len(without) == len(layers):
        yield Problem("no prunable weight gets a gradient: the network does not use them, or they are frozen")
    elif without:
        names = ", ".join(without[:3])
        yield warning(
            f"no gradient reaches {names}: they are frozen, or the forward pass does not use them. They are pruned "
            "nevertheless"
        )
    bad = [layer.name for layer in layers if layer.weight.grad is not None and not layer.weight.grad.isfinite().all()]
    if bad:
        yield Problem(f"the gradient of {bad[0]} is NaN or infinite at the first step")
    if rules.off_sphere is None and with_last_layer(rules, model, x, subject.experiment.forward).last is None:
        yield LAST_UNKNOWN


def _outcome(subject: Subject, training: Training) -> tuple[dict[str, Tensor], Tensor]:
    """Return the network's state_dict and its outputs for some examples."""
    return plain_state(training.model), subject.outputs(training.model, 8)


def _differs(subject: Subject, first: Training, second: Training) -> str | None:
    """Return the name of a tensor in which the networks of two trainings differ, or None if they are equal. If only
    the outputs differ, return a text that says this."""
    (state, outputs), (other_state, other_outputs) = _outcome(subject, first), _outcome(subject, second)
    if (name := first_difference(state, other_state)) is not None:
        return name
    return None if same(outputs, other_outputs) else "the network's outputs (all its tensors are equal)"


def repeats(subject: Subject) -> Iterator[Problem]:
    if (name := _differs(subject, *subject.twice)) is not None:
        yield Problem(
            f"two epochs with the same seed end with different values of {name}: draw all random numbers from torch's "
            "global generator, and keep no state from one network to the next"
        )


def resumes(subject: Subject) -> Iterator[Problem]:
    (unbroken, broken), resumed = subject.twice, subject.training()
    unbroken.epoch()
    state = copied(broken.state_dict())
    try:
        resumed.load_state_dict(state)
    except Exception as error:  # in the user's code
        yield Problem(f"the state that was saved after an epoch cannot be loaded: {described(error)}")
        return
    resumed.epoch()
    if (name := _differs(subject, unbroken, resumed)) is not None:
        yield Problem(
            f"a training that is saved and loaded ends with other values of {name} than one without interruption: keep "
            "counters and other state in buffers (register_buffer), which state_dict holds"
        )


def exports(subject: Subject) -> Iterator[Problem]:
    training = subject.trained
    tensors = {name: value.detach().contiguous().clone() for name, value in plain_state(training.model).items()}
    fresh = subject.model(seed=1)
    try:
        load_plain(fresh, load(save(tensors)))
    except Exception as error:  # in the user's network or in safetensors
        yield Problem(f"the trained weights cannot be loaded into a new network: {described(error)}"[:300])
        return
    if not same(subject.outputs(unwrapped(training.model), 8), subject.outputs(fresh, 8)):
        yield Problem(
            "a new network with the trained weights gives other outputs: it uses values that its state_dict does not "
            "hold. Make each of these values a parameter or a buffer (register_buffer)"
        )


def learns(subject: Subject) -> Iterator[Problem]:
    model = subject.model()
    model.train()
    x, y = subject.batch(_LEARNING_BATCH)
    optimizer = torch.optim.Adam([param for param in model.parameters() if param.requires_grad], lr=1e-3)
    losses = []
    for _ in range(_LEARNING_STEPS):
        optimizer.zero_grad()
        loss = subject.experiment.loss(subject.experiment.forward(model, copied(x)), y)
        loss.backward()
        make_gradients_dense(model.parameters())
        optimizer.step()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        yield warning(
            f"the loss did not fall in {len(losses)} steps on {count(length(x), 'example')} ({losses[0]:.3g} to "
            f"{losses[-1]:.3g}): look at the scale of the inputs, the labels and the loss"
        )


_FIT = (
    "experiment",
    "data",
    "network",
    "outputs",
    "loss",
    "metric",
    "labels",
    "prunable",
    "values",
    "inputs",
    "remainder",
    "seeds",
)
CHECKS = (
    Check("gradients", "gradients reach every prunable weight", gradients, (*_FIT, "evaluation"), told=True),
    Check(
        "steps", "training works with the methods lpss and rigl", steps, ("gradients", "augmentation", "preparation")
    ),
    Check("repetition", "a repeated epoch gives the same result bit for bit", repeats, ("steps",)),
    Check(
        "resumption", "an epoch after saving and loading gives the same result bit for bit", resumes, ("repetition",)
    ),
    Check("export", "a new network with the saved weights gives the same outputs", exports, ("resumption",)),
    Check("learning", "the loss falls", learns, ("steps",)),
)
