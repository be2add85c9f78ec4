"""The accelerator on a board, through ``pynq``: on the board itself, on a remote or a virtual one.

Works with pynq 4.0 (Zynq UltraScale+, local and remote) and 3.x (also Zynq-7000). What the versions
and the two kinds of device have in common is all that is used: whole buffers are flushed and
invalidated, addresses come from whole buffers, registers are written as Python integers.
Importing this module imports ``pynq``, which reads ``PYNQ_REMOTE_DEVICES`` then.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from tokenfabric.core import registers
from tokenfabric.core.boards import VLNV
from tokenfabric.core.config import PRESETS, FabricConfig, preset
from tokenfabric.core.errors import UserError, note
from tokenfabric.core.image import Image, check_windows
from tokenfabric.core.registers import State
from tokenfabric.host.calls import Caller, here, reason
from tokenfabric.host.device import DeviceLost, DeviceTimeout
from tokenfabric.host.driver import RegisterDevice, settle

__all__ = ["Board", "PynqBus", "TokenFabricIP"]

ANSWER_SECONDS = 20.0  # for one call of a remote board, unless the user says otherwise
POLL_SECONDS = 0.001
INTERRUPT_SECONDS = 0.1  # then the registers are looked at
ADDRESS_LIMIT = 1 << 32  # the memory ports have 32 address bits
HEARTBEAT_SECONDS = 0.5  # of a program that is dead, the accelerator goes on for so long
FLAGS = "/sys/class/fpga_manager/fpga0/flags"
KERNEL_FLAGS = 0xFFFF  # all that the kernel knows is among these
PORT_BYTES = 4096  # of registers
MIB = 1 << 20
_kept: list[Any] = []  # buffers that are not safe to free


class TokenFabricIP(pynq.DefaultIP):
    """What pynq binds to our IP; ``register_map`` has all registers with their fields."""

    bindto = [VLNV]  # noqa: RUF012  pynq reads a list


class PynqBus:
    """Registers and two buffers of a board, as ``host.driver.Bus``.

    ``sizes``: bytes of the bulk window and of the job window. UserError if the board has no such
    memory, or none that the ports can address.
    """

    def __init__(self, ip: Any, sizes: Sequence[int], call: Callable = here):
        self._ip, self._call = ip, call
        # PYNQ cannot wait for the interrupts of a remote board.
        self._interrupt = getattr(ip, "irq", None) if call is here else None
        self._loop = _event_loop() if self._interrupt is not None else None
        self._buffers: list[Any] = []
        self._closed = False
        self._bases: list[int] = []
        self._memory: list[np.ndarray] = []
        try:
            for size in sizes:
                self._allocate(size)
        except BaseException:
            self.close()
            raise

    def _allocate(self, size: int) -> None:
        """One more buffer. Only when asked for its address, a remote board says there is none."""

        def attempt() -> tuple[Any, int]:
            buffer = pynq.allocate((size,), "u1", target=self._ip.device)
            return buffer, int(buffer.physical_address)

        try:
            buffer, base = self._call(attempt)
        except Exception:
            self.read32(registers.offset("IDENT"))  # DeviceLost if it is not the memory
            found = self._call(_cma, self._ip.device)
            there = f" ({found[0]} of {found[1]} MiB are free)" if found else ""
            remedy = "boot with a larger cma="
            if found is None or size <= found[1] * MIB:
                remedy = (
                    "close what else uses it, restart the board if killed programs have left "
                    "theirs behind, or " + remedy
                )
            raise UserError(
                f"the board has no {size / MIB:.1f} MiB of contiguous memory left{there}; {remedy}"
            ) from None
        self._buffers.append(buffer)
        if base + size > ADDRESS_LIMIT:
            raise UserError(
                f"the board allocated {size / MIB:.1f} MiB at {base:#x}, the accelerator addresses "
                f"memory below {ADDRESS_LIMIT:#x}; boot with cma=<size>@<address below it>"
            )
        self._bases.append(base)
        self._memory.append(np.asarray(buffer))

    @property
    def bases(self) -> list[int]:
        """Addresses of the buffers; DeviceLost if they have been given back."""
        self._check_open()
        return self._bases

    @property
    def memory(self) -> list[np.ndarray]:
        """The buffers; DeviceLost if they have been given back."""
        self._check_open()
        return self._memory

    def _check_open(self) -> None:
        if self._closed:
            raise DeviceLost(
                "the memory of this model was given back when the board was closed or took "
                "another model; load it again"
            )

    def read32(self, offset: int) -> int:
        """A register."""
        return int(self._call(self._ip.read, offset)) & 0xFFFFFFFF

    def write32(self, offset: int, value: int) -> None:
        """Set a register."""
        self._call(self._ip.write, offset, int(value) & 0xFFFFFFFF)

    def flush(self, window: int) -> None:
        """Make what the host wrote visible to the accelerator."""
        self._call(self._buffers[window].flush, moved=self.memory[window].size)

    def invalidate(self, window: int) -> None:
        """Make what the accelerator wrote visible to the host."""
        self._call(self._buffers[window].invalidate, moved=self.memory[window].size)

    def advance(self) -> None:
        """Wait for the interrupt if there is one and this thread can, else a moment."""
        if self._interrupt is None or not _wait(self._interrupt, self._loop):
            time.sleep(POLL_SECONDS)

    def close(self, *, keep: bool = False) -> None:
        """Give the buffers back. That a board is gone does not matter any more.

        keep: do not, because the accelerator may yet write to them.
        """
        self._closed, self._memory = True, []
        while self._buffers:  # what an interruption leaves, the next call frees
            buffer = self._buffers[-1]
            try:
                if not keep:
                    self._call(buffer.freebuffer)
            except DeviceLost:
                keep = True
            if keep:
                buffer.freed = True  # or its destructor does it
                _kept.append(buffer)
            self._buffers.pop()


def _read_file(device: Any, path: str) -> str:
    """A file of the board's; empty if it has none."""
    try:
        if device.capabilities.get("REMOTE"):
            return device.read_file(path).decode()
        return Path(path).read_text(encoding="ascii")
    except Exception:  # every kind of board has its own ways to fail
        return ""


def _write_file(device: Any, path: str, text: str) -> None:
    if device.capabilities.get("REMOTE"):
        device.write_file(path, text.encode())
    else:
        Path(path).write_text(text, encoding="ascii")


# Whether one of our accelerators is in the fabric cannot be found out by reading: where nothing
# answers, a Zynq hangs. What PYNQ keeps about the last bitstream does not tell either: its files
# outlive a power cycle, are written before the fabric is, or without, and those about a remote
# board lie with each of its users. But before every download, full or partial, PYNQ writes the
# flags of the kernel's FPGA manager, which are 0 after power-up. So the driver, when it has seen
# its accelerator answer, leaves the address of the control port in them, of which the kernel
# knows no bit: it is the mark of a fabric that nobody has programmed since.


def _mark(device: Any, address: int) -> None:
    with suppress(Exception):  # then it is as if another had programmed the board
        if not address & KERNEL_FLAGS:
            _write_file(device, FLAGS, f"{address:x}")


def _marked(device: Any) -> int | None:
    """The address of the control port of ours that is in the fabric, as far as is known."""
    try:
        flags = int(_read_file(device, FLAGS), 16)
    except ValueError:
        return None
    return flags if flags > KERNEL_FLAGS and not flags & KERNEL_FLAGS else None


def _cma(device: Any) -> tuple[int, int] | None:
    """MiB of contiguous memory that are free, and in all."""
    try:
        lines = _read_file(device, "/proc/meminfo").splitlines()
        values = dict(line.split(":") for line in lines)
        free, total = (int(values[name].split()[0]) >> 10 for name in ("CmaFree", "CmaTotal"))
    except (KeyError, ValueError):  # it is only a hint
        return None
    return free, total


def _event_loop() -> asyncio.AbstractEventLoop:
    """The loop on which pynq's interrupts arrive: that of the thread which made them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return asyncio.get_event_loop()


def _wait(interrupt: Any, loop: Any) -> bool:
    """Wait for an interrupt, at most INTERRUPT_SECONDS; False if this thread must not.

    In a notebook the loop runs in the main thread: other threads can wait for it, that one cannot.
    """
    try:
        asyncio.get_running_loop()
        return False
    except RuntimeError:
        if loop.is_closed():
            return False

    async def news() -> None:
        await asyncio.wait_for(interrupt.wait(), INTERRUPT_SECONDS)

    try:
        if loop.is_running():
            waiting = asyncio.run_coroutine_threadsafe(news(), loop)
            try:
                waiting.result(2 * INTERRUPT_SECONDS)  # the loop may have other things to do
            finally:
                waiting.cancel()
        else:
            loop.run_until_complete(news())
    except (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError):
        pass
    return True


class Board:
    """A board with our bitstream: ``with Board("tokenfabric.bit") as board:``

    bitfile: the .bit; its .hwh stands beside it. address: of a remote board, as it would stand in
    PYNQ_REMOTE_DEVICES; by default the board that PYNQ finds. download: program the board (False:
    it is already programmed, by this file). take: whatever another program is doing with it; that
    program then gets a DeviceLost. preset: of the accelerator, if it is not one of ours; ``config``
    is found by the fingerprint. deadline: seconds that a remote board may take for an answer.
    UserError for no board, a missing or wrong bitstream, a map that is not this version's, an
    accelerator that is busy; DeviceLost if the board is gone, then and later; DeviceTimeout if the
    one in the fabric has bursts in flight that do not end.

    A run is ended before its fabric is programmed, if this driver opened the board that it is on:
    programming does not reset the processor's ports, and what it cuts off is theirs for ever.
    """

    def __init__(
        self,
        bitfile: str | Path,
        *,
        address: str | None = None,
        download: bool = True,
        take: bool = True,
        preset: str | None = None,
        deadline: float = ANSWER_SECONDS,
    ):
        path = Path(bitfile)
        for file in (path, path.with_suffix(".hwh")):
            if not file.is_file():
                raise UserError(f"{file}: no such file; build it with 'tokenfabric bitstream'")
        device = _find_device(address)
        self.remote = bool(device.capabilities.get("REMOTE"))
        self.name = f"the board at {device.ip_addr}" if self.remote else "this board"
        self._call: Callable = here
        self.title = str(device.name)  # a virtual one says that it is
        self._held: tuple[RegisterDevice, PynqBus] | None = None
        if self.remote:
            self._call = Caller(self.name, deadline, device.client.channel.close)
            # pynq keeps files beside its own code, shared by all boards
            device.gen_cache = lambda *_, **__: None
        atexit.register(self.close)
        try:
            if download:
                self._quieten(device, take)
            self.overlay = self._load(path, download, device)
            self.ip, place = self._find(path)
            self._bus = PynqBus(self.ip, (), self._call)
            self.config = self._identify(path, preset)
            self._call(_mark, device, place)
            self._check_idle(self._bus)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Board {self.title}, accelerator {self.config.name}>"

    def _quieten(self, device: Any, take: bool) -> None:
        """End the run of the accelerator that is in the fabric, as far as one is known to be."""
        address = self._call(_marked, device)
        if address is None:
            return
        port = self._call(lambda: pynq.MMIO(address, PORT_BYTES, device=device))
        bus = PynqBus(port, (), self._call)
        try:
            if bus.read32(registers.offset("IDENT")) != registers.IDENT:
                return
        except DeviceLost:  # nothing answers there; or nothing at all, which the next call says
            return
        if not take:
            self._check_idle(bus)
        settle(bus)

    def _load(self, path: Path, download: bool, device: Any) -> Any:
        """The overlay. What pynq raises says little; whether the board is gone is asked again."""

        def attempt() -> Any:
            return pynq.Overlay(str(path), download=download, device=device)

        try:
            return self._call(attempt, moved=path.stat().st_size)
        except Exception as error:
            if self.remote:
                self._call(device.exists_file, "/proc/version")
            why = reason(error.__cause__ or error)
            raise UserError(f"{path}: PYNQ cannot load it ({why}); build it again") from None

    def _find(self, path: Path) -> tuple[Any, int]:
        """The accelerator and where its control port is."""
        for name, entry in self.overlay.ip_dict.items():
            if entry["type"] == VLNV:
                return self._call(getattr, self.overlay, name), int(entry["phys_addr"])
        raise UserError(f"{path}: holds no {VLNV}; give a bitstream of this version of tokenfabric")

    def _check_map(self, path: Path) -> None:
        """pynq may know the registers from an older file of the same name."""
        found = self.ip._registers or {}
        for register in registers.REGISTERS:
            known = found.get(register.name, {}).get("address_offset")
            if known != register.offset:
                raise UserError(
                    f"{path.with_suffix('.hwh')}: {register.name} is at {known} instead of "
                    f"{register.offset:#x}; use the .hwh that was written with the .bit; if it "
                    "is, delete pynq/pl_server/_current_metadata.pkl"
                )

    def _read(self, name: str) -> int:
        return self._bus.read32(registers.offset(name))

    def _identify(self, path: Path, name: str | None) -> FabricConfig:
        if self._read("IDENT") != registers.IDENT:
            raise UserError(
                "the board is not programmed with this bitstream; open with download=True"
            )
        if (abi := self._read("ABI")) != registers.ABI_VERSION:
            raise UserError(
                f"{path}: has an accelerator of ABI version {abi}, this software has "
                f"{registers.ABI_VERSION}; build it again with 'tokenfabric bitstream'"
            )
        self._check_map(path)
        found = f"{self._read('FINGERPRINT_HI') << 32 | self._read('FINGERPRINT_LO'):016x}"
        for config in PRESETS.values() if name is None else [preset(name)]:
            if config.fingerprint == found:
                return config
        raise UserError(
            f"the accelerator's fingerprint is {found}, not that of {name or 'any preset'}; build "
            "the bitstream with the version of tokenfabric that you run, or name its preset file"
        )

    def _check_idle(self, bus: PynqBus) -> None:
        if bus.read32(registers.offset("STATUS")) == State.RUNNING:
            raise UserError(
                "the accelerator is at work for another program; wait for its end, or end it by "
                "opening the board with download=True"
            )

    def clocks(self) -> tuple[float | None, float]:
        """MHz of the processor's first fabric clock: as the bitstream wants it, as it is set."""
        processor = {"PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ", "PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ"}
        wanted = None
        for entry in self.overlay.ip_dict.values():
            parameters = entry.get("parameters") or {}
            for name in processor & set(parameters):
                wanted = float(getattr(parameters[name], "value", parameters[name]))
        return wanted, float(self._call(lambda: pynq.Clocks.fclk0_mhz))

    def free_memory(self) -> tuple[int, int] | None:
        """MiB of contiguous memory: free, and in all; None if the board does not say."""
        return self._call(_cma, self.ip.device)

    def device(
        self, image: Image, dumped_logits: int = 0, *, heartbeat: int | None = None
    ) -> RegisterDevice:
        """A device with memory for the image; it takes the place of the one before.

        heartbeat: of :class:`RegisterDevice`, by default HEARTBEAT_SECONDS. UserError for more
        memory than the board has; DeviceTimeout if the accelerator does not let go of the memory
        before.
        """
        sizes = image.memory(dumped_logits)
        check_windows(self.config, sizes)
        self._release()
        self._check_idle(self._bus)
        if heartbeat is None:
            heartbeat = round(HEARTBEAT_SECONDS * self.config.clock_mhz * 1e6)
        bus = PynqBus(self.ip, sizes, self._call)
        try:
            device = RegisterDevice(bus, heartbeat=heartbeat)
        except BaseException:
            bus.close()  # no run has begun in it
            raise
        self._held = device, bus
        return device

    def _release(self) -> None:
        """End what is running, and only when nothing is in flight give its memory back."""
        if self._held is None:
            return
        device, bus = self._held
        try:
            device.release()
        except DeviceLost:  # the board is gone, or it is another program's, which has ended the run
            pass
        except DeviceTimeout:
            bus.close(keep=True)
            self._held = None
            raise
        bus.close()
        self._held = None

    def close(self) -> None:
        """End the run, free the buffers. The bitstream stays.

        Memory that the accelerator does not let go of stays allocated; a line on stderr says so.
        """
        try:
            self._release()
        except DeviceTimeout as error:
            note(f"its memory stays allocated: {error}")
        atexit.unregister(self.close)
        if isinstance(self._call, Caller):
            self._call.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _find_device(address: str | None) -> Any:
    """The device that pynq shall use from now on; UserError if there is none."""
    # Always a new connection: pynq keeps the first one for good, and none if that failed.
    address = address or os.environ.get("PYNQ_REMOTE_DEVICES", "").split(",")[0].strip()
    try:
        if not address:
            device = pynq.Device.active_device
        else:
            from pynq.pl_server.remote_device import RemoteDevice

            device = RemoteDevice(0, address)
    except Exception as error:
        where = f"at {address}" if address else "here (PYNQ_REMOTE_DEVICES is not set)"
        raise UserError(
            f"no board {where}: {reason(error)}; check its address and that it has started, or "
            "run one with 'tokenfabric board kv260'"
        ) from None
    pynq.Device.active_device = device
    # pynq keeps the clock registers of the first board it met, also when that was started anew.
    pynq.Clocks.device = device
    if "_real_instance" in vars(pynq.Clocks):
        del pynq.Clocks._real_instance
    return device
