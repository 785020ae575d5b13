"""Measure the layout of the code: folders, layers, imports, cycles, lengths, and private names of other libraries.

    python -m tests.layout            # this checkout
    python -m tests.layout FOLDER     # another checkout

`tests/unit/test_layout.py` checks that the code follows the limits and layers that are defined here.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("tuner", "search_spaces", "experiments", "sparsity")
NAME = "tune_sparsity"
LIBRARIES = ("ray", "mlflow", "torch")
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 20, 400, 60

LAYERS = (
    ("tuner.cli",),
    ("tuner.commands",),
    ("tuner.driver", "tuner.api"),
    ("tuner.reports",),
    ("tuner.results",),
    ("tuner.tracking", "tuner.search", "tuner.cluster"),
    ("tuner.worker", "tuner.config"),
    ("tuner.storage",),
    ("experiments", "search_spaces", "tuner.study"),
    ("sparsity", "tuner.system", "tuner.errors"),
)
"""The units of the code, from the top down: a unit imports from the layers below its own, and from itself."""


@dataclass
class Module:
    """One source file.

    Attributes:
        imports: the modules of this project that it imports, anywhere in the file, also for type checking alone.
        libraries: the top-level names of all other packages that it imports.
        private: the private names of the packages in `LIBRARIES` that it uses, as dotted names.
        functions: the number of lines of each function, by its name.
    """

    name: str
    path: Path
    lines: int
    imports: set[str] = field(default_factory=set)
    libraries: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    functions: dict[str, int] = field(default_factory=dict)


def sources(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """Return the Python files in these folders of a checkout."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a module, without the prefix `tune_sparsity`. Its path is relative to the checkout."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(root: Path, folders: tuple[str, ...] = OURS) -> dict[str, Module]:
    """Read the modules in these folders of a checkout."""
    names = {module_name(path.relative_to(root)) for path in sources(root, folders)}
    modules = {}
    for path in sources(root, folders):
        text = path.read_text(encoding="utf-8")
        module = Module(module_name(path.relative_to(root)), path, len(text.splitlines()))
        tree = ast.parse(text)
        for dotted in imported(tree):
            own = _own(dotted.removeprefix(f"{NAME}."), names)
            if own:
                module.imports.add(own)
            else:
                module.libraries.add(dotted.partition(".")[0])
        module.imports.discard(module.name)
        module.private = set(private_names(tree))
        module.functions = dict(_functions(tree))
        modules[module.name] = module
    return modules


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what a source imports, anywhere in it: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def _own(dotted: str, names: set[str]) -> str:
    """Return the module of this project to which a dotted name belongs, or an empty string if there is none."""
    while dotted and dotted not in names:
        dotted = dotted.rpartition(".")[0]
    return dotted


def used_names(tree: ast.AST) -> set[str]:
    """Return the dotted names that a source uses and that begin with an imported name."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    used = set(known.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in known:
                used.add(f"{known[root] if '.' in known[root] else root}.{rest}")
    return used


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield the private names of other libraries that a source uses and that begin with an imported name."""
    for dotted in used_names(tree):
        parts = dotted.split(".")
        private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
        if parts[0] in LIBRARIES and private and not parts[private[0]].startswith("_foreach_"):
            yield ".".join(parts[: max(private[0] + 1, 3)])


def _functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def unit_of(module: str) -> str:
    """Return the unit of `LAYERS` that contains a module. If there is none, as for `tuner`, return an empty string."""
    return next((unit for layer in LAYERS for unit in layer if f"{module}.".startswith(f"{unit}.")), "")


def upward(modules: Mapping[str, Module]) -> list[str]:
    """Return the imports from a unit of `LAYERS` to another unit that is not below it: one line of text for each."""
    height = {unit: i for i, layer in enumerate(reversed(LAYERS)) for unit in layer}
    found = []
    for module in modules.values():
        for imported in sorted(module.imports):
            one, other = unit_of(module.name), unit_of(imported)
            if one and other and one != other and height[other] >= height[one]:
                found.append(f"{module.name} imports {imported}")
    return found


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the cycles of a graph: the sets of nodes that reach each other along its edges."""
    reached = {node: _reached(graph, node) for node in graph}
    seen: set[str] = set()
    found = []
    for node in graph:
        cycle = sorted(other for other in reached[node] if node in reached.get(other, ()))
        if cycle and node not in seen:
            found.append(cycle)
            seen |= set(cycle)
    return found


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph.get(node, ())
    return found


def depth(graph: Mapping[str, set[str]]) -> int:
    """Return the number of layers of a graph: the nodes on its longest path. A cycle counts as one node."""
    whole = {node: min(cycle) for cycle in cycles(graph) for node in cycle}
    joined: dict[str, set[str]] = defaultdict(set)
    for node, others in graph.items():
        name = whole.get(node, node)
        joined[name] |= {whole.get(other, other) for other in others} - {name}
    known: dict[str, int] = {}

    def height(node: str) -> int:
        if node not in known:
            known[node] = 1 + max((height(other) for other in joined[node]), default=0)
        return known[node]

    return max(height(node) for node in list(joined))


def folder_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return which folders import from which folders. If a folder has sub-packages, each module in it, such as
    errors.py, is a node of its own."""
    nodes = {name: _node(name, modules) for name in modules}
    graph: dict[str, set[str]] = {node: set() for node in nodes.values()}
    for module in modules.values():
        graph[nodes[module.name]] |= {nodes[other] for other in module.imports} - {nodes[module.name]}
    return graph


def _node(name: str, modules: Mapping[str, Module]) -> str:
    if modules[name].path.name == "__init__.py":
        return name
    folder = modules[name].path.parent
    divided = any((one / "__init__.py").is_file() for one in folder.iterdir() if one.is_dir())
    return name if divided else name.rpartition(".")[0]


def files_by_folder(root: Path, folders: tuple[str, ...]) -> Counter[str]:
    """Return how many Python files lie in each folder."""
    return Counter(str(path.parent.relative_to(root)) for path in sources(root, folders))


def report(root: Path) -> str:
    """Return all measures of the layout as text."""
    modules = read(root)
    graph = {name: module.imports for name, module in modules.items()}
    packages = folder_graph(modules)
    files = files_by_folder(root, OURS)
    tests = read(root, ("tests",))
    functions = Counter({f"{m.name}.{name}": lines for m in modules.values() for name, lines in m.functions.items()})
    lines = Counter({str(m.path.relative_to(root)): m.lines for m in (*modules.values(), *tests.values())})
    private: dict[str, dict[str, set[str]]] = {library: defaultdict(set) for library in LIBRARIES}
    for module in modules.values():
        for name in module.private:
            private[name.partition(".")[0]][module.name].add(name)
    edges = sum(len(others) for others in packages.values())
    return "\n".join(
        [
            f"files: {len(modules)} in {len(files)} folders; in the fullest {files.most_common(3)}",
            f"files of tests in the fullest folders: {files_by_folder(root, ('tests',)).most_common(3)}",
            f"modules: on {depth(graph)} layers, {sum(map(len, graph.values()))} imports, cycles {cycles(graph)}",
            f"packages: {len(packages)} on {depth(packages)} layers, {edges} imports, cycles {cycles(packages)}",
            f"imports upward: {len(upward(modules))}",
            f"longest files: {lines.most_common(4)}",
            f"longest functions: {functions.most_common(4)}",
            *(
                f"private names of {library}: {len(set().union(*where.values()))} in {sorted(where)}"
                for library, where in private.items()
            ),
        ]
    )


if __name__ == "__main__":
    print(report(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
