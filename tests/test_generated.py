"""Generated files are what their generators write."""

import json

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


def test_the_config_of_a_chip_is_up_to_date():
    text = (ROOT / "bitstreams" / "asic" / "config.json").read_text(encoding="utf-8")
    config = librelane_config(preset("pynq-z2"))
    assert json.loads(text) == config, (
        "run: python -m tokenfabric.flow.gates > bitstreams/asic/config.json"
    )
