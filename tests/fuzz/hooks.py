"""What schemathesis asks `/advise`, and what it holds every reply of the service against: loaded by
it, in a process of its own."""

from __future__ import annotations

from itertools import count
from time import time_ns
from typing import Any

import schemathesis

from tests.service.running import request

_numbers = count()


def map_body(context: Any, body: Any) -> Any:
    """Every other generated candidate is put into a request that is whole otherwise: what is
    generated alone hardly ever holds together, and nothing would be decided."""
    if context.operation.path != "/advise" or not isinstance(body, dict) or next(_numbers) % 2:
        return body
    plausible = request(f"fuzz-{time_ns()}")
    generated = body.get("candidate")
    if isinstance(generated, dict):
        kept = ("symbol", "direction", "ts")
        plausible["candidate"] |= {k: v for k, v in generated.items() if k not in kept}
    return plausible


def no_fault(context: Any, response: Any, case: Any) -> None:
    """No reply is a 5xx, but for the honest refusal: 503 as a problem document that says when to
    come back."""
    if response.status_code < 500:
        return
    kind = response.headers.get("content-type", [""])[0]
    honest = kind == "application/problem+json" and "retry-after" in response.headers
    assert response.status_code == 503, f"{response.status_code}: {response.text[:500]}"
    assert honest, f"503 without Retry-After or problem document: {response.text[:500]}"


schemathesis.hook(map_body)
schemathesis.check(no_fault)
