"""Undo the side effects of running a model: on the model, and on what its code reads and writes.

A ``forward`` may keep an attention map on ``self``, fill a cache, count its calls, or write to a dict that it
shares with a hook. ``torch.export`` runs ``forward`` with tensors that hold no data; no effect may remain.
The state of a model is whatever its modules refer to: attributes, containers in them, the variables that its
hooks and methods close over, the globals that they name, and the caches of the functions that they call.
Everything is restored by identity: a dict is the same dict with the same entries. Tensors that are neither
parameters nor buffers, arrays and sources of random numbers get their values back. Other objects than modules
are inspected only if their class is from the same package as the class of a module, or holds objects for it.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
import threading
import types
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from disparse_structured.data.modes import plain_modes
from disparse_structured.data.randomness import Isolation
from disparse_structured.errors import DisparseWarning
from disparse_structured.graph.held_values import HOLDERS, VALUES, restoring
from disparse_structured.graph.named_tensors import device_of

_FOREIGN = frozenset({"torch", "numpy", "scipy", "disparse_structured", *sys.stdlib_module_names}) - {
    "__main__"
}
"""Packages whose functions and classes are not inspected: they hold no state of a model."""

_CACHED = type(functools.lru_cache(lambda: None))

_LEAVES = (
    int, float, complex, str, bytes, type(None), torch.dtype, torch.device,
    types.BuiltinFunctionType, types.CodeType,
)  # fmt: skip
"""Types that lead to no further state."""

_COMMON = frozenset({str, int, float, bool, type(None), nn.Parameter})
"""The most frequent of them, which are recognized fastest by their exact type."""

_LOCK = threading.RLock()

PATIENCE = 60.0
"""Seconds after which a waiting thread says so."""

_Undo = Callable[[], object]

F = TypeVar("F", bound=Callable[..., Any])


def leaves_no_trace(function: F) -> F:
    """Wrap ``function(model, ...)`` in :func:`undone`, because even copies of a model share its globals.

    Inside, the caller's autocast and inference mode are off, nothing is compiled, and the global random
    states start from a fixed seed: a ``forward`` may draw. Afterward all are what they were. Other threads
    wait until it returns.
    """

    @functools.wraps(function)
    def wrapped(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
        with one_thread(), _eager(), plain_modes(), undone(model), Isolation(0, device):
            return function(model, *args, **kwargs)

    return cast(F, wrapped)


@contextmanager
def _eager() -> Iterator[None]:
    """Keeps a model with compiled methods from being compiled for every shape and mode, in all threads."""
    with torch.compiler.set_stance("force_eager"):  # in force as soon as it is made
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Held while a model is captured, or its state must not change.

    ``torch.export`` and the random states belong to the process. Only calls of this package wait for each
    other; nothing can keep another thread from running modules.
    """
    if not _LOCK.acquire(timeout=PATIENCE):
        warnings.warn(
            f"Thread {threading.current_thread().name!r} waits for a call of disparse_structured in another "
            "thread: only one works at a time. If that call reads from a loader that needs this thread, both "
            "wait forever. Then stop the program, and call disparse_structured from one thread.",
            DisparseWarning,
            stacklevel=3,
        )
        _LOCK.acquire()
    try:
        yield
    finally:
        _LOCK.release()


@contextmanager
def undone(model: nn.Module, *, values: bool = True) -> Iterator[None]:
    """Restore the state of ``model`` at the end of the context, even after an error.

    Without ``values``, only what objects refer to is restored. While ``forward`` is captured, tensors have no
    values, and reading them would become a part of the graph.

    The values of parameters and buffers are not checked: code that writes to them must restore them.
    """
    state = _State(list(model.modules()) if isinstance(model, nn.Module) else [], values=values)
    state.visit([model])
    try:
        yield
    finally:
        state.restore()


class _State:
    """Every mutable object reachable from a model, with its contents."""

    def __init__(self, modules: Sequence[nn.Module], *, values: bool) -> None:
        self._values = values
        self._packages = {_package(type(module)) for module in modules} - _FOREIGN
        self._buffers = {id(each) for module in modules for each in module.buffers(recurse=False)}
        self._seen: dict[int, Any] = {}  # keeps the objects alive, so that no id is reused
        self._undo: list[_Undo] = []

    def visit(self, found: Iterable[Any]) -> None:
        """Records everything reachable from ``found``."""
        pending = list(found)
        while pending:
            item = pending.pop()
            if type(item) in _COMMON or id(item) in self._seen or isinstance(item, _LEAVES):
                continue
            self._seen[id(item)] = item
            pending.extend(self._inside(item))

    def restore(self) -> None:
        """Restores everything that has changed, the latest first, even if one object refuses."""
        failure: BaseException | None = None
        while self._undo:
            try:
                while self._undo:
                    self._undo.pop()()
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure

    def _inside(self, item: Any) -> Iterable[Any]:
        """Records what ``item`` itself holds, and returns it."""
        if isinstance(item, VALUES):
            undo = restoring(item) if self._values and id(item) not in self._buffers else None
            if undo is not None:
                self._undo.append(undo)
            return ()
        if isinstance(item, dict):
            return self._entries(item)
        if isinstance(item, list | deque):
            return self._items(item)
        if isinstance(item, set):
            return self._members(item)
        if isinstance(item, tuple | frozenset):
            return item
        if isinstance(item, types.ModuleType):
            return ()
        if isinstance(item, type):
            return self._of_class(item)
        if isinstance(item, types.FunctionType):
            return self._of_function(item)
        if isinstance(item, types.MethodType):
            return (item.__self__, item.__func__)
        if isinstance(item, types.CellType):
            return self._contents(item)
        if isinstance(item, _CACHED):
            return self._cache(item)
        if isinstance(item, functools.partial):
            return (item.func, *item.args, *item.keywords.values())
        if isinstance(item, staticmethod | classmethod):
            return (item.__func__,)
        if isinstance(item, property):
            return [each for each in (item.fget, item.fset) if each is not None]
        if isinstance(item, nn.Module | types.SimpleNamespace) or _package(type(item)) in self._packages:
            return (*self._attributes(item), type(item))
        if isinstance(item, HOLDERS):
            return self._attributes(item)
        return ()  # a logger or a trainer, for example: other code may write to it meanwhile

    def _entries(self, item: dict[Any, Any]) -> Iterable[Any]:
        # Use the built-in types' methods, because a user's subclass may override them.
        kind: Any = OrderedDict if isinstance(item, OrderedDict) else dict
        keys, values = list(kind.keys(item)), list(kind.values(item))

        def undo() -> None:
            if not (_same(kind.keys(item), keys) and _same(kind.values(item), values)):
                kind.clear(item)
                for key, value in zip(keys, values, strict=True):
                    kind.__setitem__(item, key, value)

        self._undo.append(undo)
        return [*keys, *values]

    def _items(self, item: list[Any] | deque[Any]) -> Iterable[Any]:
        before = list(item)

        def undo() -> None:
            if not _same(item, before):
                item.clear()
                item.extend(before)

        self._undo.append(undo)
        return before

    def _members(self, item: set[Any]) -> Iterable[Any]:
        before = set(item)

        def undo() -> None:
            if {id(each) for each in item} != {id(each) for each in before}:
                item.clear()
                item.update(before)

        self._undo.append(undo)
        return before

    def _attributes(self, item: Any) -> Iterable[Any]:
        # It may have none, or be a proxy for an object that no longer exists.
        with contextlib.suppress(Exception):
            yield vars(item)
        for cls in type(item).__mro__:
            names = () if _is_foreign(cls) else vars(cls).get("__slots__", ())
            for name in (names,) if isinstance(names, str) else tuple(names):
                slot = vars(cls).get(name)
                if isinstance(slot, types.MemberDescriptorType):
                    value = _held(item, slot)
                    self._undo.append(functools.partial(_put_back, item, slot, value))
                    if value is not _ABSENT:
                        yield value

    def _of_class(self, item: type) -> Iterable[Any]:
        if _is_foreign(item):
            return ()
        before = {name: value for name, value in vars(item).items() if not name.startswith("__")}

        def undo() -> None:
            for name in set(vars(item)) - set(before):
                if not name.startswith("__"):
                    delattr(item, name)
            for name, value in before.items():
                if vars(item).get(name, _ABSENT) is not value:
                    setattr(item, name, value)

        self._undo.append(undo)
        return (*before.values(), *item.__mro__[1:])

    def _of_function(self, item: types.FunctionType) -> Iterable[Any]:
        # A decorator may change its __module__.
        if _top_level(item.__globals__.get("__name__")) in _FOREIGN:
            return ()
        found: list[Any] = [vars(item), *(item.__closure__ or ()), *(item.__defaults__ or ())]
        found.extend((item.__kwdefaults__ or {}).values())
        wrapped = getattr(item, "__wrapped__", None)
        if wrapped is not None:
            found.append(wrapped)
        found.extend(self._globals(item.__globals__, _names(item.__code__)))
        return found

    def _globals(self, namespace: dict[str, Any], names: frozenset[str]) -> Iterable[Any]:
        """The global variables in ``names``; if one is a Python module, its variables in ``names``."""
        before = {name: namespace.get(name, _ABSENT) for name in names}

        def undo() -> None:
            for name, value in before.items():
                if value is _ABSENT:
                    namespace.pop(name, None)
                elif namespace.get(name, _ABSENT) is not value:
                    namespace[name] = value

        self._undo.append(undo)
        for value in before.values():
            if value is _ABSENT:
                continue
            if isinstance(value, types.ModuleType):
                if value.__name__.partition(".")[0] not in _FOREIGN and vars(value) is not namespace:
                    yield from (vars(value)[name] for name in names & vars(value).keys())
            else:
                yield value

    def _contents(self, item: types.CellType) -> Iterable[Any]:
        try:
            before = item.cell_contents
        except ValueError:  # nothing was assigned yet
            return ()

        def undo() -> None:
            item.cell_contents = before

        self._undo.append(undo)
        return (before,)

    def _cache(self, item: Any) -> Iterable[Any]:
        misses = item.cache_info().misses

        def undo() -> None:
            if item.cache_info().misses != misses:
                item.cache_clear()  # single entries cannot be removed

        self._undo.append(undo)
        return (item.__wrapped__,)


_ABSENT = object()


def _held(item: Any, slot: types.MemberDescriptorType) -> Any:
    try:
        return slot.__get__(item)
    except AttributeError:  # nothing was assigned
        return _ABSENT


def _put_back(item: Any, slot: types.MemberDescriptorType, before: Any) -> None:
    now = _held(item, slot)
    if now is before:
        return
    if before is _ABSENT:
        slot.__delete__(item)
    else:
        slot.__set__(item, before)


def _is_foreign(item: Any) -> bool:
    return _package(item) in _FOREIGN


def _package(item: Any) -> str:
    """The top-level package of a class."""
    return _top_level(getattr(item, "__module__", None))


def _top_level(module: Any) -> str:
    return (module if isinstance(module, str) else "builtins").partition(".")[0]


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    """Whether both have the same objects in the same order."""
    return len(now) == len(before) and all(map(operator.is_, now, before))


@functools.lru_cache(maxsize=1 << 14)
def _names(code: types.CodeType) -> frozenset[str]:
    """The global variables and attributes named by ``code`` and the functions inside it."""
    inside = (_names(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return frozenset(code.co_names).union(*inside)
