"""The row table: what each row of a step is."""

from __future__ import annotations

from amaranth.hdl import Module, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import isa
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.layouts import index_shape, row_record
from tokenfabric.rtl.memory import Ram, write_port

__all__ = ["RowTable", "WantTable", "changed_beats", "row_beats", "row_port", "want_entry"]


def row_beats(cfg: FabricConfig) -> int:
    """Beats of a port that a row of the table takes."""
    return isa.ROW_WORDS * 4 // cfg.port_bytes


def changed_beats(cfg: FabricConfig) -> list[int]:
    """Those in which something is different in the next step."""
    names, words = [name for name, _ in isa.ROW], cfg.port_bytes // 4
    return sorted({names.index(name) // words for name in ("token", "position", "kv_row")})


def row_port(cfg: FabricConfig) -> wiring.Signature:
    """The write port of the row table, from the writer's side."""
    return write_port((cfg.max_rows * row_beats(cfg) - 1).bit_length(), 8 * cfg.port_bytes)


class RowTable(wiring.Component):
    """``max_rows`` rows of ``isa.ROW``, written a beat at a time, read combinationally.

    Members: ``w`` (In; addr counts beats, from row to row), ``index_0 ..`` (In) and ``row_0 ..``
    (Out), one pair per reader.
    """

    def __init__(self, cfg: FabricConfig, readers: int):
        self.cfg, self.readers = cfg, readers
        ports = {"w": In(row_port(cfg))}
        for i in range(readers):
            ports[f"index_{i}"] = In(index_shape(cfg))
            ports[f"row_{i}"] = Out(row_record(cfg))
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        beats = row_beats(self.cfg)
        low = (beats - 1).bit_length()
        for reader in range(self.readers):
            words = []
            for beat in range(beats):
                ram = Ram(self.cfg.max_rows, len(self.w.data), comb=True)
                m.submodules[f"ram_{reader}_{beat}"] = ram
                m.d.comb += [
                    ram.w.en.eq(self.w.en & (self.w.addr[:low] == beat)),
                    ram.w.addr.eq(self.w.addr[low:]),
                    ram.w.data.eq(self.w.data),
                    ram.r.addr.eq(getattr(self, f"index_{reader}")),
                ]
                words += [ram.r.data[at : at + 32] for at in range(0, len(self.w.data), 32)]
            row = getattr(self, f"row_{reader}")
            for (name, _), word in zip(isa.ROW, words):
                if name != "reserved":
                    m.d.comb += row[name].eq(word)
        return m


def want_entry(cfg: FabricConfig) -> data.StructLayout:
    """The n-th row that wants logits: its number, and where its logits go if they are dumped."""
    return data.StructLayout({"row": index_shape(cfg), "dump": unsigned(1), "addr": unsigned(32)})


class WantTable(wiring.Component):
    """The rows that want logits, in order. Members: ``en``, ``addr``, ``entry`` (In), and one pair
    per reader: ``index_0 ..`` (In), ``entry_0 ..`` (Out, combinational)."""

    def __init__(self, cfg: FabricConfig, readers: int):
        self.cfg, self.readers = cfg, readers
        ports = {"en": In(1), "addr": In(index_shape(cfg)), "entry": In(want_entry(cfg))}
        for i in range(readers):
            ports[f"index_{i}"] = In(index_shape(cfg))
            ports[f"entry_{i}"] = Out(want_entry(cfg))
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        for i in range(self.readers):
            ram = Ram(self.cfg.max_rows, want_entry(self.cfg).size, comb=True)
            m.submodules[f"ram_{i}"] = ram
            m.d.comb += [
                ram.w.en.eq(self.en),
                ram.w.addr.eq(self.addr),
                ram.w.data.eq(self.entry),
                ram.r.addr.eq(getattr(self, f"index_{i}")),
                getattr(self, f"entry_{i}").as_value().eq(ram.r.data),
            ]
        return m
