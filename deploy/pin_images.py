"""Writes the digest of every image that others make behind its version, in the compose file and
the Dockerfile: from then on the same bytes are pulled, whatever a registry gives under the name.
A digest that stands there already is asked for anew. Needs Python and `docker buildx`.

usage: python3 deploy/pin_images.py [FOLDER]
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FILES = ("docker-compose.yml", "Dockerfile")
OURS = "shadow-advisor"
IMAGE = re.compile(
    r"^(?P<before>\s*(?:image:|FROM) +)(?P<image>[\w./-]+:[\w.-]+)(?:@sha256:[0-9a-f]{64})?",
    re.MULTILINE,
)
"""A stage of the Dockerfile has no version, and is none."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ASK = ("docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}")


class NotPinned(Exception):
    """No file was changed; the message says why."""


def main(folder: Path) -> int:
    """All digests, or none; 0 when they are written."""
    texts = {folder / name: (folder / name).read_text(encoding="utf-8") for name in FILES}
    images = {
        found["image"]
        for text in texts.values()
        for found in IMAGE.finditer(text)
        if not found["image"].startswith(OURS)
    }
    try:
        digests = {image: digest_of(image) for image in sorted(images)}
    except NotPinned as error:
        print(f"{error}; nothing was changed", file=sys.stderr)
        return 2
    for path, text in texts.items():
        path.write_text(pinned(text, digests), encoding="utf-8")
    for image, digest in digests.items():
        print(f"{image}@{digest}")
    return 0


def pinned(text: str, digests: dict[str, str]) -> str:
    """A file with the digests of these images."""

    def behind(found: re.Match[str]) -> str:
        digest = digests.get(found["image"])
        return found[0] if digest is None else f"{found['before']}{found['image']}@{digest}"

    return IMAGE.sub(behind, text)


def digest_of(image: str) -> str:
    """What the image's registry gives under its name now, for every platform. Raises
    `NotPinned`."""
    try:
        asked = subprocess.run([*ASK, image], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotPinned(f"docker cannot be run: {error.strerror}") from error
    told = asked.stdout.strip()
    if asked.returncode or not DIGEST.fullmatch(told):
        raise NotPinned(f"{image}: {asked.stderr.strip() or told or 'no digest'}")
    return told


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]))
