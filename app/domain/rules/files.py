"""Files that people change while the service runs: read whole, within bounds.

A pipe would hold whoever opens it, and a file without end would fill memory: neither is read.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 20
"""Of a file that a person writes."""


def read_ordinary(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of an ordinary file of `most` bytes at most, or of one that a link names.

    Raises
    ------
    OSError : it cannot be read, is no ordinary file, or is larger.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
    return content
