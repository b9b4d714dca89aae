"""A process that tries one tokenizer and ends: `python -I tokenizer_worker.py tokenizer.json`.

A tokenizer's patterns are programs by whoever made the model, and may take hours for a text of a
few hundred characters. In here they can use no more than a little time and memory, and take nobody
along when they fail. `app.policy.versions.tokenizers` starts it and never imports it.

Reads a JSON list of texts from standard input. Writes a JSON object: `seconds` of processor time
that each text took, there and back, and `error`, what the library said instead.
"""

import json
import resource
import sys
import time

from tokenizers import Tokenizer

READ_SECONDS, TEXTS_SECONDS, MEMORY_BYTES = 8, 1, 4 << 30
"""A file of 30 MB takes two seconds of processor time and half a gigabyte. Whoever reads it keeps
Python's lock meanwhile, as the service will."""


def allow(seconds: float) -> None:
    """From here on, that much more processor time."""
    most = int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def limit() -> None:
    """From here on: some memory, nothing written, nothing opened."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def main() -> None:
    """Cut up every text, and put it together."""
    texts = json.load(sys.stdin)
    with open(sys.argv[1]) as file:
        content = file.read()
    limit()
    seconds: list[float] = []
    error = None
    try:
        allow(READ_SECONDS)
        tokenizer = Tokenizer.from_str(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        allow(TEXTS_SECONDS)
        for text in texts:
            began = time.process_time()
            tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
            seconds.append(time.process_time() - began)
    except BaseException as failure:  # Rust's panics are no `Exception`.
        said = " ".join(f"{type(failure).__name__}: {failure}".split())
        error = said[:300]
    json.dump({"seconds": seconds, "error": error}, sys.stdout)


if __name__ == "__main__":
    main()
