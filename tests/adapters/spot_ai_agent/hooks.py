"""The nine lines of the agent, put into a copy of it: the adapter's own page, line by line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

IMPORT = "from shadow_advisor_client.adapters.spot_ai_agent import shadow_at"


class Hook(NamedTuple):
    """A line, and the line of the agent that it stands before or after."""

    file: str
    line: str
    place: str
    anchor: str


def hooks(url: str) -> list[Hook]:
    shadow = f'shadow = shadow_at("{url}")'
    return [
        Hook("agent.py", f"{IMPORT}\n{shadow}", "after", r"from signal_audit import \w+"),
        Hook("agent.py", "shadow.considers(locals())", "before", r"pending_trade_contexts\.append"),
        Hook("agent.py", "shadow.checked(risk_payload)", "after", r"risk_review = run_pretrade"),
        Hook("agent.py", "shadow.opens(new_trade)", "before", r"if create_new_trade\("),
        Hook("agent.py", "shadow.decided(row)", "before", r"log_signal_audit\(row\)"),
        Hook("trade_manager.py", f"{IMPORT}\n{shadow}", "before", r"logger = "),
        Hook("trade_manager.py", "shadow.closed(trade)", "before", r"gross_pnl = trade\.get"),
    ]


def hooked(checkout: Path, copy: Path, url: str) -> int:
    """Copy the agent and put the lines into it; how many there are.

    One line of the agent is mended too: at the commit read, what leads to its decisions is indented
    into an error handler, so that no candidate reaches one.
    """
    ignored = shutil.ignore_patterns(".git", "tests", "__pycache__")
    shutil.copytree(checkout, copy, ignore=ignored, ignore_dangling_symlinks=True)
    agent = copy / "agent.py"
    text = agent.read_text()
    mended = re.sub(r"^    ( +)context = \{$", r"\1context = {", text, count=1, flags=re.MULTILINE)
    assert mended != text
    agent.write_text(mended)
    added = 0
    for hook in hooks(url):
        path = copy / hook.file
        lines = path.read_text().splitlines()
        places = [n for n, line in enumerate(lines) if re.match(rf"\s*{hook.anchor}", line)]
        place = places[0]
        indent = re.match(r"\s*", lines[place])
        assert indent is not None
        new = [indent.group() + line for line in hook.line.splitlines()]
        begin = place if hook.place == "before" else place + 1
        lines[begin:begin] = new
        added += len(new)
        path.write_text("\n".join(lines) + "\n")
    return added
