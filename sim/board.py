"""A virtual board: a server that PYNQ talks to as to a remote one, over its gRPC protocol.

The messages are those of the installed ``pynq``; its Python code is not imported by the server. One
process is one board. ``virtual_board`` starts one and waits until it answers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenfabric.core.boards import BoardSpec
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import write_file
from tokenfabric.host.handoff import bitfile, handoff
from tokenfabric.sim.board_model import BoardFault, BoardModel

__all__ = ["PORT", "VirtualBoard", "serve", "virtual_board", "write_design"]

PORT = 7967  # the one that PYNQ dials
CHUNK = 4_000 << 10  # of an answer: gRPC's limit is 4 MiB
START_SECONDS = 1800.0  # the first time the simulator must be built


def write_design(folder: Path, spec: BoardSpec, cfg: FabricConfig) -> Path:
    """The ``.bit`` and ``.hwh`` of the virtual board; the path of the first."""
    hwh = handoff(spec, cfg)
    # The name has the fingerprint: PYNQ sends no file whose name the board already has.
    path = folder / f"tokenfabric-{spec.name}-{cfg.fingerprint}.bit"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path.with_suffix(".hwh"), [hwh.encode()])
    write_file(path, [bitfile(spec, cfg, hwh)])
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


def _files(board: BoardModel, messages: Any, grpc_part: Any) -> Any:
    """The service that reads and writes files of the board."""
    import grpc

    def refuse(context: Any, fault: BoardFault) -> None:
        context.abort(grpc.StatusCode.NOT_FOUND, str(fault))

    def read_file(self: Any, request: Any, context: Any) -> Iterator[Any]:
        try:
            data = board.read_file(request.file_path)
        except BoardFault as fault:
            refuse(context, fault)
            return
        for at in range(0, max(len(data), 1), CHUNK):
            yield messages.ReadFileResponse(data=data[at : at + CHUNK])

    def put_file(self: Any, requests: Any, context: Any) -> Any:
        parts = [(request.file_path, request.data) for request in requests]
        try:
            board.write_file(parts[0][0] if parts else "", b"".join(data for _, data in parts))
        except BoardFault as fault:
            refuse(context, fault)
        return messages.WriteFileResponse()

    class Device(grpc_part.RemoteDeviceServicer):
        readfile, writefile = read_file, put_file

        def existsfile(self, request: Any, context: Any) -> Any:
            return messages.ExistsFileResponse(exists=board.exists(request.file_path))

        def set_bitstream_attrs(self, request: Any, context: Any) -> Any:
            return messages.SetBitstreamAttrsResponse(status=True)

    return Device()


def _windows(board: BoardModel, messages: Any, grpc_part: Any) -> Any:
    """The service of windows on the registers of the fabric."""

    def load(request: Any) -> dict[str, Any]:
        return {"status": True, "data": board.read(request.mmio_id, request.offset)}

    def store(request: Any) -> dict[str, Any]:
        for at in range(0, len(request.data), 4):
            word = int.from_bytes(request.data[at : at + 4], "little")
            board.write(request.mmio_id, request.offset + at, word)
        return {"status": True}

    class Mmio(grpc_part.MmioServicer):
        get_mmio = _answering(
            messages.GetMmioResponse,
            lambda r: {"status": True, "mmio_id": board.open_window(r.base_addr, r.length)},
        )
        read = _answering(messages.ReadResponse, load)
        write = _answering(messages.WriteResponse, store)

    return Mmio()


def _buffers(board: BoardModel, messages: Any, grpc_part: Any) -> Any:
    """The service of buffers in the board's memory."""

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
            return messages.BufferWriteResponse(msg=str(fault))
        return messages.BufferWriteResponse()

    def get(self: Any, request: Any, context: Any) -> Iterator[Any]:
        try:
            cpu = board.buffer(request.buffer_id).cpu
        except BoardFault as fault:
            yield messages.BufferReadResponse(msg=str(fault))
            return
        for at in range(0, cpu.size, CHUNK):
            yield messages.BufferReadResponse(data=cpu[at : at + CHUNK].tobytes())

    def done(action: Any) -> Any:
        return lambda request: action(request.buffer_id) or {}

    class Buffers(grpc_part.RemoteBufferServicer):
        write, read = put, get
        allocate = _answering(
            messages.AllocateResponse, lambda r: {"buffer_id": board.allocate(r.size)}
        )
        freebuffer = _answering(messages.FreeBufferResponse, done(board.free))
        flush = _answering(messages.FlushResponse, done(board.flush))
        invalidate = _answering(messages.InvalidateResponse, done(board.invalidate))
        physical_address = virtual_address = _answering(
            messages.AddressResponse, lambda r: {"address": board.buffer(r.buffer_id).address}
        )
        cacheable = _answering(
            messages.CacheableResponse, lambda r: {"cacheable": bool(board.buffer(r.buffer_id))}
        )

    return Buffers()


def _services(board: BoardModel, server: Any) -> None:
    """Adds the three services of a board to a gRPC server."""
    m = _messages()
    for name, service, make in (
        ("remote_device", "RemoteDevice", _files),
        ("mmio", "Mmio", _windows),
        ("buffer", "RemoteBuffer", _buffers),
    ):
        grpc_part = m[f"{name}_grpc"]
        add = getattr(grpc_part, f"add_{service}Servicer_to_server")
        add(make(board, m[name], grpc_part), server)


@contextmanager
def serve(board: BoardModel, address: str) -> Iterator[None]:
    """Answers at ``host:port`` or ``unix:path``, as gRPC writes it, for as long as the block lasts.

    UserError if that is not possible. A Unix socket is for this user only.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are ours to tell
    import grpc

    path = Path(address[5:]) if address.startswith("unix:") else None
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--listen {address}: there is no folder {path.parent}; make it")
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    _services(board, server)
    mask = os.umask(0o077)
    try:
        if path is not None and _answers(path):
            raise RuntimeError
        server.add_insecure_port(address)
    except RuntimeError:
        raise UserError(
            f"--listen {address}: is taken, perhaps by another board, or is not an address of this "
            "machine; give another"
        ) from None
    finally:
        os.umask(mask)
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()
        if path is not None:
            path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    """Somebody listens at a Unix socket; gRPC would take it away from him."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
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
def virtual_board(
    name: str,
    *,
    preset: str | None = None,
    memory_mib: int = 256,
    listen: str | None = None,
    python: str = sys.executable,
    progress: Callable[[str], None] = lambda what: None,
) -> Iterator[VirtualBoard]:
    """``tokenfabric board`` until the block ends, on a socket of its own or at ``listen``.

    python: an interpreter that has what the server needs. UserError if it does not start. The board
    ends with this process, however that ends, but not with a Ctrl-C that is meant for others.
    """
    with tempfile.TemporaryDirectory(prefix="tokenfabric-board-") as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "log")
        command = [python, "-m", "tokenfabric", "board", name, "--until-eof"]
        command += [f"--memory={memory_mib}"]
        command += [f"--write-design={folder}", f"--json={ready}"]
        command += [f"--listen={listen or f'unix:{folder}/board'}"]
        command += [f"--preset={preset}"] if preset else []
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for(ready, process, log, progress)
            told = json.loads(ready.read_text(encoding="utf-8"))
            yield VirtualBoard(process, told["address"], Path(told["bitfile"]))
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin is not None
            if process.stdin is not None:
                process.stdin.close()


def _wait_for(
    ready: Path, process: subprocess.Popen, log: Path, progress: Callable[[str], None]
) -> None:
    """Until the server has written ``ready``, which it does when it answers."""
    end = time.monotonic() + START_SECONDS
    while not ready.exists():
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = lines[-1].removeprefix("tokenfabric: error: ") if lines else "it ended"
            raise UserError(f"the virtual board did not start: {why}")
        if time.monotonic() > end:
            raise UserError(f"the virtual board did not start within {START_SECONDS:g} s")
        progress("starting a virtual board; the first one takes minutes to build")
        time.sleep(0.05)
