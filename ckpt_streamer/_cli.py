"""The command ``ckpt-streamer``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NoReturn, TypeVar

import click
import torch

from ckpt_streamer._checkpoint import Checkpoint, open, readable
from ckpt_streamer._contents import (
    Entry,
    calls_of,
    differences_of,
    entries_of,
    look_at,
    sharing_of,
)
from ckpt_streamer._convert import convert
from ckpt_streamer._progress import ByteProgress
from ckpt_streamer._sizes import bytes_of

_MIB = 1024 * 1024
_DIFFERENT, _FAILED, _INTERRUPTED = 1, 3, 130

_HELP = """Convert and look at PyTorch checkpoints, in bounded memory.

Reads torch.save's files, old and new, TorchScript archives, safetensors, and the
index of a sharded checkpoint. Nothing in them is executed.

\b
Exit codes:
  0    done; verify: sound; diff: equal
  1    verify: not sound; diff: different
  2    wrong usage
  3    a file cannot be read or written, or is damaged
  130  interrupted (Ctrl-C); nothing is left half written

Colours are left out with NO_COLOR, progress where the output is no terminal. For
completion, put this into ~/.bashrc (or zsh, or fish, instead of bash):

\b
  eval "$(_CKPT_STREAMER_COMPLETE=bash_source ckpt-streamer)"
"""


class _Size(click.ParamType[int]):
    """A number of bytes, as people write it."""

    name = "size"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        try:
            return bytes_of("it", value)
        except ValueError as error:
            self.fail(str(error).removeprefix("it is "), param, ctx)


class _Limit(_Size):
    """The same, of at least 1 MiB; in MiB."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        size = super().convert(value, param, ctx)
        if size < _MIB:
            self.fail(f"{value!r}, expected at least 1MiB", param, ctx)
        return size // _MIB


class _DType(click.ParamType[torch.dtype]):
    """A floating-point dtype of torch's, by its name."""

    name = "dtype"
    choices = (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
    )

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> torch.dtype:
        dtype = getattr(torch, str(value).removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            known = ", ".join(self.choices)
            self.fail(f"{value!r}, expected one of {known}", param, ctx)
        return dtype

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        param: click.Parameter,  # noqa: ARG002 - click's
        incomplete: str,
    ) -> list[click.shell_completion.CompletionItem]:
        return [
            click.shell_completion.CompletionItem(choice)
            for choice in self.choices
            if choice.startswith(incomplete)
        ]


def _pair(
    _: click.Context, param: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r}, expected NAME=TEXT", param=param)
        pairs[name] = text
    return pairs


_file = click.Path(dir_okay=False, readable=False)
_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*options: Callable[[Any], Any]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_sources = click.argument("source", nargs=-1, required=True, type=_file)
_limit = click.option(
    "--memory-limit",
    type=_Limit(),
    default="1GiB",
    show_default=True,
    metavar="SIZE",
    help="The most of the files to hold in memory, like 512MiB.",
)
_select = click.option(
    "--select",
    multiple=True,
    metavar="GLOB",
    help="Only tensors whose names match; may be given several times.",
)
_quiet = click.option("--quiet", is_flag=True, help="No progress, no summary.")
_writing = _options(
    click.option(
        "--dtype",
        type=_DType(),
        metavar="DTYPE",
        help="Convert floating-point tensors, to bfloat16 for example.",
    ),
    click.option(
        "--rename",
        multiple=True,
        callback=_pair,
        metavar="GLOB=NAME",
        help="New names: 'model.*=*'. An empty name leaves the tensor out.",
    ),
    click.option(
        "--shard-size",
        type=_Size(),
        metavar="SIZE",
        help="Write several files of at most so many bytes, like 5GB, and an index.",
    ),
    click.option(
        "--format",
        type=click.Choice(["safetensors", "torch"]),
        help="Of the target, if the end of its name does not say it.",
    ),
    click.option(
        "--metadata",
        multiple=True,
        callback=_pair,
        metavar="NAME=TEXT",
        help="Texts for the safetensors header, instead of those of the source.",
    ),
    click.option(
        "--tied",
        type=click.Choice(["error", "copy", "once"]),
        default="error",
        show_default=True,
        help="Tensors that share memory, where the format cannot say so.",
    ),
    click.option(
        "--opaque",
        type=click.Choice(["error", "drop"]),
        default="error",
        show_default=True,
        help="Values that only Python could write.",
    ),
    click.option("--verify", is_flag=True, help="Check the source's checksums."),
    click.option(
        "--drop-page-cache", is_flag=True, help="Keep the target out of the page cache."
    ),
    _limit,
    _quiet,
)


@click.group(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ckpt_streamer", prog_name="ckpt-streamer")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    del debug  # main() looks at it


@cli.command()
@_sources
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@_options(_select, _limit)
def inspect(
    source: Sequence[str], as_json: bool, select: Sequence[str], memory_limit: int
) -> None:
    """Show what a file holds, without reading its tensors.

    A table of names, dtypes, shapes, bytes, and the tensors that share memory with
    another; the values beside them; what loading it with pickle would execute.
    """
    with _opened(source, memory_limit, select) as checkpoint:
        entries = list(entries_of(checkpoint))
        shared = sharing_of(entries)
        calls = calls_of(checkpoint)
        values = checkpoint.metadata
        if as_json:
            _echo_json(checkpoint, entries, shared, values, dict(calls))
            return
        _echo_table(entries, shared)
        if values:
            click.echo()
            for name, value in values.items():
                click.echo(f"{click.style(name, bold=True)} = {_short(value)}")
        click.echo()
        total = sum(entry.size_bytes for entry in entries if entry.name not in shared)
        click.echo(f"{len(entries)} tensors, {readable(total)}")
        if calls:
            click.echo(
                click.style("loading it with pickle would call: ", fg="red")
                + ", ".join(f"{name} ({count})" for name, count in calls.most_common())
            )


@cli.command(name="convert")
@click.argument("source", type=_file)
@click.argument("target", type=_file)
@_options(_select, _writing)
def convert_command(source: str, target: str, **options: Any) -> None:
    """Write a file's tensors to another one.

    What is at TARGET stays until the new file is whole; it may be SOURCE itself.
    Its format is what its end says: .safetensors, or .pt, .pth, .bin or .ckpt.
    """
    _convert(source, target, **options)


@cli.command()
@click.argument("source", type=_file)
@click.argument("target", type=_file)
@click.argument("glob", nargs=-1, required=True)
@_writing
def extract(source: str, target: str, glob: Sequence[str], **options: Any) -> None:
    """Write the tensors whose names match a GLOB to another file."""
    _convert(source, target, select=glob, **options)


def _convert(
    source: str,
    target: str,
    *,
    select: Sequence[str],
    rename: dict[str, str],
    metadata: dict[str, str],
    memory_limit: int,
    quiet: bool,
    **options: Any,
) -> None:
    paths = convert(
        source,
        target,
        select=list(select) or None,
        rename={old: new or None for old, new in rename.items()} or None,
        metadata=metadata or None,
        memory_limit_mb=memory_limit,
        progress=_shows_progress(quiet),
        **options,
    )
    if not quiet:
        for path in paths:
            click.echo(f"{path}  {readable(os.path.getsize(path))}")


@cli.command()
@_sources
@_options(_select, _limit, _quiet)
@click.option(
    "--allow-nan", is_flag=True, help="NaNs and infinities are no reason to fail."
)
def verify(
    source: Sequence[str],
    select: Sequence[str],
    memory_limit: int,
    quiet: bool,
    allow_nan: bool,
) -> None:
    """Check a file: its structure, its checksums, and every number in it."""
    try:
        checkpoint = _opened(source, memory_limit, select, verify=True)
        has_checksums = True
    except NotImplementedError:
        checkpoint = _opened(source, memory_limit, select)
        has_checksums = False
    with checkpoint:
        entries = list(entries_of(checkpoint))
        done_bytes = 0
        total_bytes = sum(entry.size_bytes for entry in entries)
        with ByteProgress(_shows_progress(quiet), lambda: total_bytes) as bar:

            def done(size_bytes: int) -> None:
                nonlocal done_bytes
                done_bytes += size_bytes
                bar.set_done(done_bytes)

            try:
                health = look_at(checkpoint, done)
            except ValueError as error:
                raise _UnsoundError(_one_line(error)) from error
    for what, found in (("NaN", health.nan), ("infinite", health.infinite)):
        for name, count in found.items():
            click.echo(f"{click.style(name, bold=True)}: {count} {what}")
    if not quiet:
        checksums = "checksums right" if has_checksums else "no checksums in the file"
        click.echo(
            f"{health.tensors} tensors, {health.elements} numbers looked at, "
            f"{checksums}"
        )
    if (health.nan or health.infinite) and not allow_nan:
        sys.exit(_DIFFERENT)


@cli.command()
@click.argument("first", type=_file)
@click.argument("second", type=_file)
@_options(_select, _limit, _quiet)
def diff(
    first: str, second: str, select: Sequence[str], memory_limit: int, quiet: bool
) -> None:
    """Compare two files of any formats, name by name, bit by bit."""
    half = max(memory_limit // 2, 1)
    count = 0
    with ExitStack() as stack:
        pair = [
            stack.enter_context(_opened([path], half, select))
            for path in (first, second)
        ]
        total_bytes = sum(entry.size_bytes for entry in entries_of(pair[0]))
        bar = stack.enter_context(
            ByteProgress(_shows_progress(quiet), lambda: total_bytes)
        )
        done_bytes = 0

        def done(size_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += size_bytes
            bar.set_done(done_bytes)

        for difference in differences_of(pair[0], pair[1], done):
            count += 1
            click.echo(
                f"{click.style(difference.name, bold=True)}: {difference.what}: "
                f"{difference.text}"
            )
    if count:
        sys.exit(_DIFFERENT)
    if not quiet:
        click.echo("equal")


class _UnsoundError(Exception):
    """What verify has found."""


def _opened(
    source: Sequence[str],
    memory_limit: int,
    select: Sequence[str],
    verify: bool = False,
) -> Checkpoint:
    path = source[0] if len(source) == 1 else list(source)
    return open(path, memory_limit, select=list(select) or None, verify=verify)


def _shows_progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def _echo_json(
    checkpoint: Checkpoint,
    entries: Iterable[Entry],
    shared: dict[str, str],
    values: Mapping[str, Any],
    calls: dict[str, int],
) -> None:
    plain = (str, int, float, type(None))
    tensors = []
    for entry in entries:
        row = asdict(entry)
        row["shares_with"] = shared.get(entry.name)
        tensors.append(row)
    click.echo(
        json.dumps(
            {
                "files": list(checkpoint.paths),
                "tensors": tensors,
                "values": {
                    name: value if isinstance(value, plain) else repr(value)
                    for name, value in values.items()
                },
                "calls": calls,
            },
            indent=2,
        )
    )


def _echo_table(entries: list[Entry], shared: dict[str, str]) -> None:
    rows = [("name", "dtype", "shape", "bytes", "")]
    for entry in entries:
        kind = "" if entry.kind == "strided" else entry.kind
        tie = f"shares with {shared[entry.name]}" if entry.name in shared else ""
        rows.append(
            (
                entry.name,
                entry.dtype,
                "x".join(map(str, entry.shape)) or "-",
                str(entry.size_bytes),
                ", ".join(filter(None, (kind, tie))),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for i, row in enumerate(rows):
        line = "  ".join(
            (
                row[0].ljust(widths[0]),
                row[1].ljust(widths[1]),
                row[2].ljust(widths[2]),
                row[3].rjust(widths[3]),
                row[4],
            )
        ).rstrip()
        click.echo(click.style(line, bold=True) if i == 0 else line)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}"
    return str(error).partition("\n")[0]


def _fail(text: str, code: int) -> NoReturn:
    click.echo(click.style("error: ", fg="red") + text, err=True)
    sys.exit(code)


def main() -> None:
    """Run the command; for the entry point."""
    arguments = sys.argv[1:]
    is_debugging = "--debug" in arguments
    color = False if os.environ.get("NO_COLOR") else None
    try:
        cli.main(
            arguments,
            prog_name="ckpt-streamer",
            standalone_mode=False,
            color=color,
        )
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
            sys.exit(2)
        _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _UnsoundError as error:
        if is_debugging:
            raise
        _fail(str(error), _DIFFERENT)
    except Exception as error:
        if is_debugging:
            raise
        _fail(_one_line(error), _FAILED)
