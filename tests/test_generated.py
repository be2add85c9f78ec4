"""Generated files are what their generators write."""

from conftest import ROOT

from tokenfabric import isa, registers
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
