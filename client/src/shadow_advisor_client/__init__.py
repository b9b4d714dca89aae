"""The trading agent's side of the shadow advisor: see `AdvisorClient`."""

from .client import AdvisorClient, Breaker, ClientStats, Document
from .connection import ConfigurationError
from .identity import decision_id
from .values import encode

__all__ = [
    "AdvisorClient",
    "Breaker",
    "ClientStats",
    "ConfigurationError",
    "Document",
    "decision_id",
    "encode",
]
