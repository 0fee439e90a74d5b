"""The arguments that several functions share, checked in one place."""

_MIB = 1024 * 1024


def memory_limit_bytes_of(memory_limit_mb: int) -> int:
    """Check ``memory_limit_mb`` and return it in bytes.

    Raises:
        TypeError: It is not an ``int`` (``bool`` is none here).
        ValueError: It is below 1, or too large to count in bytes.
    """
    _check_int("memory_limit_mb", memory_limit_mb, "an int >= 1 (MiB)")
    limit_bytes = memory_limit_mb * _MIB
    if limit_bytes >= 2**63:
        raise ValueError(
            f"memory_limit_mb is {memory_limit_mb}, expected less than "
            f"{2**63 // _MIB} (MiB)"
        )
    return limit_bytes


def check_cpu_page_size(cpu_page_size: int | None) -> None:
    """Check an argument that is accepted and not used.

    Raises:
        TypeError: It is neither ``None`` nor an ``int``.
        ValueError: It is below 1.
    """
    if cpu_page_size is not None:
        _check_int("cpu_page_size", cpu_page_size, "None or an int >= 1 (bytes)")


def _check_int(name: str, value: object, expected: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}), expected {expected}"
        )
    if value < 1:
        raise ValueError(f"{name} is {value}, expected {expected}")
