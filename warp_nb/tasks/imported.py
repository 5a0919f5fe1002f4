"""Functions that a parameter names: `module:function`, from the current folder or an installed package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def imported(named: str, what: str) -> Callable[..., Any]:
    """Import a function by `module:function`; a module is looked for in the current folder first.

    Args:
        named: e.g. `rewards:brevity` for the function `brevity` of `rewards.py`, or `package.module:function`.
        what: the parameter, for messages.

    Raises:
        ValueError: the text is of another form, the module is not found or its import fails, or it has no such
            function.
    """
    module_name, _, name = named.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(
            f"{what} = {named!r} must be module:function, e.g. my_module:my_function for a file my_module.py in the "
            f"current folder"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(
            f"{what} = {named!r}: the module {module_name} does not import ({type(error).__name__}: {error}); run in "
            f"the folder that holds it (this one is {here}), or install it"
        ) from error
    finally:
        sys.path.remove(here)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        raise ValueError(
            f"{what} = {named!r}: {module_name} has no function {name}; pass one that it has: "
            f"{', '.join(sorted(functions)[:10]) or 'none'}"
        )
    return found
