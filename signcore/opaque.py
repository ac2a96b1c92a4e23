"""What torch.compile takes as one operation, and does not look into.

An exact sum is a hundred small operations and a block of Threefry a hundred and twenty; a compiler that sees them takes
minutes, and makes nothing faster of them. As operations of their own they run as they do without a compiler, on any
device, and give the same words. They are registered when torch's first array comes, before anything can be traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_OPERATIONS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {}
_REGISTERED: dict[str, Any] = {}
_TORCH: Any = None  # once they are registered


def operation(name: str, schema: str, shape: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of arrays an operation: its schema in torch's language, and an empty result of its shape."""

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        _OPERATIONS[name] = (schema, function, shape)

        def call(*arguments: Any) -> Any:
            tensor = arguments[0]
            if _TORCH is not None and hasattr(tensor, "requires_grad_") and _TORCH.compiler.is_compiling():
                return _REGISTERED[name](*arguments)
            return function(*arguments)

        call.__doc__, call.__name__, call.__module__ = function.__doc__, function.__name__, function.__module__
        return call

    return made


def register(torch: Any) -> None:
    """Tell torch of all operations; called once, with its first array."""
    global _TORCH
    if torch.compiler.is_compiling():  # too late for this graph, which sees the functions themselves
        return
    for name, (schema, function, shape) in _OPERATIONS.items():
        made = torch.library.custom_op(f"signcore::{name}", function, mutates_args=(), schema=schema)
        made.register_fake(shape)
        _REGISTERED[name] = made
    _TORCH = torch
