"""Python modules as retrieval data: a module is a document, its docstring the query that should find it."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
QUERY_WORDS, DOCUMENT_CHARACTERS = 8, 4000  # what a module needs at least to be held out as a document


@dataclass(frozen=True)
class Module:
    """One file: its name, its source without the docstring, the docstring, and (docstring, body) of what it defines."""

    name: str
    text: str
    docstring: str
    pairs: list[tuple[str, str]]


def _docstring(body: list[ast.stmt]) -> ast.Expr | None:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def _text(lines: list[str], first: int, last: int, docstring: ast.Expr | None) -> str:
    """Lines `first` to `last`, counted from 1, without those of the docstring."""
    if docstring is None:
        return "".join(lines[first - 1 : last])
    end = docstring.end_lineno or docstring.lineno
    return "".join(lines[first - 1 : docstring.lineno - 1] + lines[end:last])


def _pairs(tree: ast.Module, lines: list[str]) -> list[tuple[str, str]]:
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, Documented) or len(node.body) < 2:
            continue
        docstring = _docstring(node.body)
        query = ast.get_docstring(node)
        if docstring is not None and query is not None and len(query.split()) >= 4:
            found.append((query, _text(lines, node.lineno, node.end_lineno or node.lineno, docstring)))
    return found


def read_modules(folder: Path | None = None) -> list[Module]:
    """Every Python file below `folder` (the standard library when None) that parses; tests are left out."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    modules = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if LEFT_OUT & set(name.parts):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # written for another Python
        lines = source.splitlines(keepends=True)
        text = _text(lines, 1, len(lines), _docstring(tree.body))
        modules.append(Module(name.as_posix(), text, ast.get_docstring(tree) or "", _pairs(tree, lines)))
    return modules


def hold_out(modules: list[Module], count: int) -> tuple[list[Module], list[Module]]:
    """(training modules, `count` long modules with a docstring); the choice depends on nothing but their names."""
    candidates = [m for m in modules if len(m.docstring.split()) >= QUERY_WORDS and len(m.text) >= DOCUMENT_CHARACTERS]
    held = sorted(candidates, key=lambda m: hashlib.sha256(m.name.encode()).digest())[:count]
    names = {m.name for m in held}
    return [m for m in modules if m.name not in names], held
