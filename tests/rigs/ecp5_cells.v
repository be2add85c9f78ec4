// Models of the ECP5 cells for which yosys has none, as far as designs here use them.
//
// Lattice, "ECP5 and ECP5-5G Memory Usage Guide", FPGA-TN-02204; "ECP5 and ECP5-5G sysDSP Usage
// Guide", FPGA-TN-02205; "ECP5 and ECP5-5G sysCLOCK PLL/DLL Design and Usage Guide", FPGA-TN-02200.
// Where a document leaves the result open, the model gives a wrong one, so that a design which
// depends on it fails.

// Block RAM: 1024 entries of 18 bits. A word of 9 bits is half an entry; narrower words leave the
// ninth bit of each half alone; one of 36 bits is two entries, written through port A and read
// through port B, its upper half on the other port's pins. No output registers, no chip selects.
module DP16KD(
  input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4,
  input DIA3, DIA2, DIA1, DIA0,
  input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
  input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
  output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4,
  output DOA3, DOA2, DOA1, DOA0,
  input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4,
  input DIB3, DIB2, DIB1, DIB0,
  input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
  input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
  output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4,
  output DOB3, DOB2, DOB1, DOB0
);
  parameter DATA_WIDTH_A = 18;
  parameter DATA_WIDTH_B = 18;
  parameter REGMODE_A = "NOREG";
  parameter REGMODE_B = "NOREG";
  parameter RESETMODE = "SYNC";
  parameter ASYNC_RESET_RELEASE = "SYNC";
  parameter CSDECODE_A = "0b000";
  parameter CSDECODE_B = "0b000";
  parameter WRITEMODE_A = "NORMAL";
  parameter WRITEMODE_B = "NORMAL";
  parameter CLKAMUX = "CLKA";
  parameter CLKBMUX = "CLKB";
  parameter GSR = "ENABLED";
  parameter [319:0] INITVAL_00 = 0;
  parameter [319:0] INITVAL_01 = 0;
  parameter [319:0] INITVAL_02 = 0;
  parameter [319:0] INITVAL_03 = 0;
  parameter [319:0] INITVAL_04 = 0;
  parameter [319:0] INITVAL_05 = 0;
  parameter [319:0] INITVAL_06 = 0;
  parameter [319:0] INITVAL_07 = 0;
  parameter [319:0] INITVAL_08 = 0;
  parameter [319:0] INITVAL_09 = 0;
  parameter [319:0] INITVAL_0A = 0;
  parameter [319:0] INITVAL_0B = 0;
  parameter [319:0] INITVAL_0C = 0;
  parameter [319:0] INITVAL_0D = 0;
  parameter [319:0] INITVAL_0E = 0;
  parameter [319:0] INITVAL_0F = 0;
  parameter [319:0] INITVAL_10 = 0;
  parameter [319:0] INITVAL_11 = 0;
  parameter [319:0] INITVAL_12 = 0;
  parameter [319:0] INITVAL_13 = 0;
  parameter [319:0] INITVAL_14 = 0;
  parameter [319:0] INITVAL_15 = 0;
  parameter [319:0] INITVAL_16 = 0;
  parameter [319:0] INITVAL_17 = 0;
  parameter [319:0] INITVAL_18 = 0;
  parameter [319:0] INITVAL_19 = 0;
  parameter [319:0] INITVAL_1A = 0;
  parameter [319:0] INITVAL_1B = 0;
  parameter [319:0] INITVAL_1C = 0;
  parameter [319:0] INITVAL_1D = 0;
  parameter [319:0] INITVAL_1E = 0;
  parameter [319:0] INITVAL_1F = 0;
  parameter [319:0] INITVAL_20 = 0;
  parameter [319:0] INITVAL_21 = 0;
  parameter [319:0] INITVAL_22 = 0;
  parameter [319:0] INITVAL_23 = 0;
  parameter [319:0] INITVAL_24 = 0;
  parameter [319:0] INITVAL_25 = 0;
  parameter [319:0] INITVAL_26 = 0;
  parameter [319:0] INITVAL_27 = 0;
  parameter [319:0] INITVAL_28 = 0;
  parameter [319:0] INITVAL_29 = 0;
  parameter [319:0] INITVAL_2A = 0;
  parameter [319:0] INITVAL_2B = 0;
  parameter [319:0] INITVAL_2C = 0;
  parameter [319:0] INITVAL_2D = 0;
  parameter [319:0] INITVAL_2E = 0;
  parameter [319:0] INITVAL_2F = 0;
  parameter [319:0] INITVAL_30 = 0;
  parameter [319:0] INITVAL_31 = 0;
  parameter [319:0] INITVAL_32 = 0;
  parameter [319:0] INITVAL_33 = 0;
  parameter [319:0] INITVAL_34 = 0;
  parameter [319:0] INITVAL_35 = 0;
  parameter [319:0] INITVAL_36 = 0;
  parameter [319:0] INITVAL_37 = 0;
  parameter [319:0] INITVAL_38 = 0;
  parameter [319:0] INITVAL_39 = 0;
  parameter [319:0] INITVAL_3A = 0;
  parameter [319:0] INITVAL_3B = 0;
  parameter [319:0] INITVAL_3C = 0;
  parameter [319:0] INITVAL_3D = 0;
  parameter [319:0] INITVAL_3E = 0;
  parameter [319:0] INITVAL_3F = 0;

  wire [17:0] dia = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6,
                     DIA5, DIA4, DIA3, DIA2, DIA1, DIA0};
  wire [17:0] dib = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6,
                     DIB5, DIB4, DIB3, DIB2, DIB1, DIB0};
  wire [13:0] ada = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2,
                     ADA1,
                     ADA0};
  wire [13:0] adb = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2,
                     ADB1,
                     ADB0};
  reg [17:0] doa = 0, dob = 0;
  assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5,
          DOB4,
          DOB3, DOB2, DOB1, DOB0} = dob;
  assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5,
          DOA4,
          DOA3, DOA2, DOA1, DOA0} = doa;

  // Where a word's lowest bit lies in its pair of entries.
  function [5:0] place(input integer width, input [13:0] ad);
    case (width)
      36: place = 0;
      18: place = ad[4] ? 18 : 0;
      9: place = (ad[4] ? 18 : 0) + (ad[3] ? 9 : 0);
      4: place = (ad[4] ? 18 : 0) + (ad[3] ? 9 : 0) + 4 * ad[2];
      2: place = (ad[4] ? 18 : 0) + (ad[3] ? 9 : 0) + 2 * ad[2:1];
      default: place = (ad[4] ? 18 : 0) + (ad[3] ? 9 : 0) + ad[2:0];
    endcase
  endfunction

  // The bits of a word that a write changes: words of 18 and 36 bits have enables in the address.
  function [35:0] lanes(input integer width, input [13:0] ad);
    case (width)
      36: lanes = {{9{ad[3]}}, {9{ad[2]}}, {9{ad[1]}}, {9{ad[0]}}};
      18: lanes = {{9{ad[1]}}, {9{ad[0]}}};
      default: lanes = (36'd1 << width) - 1;
    endcase
  endfunction

  localparam WIDE = DATA_WIDTH_A == 36;
  localparam [35:0] ALL_A = WIDE ? ~36'd0 : (36'd1 << DATA_WIDTH_A) - 1;
  localparam [35:0] ALL_B = DATA_WIDTH_B == 36 ? ~36'd0 : (36'd1 << DATA_WIDTH_B) - 1;
  localparam OLD_A = DATA_WIDTH_A == 9 || DATA_WIDTH_A == 18;  // read before write exists
  localparam OLD_B = DATA_WIDTH_B == 9 || DATA_WIDTH_B == 18;

  reg [35:0] pairs [0:511];
  integer i;
  reg [20479:0] init;
  initial begin
    init = {INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39,
            INITVAL_38, INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32,
            INITVAL_31, INITVAL_30, INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B,
            INITVAL_2A, INITVAL_29, INITVAL_28, INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24,
            INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20, INITVAL_1F, INITVAL_1E, INITVAL_1D,
            INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18, INITVAL_17, INITVAL_16,
            INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10, INITVAL_0F,
            INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
            INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01,
            INITVAL_00};
    for (i = 0; i < 512; i = i + 1)
      pairs[i] = {init[40 * i + 20 +: 18], init[40 * i +: 18]};
  end

  wire [5:0] at_a = place(DATA_WIDTH_A, ada), at_b = place(DATA_WIDTH_B, adb);
  wire write_a = CEA & WEA, write_b = CEB & WEB;
  wire [35:0] mask_a = write_a ? lanes(DATA_WIDTH_A, ada) << at_a : 36'd0;
  wire [35:0] mask_b = write_b ? lanes(DATA_WIDTH_B, adb) << at_b : 36'd0;
  wire [35:0] new_a = {WIDE ? dib : 18'd0, dia} << at_a, new_b = {18'd0, dib} << at_b;
  wire same = ada[13:5] == adb[13:5];
  // What the other port writes in the same cycle is not defined.
  wire [35:0] seen_a = pairs[ada[13:5]] ^ (same ? mask_b : 36'd0);
  wire [35:0] seen_b = pairs[adb[13:5]] ^ (same ? mask_a : 36'd0);

  wire clka = CLKAMUX == "INV" ? ~CLKA : CLKA, clkb = CLKBMUX == "INV" ? ~CLKB : CLKB;
  always @(posedge clka) begin
    if (write_a) pairs[ada[13:5]] <= (pairs[ada[13:5]] & ~mask_a) | (new_a & mask_a);
    if (RSTA) doa <= 0;
    else if (CEA && !WIDE) begin
      if (!WEA) doa <= (seen_a >> at_a) & ALL_A;
      else if (WRITEMODE_A == "READBEFOREWRITE")
        doa <= ((OLD_A ? seen_a : ~seen_a) >> at_a) & ALL_A;
      else if (WRITEMODE_A == "WRITETHROUGH") doa <= dia & ALL_A;
    end
    if (DATA_WIDTH_B == 36 && CEB) doa <= seen_b[17:0];
  end
  always @(posedge clkb) begin
    if (write_b) pairs[adb[13:5]] <= (pairs[adb[13:5]] & ~mask_b) | (new_b & mask_b);
    if (RSTB) dob <= 0;
    else if (CEB) begin
      if (DATA_WIDTH_B == 36) dob <= seen_b[35:18];
      else if (!WEB) dob <= (seen_b >> at_b) & ALL_B;
      else if (WRITEMODE_B == "READBEFOREWRITE")
        dob <= ((OLD_B ? seen_b : ~seen_b) >> at_b) & ALL_B;
      else if (WRITEMODE_B == "WRITETHROUGH") dob <= dib & ALL_B;
    end
  end
endmodule

// Multiplier of 18 x 18 bits with registers that can be left out. No C operand, no shift chains.
module MULT18X18D(
  input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
  input B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
  input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  input C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1, C0,
  input CLK3, CLK2, CLK1, CLK0, CE3, CE2, CE1, CE0, RST3, RST2, RST1, RST0,
  output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
  P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
  parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0";
  parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0";
  parameter REG_PIPELINE_CLK = "NONE", REG_PIPELINE_CE = "CE0", REG_PIPELINE_RST = "RST0";
  parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0";

  wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
  wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
  wire [18:0] a_used, b_used;  // with their signs
  wire signed [37:0] product = $signed(a_used) * $signed(b_used);
  wire [35:0] between, p;
  assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18,
          P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = p;

  wire [3:0] clk = {CLK3, CLK2, CLK1, CLK0}, ce = {CE3, CE2, CE1, CE0};
  wire [3:0] rst = {RST3, RST2, RST1, RST0};
  MULT18X18D_REG #(19, REG_INPUTA_CLK, REG_INPUTA_CE, REG_INPUTA_RST)
    input_a(clk, ce, rst, {SIGNEDA & a[17], a}, a_used);
  MULT18X18D_REG #(19, REG_INPUTB_CLK, REG_INPUTB_CE, REG_INPUTB_RST)
    input_b(clk, ce, rst, {SIGNEDB & b[17], b}, b_used);
  MULT18X18D_REG #(36, REG_PIPELINE_CLK, REG_PIPELINE_CE, REG_PIPELINE_RST)
    pipeline(clk, ce, rst, product[35:0], between);
  MULT18X18D_REG #(36, REG_OUTPUT_CLK, REG_OUTPUT_CE, REG_OUTPUT_RST)
    result(clk, ce, rst, between, p);
endmodule

// One of its registers: each chooses among four clocks, enables and (synchronous) resets.
module MULT18X18D_REG(
  input [3:0] clks, ces, rsts,
  input [WIDTH-1:0] d,
  output [WIDTH-1:0] q
);
  parameter WIDTH = 36;
  parameter CLK = "NONE", CE = "CE0", RST = "RST0";
  wire clk = CLK == "CLK3" ? clks[3] : CLK == "CLK2" ? clks[2] : CLK == "CLK1" ? clks[1] : clks[0];
  wire ce = CE == "CE3" ? ces[3] : CE == "CE2" ? ces[2] : CE == "CE1" ? ces[1] : ces[0];
  wire rst = RST == "RST3" ? rsts[3] : RST == "RST2" ? rsts[2] : RST == "RST1" ? rsts[1] : rsts[0];
  generate
    if (CLK == "NONE") assign q = d;
    else begin
      reg [WIDTH-1:0] held = 0;
      always @(posedge clk)
        if (rst) held <= 0;
        else if (ce) held <= d;
      assign q = held;
    end
  endgenerate
endmodule

// The PLL: its output is its input, since what is simulated is cycles, not time.
module EHXPLLL(
  input CLKI, CLKFB, RST, STDBY, PHASESEL1, PHASESEL0, PHASEDIR, PHASESTEP, PHASELOADREG,
  PLLWAKESYNC,
  input ENCLKOP, ENCLKOS,
  output CLKOP, CLKOS, LOCK
);
  parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 8, CLKOP_CPHASE = 0, CLKOP_FPHASE = 0;
  parameter CLKOS_DIV = 8, CLKOS_CPHASE = 0, CLKOS_FPHASE = 0;
  parameter CLKOP_ENABLE = "ENABLED", CLKOS_ENABLE = "ENABLED", FEEDBK_PATH = "CLKOP";
  assign CLKOP = CLKI;
  assign CLKOS = CLKI;
  assign LOCK = 1;
endmodule

// Two values per cycle. Nothing but the SDRAM's clock goes through it, so its delay is left out.
module ODDRX1F(input SCLK, RST, D0, D1, output Q);
  assign Q = SCLK ? D0 : D1;
endmodule

// Onto the clock network.
module DCCA(input CLKI, output CLKO);
  assign CLKO = CLKI;
endmodule
