"""The trading agent's side of the shadow advisor: see `AdvisorClient`."""

from .client import AdvisorClient, Breaker, ClientStats
from .connection import ConfigurationError
from .identity import decision_id
from .values import encode

__all__ = ["AdvisorClient", "Breaker", "ClientStats", "ConfigurationError", "decision_id", "encode"]
