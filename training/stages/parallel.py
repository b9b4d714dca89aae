"""The same function over many things: in this process, in several, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, TypeVar

from joblib import Parallel, delayed, parallel_config

from app.domain.errors import AdvisorError

Thing = TypeVar("Thing")
Result = TypeVar("Result")


class BackendMissing(AdvisorError):
    """Ray is asked for and not installed."""


def over(
    function: Callable[[Thing], Result],
    things: Iterable[Thing],
    workers: int,
    backend: str = "processes",
) -> list[Result]:
    """Results in order. `function` and `things` must pickle unless there is one worker.

    `backend` is `processes`, or `ray`: tasks on the cluster that Ray is connected to (RAY_ADDRESS),
    or on a local one. Raises `BackendMissing`.
    """
    with _chosen(backend):
        return list(Parallel(n_jobs=workers)(delayed(function)(thing) for thing in things))


def _chosen(backend: str) -> AbstractContextManager[Any]:
    if backend != "ray":
        return nullcontext()
    if find_spec("ray") is None:
        raise BackendMissing(
            'Ray is not installed: pip install "shadow-advisor[ray]", or set evaluate.backend'
        )
    from ray.util.joblib import register_ray

    register_ray()
    return parallel_config(backend="ray")  # type: ignore[no-any-return]
