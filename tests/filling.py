"""A lesson with its gaps filled, as a reader who got everything right has it."""

from __future__ import annotations

import ast
import copy
import inspect

from nbformat import NotebookNode

from warp_nb.algorithm import plain
from warp_nb.course.exercises import gap_of
from warp_nb.course.gaps import Function


def filled(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the package's solution in the place of every stub."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "gap" in cell.metadata.get("tags", []):
            cell.source = standing_alone(gap_of(ast.parse(cell.source).body[0].name).solution)
    return notebook


def standing_alone(function: Function) -> str:
    """The source of a function of `plain` with the names it uses from there."""
    names = ", ".join(sorted(borrowed(function)))
    imports = f"from warp_nb.algorithm.plain import {names}\n\n\n" if names else ""
    return f"from __future__ import annotations\n\n{imports}{inspect.getsource(function).rstrip()}"


def borrowed(function: Function) -> set[str]:
    """The names of `plain` that the function uses, its own left out."""
    used = {node.id for node in ast.walk(ast.parse(inspect.getsource(function))) if isinstance(node, ast.Name)}
    return (used & vars(plain).keys()) - {function.__name__}
