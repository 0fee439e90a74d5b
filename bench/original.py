"""Where a checkout of the original project is, for those who measure it as well."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_VARIABLE = "CKPT_STREAMER_ORIGINAL"


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--original",
        type=Path,
        metavar="PATH",
        help="a checkout of the original project, to be measured in the same way",
    )


def tell_children(checkout: Path) -> None:
    """Let processes that are made from now on find it."""
    os.environ[_VARIABLE] = str(checkout.resolve())


def told_checkout() -> str | None:
    """Return what this process was told, if anything."""
    return os.environ.get(_VARIABLE)
