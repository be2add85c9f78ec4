"""The reference pages, written from the tables that hardware and software use.

python -m tokenfabric.docs > docs/isa.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenfabric.core import isa, registers

__all__ = ["isa_page"]

HEAD = """# Instruction set, descriptor and registers

*Written by `python -m tokenfabric.docs` from `core/isa.py` and `core/registers.py`;
do not edit.* How the units work is in [microarchitecture.md](microarchitecture.md); what each
operation computes, bit for bit, is `core/ops.py`.
"""


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    head = list(head)
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _list(names: Iterable[str | None]) -> str:
    """Names in the order they come in, as English writes them."""
    words = [f"`{name}`" for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _hardware(op: isa.Op) -> str:
    """Which unit works on an operation, with which shared parts, and what it has to wait for."""
    row, waits = isa.OPERATIONS[op], isa.shares(op)
    unit = f"Unit: `{row.unit.name}`." if row.unit else "Unit: none, the sequencer."
    used = _list(part.name for part in isa.Part if part in row.parts)
    shared = f" Shared parts: {used}." if row.parts else ""
    idle = _list(unit.name for unit in isa.Unit if unit in waits)
    return f"{unit}{shared} Whatever `wait` says, it waits until {idle} {_be(waits)} idle."


def _be(units: isa.Unit) -> str:
    return "is" if bin(units).count("1") == 1 else "are"


def _parts() -> Iterator[str]:
    yield "## Shared parts"
    yield ""
    yield (
        "Hardware that operations of different units use, and that serves one unit at a time: the "
        "sequencer keeps them apart. What else an instruction must wait for, its `wait` says."
    )
    yield ""
    rows = ((f"`{part.name}`", part.value) for part in isa.Part)
    yield from _table(("part", "what it is"), rows)


def _instructions() -> Iterator[str]:
    yield "## Instructions"
    yield ""
    yield (
        f"An instruction is {isa.INSTRUCTION_BITS} bits, little endian, with the same fields "
        "whatever the operation. Each reads the fields listed with it; the others are 0. Every "
        "operation also reads `wait`. Addresses of activations are in chunks, of memory in bytes "
        "from the start of the window."
    )
    yield ""
    for op in isa.Op:
        names, text = isa.OPERATIONS[op].fields, isa.OPERATIONS[op].doc
        yield f"### {op.value} {op.name}"
        yield ""
        yield text
        yield ""
        if names:
            yield "Reads " + ", ".join(f"`{name}`" for name in names.split()) + "."
            yield ""
        yield _hardware(op)
        yield ""
    yield from _parts()
    yield "## Fields"
    yield ""
    rows, at = [], 0
    for name, width in isa.FIELDS:
        rows.append((f"`{name}`", f"{at + width - 1}:{at}", isa.FIELD_DOC[name]))
        at += width
    yield from _table(("field", "bits", "meaning"), rows)


def _codes() -> Iterator[str]:
    for title, codes in (
        ("`wait`: units", isa.Unit),
        ("`mode` of MATMUL: destinations", isa.Dest),
        ("`flags` of a row", isa.RowFlag),
    ):
        yield f"### {title}"
        yield ""
        yield from _table(("name", "value"), ((code.name, code.value) for code in codes))


def _descriptor() -> Iterator[str]:
    yield "## Job descriptor"
    yield ""
    yield (
        f"32-bit little-endian words at device address {isa.JOB:#010x}, where the job window "
        "begins. The row table follows at word "
        f"{isa.DESCRIPTOR_WORDS}, {isa.ROW_WORDS} words a row."
    )
    yield ""
    words = [(n, f"`{name}`", doc) for n, (name, doc) in enumerate(isa.DESCRIPTOR)]
    yield from _table(("word", "name", "meaning"), words)
    yield "### Row of the row table"
    yield ""
    words = [(n, f"`{name}`", doc) for n, (name, doc) in enumerate(isa.ROW)]
    yield from _table(("word", "name", "meaning"), words)


def _registers() -> Iterator[str]:
    yield "## Registers"
    yield ""
    yield (
        f"AXI4-Lite port `s_axi_ctrl`, 32 bits each, ABI version {registers.ABI_VERSION}. "
        "Counters are cleared by start."
    )
    yield ""
    rows = []
    for register in registers.REGISTERS:
        fields = ", ".join(
            f"{name} = bits {lsb + bits - 1}:{lsb}" for name, (lsb, bits) in register.fields.items()
        )
        text = f"{register.doc} ({fields})" if fields else register.doc
        rows.append((f"{register.offset:#05x}", f"`{register.name}`", register.access, text))
    yield from _table(("offset", "name", "access", "meaning"), rows)
    yield "### States"
    yield ""
    yield from _table(("name", "value"), ((s.name, s.value) for s in registers.State))
    yield "### Errors"
    yield ""
    errors = ((e.name, e.value, registers.ERROR_TEXT[e]) for e in registers.Error)
    yield from _table(("name", "value", "meaning"), errors)


def isa_page() -> str:
    """docs/isa.md"""
    lines = [HEAD, *_instructions(), *_codes(), *_descriptor(), *_registers()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(isa_page(), end="")
