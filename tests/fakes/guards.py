"""Taking a guard out of the agent while a block runs, to show that a test fails without it.

A guard is a ``raise``, known by the module that it stands in and by words in its source, or any name for which a
substitute is given. One that is not found is an error: the table that names it is out of date.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
import pkgutil
import textwrap
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Guard(Protocol):
    """Something that can be taken out."""

    @property
    def title(self) -> str:
        """What people call it."""

    def removed(self) -> AbstractContextManager[None]:
        """Take it out while the block runs."""


class NoGuardError(LookupError):
    """The guard that a table names is not there."""


@dataclass(frozen=True)
class Refusal:
    """Every ``raise`` in ``module``, or in a package's modules, whose source has ``words`` in it."""

    module: str
    words: str

    @property
    def title(self) -> str:
        """The module and the words."""
        return f"{self.module.removeprefix('agent.')}: {self.words}"

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Let nothing be raised there while the block runs.

        Raises:
            NoGuardError: no such ``raise`` is there.
        """
        # The code inside a function is changed, not the name: whoever imported the function has the changed one too.
        found = {
            function: changed for function in _functions(self.module) if (changed := _without(function, self.words))
        }
        if not found:
            raise NoGuardError(f"no raise with {self.words!r} in {self.module}")
        before = {function: function.__code__ for function in found}
        try:
            for function, code in found.items():
                function.__code__ = code
            yield
        finally:
            for function, code in before.items():
                function.__code__ = code


@dataclass(frozen=True)
class Substitute:
    """A name such as ``package.module.name`` or ``package.module.Class.name``, and what stands there instead."""

    target: str
    by: Any

    @property
    def title(self) -> str:
        """The name."""
        return self.target.removeprefix("agent.")

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Put the substitute there while the block runs.

        Raises:
            NoGuardError: the name does not exist.
        """
        try:
            patch = mock.patch(self.target, self.by)
            patch.start()
        except (AttributeError, ImportError) as error:
            raise NoGuardError(f"{self.target}: {error}") from error
        try:
            yield
        finally:
            patch.stop()


@dataclass(frozen=True)
class Together:
    """Guards that stand one behind the other: only without all of them does anything get through."""

    guards: tuple[Guard, ...]

    @property
    def title(self) -> str:
        """What people call each."""
        return ", and ".join(guard.title for guard in self.guards)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Take all of them out while the block runs."""
        with ExitStack() as stack:
            for guard in self.guards:
                stack.enter_context(guard.removed())
            yield


def _functions(name: str) -> Iterator[FunctionType]:
    module = importlib.import_module(name)
    yield from _functions_of(module)
    for each in pkgutil.iter_modules(getattr(module, "__path__", ())):
        yield from _functions(f"{name}.{each.name}")


def _functions_of(module: ModuleType) -> Iterator[FunctionType]:
    own = [item for item in vars(module).values() if getattr(item, "__module__", None) == module.__name__]
    classes = [item for item in own if inspect.isclass(item)]
    methods = (item for owner in classes for item in vars(owner).values())
    for item in (*own, *methods):
        plain = getattr(item, "__func__", item)
        if isinstance(plain, FunctionType) and plain.__module__ == module.__name__:
            yield plain


def _without(function: FunctionType, words: str) -> Any:
    """Return the code of ``function`` without each ``raise`` that has ``words`` in it; None if it has none."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
    except (OSError, SyntaxError):  # made at run time, such as the methods of a dataclass
        return None
    taker = _Taker(source, words)
    definition = taker.visit(tree).body[0]
    if not taker.taken or not isinstance(definition, ast.FunctionDef):
        return None
    definition.decorator_list = []
    flags = __future__.annotations.compiler_flag
    code = compile(ast.fix_missing_locations(tree), inspect.getfile(function), "exec", flags, dont_inherit=True)
    namespace: dict[str, Any] = {}
    exec(code, function.__globals__, namespace)  # noqa: S102 - the function's own source, less a statement
    return namespace[function.__name__].__code__


class _Taker(ast.NodeTransformer):
    def __init__(self, source: str, words: str) -> None:
        self._source = source
        self._words = words
        self.taken = 0

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        if self._words not in (ast.get_source_segment(self._source, node) or ""):
            return node
        self.taken += 1
        return ast.copy_location(ast.Pass(), node)
