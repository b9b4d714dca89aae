"""The trading agent's side of the shadow advisor: see `AdvisorClient`."""

from .checking import Check
from .client import AdvisorClient, ClientStats, Document
from .connection import ConfigurationError
from .identity import decision_id
from .lanes import Breaker
from .values import encode

__all__ = [
    "AdvisorClient",
    "Breaker",
    "Check",
    "ClientStats",
    "ConfigurationError",
    "Document",
    "decision_id",
    "encode",
]
