"""A process that renders one chat template and ends: `python -I template_worker.py`.

A template is a program by whoever made the model. It runs in Jinja's sandbox, and the sandbox runs
in here, where it can use no more than a little time and memory, open no file and no connection, and
take nobody along when it fails. `app.policy.versions.templates` starts it and never imports it.

Reads a JSON object from standard input: `source`, `arguments`, `conversations` (lists of messages).
Writes a JSON object: `texts`, for each conversation its text or null, and `errors`, what was said
instead.
"""

import json
import resource
import sys

import jinja2
import jinja2.debug  # Jinja imports it when something fails, too late for us.
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS, MEMORY_BYTES, TEXT_CHARACTERS = 2, 512 << 20, 1 << 18


def limit() -> None:
    """From here on: seconds of processor time, some memory, nothing written, nothing opened."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def refuse(message: str) -> None:
    """What a template calls when it does not like the messages."""
    raise jinja2.TemplateError(message)


def main() -> None:
    """Render every conversation."""
    asked = json.load(sys.stdin)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.from_string("{{ 'what is imported \\n late' | trim | tojson }}").render()
    limit()
    texts, errors = [], []
    try:
        template = environment.from_string(asked["source"])
    except Exception as error:
        json.dump({"unparsed": f"{error}"[:300]}, sys.stdout)
        return
    for messages in asked["conversations"]:
        text: str | None = None
        said: str | None = None
        try:
            whole = template.render(
                messages=messages, add_generation_prompt=True, **asked["arguments"]
            )
            if len(whole) > TEXT_CHARACTERS:
                said = f"it writes {len(whole)} characters"
            else:
                text = whole
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:300]
        texts.append(text)
        errors.append(said)
    json.dump({"texts": texts, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    main()
