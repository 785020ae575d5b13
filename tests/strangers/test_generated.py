"""Test all steps of a trial, from the checks to the exported files, on randomly generated networks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.examples import examples
from tests.helpers.trainings import MASKED
from tests.strangers.generated import CLASSES, Part, Plan, plans
from tests.strangers.test_gallery import PARAMS
from tests.strangers.whole_way import go_the_whole_way
from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from tune_sparsity.sparsity.distributions import DISTRIBUTIONS
from tune_sparsity.tuner.results.export_formats import onnx_function, save_onnx

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
    """Return whether torch can compute the network and finite gradients in its dtype. 16-bit dtypes lack operations."""
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


@pytest.mark.long
@settings(examples(2), suppress_health_check=list(HealthCheck))
@given(plan=plans())
def test_the_onnx_file_of_a_generated_network_computes_its_outputs(plan: Plan) -> None:
    assume(learns_by_itself(plan))
    torch.manual_seed(0)
    network, x = plan.make().eval(), plan.batch(EXAMPLES, 0)

    def outputs(network: Any, x: Any) -> Any:
        return network(plan.prepare(x))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "onnx"
        try:
            save_onnx(network, outputs, x[:2], path)
            found = onnx_function(path)(x)
        except Exception as error:  # onnxruntime has not every operation in every type of numbers
            if "cannot export this network" in str(error) or "ONNXRuntimeError" in str(error):
                return
            raise
    with torch.no_grad():
        wanted = outputs(network, x)
    rounding = max(4 * torch.finfo(param.dtype).eps for param in network.parameters() if param.is_floating_point())
    assert (found - wanted).abs().max() <= max(1e-3, rounding) * wanted.abs().max()


@pytest.mark.slow
def test_a_network_that_onnxruntime_cannot_run_raises_and_does_not_crash(tmp_path: Path) -> None:
    attention = Part("attention", "in float64", 1, "no norm")
    linear = Part("linear", "in float64", 1, "batch norm")
    plan = Plan((attention, linear, attention, attention), front="tokens", dtype=torch.bfloat16)
    save_onnx(plan.make(), lambda network, x: network(plan.prepare(x)), plan.batch(2, 0), tmp_path / "onnx")
    code = (
        "import sys; from tune_sparsity.tuner.results.export_formats import onnx_function; onnx_function(sys.argv[1])"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "onnx"], capture_output=True, text=True, check=False)
    assert (ran.returncode, "ONNXRuntimeError" in ran.stderr) == (1, True)


@st.composite
def methods(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a method and its settings."""
    method = draw(st.sampled_from(MASKED))
    params = dict(PARAMS[method])
    if method != "dense":
        params["final_sparsity"] = draw(st.sampled_from([0.0, 0.3, 0.6, 0.95]))
    if method == "lpss":
        params |= {"p": draw(st.sampled_from([1.02, 1.4, 2.0])), "drop": draw(st.sampled_from(["ramp", "threshold"]))}
    if method in ("static", "rigl", "set", "sparse-momentum"):
        params["distribution"] = draw(st.sampled_from(DISTRIBUTIONS))
    return method, params


@settings(examples(20), suppress_health_check=list(HealthCheck))
@given(plan=plans(), method=methods())
def test_a_generated_network_passes_all_steps_of_a_trial(plan: Plan, method: tuple[str, dict[str, Any]]) -> None:
    assume(learns_by_itself(plan))
    with tempfile.TemporaryDirectory() as folder:
        training = go_the_whole_way(experiment(plan), *method, Path(folder))
    assert training.sparse.zeros()[1] == plan.make().prunable
