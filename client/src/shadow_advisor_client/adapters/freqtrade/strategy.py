"""The mixin: it listens around the strategy's own hooks, and raises nothing into the bot.

Hooks are wrapped on the instance, so that a strategy may define any of them, with or without
`super()`. A configuration that cannot work is an error when the bot starts; from then on whatever
fails in here is counted, said once, and the bot does what it would without the mixin.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from .section import read_section
from .shadow import Shadow

log = logging.getLogger("advisor.freqtrade")


class ShadowAdvisor:
    """Stands before IStrategy: `class MyStrategy(ShadowAdvisor, IStrategy)`.

    `shadow_advisor` is None where nothing is asked: switched off, or another mode.
    """

    shadow_advisor: Shadow | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        names = [base.__name__ for base in cls.__mro__]
        if "IStrategy" in names and names.index("IStrategy") < names.index("ShadowAdvisor"):
            raise TypeError(f"{cls.__name__}: ShadowAdvisor stands before IStrategy")

    def __init__(self, config: dict[str, Any], *arguments: Any, **keywords: Any) -> None:
        super().__init__(config, *arguments, **keywords)  # type: ignore[call-arg]  # IStrategy's.
        section = read_section(config)
        mode = str(getattr(config.get("runmode"), "value", config.get("runmode")))
        if not section.enabled or mode not in section.run_modes:
            return
        self.shadow_advisor = shadow = Shadow(self, section, mode)
        self.shadow_advisor_faults: Counter[str] = Counter()
        for name, watch in (
            ("bot_start", shadow.starts),
            ("bot_loop_start", shadow.looks),
            ("custom_stake_amount", shadow.sizes),
            ("confirm_trade_entry", shadow.confirms),
            ("order_filled", shadow.fills),
            ("ft_bot_cleanup", shadow.stops),
        ):
            self._listen(name, watch)

    def shadow_advisor_request(
        self, request: dict[str, Any], pair: str, row: dict[str, Any]
    ) -> dict[str, Any]:
        """Override it to tell more: `row` is the strategy's newest. What is returned is sent."""
        return request

    def _listen(self, name: str, watch: Callable[..., Any]) -> None:
        """Let `watch(result, **arguments)` see a hook after the strategy's own; it returns the
        hook's result."""
        own = getattr(self, name)

        @functools.wraps(own)
        def hook(*arguments: Any, **keywords: Any) -> Any:
            result = own(*arguments, **keywords)
            try:
                return watch(result, **keywords)
            except Exception as error:
                self._failed(name, error)
                return result

        setattr(self, name, hook)

    def _failed(self, name: str, error: Exception) -> None:
        kind = f"{name}: {type(error).__name__}"
        if kind not in self.shadow_advisor_faults:
            log.warning("the shadow advisor failed in %s", name, exc_info=error)
        self.shadow_advisor_faults[kind] += 1
