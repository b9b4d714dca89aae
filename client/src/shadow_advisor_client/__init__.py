"""The trading agent's side of the shadow advisor: see `AdvisorClient`."""

from .client import AdvisorClient, Breaker, ClientStats
from .identity import decision_id
from .values import encode

__all__ = ["AdvisorClient", "Breaker", "ClientStats", "decision_id", "encode"]
