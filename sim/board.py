"""A virtual board: a server that PYNQ talks to as to a remote one, over its gRPC protocol.

The messages are those of the installed ``pynq``; its Python code is not imported by the server. One
process is one board. ``virtual_board`` starts one and waits until it answers.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenfabric.host.handoff import bitfile, handoff
from tokenfabric.sim.board_model import BoardFault, BoardModel

from tokenfabric.boards import BoardSpec
from tokenfabric.config import FabricConfig
from tokenfabric.errors import UserError

__all__ = ["PORT", "VirtualBoard", "serve", "virtual_board", "write_design"]

PORT = 7967  # the one that PYNQ dials
CHUNK = 4_000 << 10  # of an answer: gRPC's limit is 4 MiB
START_SECONDS = 300.0  # the first time the simulator must be built


def write_design(folder: Path, spec: BoardSpec, cfg: FabricConfig) -> Path:
    """The ``.bit`` and ``.hwh`` of the virtual board; the path of the first."""
    hwh = handoff(spec, cfg, gpio=True)
    # The name has the fingerprint: PYNQ sends no file whose name the board already has.
    path = folder / f"tokenfabric-{spec.name}-{cfg.fingerprint}.bit"
    folder.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".hwh").write_text(hwh, encoding="utf-8")
    path.write_bytes(bitfile(spec, cfg, hwh))
    return path


def _messages() -> dict[str, Any]:
    """PYNQ's message classes and services, without PYNQ itself, which would look for boards."""
    if "pynq" not in sys.modules:
        spec = importlib.util.find_spec("pynq")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'pynq'", name="pynq")
        package = types.ModuleType("pynq")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["pynq"] = package
    return {
        name + part: importlib.import_module(f"pynq.remote.{name}_pb2{part}")
        for name in ("remote_device", "mmio", "buffer")
        for part in ("", "_grpc")
    }


def _answering(answer: type, function: Any) -> Any:
    """A call whose answer has a field for what went wrong."""

    def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return answer(**function(request))
        except BoardFault as fault:
            return answer(msg=str(fault))

    return call


def _services(board: BoardModel, server: Any) -> None:
    """Adds the three services of a board to a gRPC server."""
    import grpc

    m = _messages()
    device, mmio, buffer = m["remote_device"], m["mmio"], m["buffer"]

    def refuse(context: Any, fault: BoardFault) -> None:
        context.abort(grpc.StatusCode.NOT_FOUND, str(fault))

    def read_file(self: Any, request: Any, context: Any) -> Iterator[Any]:
        try:
            data = board.read_file(request.file_path)
        except BoardFault as fault:
            refuse(context, fault)
            return
        for at in range(0, max(len(data), 1), CHUNK):
            yield device.ReadFileResponse(data=data[at : at + CHUNK])

    def write_file(self: Any, requests: Any, context: Any) -> Any:
        parts = [(request.file_path, request.data) for request in requests]
        try:
            board.write_file(parts[0][0] if parts else "", b"".join(data for _, data in parts))
        except BoardFault as fault:
            refuse(context, fault)
        return device.WriteFileResponse()

    class Device(m["remote_device_grpc"].RemoteDeviceServicer):
        readfile, writefile = read_file, write_file

        def existsfile(self, request: Any, context: Any) -> Any:
            return device.ExistsFileResponse(exists=board.exists(request.file_path))

        def set_bitstream_attrs(self, request: Any, context: Any) -> Any:
            return device.SetBitstreamAttrsResponse(status=True)

    def load(request: Any) -> dict[str, Any]:
        return {"status": True, "data": board.read(request.mmio_id, request.offset)}

    def store(request: Any) -> dict[str, Any]:
        for at in range(0, len(request.data), 4):
            word = int.from_bytes(request.data[at : at + 4], "little")
            board.write(request.mmio_id, request.offset + at, word)
        return {"status": True}

    class Mmio(m["mmio_grpc"].MmioServicer):
        get_mmio = _answering(
            mmio.GetMmioResponse,
            lambda r: {"status": True, "mmio_id": board.open_window(r.base_addr, r.length)},
        )
        read = _answering(mmio.ReadResponse, load)
        write = _answering(mmio.WriteResponse, store)

    def put(self: Any, requests: Any, context: Any) -> Any:
        at, target = 0, None
        try:
            for request in requests:
                target = target or board.buffer(request.buffer_id)
                data = memoryview(request.data)
                if at + len(data) > target.cpu.size:
                    raise BoardFault(f"{at + len(data)} bytes for a buffer of {target.cpu.size}")
                target.cpu[at : at + len(data)] = data
                at += len(data)
        except BoardFault as fault:
            return buffer.BufferWriteResponse(msg=str(fault))
        return buffer.BufferWriteResponse()

    def get(self: Any, request: Any, context: Any) -> Iterator[Any]:
        try:
            cpu = board.buffer(request.buffer_id).cpu
        except BoardFault as fault:
            yield buffer.BufferReadResponse(msg=str(fault))
            return
        for at in range(0, cpu.size, CHUNK):
            yield buffer.BufferReadResponse(data=cpu[at : at + CHUNK].tobytes())

    def done(action: Any) -> Any:
        return lambda request: action(request.buffer_id) or {}

    class Buffers(m["buffer_grpc"].RemoteBufferServicer):
        write, read = put, get
        allocate = _answering(
            buffer.AllocateResponse, lambda r: {"buffer_id": board.allocate(r.size)}
        )
        freebuffer = _answering(buffer.FreeBufferResponse, done(board.free))
        flush = _answering(buffer.FlushResponse, done(board.flush))
        invalidate = _answering(buffer.InvalidateResponse, done(board.invalidate))
        physical_address = virtual_address = _answering(
            buffer.AddressResponse, lambda r: {"address": board.buffer(r.buffer_id).address}
        )
        cacheable = _answering(
            buffer.CacheableResponse, lambda r: {"cacheable": bool(board.buffer(r.buffer_id))}
        )

    m["remote_device_grpc"].add_RemoteDeviceServicer_to_server(Device(), server)
    m["mmio_grpc"].add_MmioServicer_to_server(Mmio(), server)
    m["buffer_grpc"].add_RemoteBufferServicer_to_server(Buffers(), server)


@contextmanager
def serve(board: BoardModel, address: str) -> Iterator[None]:
    """Answers at ``host:port`` or ``unix:path``, as gRPC writes it, for as long as the block lasts.

    UserError if the address is taken.
    """
    import grpc

    path = address.removeprefix("unix:") if address.startswith("unix:") else None
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    _services(board, server)
    try:
        taken = path is not None and _answers(path)
        if taken or not server.add_insecure_port(address):
            raise RuntimeError
    except RuntimeError:
        raise UserError(
            f"{address}: cannot be listened at, another board may; give another --listen"
        ) from None
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()
        if path is not None:
            Path(path).unlink(missing_ok=True)


def _answers(path: str) -> bool:
    """Somebody listens at a Unix socket; gRPC would take it away from him."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


class VirtualBoard:
    """A server in a process of its own. ``address``: for PYNQ_REMOTE_DEVICES; ``bitfile``."""

    def __init__(self, process: subprocess.Popen, address: str, bitfile: Path):
        self.process, self.address, self.bitfile = process, address, bitfile

    @property
    def environment(self) -> dict[str, str]:
        """What must be in the environment before ``pynq`` is imported."""
        return {"PYNQ_REMOTE_DEVICES": self.address}

    def kill(self) -> None:
        """As if somebody had pulled the plug."""
        self.process.kill()
        self.process.wait()


@contextmanager
def virtual_board(name: str, *options: str, python: str = sys.executable) -> Iterator[VirtualBoard]:
    """``tokenfabric board NAME OPTIONS`` on a socket of its own, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="tokenfabric-board-"))
    command = [python, "-m", "tokenfabric", "board", name, "--listen", f"unix:{folder}/board"]
    command += ["--write-design", str(folder), *options]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + START_SECONDS
        while not _answers(f"{folder}/board:{PORT}"):
            if process.poll() is not None:
                assert process.stderr is not None
                raise UserError(process.stderr.read().strip() or "the virtual board did not start")
            if time.monotonic() > end:
                raise UserError(f"the virtual board did not start within {START_SECONDS:g} s")
            time.sleep(0.05)
        yield VirtualBoard(process, f"unix:{folder}/board", next(folder.glob("*.bit")))
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        shutil.rmtree(folder, ignore_errors=True)
