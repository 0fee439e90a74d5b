"""Where figures come from, for the JSON beside them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).resolve().parent
RESULTS = _HERE / "results"
PLOTS = _HERE / "plots"


def describe() -> dict[str, Any]:
    """Describe the machine, the versions and the commit."""
    return {
        "cpu": _cpu_name(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def write_result(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write figures, with their origin, to bench/results/, one row a line."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    lines = ",\n".join(json.dumps(row) for row in rows)
    origin = json.dumps(describe(), indent=1)
    path.write_text(f'{{"environment": {origin},\n"rows": [\n{lines}\n]}}\n')
    return path


def read_rows(name: str) -> list[dict[str, Any]] | None:
    """Return the rows that write_result() has written, if it has."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _commit() -> str:
    revision = subprocess.run(
        ["git", "-C", str(_HERE), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return revision.stdout.strip() if revision.returncode == 0 else "unknown"
