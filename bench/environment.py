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
# Not kept in the repository.
QUICK_RESULTS = RESULTS / "quick"
QUICK_PLOTS = PLOTS / "quick"


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


def write_result(
    name: str, rows: list[dict[str, Any]], run: dict[str, Any] | None = None
) -> Path:
    """Write figures, with their origin, to bench/results/, one row a line.

    ``run`` says how they were measured; those of quick runs are kept apart.
    """
    path = result_path(name, bool(run and run.get("quick")))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    origin = json.dumps(describe() | ({"run": run} if run else {}), indent=1)
    path.write_text(f'{{"environment": {origin},\n"rows": [\n{lines}\n]}}\n')
    return path


def result_path(name: str, is_quick: bool = False) -> Path:
    return (QUICK_RESULTS if is_quick else RESULTS) / f"{name}.json"


def read_result(name: str, is_quick: bool = False) -> dict[str, Any] | None:
    """Return what write_result() has written, if it has."""
    path = result_path(name, is_quick)
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def read_rows(name: str, is_quick: bool = False) -> list[dict[str, Any]] | None:
    """Return the rows of it."""
    result = read_result(name, is_quick)
    return result["rows"] if result else None


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
