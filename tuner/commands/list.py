"""Runs `tune-sparsity list`, which prints the names that options accept."""

from __future__ import annotations

from tune_sparsity.tuner.commands.arguments import Parser
from tune_sparsity.tuner.errors import EXIT_DONE

_LISTS = ("experiments", "methods", "spaces", "samplers")


def listing(kind: str) -> str:
    """Return a list of names as a text. Each line has a name and its description.

    Args:
        kind: the kind of names: "experiments", "methods", "spaces" or "samplers".
    """
    rows = {
        "experiments": _experiments,
        "methods": _methods,
        "spaces": _spaces,
        "samplers": _samplers,
    }[kind]()
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {what}" for name, what in rows.items())


def show_space(name: str) -> str:
    """Return the text of a search space's file. Raise UsageError if the name is unknown, or if the file is not a valid
    space."""
    from tune_sparsity.search_spaces import load_space, space_text
    from tune_sparsity.tuner.errors import UsageError

    try:
        load_space(name, 0.9)
        return space_text(name).rstrip()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _experiments() -> dict[str, str]:
    from tune_sparsity.experiments.registry import BUILT_IN

    return {name: what for name, (_, _, what) in BUILT_IN.items()}


def _methods() -> dict[str, str]:
    from tune_sparsity.sparsity import METHODS

    return {name: (method.make.__doc__ or "").split("\n")[0] for name, method in METHODS.items()}


def _spaces() -> dict[str, str]:
    from tune_sparsity.search_spaces.loading import BUILT_IN, OVERLAYS, load_space, overlay_title

    spaces = {name: load_space(name, 0.9) for name in BUILT_IN}
    rows = {name: f"{space.method}: {_counted(len(space.distributions))}" for name, space in spaces.items()}
    return rows | {f"SPACE+{name}": overlay_title(name) for name in OVERLAYS}


def _counted(parameters: int) -> str:
    return f"{parameters} parameter{'' if parameters == 1 else 's'}"


def _samplers() -> dict[str, str]:
    from tune_sparsity.tuner.search.samplers import DEFAULT_SAMPLER, SAMPLERS

    return {name: kind.what + (" (default)" if name == DEFAULT_SAMPLER else "") for name, kind in SAMPLERS.items()}


def list_names(arguments: list[str]) -> int:
    """Run the subcommand `list`. Return the exit code."""
    parser = Parser("tune-sparsity list", description="Prints the names that options accept.")
    parser.add_argument("kind", metavar="|".join(_LISTS))
    parser.add_argument("--show", metavar="NAME", help="print the file of a search space, to copy and change")
    options = parser.parse_args(arguments)
    from tune_sparsity.tuner.errors import UsageError, unknown

    if options.kind not in _LISTS:
        raise UsageError(unknown("list", options.kind, _LISTS))
    if options.show is not None and options.kind != "spaces":
        raise UsageError(
            f"--show prints the file of a search space, and does not work with list {options.kind}: use "
            "tune-sparsity list spaces --show NAME"
        )
    print(listing(options.kind) if options.show is None else show_space(options.show))
    return EXIT_DONE
