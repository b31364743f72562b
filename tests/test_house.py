"""The rules of the house, checked on the code itself: rooms, arrows, circles and sizes.

`python tests/test_house.py` draws the house: rooms by floor, who imports whom, and the counts.
"""

import ast
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

DOOR = "anamorph"  # the package's own files: __init__ and __main__
SOURCE = Path(__file__).parent.parent / "src" / DOOR

FLOORS = (
    (DOOR,),
    ("cli",),
    ("studies",),
    ("report", "paper"),
    ("analysis",),
    ("training", "runs"),
    ("auditing",),
    ("faithfulness",),
    ("tasks", "simplifications"),
    ("corpora", "models"),
    ("machine",),
    ("errors", "files", "progress", "registered", "showing", "store", "version"),
)
"""Rooms from top to bottom. Imports run downward; on one floor they run one way only."""

MOST_ROOMS = 21
MOST_LINES = 51_000
MOST_LINES_OF_FILE = 400
MOST_LINES_OF_FUNCTION = 60  # of code: without docstrings, comments and blank lines
MOST_PARAMETERS = 8

PUBLIC = ("audit", "audit_given", "run_study", "train", "load_pretrained", "sweep", "text_task")
PUBLIC += ("audit_study", "dyck", "code")  # what load_task passes on
"""Functions of the public face, which may have more parameters: users give them by name."""

FOREIGN = {
    "corpora/languages.py": "the function a tree-sitter grammar exports differs by language",
    "files.py": "an OSError's strerror",
    "models/hooked/model.py": "what a foreign module gives may hold its logits",
    "models/huggingface/again.py": "a projection may have a weight",
    "models/huggingface/attention.py": "transformers' modules say whether they are causal",
    "models/huggingface/blocks.py": "transformers' configs name things by family",
    "models/huggingface/checkpoint.py": "likewise",
    "models/huggingface/exchange.py": "likewise",
    "models/huggingface/gguf_file.py": "likewise",
    "models/huggingface/load.py": "likewise",
    "models/huggingface/reference.py": "likewise, and foreign modules",
    "models/wrapped.py": "what a foreign module gives may be a NamedTuple",
    "simplifications/fingerprint.py": "Python's own functions, modules and objects",
    "simplifications/scikit.py": "whether a pipeline can be undone depends on its steps",
    "tasks/text/content.py": "an error's reason",
    "tasks/text/files.py": "a user's documents: a sequence or not",
    "tasks/text/masking.py": "tokenizers differ",
    "tasks/text/tokenizer.py": "tokenizers differ",
}
"""Files that may ask foreign objects by getattr or hasattr for a name written out, and why."""


class Function(NamedTuple):
    """A function of the code, with its lines of code and its parameters."""

    name: str
    lines: int
    parameters: int
    public: bool


class Module(NamedTuple):
    """A file of the code."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room, which is the first name below the package."""
        return DOOR if self.name in (DOOR, f"{DOOR}.__main__") else self.name.split(".")[1]

    @property
    def file(self) -> str:
        return self.path.relative_to(SOURCE).as_posix()


@cache
def modules() -> dict[str, Module]:
    """All modules by name; a package is its `__init__`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = [DOOR, *path.relative_to(SOURCE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        name = ".".join(parts)
        text = path.read_text()
        found[name] = Module(name, path, text, ast.parse(text))
    return found


def imports(module: Module) -> set[str]:
    """The modules that a module imports: at the top, in functions and for type checkers alike."""
    return {name for node in ast.walk(module.tree) for name in imported(node, module)} - {
        module.name
    }


def imported(node: ast.AST, module: Module) -> Iterator[str]:
    known = modules()
    match node:
        case ast.Import(names=names):
            yield from (name.name for name in names if name.name in known)
        case ast.ImportFrom(module=source, names=names, level=level):
            package = module.name.split(".")
            if module.path.name != "__init__.py":
                package = package[:-1]
            base = package[: len(package) - level + 1] if level else []
            whole = ".".join(base + (source.split(".") if source else []))
            if whole in known:
                inner = [f"{whole}.{name.name}" for name in names]
                yield from (name if name in known else whole for name in inner)
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ) if name in known:
            yield name


@cache
def arrows() -> dict[str, set[str]]:
    """Who imports whom, among files."""
    return {name: imports(module) for name, module in modules().items()}


@cache
def room_arrows() -> dict[str, set[str]]:
    """Who imports whom, among rooms."""
    found: dict[str, set[str]] = {module.room: set() for module in modules().values()}
    for name, others in arrows().items():
        found[room(name)] |= {room(other) for other in others}
    return {name: others - {name} for name, others in found.items()}


def room(name: str) -> str:
    return modules()[name].room


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            part = stack[stack.index(node) :]
            del stack[-len(part) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def floor(name: str) -> int:
    return next((n for n, rooms in enumerate(FLOORS) if name in rooms), len(FLOORS))


@cache
def functions() -> list[Function]:
    """All functions and methods, those inside others too."""
    found: list[Function] = []
    for module in modules().values():
        code = lines_of_code(module)
        scopes: list[tuple[ast.AST, str]] = [(module.tree, "")]
        while scopes:
            scope, outer = scopes.pop()
            for node in ast.iter_child_nodes(scope):
                name = outer
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    name = f"{outer}.{node.name}" if outer else node.name
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = sum(node.lineno <= n <= (node.end_lineno or 0) for n in code)
                    a = node.args
                    names = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
                    given = [x.arg for x in names if x is not None]
                    public = name in PUBLIC or is_verb(module, node)
                    count = len([x for x in given if x not in ("self", "cls")])
                    found.append(Function(f"{module.file}:{name}", lines, count, public))
                scopes.append((node, name))
    return found


def is_verb(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is a verb of the command line, which has a parameter an option."""
    return module.room == "cli" and node.name.rstrip("_") == module.path.stem.rstrip("_")


def lines_of_code(module: Module) -> set[int]:
    """The numbers of lines that are neither blank, comment nor docstring."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()), lineno=first, end_lineno=last):
                lines -= set(range(first, (last or first) + 1))
    return lines


# The rules: each gives its faults as words that do not change while the fault stays.


def arrows_up() -> Iterator[str]:
    for name, others in arrows().items():
        for other in sorted(others):
            if floor(room(other)) < floor(room(name)):
                yield f"{name} -> {other}"


def rooms_in_circles() -> Iterator[str]:
    yield from (name for circle in circles(room_arrows()) for name in circle)


def files_in_circles() -> Iterator[str]:
    yield from (name for circle in circles(arrows()) for name in circle)


def rooms_without_floor() -> Iterator[str]:
    yield from (name for name in sorted(room_arrows()) if floor(name) == len(FLOORS))


def long_files() -> Iterator[str]:
    for module in modules().values():
        if module.text.count("\n") > MOST_LINES_OF_FILE:
            yield module.file


def long_functions() -> Iterator[str]:
    yield from (f.name for f in functions() if f.lines > MOST_LINES_OF_FUNCTION)


def many_parameters() -> Iterator[str]:
    yield from (f.name for f in functions() if f.parameters > MOST_PARAMETERS and not f.public)


def asked_by_name() -> Iterator[str]:
    """Files that ask by getattr or hasattr for a name that is written out."""
    for module in modules().values():
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(
                    func=ast.Name(id="getattr" | "hasattr"),
                    args=[_, ast.Constant(value=str(name)), *_],
                ):
                    if module.file not in FOREIGN:
                        yield f"{module.file}: {name}"


def shadowed_modules() -> Iterator[str]:
    """Names that a package gives to something else than its module of that name."""
    known = modules()
    for module in known.values():
        if module.path.name == "__init__.py":
            for node in ast.walk(module.tree):
                match node:
                    case ast.ImportFrom(module=str(source), names=names):
                        for name in names:
                            bound = f"{module.name}.{name.asname or name.name}"
                            if bound in known and f"{source}.{name.name}" != bound:
                                yield bound


RULES: dict[str, Callable[[], Iterable[str]]] = {
    "arrows up": arrows_up,
    "rooms in circles": rooms_in_circles,
    "files in circles": files_in_circles,
    "rooms without a floor": rooms_without_floor,
    "long files": long_files,
    "long functions": long_functions,
    "many parameters": many_parameters,
    "names asked by getattr": asked_by_name,
    "shadowed modules": shadowed_modules,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule: str) -> None:
    assert not set(RULES[rule]()), f"{rule}: mend these"


def test_the_house_has_few_rooms_and_lines() -> None:
    assert len(room_arrows()) - 1 <= MOST_ROOMS  # the door is none
    assert sum(module.text.count("\n") for module in modules().values()) <= MOST_LINES


def test_files_that_may_ask_foreign_objects_do() -> None:
    asking = {m.file for m in modules().values() if "getattr(" in m.text or "hasattr(" in m.text}
    assert set(FOREIGN) <= asking, "take out of FOREIGN what asks no more"


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == [["a", "b", "c"]]


def draw() -> None:
    """Print the house."""
    graph = room_arrows()
    sizes: dict[str, list[int]] = {}
    for module in modules().values():
        sizes.setdefault(room(module.name), []).append(module.text.count("\n"))
    for number, rooms in enumerate(FLOORS):
        print(f"floor {len(FLOORS) - number}")
        for name in rooms:
            if name in graph:
                size = f"{len(sizes[name])} files, {sum(sizes[name]):,} lines"
                below = sorted(graph[name], key=lambda other: (floor(other), other))
                print(f"  {name:16} {size:>24}   -> {', '.join(below) or '(nothing)'}")
    print(
        f"\n{len(graph) - 1} rooms, {sum(map(len, graph.values()))} arrows between rooms, "
        f"{len(modules())} files, {sum(map(len, arrows().values()))} arrows between files, "
        f"{sum(map(sum, sizes.values())):,} lines"
    )
    for rule, faults in RULES.items():
        found = sorted(faults())
        print(f"{rule}: {len(found) or 'none'}")
        for fault in found:
            print(f"  {fault}")


if __name__ == "__main__":
    draw()
