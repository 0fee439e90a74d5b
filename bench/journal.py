"""Keeps what a long measurement has so far, so that it can be made in pieces."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import CACHE

FOLDER = CACHE / "journals"


class OutOfTimeError(Exception):
    """The time for this piece is over; the next one goes on from here."""


class Journal:
    """What was measured so far, by its name, in .cache/journals/NAME.jsonl.

    It begins anew where the settings, or the library that is measured, are others.
    """

    def __init__(
        self, name: str, settings: dict[str, Any], deadline: float | None = None
    ) -> None:
        """``deadline`` is by time.monotonic()."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._path = FOLDER / f"{name}.jsonl"
        self._deadline = deadline
        self._done: dict[str, Any] = {}
        settings = {**settings, "library": _library_digest()}
        first = json.dumps({"settings": settings})
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        if not lines or lines[0] != first:
            self._path.write_text(first + "\n")
            return
        for line in lines[1:]:
            entry = json.loads(line)
            self._done[entry["name"]] = entry["value"]

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured under this name, measuring it if nothing was.

        Raises:
            OutOfTimeError: It would have to be measured, and the deadline is over.
        """
        if name not in self._done:
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise OutOfTimeError
            value = measure()
            with self._path.open("a") as file:
                file.write(json.dumps({"name": name, "value": value}) + "\n")
            self._done[name] = value
        return self._done[name]

    def remove(self) -> None:
        self._path.unlink()


def _library_digest() -> str:
    """Not imported: a child may need another package of this name."""
    package = importlib.util.find_spec("ckpt_streamer")
    assert package
    assert package.origin
    folder = Path(package.origin).parent / "lib"
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def deadline_in(minutes: float | None) -> float | None:
    return None if minutes is None else time.monotonic() + minutes * 60
