"""Generated files are what their generators write."""

import json
import re

from conftest import ROOT
from tokenfabric.core import isa, registers
from tokenfabric.core.config import preset
from tokenfabric.flow.gates import librelane_config

from tokenfabric.docs import isa_page


def test_the_isa_page_is_up_to_date():
    text = (ROOT / "docs" / "isa.md").read_text(encoding="utf-8")
    assert text == isa_page(), "run: python -m tokenfabric.docs > docs/isa.md"


def test_the_isa_page_is_complete():
    page = isa_page()
    tables = [isa.FIELDS, isa.DESCRIPTOR, isa.ROW]
    names = [entry[0] for table in tables for entry in table]
    names += [register.name for register in registers.REGISTERS]
    assert all(f"`{name}`" in page for name in names)
    assert all(f"{op.value} {op.name}" in page for op in isa.Op)


def section(page: str, op: isa.Op) -> str:
    _, _, rest = page.partition(f"### {op.value} {op.name}\n")
    return rest.partition("\n#")[0]


def test_the_isa_page_says_which_hardware_each_operation_takes():
    page = isa_page()
    for op in isa.Op:
        row = isa.OPERATIONS[op]
        (line,) = (text for text in section(page, op).splitlines() if text.startswith("Unit: "))
        before, _, after = line.partition("Whatever `wait` says")
        told = set(re.findall(r"`(\w+)`", before))
        assert told == {name for name in (row.unit.name, *(p.name for p in row.parts)) if name}
        assert set(re.findall(r"`(\w+)`", after)) == {
            u.name for u in isa.Unit if u in isa.shares(op)
        }
    assert "waits until `ARRAY` and `ATTENTION` are idle" in section(page, isa.Op.LOAD)
    assert "Unit: none" in section(page, isa.Op.END)
    assert all(f"| `{part.name}` | {part.value} |" in page for part in isa.Part)


def test_the_isa_page_says_where_the_job_descriptor_is():
    assert f"words at device address {isa.JOB:#x}," in isa_page()


def test_the_config_of_a_chip_is_up_to_date():
    text = (ROOT / "bitstreams" / "asic" / "config.json").read_text(encoding="utf-8")
    config = librelane_config(preset("pynq-z2"))
    assert json.loads(text) == config, (
        "run: python -m tokenfabric.flow.gates > bitstreams/asic/config.json"
    )
