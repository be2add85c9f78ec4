"""The instruction table: encoding, its limits, and text."""

from __future__ import annotations

import random

import pytest
from tokenfabric.core import isa, registers
from tokenfabric.core.isa import FIELDS, OPERATIONS, Dest, Instruction, Op, Unit


def _random(rng: random.Random) -> Instruction:
    values = {name: rng.getrandbits(width) for name, width in FIELDS}
    return Instruction(**{**values, "op": rng.choice(list(Op))})


def test_encode_and_decode_are_inverse():
    rng = random.Random(0)
    for _ in range(300):
        instruction = _random(rng)
        data = isa.encode(instruction)
        assert len(data) == isa.INSTRUCTION_BYTES and isa.decode(data) == instruction


def test_fields_stand_where_the_table_says():
    at = 0
    for name, width in FIELDS:
        if name != "op":
            top = isa.encode(Instruction(op=Op.END, **{name: (1 << width) - 1}))
            assert int.from_bytes(top, "little") == ((1 << width) - 1) << at
        at += width


@pytest.mark.parametrize(("name", "width"), [f for f in FIELDS if f[0] != "op"])
@pytest.mark.parametrize("below", [True, False])
def test_values_that_do_not_fit_are_refused_by_name(name, width, below):
    value = -1 if below else 1 << width
    text = f"MATMUL.{name} = {value} does not fit in {width} unsigned bits"
    with pytest.raises(ValueError, match=text):
        isa.encode(Instruction(op=Op.MATMUL, **{name: value}))


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError):
        isa.decode(bytes([15] + [0] * 31))


def test_every_operation_reads_fields_that_exist_and_is_documented():
    names = {name for name, _ in FIELDS}
    assert set(OPERATIONS) == set(Op) and set(isa.FIELD_DOC) == names
    for used, text in ((row.fields, row.doc) for row in OPERATIONS.values()):
        assert set(used.split()) <= names and text.endswith(".")


def test_disassembly_shows_what_the_operation_reads():
    instruction = Instruction(
        op=Op.MATMUL, k=12, n=6, mode=Dest.RES, wait=Unit.VECTOR | Unit.EMBED, heads=3
    )
    text = isa.disassemble(instruction)
    assert text.startswith("matmul  src=0 ") and " k=12 n=6 to=RES " in text
    assert text.endswith("wait=VECTOR|EMBED") and "heads" not in text


def test_registers_do_not_overlap_and_are_found_by_name():
    offsets = [register.offset for register in registers.REGISTERS]
    assert offsets == sorted(set(offsets)) and all(at % 4 == 0 for at in offsets)
    for register in registers.REGISTERS:
        assert registers.offset(register.name) == register.offset
        used = 0
        for lsb, bits in register.fields.values():
            mask = ((1 << bits) - 1) << lsb
            assert not used & mask and mask < 1 << 32
            used |= mask
