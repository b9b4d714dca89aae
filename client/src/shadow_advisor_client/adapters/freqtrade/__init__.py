"""A freqtrade strategy with a shadow advisor: `class MyStrategy(ShadowAdvisor, IStrategy)`."""

from .strategy import ShadowAdvisor

__all__ = ["ShadowAdvisor"]
