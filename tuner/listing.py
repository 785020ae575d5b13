"""What `tune-sparsity list` prints."""

from __future__ import annotations

_SAMPLERS = {
    "tpe": "tree-structured Parzen estimator, multivariate (default)",
    "gp": "Gaussian process; slow to propose, for costly trials",
    "nsgaii": "genetic algorithm; for hundreds of trials",
    "qmc": "quasi-random: even cover of the space",
    "random": "independent draws",
}


def listing(kind: str) -> str:
    """The names of a kind, one a line, with what each is."""
    rows = {
        "experiments": _experiments,
        "methods": _methods,
        "spaces": _spaces,
        "samplers": lambda: _SAMPLERS,
    }[kind]()
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {what}" for name, what in rows.items())


def _experiments() -> dict[str, str]:
    from experiments.registry import BUILT_IN

    return {name: what for name, (_, _, what) in BUILT_IN.items()}


def _methods() -> dict[str, str]:
    from sparsity import METHODS

    return {name: (method.make.__doc__ or "").split("\n")[0] for name, method in METHODS.items()}


def _spaces() -> dict[str, str]:
    from search_spaces import BUILT_IN, load_space

    return {
        name: f"{load_space(name, 0.9).method}: {len(load_space(name, 0.9).distributions)} parameters"
        for name in BUILT_IN
    }
