"""Networks drawn at random go the whole way of a trial."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.examples import examples
from tests.helpers.generated import CLASSES, Plan, plans
from tests.strangers.whole_way import go_the_whole_way
from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from tune_sparsity.sparsity import METHODS

EXAMPLES = 16


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.float(), y)


def experiment(plan: Plan) -> Experiment:
    def load(data_dir: Path | None) -> Data:
        labels = torch.arange(EXAMPLES) % CLASSES
        return Data(*(Split(plan.batch(EXAMPLES, seed), labels) for seed in range(3)))

    recipe = Recipe(2, EXAMPLES)
    return Experiment("generated", load, plan.make, recipe, loss, prepare=plan.prepare, layers=plan.rules)


def learns_by_itself(plan: Plan) -> bool:
    """Return whether torch has all operations of the network in a half precision, and its gradients stay finite."""
    torch.manual_seed(0)
    x = plan.prepare(plan.batch(EXAMPLES, 0))
    try:
        model = plan.make()
        loss(model(x), torch.zeros(EXAMPLES, dtype=torch.int64)).backward()
        with torch.no_grad():
            model.eval()(x[:1])
    except (RuntimeError, TypeError):
        if plan.dtype.itemsize > 2:
            raise
        return False
    grads = [param.grad.to_dense() for param in model.parameters() if param.grad is not None]
    return all(grad.isfinite().all() for grad in grads)


@settings(examples(20), suppress_health_check=list(HealthCheck))
@given(plan=plans(), method=st.sampled_from(list(METHODS)))
def test_a_generated_network_goes_the_whole_way(plan: Plan, method: str) -> None:
    assume(learns_by_itself(plan))
    with tempfile.TemporaryDirectory() as folder:
        training = go_the_whole_way(experiment(plan), method, Path(folder))
    assert training.sparse.zeros()[1] == plan.make().prunable
