"""A thousand streams, opened and dropped in each way, leave nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TURNS = 1000
# malloc's smallest chunk has 32 bytes: of one byte lost in every other turn, this much
# would be in use. What its caches hold counts as in use as well, some 2 KiB.
MOST_HEAP_BYTES = 16 * TURNS
MOST_PYTHON_BLOCKS = TURNS // 2


@pytest.fixture(scope="module")
def growths(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int | str]]:
    program = Path(__file__).parent / "count_leaks.py"
    done = subprocess.run(
        [sys.executable, "-P", program, tmp_path_factory.mktemp("leaks"), str(TURNS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_streams_leak_nothing(growths: list[dict[str, int | str]]) -> None:
    *used, leaking = growths
    assert len(used) == 18
    for growth in used:
        way = growth.pop("way")
        heap_bytes = int(growth.pop("heap_bytes"))
        python_blocks = int(growth.pop("python_blocks"))
        assert heap_bytes <= MOST_HEAP_BYTES, way
        assert python_blocks <= MOST_PYTHON_BLOCKS, way
        # Python and malloc may map memory meanwhile, or give some back.
        assert int(growth.pop("mappings")) <= 4, way
        assert int(growth.pop("threads")) <= 0, way
        assert growth == {"descriptors": 0, "file_mappings": 0}, way
    # What leaks a byte is seen.
    assert int(leaking["heap_bytes"]) >= 32 * TURNS
