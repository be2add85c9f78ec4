"""The virtual board's three services, with messages and a board that are made up: no gRPC here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tokenfabric.sim import board as module
from tokenfabric.sim.board_model import BoardFault


class Messages:
    """Every message class: keeps what it is made with."""

    def __getattr__(self, name):
        return lambda **values: SimpleNamespace(kind=name, **values)


class Parts:
    """What gRPC generates: base classes, and functions that keep what is added to the server."""

    def __getattr__(self, name):
        if name.startswith("add_"):
            return lambda service, server: server.append((name, service))
        return object


class Board:
    """One file, one window, one buffer of 8 bytes."""

    def __init__(self):
        self.files, self.words = {"a": b"old"}, {}
        self.one = SimpleNamespace(cpu=np.arange(8, dtype=np.uint8), address=0x1000)

    def read_file(self, path):
        if path not in self.files:
            raise BoardFault(f"no file {path}")
        return self.files[path]

    def write_file(self, path, data):
        if not path:
            raise BoardFault("no name")
        self.files[path] = data

    def exists(self, path):
        return path in self.files

    def open_window(self, base, length):
        return 3

    def read(self, window, offset):
        return self.words[window, offset]

    def write(self, window, offset, word):
        self.words[window, offset] = word

    def buffer(self, number):
        if number != 7:
            raise BoardFault(f"no buffer {number}")
        return self.one

    def allocate(self, size):
        return 7

    def flush(self, number):
        self.buffer(number)

    free = invalidate = flush


class Aborted(Exception):
    pass


class Context:
    def abort(self, code, text):
        raise Aborted(code, text)


@pytest.fixture
def services(monkeypatch):
    parts = {f"{name}{end}": made for name in ("remote_device", "mmio", "buffer")
             for end, made in (("", Messages()), ("_grpc", Parts()))}  # fmt: skip
    monkeypatch.setattr(module, "_messages", lambda: parts)
    fake = SimpleNamespace(StatusCode=SimpleNamespace(NOT_FOUND="not found"))
    monkeypatch.setitem(sys.modules, "grpc", fake)
    server, board = [], Board()
    module._services(board, server)
    names = [name for name, _ in server]
    assert names == [
        "add_RemoteDeviceServicer_to_server",
        "add_MmioServicer_to_server",
        "add_RemoteBufferServicer_to_server",
    ]
    return board, *(service for _, service in server)


def ask(**values):
    return SimpleNamespace(**values)


def test_files(services, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    board, files, _, _ = services
    parts = list(files.readfile(ask(file_path="a"), Context()))
    assert [part.data for part in parts] == [b"ol", b"d"]
    files.writefile([ask(file_path="b", data=b"x"), ask(file_path="b", data=b"y")], Context())
    assert board.files["b"] == b"xy" and files.existsfile(ask(file_path="b"), None).exists
    with pytest.raises(Aborted, match="no file c"):
        list(files.readfile(ask(file_path="c"), Context()))
    with pytest.raises(Aborted, match="no name"):
        files.writefile([], Context())
    board.files["empty"] = b""
    assert [p.data for p in files.readfile(ask(file_path="empty"), Context())] == [b""]


def test_windows(services):
    board, _, windows, _ = services
    assert windows.get_mmio(ask(base_addr=0, length=4), None).mmio_id == 3
    windows.write(ask(mmio_id=3, offset=8, data=b"\x01\0\0\0\x02\0\0\0"), None)
    assert board.words == {(3, 8): 1, (3, 12): 2}
    assert windows.read(ask(mmio_id=3, offset=12), None).data == 2


def test_buffers(services):
    board, _, _, buffers = services
    assert buffers.allocate(ask(size=8), None).buffer_id == 7
    assert buffers.physical_address(ask(buffer_id=7), None).address == 0x1000
    buffers.write([ask(buffer_id=7, data=b"\x09\x08"), ask(buffer_id=7, data=b"\x07")], None)
    assert board.one.cpu[:4].tolist() == [9, 8, 7, 3]
    (part,) = buffers.read(ask(buffer_id=7), None)
    assert part.data == board.one.cpu.tobytes()
    assert "9 bytes for a buffer of 8" in buffers.write([ask(buffer_id=7, data=bytes(9))], None).msg
    assert buffers.flush(ask(buffer_id=8), None).msg == "no buffer 8"
    (part,) = buffers.read(ask(buffer_id=8), None)
    assert part.msg == "no buffer 8"
