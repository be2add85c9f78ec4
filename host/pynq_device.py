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
import queue
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pynq
from tokenfabric.core import registers
from tokenfabric.core.boards import VLNV
from tokenfabric.core.config import PRESETS, FabricConfig, preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import Image, check_windows
from tokenfabric.core.registers import State
from tokenfabric.host.device import DeviceLost, DeviceTimeout
from tokenfabric.host.driver import RegisterDevice

__all__ = ["Board", "Caller", "PynqBus", "TokenFabricIP"]

ANSWER_SECONDS = 20.0  # for one call of a remote board, unless the user says otherwise
SLOWEST = 1e6  # bytes per second of its network
POLL_SECONDS = 0.001
INTERRUPT_SECONDS = 0.1  # then the registers are looked at
ADDRESS_LIMIT = 1 << 32  # the memory ports have 32 address bits
MIB = 1 << 20


class TokenFabricIP(pynq.DefaultIP):
    """What pynq binds to our IP; ``register_map`` has all registers with their fields."""

    bindto = [VLNV]  # noqa: RUF012  pynq reads a list


class Caller:
    """Makes the calls of a remote board in a thread of its own, so that each has a deadline.

    A call that fails raises DeviceLost. One that does not return within ``deadline`` seconds does,
    too, and ends the connection with ``hang_up``; every later call then raises the same at once.
    """

    def __init__(self, name: str, deadline: float, hang_up: Callable[[], None]):
        self.name, self.deadline, self._hang_up = name, deadline, hang_up
        self._lost = ""
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name=name).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments, answer = call
            try:
                answer.put((function(*arguments), None))
            except BaseException as error:  # whatever it is, the caller must get it
                answer.put((None, error))

    def __call__(self, function: Callable, *arguments: Any, moved: int = 0) -> Any:
        """``function(*arguments)``; ``moved``: bytes that it moves."""
        if self._lost:
            raise DeviceLost(self._lost)
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((function, arguments, answer))
        seconds = self.deadline + moved / SLOWEST
        try:
            result, error = answer.get(timeout=seconds)
        except queue.Empty:
            self._lost = (
                f"{self.name} has not answered for {seconds:g} s; check its power and its "
                "network, then open it again"
            )
            self._hang_up()  # or the thread would wait in there for ever, even when Python ends
            raise DeviceLost(self._lost) from None
        if error is None:
            return result
        gone = hasattr(error, "code")  # an error of gRPC; else the board said what is wrong
        what = f"does not answer any more ({_reason(error)})" if gone else f"says: {_reason(error)}"
        raise DeviceLost(f"{self.name} {what}; open it again") from error

    def close(self) -> None:
        """Ends the thread after the calls that wait."""
        self._lost = self._lost or f"{self.name} has been closed; open it again"
        self._calls.put(None)


def _here(function: Callable, *arguments: Any, moved: int = 0) -> Any:
    """The Caller of a board that this program runs on: a call cannot get lost."""
    return function(*arguments)


def _reason(error: BaseException) -> str:
    """One line. Errors of gRPC print many; their ``details()`` is one."""
    details = getattr(error, "details", None)
    text = str(details() if callable(details) else error) or type(error).__name__
    return text.splitlines()[0]


class PynqBus:
    """Registers and two buffers of a board, as ``host.driver.Bus``.

    ``sizes``: bytes of the bulk window and of the job window. UserError if the board has no such
    memory, or none that the ports can address.
    """

    def __init__(self, ip: Any, sizes: Sequence[int], call: Callable = _here):
        self._ip, self._call = ip, call
        # PYNQ cannot wait for the interrupts of a remote board.
        self._interrupt = getattr(ip, "irq", None) if call is _here else None
        self._loop = _event_loop() if self._interrupt is not None else None
        self._buffers: list[Any] = []
        self._closed = False
        self.bases: list[int] = []
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
        self.bases.append(base)
        self._memory.append(np.asarray(buffer))

    @property
    def memory(self) -> list[np.ndarray]:
        """The buffers; DeviceLost if they have been given back."""
        if self._closed:
            raise DeviceLost(
                "the memory of this model was given back when the board was closed or took "
                "another model; load it again"
            )
        return self._memory

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

    def close(self) -> None:
        """Give the buffers back. That a board is gone does not matter any more."""
        self._closed, self._memory = True, []
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            try:
                self._call(buffer.freebuffer)
            except DeviceLost:
                buffer.freed = True  # or its destructor calls, too


def _cma(device: Any) -> tuple[int, int] | None:
    """MiB of contiguous memory that are free, and in all."""
    try:
        if device.capabilities.get("REMOTE"):
            text = device.read_file("/proc/meminfo").decode()
        else:
            text = Path("/proc/meminfo").read_text(encoding="ascii")
        values = dict(line.split(":") for line in text.splitlines())
        free, total = (int(values[name].split()[0]) >> 10 for name in ("CmaFree", "CmaTotal"))
    except Exception:  # it is only a hint, and every kind of board has its own ways to fail
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
    it is already programmed, by this file). preset: of the accelerator, if it is not one of ours;
    ``config`` is found by the fingerprint. deadline: seconds that a remote board may take for an
    answer. UserError for no board, a missing or wrong bitstream, a map that is not this version's,
    an accelerator that is busy; DeviceLost if the board is gone, then and later.

    Who opens a board with ``download`` takes it, whatever another program is doing with it; that
    program gets a DeviceLost.
    """

    def __init__(
        self,
        bitfile: str | Path,
        *,
        address: str | None = None,
        download: bool = True,
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
        self._call: Callable = _here
        self.title = str(device.name)  # a virtual one says that it is
        self._held: tuple[RegisterDevice, PynqBus] | None = None
        if self.remote:
            self._call = Caller(self.name, deadline, device.client.channel.close)
            # pynq keeps files beside its own code, shared by all boards
            device.gen_cache = lambda *_, **__: None
        atexit.register(self.close)
        try:
            self.overlay = self._load(path, download, device)
            self.ip = self._find(path)
            self._check_map(path)
            bus = PynqBus(self.ip, (), self._call)
            self._read = lambda name: bus.read32(registers.offset(name))
            self.config = self._identify(preset)
            self._check_idle()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Board {self.title}, accelerator {self.config.name}>"

    def _load(self, path: Path, download: bool, device: Any) -> Any:
        """The overlay. What pynq raises says little; whether the board is gone is asked again."""

        def attempt() -> Any:
            return pynq.Overlay(str(path), download=download, device=device)

        try:
            return self._call(attempt, moved=path.stat().st_size)
        except Exception as error:
            if self.remote:
                self._call(device.exists_file, "/proc/version")
            why = _reason(error.__cause__ or error)
            raise UserError(f"{path}: PYNQ cannot load it ({why}); build it again") from None

    def _find(self, path: Path) -> Any:
        kinds = {name: entry["type"] for name, entry in self.overlay.ip_dict.items()}
        for name, kind in kinds.items():
            if kind == VLNV:
                return self._call(getattr, self.overlay, name)
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

    def _identify(self, name: str | None) -> FabricConfig:
        found = f"{self._read('FINGERPRINT_HI') << 32 | self._read('FINGERPRINT_LO'):016x}"
        if self._read("IDENT") != registers.IDENT:
            raise UserError(
                "the board is not programmed with this bitstream; open with download=True"
            )
        for config in PRESETS.values() if name is None else [preset(name)]:
            if config.fingerprint == found:
                return config
        raise UserError(
            f"the accelerator's fingerprint is {found}, not that of {name or 'any preset'}; build "
            "the bitstream with the version of tokenfabric that you run, or name its preset file"
        )

    def _check_idle(self) -> None:
        if self._read("STATUS") == State.RUNNING:
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

    def device(self, image: Image, dumped_logits: int = 0) -> RegisterDevice:
        """A device with memory for the image; it takes the place of the one before. UserError for
        more than the board has."""
        sizes = image.memory(dumped_logits)
        check_windows(self.config, sizes)
        self._release()
        self._check_idle()
        bus = PynqBus(self.ip, sizes, self._call)
        try:
            device = RegisterDevice(bus)
        except BaseException:
            bus.close()
            raise
        self._held = device, bus
        return device

    def _release(self) -> None:
        """End what is running, and only then give its memory back."""
        if self._held is None:
            return
        (device, bus), self._held = self._held, None
        try:
            device.reset()
        except (DeviceLost, DeviceTimeout):
            pass
        finally:
            bus.close()

    def close(self) -> None:
        """End the run, free the buffers. The bitstream stays."""
        atexit.unregister(self.close)
        self._release()
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
            f"no board {where}: {_reason(error)}; check its address and that it has started, or "
            "run one with 'tokenfabric board kv260'"
        ) from None
    pynq.Device.active_device = device
    # pynq keeps the clock registers of the first board it met, also when that was started anew.
    pynq.Clocks.device = device
    if "_real_instance" in vars(pynq.Clocks):
        del pynq.Clocks._real_instance
    return device
