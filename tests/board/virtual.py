"""Virtual boards for tests, and pynq's side of them.

Nothing of pynq is changed, except that it must not keep what it has read of one board's files for
the next one: it shares that between all processes of an environment.
"""

from contextlib import contextmanager

import pynq
from conftest import BOARD, SERVER
from pynq.pl_server.remote_device import RemoteDevice
from tokenfabric.sim.board import virtual_board


def start(**options):
    """A virtual board with the smallest accelerator, for a ``with``."""
    return virtual_board(BOARD, preset="tiny", python=SERVER, **options)


def connect(board):
    """A new ``pynq`` device for a virtual board, and the active one."""
    device = RemoteDevice(0, board.address)
    device.gen_cache = lambda *_, **__: None
    use(device)
    return device


def use(device):
    """Make ``device`` the one that pynq uses by itself; its clocks are its first one's else."""
    pynq.Device.active_device = pynq.Clocks.device = device
    if "_real_instance" in vars(pynq.Clocks):
        del pynq.Clocks._real_instance


@contextmanager
def overlay(**options):
    """A virtual board with its overlay loaded: the board, its device, the overlay."""
    with start(**options) as board:
        device = connect(board)
        yield board, device, pynq.Overlay(str(board.bitfile), device=device)
