"""A lesson with its gaps filled, as a reader who got everything right has it."""

from __future__ import annotations

import ast
import copy
import inspect

from nbformat import NotebookNode

from warp_nb.course.exercises import gap_of
from warp_nb.course.gaps import Gap


def filled(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the package's solution in the place of every stub."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "gap" in cell.metadata.get("tags", []):
            cell.source = standing_alone(gap_of(ast.parse(cell.source).body[0].name))
    return notebook


def standing_alone(gap: Gap) -> str:
    """The source of the solution with the names that it uses from its module."""
    imports = f"from {gap.module} import {', '.join(sorted(borrowed(gap)))}\n\n\n" if borrowed(gap) else ""
    return f"from __future__ import annotations\n\n{imports}{inspect.getsource(gap.solution).rstrip()}"


def borrowed(gap: Gap) -> set[str]:
    """The names of its module that the solution uses, its own left out."""
    nodes = ast.walk(ast.parse(inspect.getsource(gap.solution)))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return (used & {name for name in gap.namespace if not name.startswith("__")}) - {gap.name}
