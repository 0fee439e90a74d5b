"""The command, driven as a person does: in a terminal of its own, and in pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from argparse import Namespace
from pathlib import Path

import click
import pytest
import safetensors.torch
import torch

from ckpt_streamer import _cli

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-P", "-m", "ckpt_streamer"]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "NO_COLOR"
} | {"TERM": "xterm", "COLUMNS": "100"}


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        check=False,
    )


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            command = [*COMMAND, *map(str, arguments)]
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
            os.execve(sys.executable, command, ENVIRONMENT | environment)
        self.output = ""

    def read_until(self, pattern: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not re.search(pattern, self.output):
            assert time.monotonic() < end, self.output
            if not self._read():
                raise AssertionError(f"no {pattern!r} in {self.output!r}")

    def press_ctrl_c(self) -> None:
        os.write(self._descriptor, b"\x03")

    def wait(self) -> int:
        while self._read():
            pass
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self) -> bool:
        select.select([self._descriptor], [], [], 1)
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # the other side is closed
            return False
        self.output += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = torch.arange(12.0).view(3, 4)
    tree = {
        "state_dict": {"a.weight": weight, "tied": weight, "n": torch.arange(3)},
        "epoch": 3,
        "options": Namespace(lr=0.1),
    }
    torch.save(tree, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_inspect(model: Path) -> None:
    done = run("inspect", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "name                 dtype    shape  bytes",
        "state_dict.a.weight  float32  3x4       48",
        "state_dict.tied      float32  3x4       48  shares with state_dict.a.weight",
        "state_dict.n         int64    3         24",
        "",
        "epoch = 3",
        "options = <opaque argparse.Namespace object>",
        "",
        "3 tensors, 72 bytes",
        "loading it with pickle would call: argparse.Namespace (1)",
    ]


def test_inspect_for_programs(model: Path) -> None:
    found = json.loads(run("inspect", model, "--json", "--select", "*tied").stdout)
    assert found["files"] == [str(model)]
    assert found["values"]["epoch"] == 3
    assert found["calls"] == {"argparse.Namespace": 1}
    [tensor] = found["tensors"]
    assert tensor["name"] == "state_dict.tied"
    assert tensor["dtype"] == "float32"
    assert tensor["shape"] == [3, 4]
    assert tensor["size_bytes"] == 48
    assert tensor["shares_with"] is None


def test_convert_diff_and_extract(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    done = run(
        *("convert", model, target, "--dtype", "bfloat16", "--memory-limit", "2MiB"),
        *("--rename", "state_dict.*=*", "--rename", "*n=", "--tied", "copy"),
        *("--metadata", "by=me", "--verify", "--drop-page-cache"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{target}  {target.stat().st_size} bytes\n"
    found = safetensors.torch.load_file(target)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a.weight": torch.bfloat16,
        "tied": torch.bfloat16,
        "n": torch.int64,
    }
    other = tmp_path / "other.bin"
    assert run("extract", model, other, "*n", "--opaque", "drop").returncode == 0
    done = run("diff", model, other)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "state_dict.a.weight: only in the first: float32 [3, 4]",
        "state_dict.tied: only in the first: float32 [3, 4]",
    ]
    same = run("diff", model, other, "--select", "*n")
    assert (same.returncode, same.stdout) == (0, "equal\n")
    changed = tmp_path / "changed.safetensors"
    tensors = dict(found, tied=found["tied"].float() + 0.5, n=found["n"][:2])
    tensors["a.weight"][0, 0] = 7
    safetensors.torch.save_file(tensors, changed)
    done = run("diff", target, changed, "--quiet")
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == [
        "a.weight: values: 1 of 12 differ, by 7 at most",
        "n: shape: int64 [3] and int64 [2]",
        "tied: dtype: bfloat16 and float32",
        "tied: values: 12 of 12 differ, by 0.5 at most",
    ]


def test_shards_by_command(model: Path, tmp_path: Path) -> None:
    done = run(
        *("convert", model, tmp_path / "m.safetensors", "--shard-size", "50B"),
        *("--tied", "once"),
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "m.safetensors.index.json"),
        str(tmp_path / "m-00001-of-00002.safetensors"),
        str(tmp_path / "m-00002-of-00002.safetensors"),
    ]
    assert run("verify", tmp_path / "m.safetensors.index.json").returncode == 0


def test_verify(model: Path, tmp_path: Path) -> None:
    done = run("verify", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 tensors, 24 numbers looked at, checksums right\n"
    bad = tmp_path / "bad.pt"
    values = torch.zeros(3_000_000)
    values[[5, 2_000_000, 2_999_999]] = torch.tensor([1.0, float("nan"), float("inf")])
    torch.save({"w": values, "t": values.view(3, -1).t()}, bad)
    done = run("verify", bad, "--memory-limit", "1MiB")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "w: 1 NaN",
        "t: 1 NaN",
        "w: 1 infinite",
        "t: 1 infinite",
        "2 tensors, 6000000 numbers looked at, checksums right",
    ]
    assert run("verify", bad, "--allow-nan", "--quiet").returncode == 0
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    done = run("verify", tmp_path / "x.safetensors")
    assert done.stdout == "1 tensors, 2 numbers looked at, no checksums in the file\n"
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 1
    bad.write_bytes(data)
    done = run("verify", bad, "--allow-nan")
    assert done.returncode == 1
    assert re.fullmatch(rf"error: {re.escape(str(bad))}: .*CRC-32.*\n", done.stderr)


def test_errors_are_one_line(model: Path, tmp_path: Path) -> None:
    done = run("convert", tmp_path / "none.pt", tmp_path / "out.pt")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"error: {tmp_path / 'none.pt'}: cannot open: No such file or directory\n"
        if "cannot open" in done.stderr
        else f"error: {tmp_path / 'none.pt'}: No such file or directory\n"
    )
    done = run("convert", model, tmp_path / "out.pt")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "'options' is a argparse.Namespace, which only Python" in done.stderr
    assert not (tmp_path / "out.pt").exists()
    debugged = run("--debug", "convert", model, tmp_path / "out.pt")
    assert debugged.returncode == 1
    assert "Traceback (most recent call last)" in debugged.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["convert", "a.pt"], "Missing argument 'TARGET'"),
        (["inspect", "a.pt", "--memory-limit", "3lb"], "'3lb', expected a size like"),
        (["inspect", "a.pt", "--memory-limit", "1kB"], "expected at least 1MiB"),
        (["convert", "a", "b", "--dtype", "int8"], "'int8', expected one of float64,"),
        (["convert", "a", "b", "--rename", "x"], "'x', expected NAME=TEXT"),
        (["convert", "a", "b", "--tied", "x"], "'x' is not one of"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr


def test_progress_on_a_terminal_only(large_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    terminal = Terminal("convert", large_checkpoint, target)
    assert terminal.wait() == 0
    assert "100%" in terminal.output
    assert re.search(r"\d+:\d\d<\d+:\d\d, +[\d.]+[kMG]?B/s", terminal.output)
    quiet = Terminal("convert", large_checkpoint, target, "--quiet")
    assert quiet.wait() == 0
    assert quiet.output == ""
    assert run("convert", large_checkpoint, target).stderr == ""


def test_colours(model: Path) -> None:
    bold = Terminal("inspect", model)
    assert bold.wait() == 0
    assert "\x1b[1m" in bold.output
    plain = Terminal("inspect", model, NO_COLOR="1")
    assert plain.wait() == 0
    assert "\x1b[" not in plain.output
    assert "\x1b[" not in run("inspect", model).stdout


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source.pt"
    torch.save({f"w{i}": torch.zeros(1 << 20) for i in range(128)}, source)
    target = tmp_path / "target.safetensors"
    target.write_text("old")
    terminal = Terminal("convert", source, target, "--dtype", "float64")
    terminal.read_until(r" [1-9]\d?%")
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
    assert "error: " in terminal.output
    assert terminal.output.rstrip().endswith("interrupted")
    assert "Traceback" not in terminal.output
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "source.pt",
        "target.safetensors",
    ]


def test_a_closed_pipe_is_no_error(model: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "inspect", str(model)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode in {1, -signal.SIGPIPE}


def test_completion() -> None:
    def completed(*words: str) -> list[str]:
        done = run(
            _CKPT_STREAMER_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(("ckpt-streamer", *words)),
            COMP_CWORD=str(len(words)),
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("con") == ["convert"]
    assert completed("convert", "--dt") == ["--dtype"]
    assert completed("convert", "--dtype", "bf") == ["bfloat16"]
    source = run(_CKPT_STREAMER_COMPLETE="bash_source").stdout
    assert "complete -o nosort -F _ckpt_streamer_completion ckpt-streamer" in source


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).with_name("ckpt-streamer")
    done = subprocess.run(
        [script, "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ckpt-streamer, version ")


def section() -> str:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"^## Command line\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_help_and_readme_agree() -> None:
    text = section()
    options: set[str] = {"--debug", "--help", "--version"}
    for name, command in _cli.cli.commands.items():
        arguments = [
            parameter.make_metavar(click.Context(command))
            for parameter in command.params
            if isinstance(parameter, click.Argument)
        ]
        assert f"| `{' '.join([name, *arguments])}` |" in text
        for parameter in command.params:
            options.update(o for o in parameter.opts if o.startswith("--"))
    assert set(re.findall(r"--[a-z][a-z-]+", text)) == options
    codes = {0, *(getattr(_cli, each) for each in ("_DIFFERENT", "_FAILED")), 2, 130}
    assert {int(code) for code in re.findall(r"(?<=[ ;])\d+(?= [a-z])", text)} == codes
    for code in codes:
        assert re.search(rf"^  {code}  ", _cli._HELP, re.MULTILINE)
