"""Each op and each method, eager, scripted and in C++: one result, one error text.

The table is docs/op_table.md; ``CKPT_STREAMER_WRITE_DOCS=1`` writes it again.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from cpp_programs import ROOT, build_program, run
from torch import Tensor

import ckpt_streamer

TABLE = ROOT / "docs/op_table.md"

if TYPE_CHECKING:
    from ckpt_streamer import StreamHandle
else:
    StreamHandle = torch.classes.ckpt_streamer.StreamHandle  # as TorchScript knows it
Row = Callable[[str, str, str, str], str]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        ROWS[name] = function
        return function

    return add


def text_of(tensor: Tensor) -> str:
    values: list[int] = tensor.flatten().to(torch.int64).tolist()
    return " ".join([str(value) for value in values])


def rest_of(stream: StreamHandle) -> str:
    texts: list[str] = []
    while stream.has_next():
        name, tensor = stream.next()
        texts.append(name + "=" + text_of(tensor))
    return " ".join(texts)


def open_(path: str) -> StreamHandle:
    return ckpt_streamer.ops.open(path, 1048576)


# ruff: noqa: ARG001, E704  (all rows take the same files)


@row("open")
def _open(path: str, missing: str, empty: str, gguf: str) -> str:
    return rest_of(torch.ops.ckpt_streamer.open(path, 1048576))


@row("open select")
def _open_select(path: str, missing: str, empty: str, gguf: str) -> str:
    return rest_of(torch.ops.ckpt_streamer.open(path, 1048576, select=["[bc]"]))


@row("open dtype")
def _open_dtype(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = torch.ops.ckpt_streamer.open(
        path, 1048576, dtype=torch.bfloat16, verify=True
    )
    is_converted = stream.tensor("c").dtype == torch.bfloat16
    return "BFloat16" if is_converted else "another"


@row("open.paths")
def _open_paths(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.open([path, path], 1048576)))


@row("open missing")
def _open_missing(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.open(missing, 1048576)))


@row("open empty")
def _open_empty(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.open(empty, 1048576)))


@row("open unsupported")
def _open_unsupported(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.open(gguf, 1048576)))


@row("open no limit")
def _open_no_limit(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.open(path, 0)))


@row("open no match")
def _open_no_match(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.open(path, 1048576, select=["x*"])))


@row("stream")
def _stream(path: str, missing: str, empty: str, gguf: str) -> str:
    return rest_of(torch.ops.ckpt_streamer.stream({"a": torch.ones(2)}, 1048576))


@row("stream no limit")
def _stream_no_limit(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(torch.ops.ckpt_streamer.stream({"a": torch.ones(2)}, 0)))


@row("open budget")
def _open_budget(path: str, missing: str, empty: str, gguf: str) -> str:
    budget = torch.classes.ckpt_streamer.MemoryBudget(8388608)
    first = torch.ops.ckpt_streamer.open(path, 1048576, budget=budget)
    second = torch.ops.ckpt_streamer.open(path, 1048576, budget=budget)
    text = str(first.next()[0]) + str(second.next()[0])
    text = text + " " + str(int(budget.bytes_held()))
    return text + " " + str(int(first.has_next())) + str(int(second.has_next()))


@row("open budget without room")
def _open_budget_without_room(path: str, missing: str, empty: str, gguf: str) -> str:
    budget = torch.classes.ckpt_streamer.MemoryBudget(4194304)
    first = torch.ops.ckpt_streamer.open(path, 1048576, budget=budget)
    second = torch.ops.ckpt_streamer.open(path, 1048576, budget=budget)
    text = str(first.next()[0]) + str(second.next()[0])
    return text + str(int(first.has_next()))  # it lives until here


@row("open drop_page_cache")
def _open_drop_page_cache(path: str, missing: str, empty: str, gguf: str) -> str:
    return rest_of(torch.ops.ckpt_streamer.open(path, 1048576, drop_page_cache=True))


@row("copy_")
def _copy(path: str, missing: str, empty: str, gguf: str) -> str:
    destination = torch.zeros(2, dtype=torch.int64)
    return text_of(torch.ops.ckpt_streamer.copy_(destination, torch.ones(2), 1048576))


@row("copy_ shape")
def _copy_shape(path: str, missing: str, empty: str, gguf: str) -> str:
    return text_of(
        torch.ops.ckpt_streamer.copy_(torch.zeros(2), torch.ones(3), 1048576)
    )


@row("default_memory_limit_bytes")
def _default_memory_limit_bytes(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(int(torch.ops.ckpt_streamer.default_memory_limit_bytes() > 0))


@row("load_into")
def _load_into(path: str, missing: str, empty: str, gguf: str) -> str:
    state = {"a": torch.zeros(2, dtype=torch.int64), "d": torch.zeros(1)}
    absent, unexpected = torch.ops.ckpt_streamer.load_into(state, path, 4096)
    return text_of(state["a"]) + "; " + " ".join(absent) + "; " + " ".join(unexpected)


@row("load_into.paths")
def _load_into_paths(path: str, missing: str, empty: str, gguf: str) -> str:
    state = {"a": torch.zeros(2, dtype=torch.int64), "d": torch.zeros(1)}
    torch.ops.ckpt_streamer.load_into(state, [path], 1048576)
    return text_of(state["a"])


@row("load_into strict")
def _load_into_strict(path: str, missing: str, empty: str, gguf: str) -> str:
    state = {"a": torch.zeros(2, dtype=torch.int64), "d": torch.zeros(1)}
    torch.ops.ckpt_streamer.load_into(state, path, 1048576, strict=True)
    return ""


@row("create")
def _create(path: str, missing: str, empty: str, gguf: str) -> str:
    target = path + ".safetensors"
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    writer = torch.ops.ckpt_streamer.create(target, tensors, 1048576)
    writer.write("b", torch.full([3], 7.0))
    writer.write("a", tensors["a"])
    files: list[str] = writer.finish()
    return str(len(files)) + "; " + rest_of(open_(files[0]))


@row("create unknown")
def _create_unknown(path: str, missing: str, empty: str, gguf: str) -> str:
    target = path + ".safetensors"
    writer = torch.ops.ckpt_streamer.create(target, {"a": torch.ones(2)}, 1048576)
    writer.write("x", torch.ones(2))
    return ""


@row("create unfinished")
def _create_unfinished(path: str, missing: str, empty: str, gguf: str) -> str:
    target = path + ".safetensors"
    writer = torch.ops.ckpt_streamer.create(target, {"a": torch.ones(2)}, 1048576)
    return str(len(writer.finish()))


@row("load_into budget")
def _load_into_budget(path: str, missing: str, empty: str, gguf: str) -> str:
    budget = torch.classes.ckpt_streamer.MemoryBudget(8388608)
    state = {"a": torch.zeros(2, dtype=torch.int64)}
    torch.ops.ckpt_streamer.load_into(state, path, 1048576, budget=budget)
    return text_of(state["a"]) + "; " + str(int(budget.bytes_held()))


@row("limit_bytes")
def _limit_bytes(path: str, missing: str, empty: str, gguf: str) -> str:
    budget = torch.classes.ckpt_streamer.MemoryBudget(8388608)
    return str(int(budget.limit_bytes()))


@row("limit_bytes too small")
def _limit_bytes_too_small(path: str, missing: str, empty: str, gguf: str) -> str:
    budget = torch.classes.ckpt_streamer.MemoryBudget(4096)
    return str(int(budget.limit_bytes()))


@row("bytes_held")
def _bytes_held(path: str, missing: str, empty: str, gguf: str) -> str:
    budget = torch.classes.ckpt_streamer.MemoryBudget(8388608)
    stream = torch.ops.ckpt_streamer.open(path, 1048576, budget=budget)
    before = int(budget.bytes_held())
    stream.next()
    held = int(budget.bytes_held())
    stream.release()
    return str(before) + " " + str(held) + " " + str(int(budget.bytes_held()))


@row("has_next")
def _has_next(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    before = stream.has_next()
    rest_of(stream)
    return str(int(before)) + " " + str(int(stream.has_next()))


@row("next")
def _next(path: str, missing: str, empty: str, gguf: str) -> str:
    name, tensor = open_(path).next()
    return str(name) + "=" + text_of(tensor)


@row("next past the end")
def _next_past_the_end(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    rest_of(stream)
    return str(stream.next()[0])


@row("tensor")
def _tensor(path: str, missing: str, empty: str, gguf: str) -> str:
    return text_of(open_(path).tensor("b"))


@row("tensor unknown")
def _tensor_unknown(path: str, missing: str, empty: str, gguf: str) -> str:
    return text_of(open_(path).tensor("x"))


@row("slice")
def _slice(path: str, missing: str, empty: str, gguf: str) -> str:
    return text_of(open_(path).slice("b", 1, 3))


@row("slice outside")
def _slice_outside(path: str, missing: str, empty: str, gguf: str) -> str:
    return text_of(open_(path).slice("b", 1, 9))


@row("release")
def _release(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    _, tensor = stream.next()
    stream.release()
    return text_of(tensor) + "; " + rest_of(stream)


@row("reset")
def _reset(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    stream.next()
    stream.reset()
    return str(stream.next()[0])


@row("__len__")
def _len(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(len(open_(path)))


@row("bytes_streamed")
def _bytes_streamed(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    rest_of(stream)
    return str(stream.bytes_streamed())


@row("bytes_evicted")
def _bytes_evicted(path: str, missing: str, empty: str, gguf: str) -> str:
    return str(open_(path).bytes_evicted())


@row("bytes_resident")
def _bytes_resident(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    rest_of(stream)
    return str(stream.bytes_resident())


@row("peak_bytes_resident")
def _peak_bytes_resident(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    rest_of(stream)
    return str(int(stream.peak_bytes_resident() <= 1048576))


@row("stats")
def _stats(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    stream.next()
    stats: dict[str, int] = stream.stats()
    return (
        str(stats["tensors"])
        + " "
        + str(stats["tensors_yielded"])
        + " "
        + str(stats["memory_limit_bytes"])
        + " "
        + str(stats["bytes_over_limit"])
    )


@row("not_held")
def _not_held(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = open_(path)
    rest_of(stream)
    return "'" + str(stream.not_held()) + "'"


@row("notes")
def _notes(path: str, missing: str, empty: str, gguf: str) -> str:
    stream = torch.ops.ckpt_streamer.stream({"a": torch.ones(2)}, 1048576)
    return "'" + str(stream.notes()) + "'"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str, str]:
    folder = tmp_path_factory.mktemp("op_table")
    torch.save(
        {"a": torch.tensor([1, 2]), "b": torch.arange(1, 5), "c": torch.ones(1)},
        folder / "model.ckpt",
    )
    (folder / "empty.ckpt").touch()
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    names = ("model.ckpt", "missing.ckpt", "empty.ckpt", "model.gguf")
    path, missing, empty, gguf = (str(folder / name) for name in names)
    return path, missing, empty, gguf


@pytest.fixture(scope="module")
def in_cpp(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[str, ...]
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("cpp_consumer")
    build_program(ROOT / "tests/cpp_consumer", folder)
    done = run(folder / "op_table", *files)
    assert done.returncode == 0, done.stderr
    # A text may have several lines.
    found = re.findall(r"^([^\t\n]+)\t((?:(?!^[^\t\n]+\t).*\n)*)", done.stdout, re.M)
    return {name: text.removesuffix("\n") for name, text in found}


def eager(function: Row, files: tuple[str, str, str, str]) -> str:
    try:
        return function(*files)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def scripted(function: Row, files: tuple[str, str, str, str]) -> str:
    compiled = torch.jit.script(function)
    results = set()
    for _ in range(3):  # as it is, profiled, optimised
        try:
            results.add(compiled(*files))
        except Exception as error:
            # Behind TorchScript's own trace.
            trace, name, text = str(error).rpartition("RuntimeError: ")
            results.add((name + text) if trace else f"{type(error).__name__}: {error}")
    [result] = results
    return str(result)


def without_class(text: str) -> str:
    return re.sub(r"^[A-Za-z]*Error: ", "", text)


def is_error(text: str) -> bool:
    return without_class(text) != text


@pytest.mark.parametrize("name", ROWS)
def test_one_result(
    name: str, files: tuple[str, str, str, str], in_cpp: dict[str, str]
) -> None:
    in_python = eager(ROWS[name], files)
    assert in_cpp[name] == in_python
    in_script = scripted(ROWS[name], files)
    assert is_error(in_script) == is_error(in_python)
    assert without_class(in_python) in in_script


def test_each_op_and_method_has_a_row(in_cpp: dict[str, str]) -> None:
    assert list(in_cpp) == list(ROWS)
    first_words = {name.split()[0].split(".")[0] for name in ROWS}
    ops = {
        schema.name.removeprefix("ckpt_streamer::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("ckpt_streamer::")
    }
    handle = torch.ops.ckpt_streamer.stream({"a": torch.ones(1)}, 1)
    methods = {
        name
        for each in (handle, torch.classes.ckpt_streamer.MemoryBudget(1 << 22))
        for name in each._method_names()
        if name == "__len__" or not name.startswith("__")
    }
    assert first_words == {name for name in ops if name[0] != "_"} | methods


def test_the_table_in_the_docs(files: tuple[str, str, str, str]) -> None:
    folder = str(Path(files[0]).parent)
    lines = [
        "# Ops and methods",
        "",
        "Called eagerly, scripted (as it is, profiled, optimised) and from C++, with",
        "the result, or the error's class and text. They are the same in all three,",
        "but that scripted code sees each error as a `RuntimeError`. Written by",
        "`tests/test_op_table.py`.",
        "",
        "| op or method | in Python and TorchScript | result |",
        "|---|---|---|",
    ]
    for name, function in ROWS.items():
        [definition] = ast.parse(inspect.getsource(function)).body
        assert isinstance(definition, ast.FunctionDef)
        code = "; ".join(map(ast.unparse, definition.body))
        result = eager(function, files).replace(folder + "/", "").split("\n")[0]
        cells = [
            f"`{cell}`".replace("|", "\\|") for cell in (name, code, result) if cell
        ]
        lines.append(f"| {' | '.join([*cells, ''][:3])} |")
    text = "\n".join(lines) + "\n"
    if os.environ.get("CKPT_STREAMER_WRITE_DOCS") == "1":
        TABLE.write_text(text)
    assert TABLE.read_text() == text
