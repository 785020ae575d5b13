"""Within wrappers, a network has the names and weights of the plain network. Without torch's wrappers, it computes the
same outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.sparsity import LayerRules, left_dense, lpss, prunable_layers
from tune_sparsity.sparsity.wrappers import as_plain, load_plain, on_one_device, plain_name, plain_state, unwrapped


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


class Doubled(nn.Module):
    """A user's wrapper that changes the outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.module(x)


class Residual(nn.Module):
    """A part of a network. It is no wrapper, although its only submodule has the name `module`, as in a wrapper."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


def residual(wrap: Callable[[nn.Module], nn.Module] = lambda part: part) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Residual(wrap(nn.Linear(8, 8))), wrap(nn.Linear(8, 3)))


WRAPPED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "nothing": (plain, plain),
    "compiled": (lambda: compiled(plain()), plain),
    "parallel": (lambda: nn.DataParallel(plain()), plain),
    "compiled and parallel": (lambda: compiled(nn.DataParallel(plain())), plain),
    "parallel and compiled": (lambda: nn.DataParallel(compiled(plain())), plain),
    "a user's": (lambda: Doubled(plain()), plain),
    "a user's, twice": (lambda: Doubled(Doubled(compiled(plain()))), plain),
    "parts": (lambda: residual(compiled), residual),
    "parallel parts": (lambda: residual(nn.DataParallel), residual),
    "all and parts": (lambda: compiled(residual(nn.DataParallel)), residual),
}
EACH = pytest.mark.parametrize(("wrapped", "inside"), WRAPPED.values(), ids=list(WRAPPED))


@EACH
def test_names_are_those_of_the_plain_network(
    wrapped: Callable[[], nn.Module], inside: Callable[[], nn.Module]
) -> None:
    model, network = wrapped(), inside()
    assert list(plain_state(model)) == list(network.state_dict())
    assert [one.name for one in prunable_layers(model)] == [one.name for one in prunable_layers(network)]
    last = list(network.state_dict())[-2]
    assert [one.name for one in left_dense(model, LayerRules(dense=(last,)))] == [last]


@EACH
def test_weights_are_loaded_under_plain_names_and_under_wrapped_names(
    wrapped: Callable[[], nn.Module], inside: Callable[[], nn.Module]
) -> None:
    model, network = wrapped(), inside()
    network.load_state_dict(plain_state(model))
    other = wrapped()
    load_plain(other, network.state_dict())
    again = wrapped()
    load_plain(again, model.state_dict())  # files of earlier versions have the wrappers' prefixes in the names
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(network.state_dict()[plain_name(model, name)], tensor)
    assert list(as_plain(other, model.state_dict())) == list(network.state_dict())


@EACH
def test_a_network_without_torchs_wrappers_computes_the_same(
    wrapped: Callable[[], nn.Module], inside: Callable[[], nn.Module]
) -> None:
    model, x = wrapped().eval(), torch.randn(5, 6)
    expected = model(x)
    for network in (on_one_device(model), unwrapped(model)):
        assert torch.equal(network(x), expected)
    kinds = {type(module).__name__ for module in unwrapped(model).modules()}
    assert not kinds & {"OptimizedModule", "DataParallel"}


def test_the_function_on_one_device_removes_the_wrapper_data_parallel() -> None:
    model = on_one_device(nn.DataParallel(compiled(residual(nn.DataParallel))))
    assert not any(isinstance(module, nn.DataParallel) for module in model.modules() if module is not model)
    assert type(model).__name__ == "OptimizedModule"


def test_the_function_unwrapped_disables_compilation_by_model_compile() -> None:
    torch.compiler.reset()  # torch compiles a function at most 8 times, and other tests may have reached this limit
    # torch 2.9 does not compile modules of torch's own classes in place, so the model has a user's class.
    model, calls = Doubled(plain()), list[int]()

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        calls.append(1)
        return graph.forward

    model.compile(backend=backend)
    unwrapped(model)(torch.randn(5, 6))
    assert not calls
    model.compile(backend=backend)
    model(torch.randn(5, 6))
    assert calls


def test_an_error_names_the_plain_parameter() -> None:
    model = compiled(plain())
    sparse = lpss(model, total_steps=3, sparsity=0.5)
    model(torch.randn(5, 6)).sum().backward()
    next(model.parameters()).grad.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"gradient of 0\.weight is NaN"):
        sparse.step()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(2, 6))])
def test_torchscript_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"^the network is TorchScript, whose layers cannot be seen: give the nn\.Mod"):
        lpss(make(plain().eval()), total_steps=3, sparsity=0.5)
    part = nn.Sequential(make(plain().eval()), nn.Linear(3, 3))
    assert [one.name for one in prunable_layers(part)] == ["1.weight"]
    assert {one.reason for one in left_dense(part)} == {"in TorchScript"}
