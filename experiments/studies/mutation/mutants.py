"""The changes that ``mutation.py`` makes to a module, one at a time.

The library cosmic-ray makes most kinds of changes. For example, it replaces each operator by one or two others. Three
kinds are added here, because much of this code consists of calls. They leave out a call (``a.detach()`` becomes ``a``,
``pyro.markov(r)`` becomes ``r``), a keyword argument, or a statement.

These parts of a module are not changed, because no test of behaviour can or should notice such a change:

- type annotations (never evaluated), docstrings, decorators;
- the text of errors (the arguments of ``raise``), which tests match by a few words;
- defaults of a config's fields, and the class attribute ``traits``: they are settings;
- ``__post_init__`` and calls of ``check_range`` and ``check_choice``: limits of those settings;
- ``validate_args``, torch's check of its own arguments.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

Position = tuple[int, int]  # a line, counted from 1, and a column, counted from 0
Span = tuple[Position, Position]

BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_FloorDiv", "Pow_Mul", "BitAnd_BitOr",
          "BitOr_BitAnd", "BitXor_BitAnd")  # fmt: skip
COMPARISON = ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq",
              "Is_IsNot", "IsNot_Is")  # fmt: skip
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in BINARY),
    *(f"ReplaceComparisonOperator_{pair}" for pair in COMPARISON),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Invert", "Not")),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop"),
)
# A call of a function of these modules is not a call of a method.
MODULES = ("torch", "pyro", "dist", "poutine", "nn", "F", "math", "np", "constraints")
SETTINGS = ("traits",)
LIMITS = ("check_range", "check_choice")


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        file: path from the root of the repository.
        function: the qualified name of the function or class with the change; "module" for module level.
        old, new: the changed lines before and after; with ``function`` they identify the mutant if lines move.
        lines: first and last line of the statement in the unchanged file.
        imported: whether the statement runs when the module is imported, and not only when a function is called.
        source: the whole changed module.
    """

    file: str
    operator: str
    function: str
    old: str
    new: str
    lines: tuple[int, int]
    imported: bool
    source: str

    @property
    def key(self) -> str:
        return f"{self.file}::{self.function}: {self.old}  ->  {self.new}"


@dataclass(frozen=True)
class Change:
    """One possible change. Changes by cosmic-ray have an ``occurrence``; changes by this module have a new ``text``."""

    operator: str
    span: Span
    occurrence: int = -1
    text: str = ""


class Module:
    """A source file and the changes that can be made to it."""

    def __init__(self, root: Path, file: str) -> None:
        self.file = file
        self.source = (root / file).read_text()
        self.outline = Outline(ast.parse(self.source), self.source)
        self.changes = [*_by_library(self.source, self.outline), *_by_hand(self.source, self.outline)]

    def mutant(self, change: Change) -> Mutant | None:
        """Return the module with this change, or None if it does not compile."""
        if change.text:
            start, end = map(self.outline.offset, change.span)
            changed: str | None = self.source[:start] + change.text + self.source[end:]
        else:
            operator = cosmic_ray.plugins.get_operator(f"core/{change.operator}")()
            changed = mutate_code(self.source, operator, change.occurrence)
        try:
            compile(changed or "(", self.file, "exec", dont_inherit=True)
        except SyntaxError:
            return None
        old, new = _difference(self.source, changed or "")
        function, lines, imported, place = self.outline.place(change.span[0][0])
        if place:  # equal statements of one function are numbered
            old = f"[{place}] {old}"
        return Mutant(self.file, change.operator, function, old, new, lines, imported, changed or "")


class Outline:
    """The spans of a module's statements, the function around each, and the spans of the parts that are not changed."""

    def __init__(self, tree: ast.Module, source: str) -> None:
        self.source_lines = source.splitlines(keepends=True)
        self.offsets = [0]
        for line in self.source_lines:
            self.offsets.append(self.offsets[-1] + len(line))
        self.statements: list[tuple[int, int, str, bool]] = []
        self.excluded: list[Span] = []
        self._walk(tree, "", imported=True)

    def _walk(self, node: ast.AST, name: str, imported: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner_name, runs = name, imported
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner_name = f"{name}.{child.name}" if name else child.name
                runs = imported and isinstance(child, ast.ClassDef)
            if isinstance(child, ast.stmt):
                body = getattr(child, "body", None)
                last_line = body[0].lineno - 1 if body else child.end_lineno
                runs_at_import = imported or (isinstance(child, ast.ClassDef) and not name)
                self.statements.append(
                    (child.lineno, max(child.lineno, last_line or 0), inner_name or "module", runs_at_import)
                )
            self.excluded += [self.span(part) for part in _excluded_nodes(child)]
            self._walk(child, inner_name, runs)

    def span(self, node: Any) -> Span:
        """Return the span of a node. ``ast`` counts columns in bytes of UTF-8; the span counts them in characters."""
        return self._position(node.lineno, node.col_offset), self._position(node.end_lineno, node.end_col_offset)

    def _position(self, line: int, offset: int) -> Position:
        return line, len(self.source_lines[line - 1].encode()[:offset].decode())

    def offset(self, position: Position) -> int:
        """Return the number of characters before a position."""
        return self.offsets[position[0] - 1] + position[1]

    def keeps(self, span: Span) -> bool:
        return any(start <= span[0] and span[1] <= end for start, end in self.excluded)

    def place(self, line: int) -> tuple[str, tuple[int, int], bool, int]:
        """Describe the smallest statement at a line.

        Returns:
            the statement's function, its lines, whether it runs at import, and how many equal statements precede it.
        """
        start, end, name, imported = max(s for s in self.statements if s[0] <= line <= s[1])
        line_text = self.source_lines[line - 1].strip()
        num_equal = sum(
            first < start and function == name and self.source_lines[first - 1].strip() == line_text
            for first, _, function, _ in self.statements
        )
        return name, (start, end), imported, num_equal


def _excluded_nodes(node: ast.AST) -> Iterator[Any]:
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        yield from node.decorator_list
        yield from filter(
            None, (a.annotation for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
        )
        yield from filter(None, (arguments.vararg and arguments.vararg.annotation, node.returns))
        if node.name == "__post_init__":
            yield node
    if isinstance(node, ast.ClassDef):
        yield from node.decorator_list
        if any("dataclass" in ast.unparse(d) for d in node.decorator_list):  # the fields, for their defaults
            yield from (s for s in node.body if isinstance(s, ast.AnnAssign))
    if isinstance(node, ast.AnnAssign):
        yield node.annotation
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and any(
        isinstance(n, ast.Name) and n.id in SETTINGS
        for n in (getattr(node, "targets", None) or [node.target])  # type: ignore[union-attr]
    ):
        yield node
    if isinstance(node, ast.Raise):
        yield node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LIMITS:
        yield node
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node
    if isinstance(node, ast.keyword) and node.arg == "validate_args":
        yield node


def _by_library(source: str, outline: Outline) -> Iterator[Change]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = cosmic_ray.plugins.get_operator(f"core/{name}")()
        positions = [p for node in nodes for p in operator.mutation_positions(node)]
        for occurrence, span in enumerate(positions):
            bare_star = source[outline.offset(span[0]) :].startswith("*,")  # no product: the star of a signature
            if not outline.keeps(span) and not bare_star:
                yield Change(name, span, occurrence=occurrence)


def _by_hand(source: str, outline: Outline) -> Iterator[Change]:
    def text(node: Any) -> str:
        start, end = map(outline.offset, outline.span(node))
        return source[start:end]

    for node in ast.walk(ast.parse(source)):
        changes: list[tuple[str, str]] = []
        if isinstance(node, ast.Call):
            rest_of_call = _without_call(node)
            if rest_of_call is not None:
                changes.append(("RemoveCall", f"({text(rest_of_call)})"))
            for keyword in node.keywords:
                if keyword.arg and not outline.keeps(outline.span(keyword)):
                    rest = ", ".join(text(a) for a in (*node.args, *node.keywords) if a is not keyword)
                    changes.append(("RemoveKeyword", f"{text(node.func)}({rest})"))
        elif _is_removable(node):
            changes.append(("RemoveStatement", "pass"))
        for name, new in changes:
            if not outline.keeps(outline.span(node)):
                yield Change(name, outline.span(node), text=new)


def _without_call(node: ast.Call) -> Any:
    """Return what replaces a call: the object of its method, or its only argument. Return None if it has neither."""
    function = node.func
    if isinstance(function, ast.Attribute) and ast.unparse(function.value).partition(".")[0] not in MODULES:
        is_super = isinstance(function.value, ast.Call) and ast.unparse(function.value) == "super()"
        is_self = isinstance(function.value, ast.Name) and function.value.id in ("self", "cls")
        if not is_super and not is_self:
            return function.value
    return node.args[0] if len(node.args) == 1 and not isinstance(node.args[0], ast.Starred) else None


def _is_removable(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        return all(isinstance(t, (ast.Attribute, ast.Subscript)) for t in node.targets)
    return isinstance(node, ast.AugAssign)


def _difference(old: str, new: str) -> tuple[str, str]:
    """Return the differing lines of both texts, each joined to one line without indentation."""
    old_lines, new_lines = old.splitlines(), new.splitlines()
    while old_lines and new_lines and old_lines[0] == new_lines[0]:
        old_lines, new_lines = old_lines[1:], new_lines[1:]
    while old_lines and new_lines and old_lines[-1] == new_lines[-1]:
        old_lines, new_lines = old_lines[:-1], new_lines[:-1]
    return " ".join(line.strip() for line in old_lines), " ".join(line.strip() for line in new_lines)
