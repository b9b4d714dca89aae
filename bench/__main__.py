"""`python -m bench`: what can be measured, and how each of it is started."""

from __future__ import annotations

import ast
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("*.py")):
    text = path.read_text(encoding="utf-8")
    if "\n    typer.run(main)\n" in text:
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ")
        print(f"python -m bench.{path.stem:10} {first}")
