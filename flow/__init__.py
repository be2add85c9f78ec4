"""From the hardware description to Verilog, netlists and bitstreams."""
