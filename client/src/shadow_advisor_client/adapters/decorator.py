"""A decorator for the function that decides: it goes on as before, and what it decides is recorded
beside the advice.

```python
@advised(client, request=lambda signal: {"candidate": ..., "plan": ..., "market": ...})
def decide(signal):
    return order_or_none

order = decide(signal)
client.report_outcome(decide.decision_id, {"arm": "agent", "outcome": "tp1", "r_multiple": 1.4})
```

Whatever happens on the advisor's side, the function is called, once, with its own arguments, and
its result or its error is what comes back. A function with `yield` decides nothing when it is
called, and cannot be decorated.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MethodType
from typing import Any, Generic, TypeVar
from uuid import uuid4

from shadow_advisor_client import AdvisorClient

Result = TypeVar("Result")
Request = Callable[..., Mapping[str, Any]]
"""Makes a request of the arguments of the function that decides."""
Action = Callable[[Any], Mapping[str, Any]]
"""Makes what is reported of its result."""


def taken_if_anything(result: object) -> dict[str, Any]:
    """What was done, of a function that returns nothing when it does not trade. Raises `TypeError`
    of what nobody has gone through yet."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"a {type(result).__name__} is no decision yet")
    return {"decision": bool(result)}


class Advised(Generic[Result]):
    """A function that decides, with an advisor beside it. `decision_id` and `advice` are those of
    the last call in this thread, or this task."""

    def __init__(
        self,
        decide: Callable[..., Result],
        client: AdvisorClient,
        request: Request,
        action: Action,
        deadline_s: float | None,
    ) -> None:
        functools.update_wrapper(self, decide)
        if inspect.iscoroutinefunction(decide):
            _mark_as_coroutine_function(self)
        self._decide = decide
        self._client = client
        self._request = request
        self._action = action
        self._deadline_s = deadline_s
        self._last: ContextVar[str | None] = ContextVar("decision_id", default=None)

    @property
    def decision_id(self) -> str | None:
        """Of the last call; None when its request could not be sent."""
        return self._last.get()

    @property
    def advice(self) -> dict[str, Any] | None:
        """Of the last call, once it is there."""
        known = self._last.get()
        return None if known is None else self._client.result(known)

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Decide. A coroutine function's decision is awaited."""
        known = self._submitted(args, kwargs)
        result = self._decide(*args, **kwargs)
        if inspect.isawaitable(result):
            return self._awaited(result, known)  # type: ignore[return-value]
        self._report(known, result)
        return result

    def __get__(self, owner: object, kind: type | None = None) -> Any:
        """As a method: its object is its first argument, and what is asked of the method is asked
        of this."""
        return self if owner is None else MethodType(self, owner)

    async def _awaited(self, result: Any, known: str | None) -> Any:
        decided = await result
        self._report(known, decided)
        return decided

    def _submitted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        asked: list[str] = []

        def made() -> Mapping[str, Any]:
            document = dict(self._request(*args, **kwargs))
            request_id = document["request_id"] = str(document.get("request_id") or uuid4())
            asked.append(self._client.decision_id(request_id))
            return document

        if self._deadline_s is None:
            known = self._client.submit(made)
        else:
            self._client.advise(made, self._deadline_s)
            known = asked[0] if asked else None
        self._last.set(known)
        return known

    def _report(self, known: str | None, result: object) -> None:
        if known is not None:
            self._client.report_action(known, lambda: self._action(result))


def _mark_as_coroutine_function(function: object) -> None:
    """For schedulers that ask: `inspect` knows a mark since Python 3.12, `asyncio` before."""
    if hasattr(inspect, "markcoroutinefunction"):
        inspect.markcoroutinefunction(function)
    else:
        mark = getattr(asyncio.coroutines, "_is_coroutine", True)
        function._is_coroutine = mark  # type: ignore[attr-defined]


def advised(
    client: AdvisorClient,
    request: Request,
    action: Action = taken_if_anything,
    deadline_s: float | None = None,
) -> Callable[[Callable[..., Result]], Advised[Result]]:
    """Have a function's decisions recorded beside the advice.

    Parameters
    ----------
    request : makes the request of the function's arguments; what it raises is only counted.
    action : makes the report of the function's result; by default a result that is true is a trade.
    deadline_s : wait so long for the advice before the function is called, so that it may look at
        `advice`; by default nothing waits.

    Raises `TypeError` where a function with `yield`, a class or a class method is decorated.
    """

    def around(decide: Callable[..., Result]) -> Advised[Result]:
        if inspect.isgeneratorfunction(decide) or inspect.isasyncgenfunction(decide):
            raise TypeError(
                f"{getattr(decide, '__qualname__', decide)} yields: it decides nothing when it is"
                " called; decorate the function that makes one decision"
            )
        if inspect.isclass(decide) or isinstance(decide, classmethod):
            raise TypeError(
                f"{decide!r} is no function that decides: decorate the function, below @classmethod"
            )
        return Advised(decide, client, request, action, deadline_s)

    return around
