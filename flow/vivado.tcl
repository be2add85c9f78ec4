# Build the bitstream: vivado -mode batch -source build.tcl
#
# Exit code 0: NAME.bit, NAME.hwh and NAME.json stand beside this file. 1: they do not, except for
# the report of a design that was routed too slowly. NAME carries what the files were built from:
# PYNQ does not load a second file of the same name.
#
# The memory ports go straight to the processor's, without an interconnect: they have the protocol
# (AXI3 on Zynq-7000, AXI4 on UltraScale+), the widths and all the signals of S_AXI_HP, one master
# for each port, and bursts of at most 16 beats, which AXI3 can carry. So there is nothing to
# convert and nothing to arbitrate, and no latency or logic is spent on it. The address bits that
# the accelerator does not have are 0; AxCACHE is 0011 (modifiable, bufferable), AxPROT 000.
# No cache is coherent with that, not even on S_AXI_HPC: the driver flushes and invalidates.
#
# The processor is set up by the board's boot loader, long before the bitstream is loaded. Here only
# matters what it shows to the fabric, so the script does without the vendor's board files if they
# are not installed.

proc fail {text} {
    puts stderr "tokenfabric: error: $text"
    exit 1
}

# One step of a run, or the end.
proc finish {run args} {
    launch_runs $run {*}$args -jobs 4
    wait_on_run $run
    if {[get_property PROGRESS [get_runs $run]] ne "100%"} {
        fail "$run: [get_property STATUS [get_runs $run]]; see project/system.runs/$run/runme.log"
    }
}

# How many of a resource are used, from the table of report_utilization; null if it has no such row.
proc used {table row} {
    if {[regexp -line "^\\| *(?:$row)\\*? *\\| *(\[0-9.\]+) *\\|" $table -> count]} {
        return $count
    }
    return null
}

set here [file dirname [file normalize [info script]]]
create_project -force system [file join $here project] -part $part
set board_part [lindex [get_board_parts -quiet -latest_file_version $board_pattern] 0]
if {$board_part ne ""} {
    set_property board_part $board_part [current_project]
} else {
    puts "tokenfabric: no board files for $board_pattern; the processor keeps its defaults"
}
set_property ip_repo_paths [file join $here ip] [current_project]
update_ip_catalog
if {[llength [get_ipdefs -all $vlnv]] != 1} {
    fail "Vivado does not accept ip/component.xml: no $vlnv in its catalog"
}

# --- the block design: the processor's side -------------------------------------------------------

create_bd_design system
create_bd_cell -type ip -vlnv xilinx.com:ip:$ps_ip ps
set preset [list apply_board_preset [expr {$board_part ne ""}]]
apply_bd_automation -rule xilinx.com:bd_rule:$ps_ip -config [concat $ps_automation $preset] \
    [get_bd_cells ps]
set_property -dict $ps_settings [get_bd_cells ps]

create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset_0
connect_bd_net [get_bd_pins ps/$ps_reset] [get_bd_pins reset_0/ext_reset_in]
if {$pll} {
    create_bd_cell -type ip -vlnv xilinx.com:ip:clk_wiz pll_0
    set_property -dict [list CONFIG.PRIM_SOURCE No_buffer CONFIG.PRIM_IN_FREQ $ps_clock_mhz \
        CONFIG.CLKOUT1_REQUESTED_OUT_FREQ $clock_mhz CONFIG.USE_RESET false \
        CONFIG.USE_LOCKED true] [get_bd_cells pll_0]
    connect_bd_net [get_bd_pins ps/$ps_clock] [get_bd_pins pll_0/clk_in1]
    connect_bd_net [get_bd_pins pll_0/locked] [get_bd_pins reset_0/dcm_locked]
    set clock [get_bd_pins pll_0/clk_out1]
} else {
    set clock [get_bd_pins ps/$ps_clock]
}
set resetn [get_bd_pins reset_0/peripheral_aresetn]
connect_bd_net $clock [get_bd_pins reset_0/slowest_sync_clk]

# --- the accelerator, its control port and its interrupt ------------------------------------------

create_bd_cell -type ip -vlnv $vlnv $instance
create_bd_cell -type ip -vlnv xilinx.com:ip:axi_intc axi_intc_0
set_property CONFIG.C_IRQ_CONNECTION 1 [get_bd_cells axi_intc_0]
create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect control_0
set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 2 CONFIG.NUM_CLKS 1} [get_bd_cells control_0]
connect_bd_intf_net [get_bd_intf_pins ps/$ps_master] [get_bd_intf_pins control_0/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins control_0/M00_AXI] [get_bd_intf_pins $instance/s_axi_ctrl]
connect_bd_intf_net [get_bd_intf_pins control_0/M01_AXI] [get_bd_intf_pins axi_intc_0/s_axi]
connect_bd_net [get_bd_pins $instance/irq] [get_bd_pins axi_intc_0/intr]
connect_bd_net [get_bd_pins axi_intc_0/irq] [get_bd_pins ps/$ps_interrupt]
connect_bd_net $clock [get_bd_pins ps/$ps_master_clock] [get_bd_pins control_0/aclk] \
    [get_bd_pins $instance/clk] [get_bd_pins axi_intc_0/s_axi_aclk]
connect_bd_net $resetn [get_bd_pins control_0/aresetn] [get_bd_pins $instance/resetn] \
    [get_bd_pins axi_intc_0/s_axi_aresetn]
set processor [get_bd_addr_spaces ps/Data]
assign_bd_address -offset $control_base -range 4K -target_address_space $processor \
    [get_bd_addr_segs $instance/s_axi_ctrl/reg0]
assign_bd_address -offset $interrupt_base -range 4K -target_address_space $processor \
    [get_bd_addr_segs axi_intc_0/S_AXI/Reg]

# --- the memory ports -----------------------------------------------------------------------------

foreach {master slave slave_clock segment} $memory_ports {
    connect_bd_intf_net [get_bd_intf_pins $instance/$master] [get_bd_intf_pins ps/$slave]
    connect_bd_net $clock [get_bd_pins ps/$slave_clock]
    assign_bd_address -target_address_space [get_bd_addr_spaces $instance/$master] \
        [get_bd_addr_segs ps/$segment]
}

validate_bd_design
save_bd_design
set real_mhz [expr {[get_property CONFIG.FREQ_HZ [get_bd_pins $instance/clk]] / 1e6}]
if {abs($real_mhz - $clock_mhz) > 0.01 * $clock_mhz} {
    fail "the fabric gets $real_mhz MHz instead of $clock_mhz MHz"
}

# --- synthesis, place and route -------------------------------------------------------------------

set design [get_files system.bd]
set_property synth_checkpoint_mode None $design
generate_target all $design
add_files -norecurse [make_wrapper -files $design -top]
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
finish synth_1
finish impl_1 -to_step route_design

foreach figure {WNS TNS WHS THS TPWS FAILED_NETS} {
    set $figure [get_property STATS.$figure [get_runs impl_1]]
    if {![string is double -strict [set $figure]]} {
        fail "impl_1 tells no $figure ('[set $figure]')"
    }
}
set met [expr {$WNS >= 0 && $WHS >= 0 && $TPWS >= 0 && $FAILED_NETS == 0}]
open_run impl_1
set table [report_utilization -return_string]
close_design
set report [open [file join $here $name.json] w]
puts $report [subst -nobackslashes {{
  "name": "$name",
  "board": "$board",
  "part": "$part",
  "fingerprint": "$fingerprint",
  "sources_sha256": "$sources_sha256",
  "vivado": "[version -short]",
  "clock_mhz": $real_mhz,
  "met": [expr {$met ? "true" : "false"}],
  "wns_ns": $WNS,
  "whs_ns": $WHS,
  "tpws_ns": $TPWS,
  "unrouted_nets": $FAILED_NETS,
  "lut": [used $table "Slice LUTs|CLB LUTs"],
  "ff": [used $table "Slice Registers|CLB Registers"],
  "dsp": [used $table "DSPs"],
  "bram36": [used $table "Block RAM Tile"],
  "uram": [used $table "URAM"]
}}]
close $report
if {!$met} {
    fail "not met at $real_mhz MHz: WNS $WNS ns, WHS $WHS ns, TPWS $TPWS ns, $FAILED_NETS unrouted"
}

finish impl_1 -to_step write_bitstream
set handoff [glob -nocomplain -directory [file join $here project] \
    system.{gen,srcs}/sources_1/bd/system/hw_handoff/system.hwh]
if {[llength $handoff] == 0} {
    fail "Vivado wrote no system.hwh"
}
set bit [file join [get_property DIRECTORY [get_runs impl_1]] system_wrapper.bit]
file copy -force $bit [file join $here $name.bit]
file copy -force [lindex $handoff 0] [file join $here $name.hwh]
puts "tokenfabric: $name.bit, WNS $WNS ns at $real_mhz MHz"
