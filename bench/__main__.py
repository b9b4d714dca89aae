"""`python -m bench`: what can be measured, and how each of it is started."""

from __future__ import annotations

import ast
import re
from pathlib import Path

here = Path(__file__).parent
for path in sorted(here.rglob("*.py")):
    text = path.read_text(encoding="utf-8")
    if re.search(r"\n    (typer\.run|entry)\(main\)\n", text):
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
        name = ".".join(path.relative_to(here.parent).with_suffix("").parts)
        print(f"python -m {name:24} {first}")
