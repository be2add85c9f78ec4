"""AXI slaves with random delays, for one port each, and what reads and writes must find there."""

from collections import deque

from streams import simulate

BASE = 0x3FF0_0000  # bus address of device address 0
SIZE = 1 << 16

# (chance that a slave stalls a channel, chance that a stream's consumer stalls, latencies)
STALLS = {
    "none": (0, 0, (1, 2)),
    "slow memory": (0.5, 0, (1, 60)),
    "slow consumer": (0, 0.7, (1, 20)),
    "all": (0.3, 0.3, (1, 60)),
}


def run(dut, benches, background=(), size=SIZE):
    """``simulate`` with the window at BASE."""

    async def windows(ctx):
        ctx.set(dut.windows, {"window_base": BASE, "window_size": size})

    simulate(dut, [windows, *benches], background)


class ReadSlave:
    """Answers one port from ``memory`` in order; checks what the AXI rules and the contract ask."""

    def __init__(self, cfg, axi, memory, rng, stalls, *, bad_beat=None, latencies=None):
        self.cfg, self.axi, self.memory, self.rng = cfg, axi, memory, rng
        self.stall, _, self.latency = stalls
        self.latency = latencies or self.latency
        self.bad_beat = bad_beat
        self.bursts = []
        self.beats = 0
        self.most = 0  # bursts in flight

    async def run(self, ctx):
        axi, cfg, rng = self.axi, self.cfg, self.rng
        queue, held, now = deque(), None, 0
        rvalid = arready = 0
        channel = (axi.arvalid, axi.araddr, axi.arlen, axi.arsize, axi.arburst, axi.rready)
        async for _, _, valid, address, length, size, kind, rready in ctx.tick().sample(*channel):
            now += 1
            assert held is None or (valid and (address, length) == held), "AR changed or dropped"
            held = (address, length) if valid and not arready else None
            if valid and arready:
                beats = length + 1
                assert 1 << size == cfg.port_bytes and kind == 1 and beats <= 16
                assert address % cfg.port_bytes == 0
                block = 16 * cfg.port_bytes
                assert address // block == (address + beats * cfg.port_bytes - 1) // block
                start = address - BASE
                assert 0 <= start and start + beats * cfg.port_bytes <= len(self.memory)
                self.bursts.append((start, beats))
                due = now + int(rng.integers(*self.latency))
                queue.extend((due, start + i * cfg.port_bytes, i == length) for i in range(beats))
            if rvalid and rready:
                queue.popleft()
                self.beats += 1
            else:
                assert not rvalid, "the port does not take R"
            self.most = max(self.most, sum(last for _, _, last in queue))
            rvalid = bool(queue) and queue[0][0] <= now and rng.random() >= self.stall
            ctx.set(axi.rvalid, rvalid)
            if rvalid:
                _, start, last = queue[0]
                beat = self.memory[start : start + cfg.port_bytes]
                ctx.set(axi.rdata, int.from_bytes(beat, "little"))
                ctx.set(axi.rlast, last)
                ctx.set(axi.rresp, 2 if self.beats == self.bad_beat else 0)
            arready = rng.random() >= self.stall
            ctx.set(axi.arready, arready)


class WriteSlave:
    """Takes writes into ``memory``, answers after a while; checks the AXI rules."""

    def __init__(self, cfg, axi, rng, stalls, *, bad_burst=None):
        self.cfg, self.axi, self.rng = cfg, axi, rng
        self.stall, _, self.latency = stalls
        self.bad_burst = bad_burst
        self.memory = {}  # byte address -> value
        self.bursts = []
        self.answered = 0
        self.w_times = []

    async def run(self, ctx):
        axi, rng = self.axi, self.rng
        awready = wready = bvalid = 0
        now = beat = w_bursts = 0
        presented = 0  # AWs seen, accepted or not
        held_aw = held_w = None
        answers = deque()
        ports = (axi.awvalid, axi.awaddr, axi.awlen, axi.awsize, axi.wvalid, axi.wdata)
        ports += (axi.wstrb, axi.wlast, axi.bready)
        async for sampled in ctx.tick().sample(*ports):
            awvalid, addr, length, size, wvalid, data, strb, last, bready = sampled[2:]
            now += 1
            assert held_aw is None or (awvalid and (addr, length) == held_aw), "AW changed"
            assert held_w is None or (wvalid and (data, strb, last) == held_w), "W changed"
            if awvalid and held_aw is None:
                presented += 1
                self.announce(addr, length + 1, size)
            held_aw = (addr, length) if awvalid and not awready else None
            held_w = (data, strb, last) if wvalid and not wready else None
            if wvalid:
                assert w_bursts < presented, "W before its AW"
            if wvalid and wready:
                start, beats = self.bursts[w_bursts]
                self.store(start + beat * self.cfg.port_bytes, data, strb)
                self.w_times.append(now)
                beat += 1
                assert last == (beat == beats)
                if last:
                    answers.append((now + int(rng.integers(*self.latency)), w_bursts))
                    w_bursts, beat = w_bursts + 1, 0
            if bvalid and bready:
                answers.popleft()
                self.answered += 1
            accepted = presented - (held_aw is not None)
            bvalid = bool(answers) and answers[0][0] <= now and answers[0][1] < accepted
            ctx.set(axi.bvalid, bvalid)
            ctx.set(axi.bresp, 2 if self.answered == self.bad_burst else 0)
            assert len(self.bursts) - self.answered <= 8
            awready, wready = rng.random() >= self.stall, rng.random() >= self.stall
            ctx.set(axi.awready, awready)
            ctx.set(axi.wready, wready)

    def announce(self, addr, beats, size):
        cfg = self.cfg
        block = 16 * cfg.port_bytes
        assert 1 << size == cfg.port_bytes and beats <= 16 and addr % cfg.port_bytes == 0
        assert addr // block == (addr + beats * cfg.port_bytes - 1) // block
        assert BASE <= addr and addr + beats * cfg.port_bytes <= BASE + SIZE
        self.bursts.append((addr - BASE, beats))

    def store(self, at, data, strb):
        for i in range(self.cfg.port_bytes):
            if strb >> i & 1:
                self.memory[at + i] = data >> 8 * i & 255


def fetch_beats(cfg, memory, command):
    """The (data, tag, last) that a fetch command brings."""
    size = cfg.port_bytes
    starts = [command["offset"] + i * size for i in range(command["beats"])]
    return [
        (int.from_bytes(memory[s : s + size], "little"), command["tag"], s == starts[-1])
        for s in starts
    ]


def write_run(cfg, first, beats, rng, *, full=False):
    """The beats of one run; the address has its low bits set, to be ignored."""
    size = cfg.port_bytes
    return [
        {
            "first": i == 0,
            "last": i == beats - 1,
            "addr": first * size + int(rng.integers(size))
            if i == 0
            else int(rng.integers(1 << 32)),
            "data": int.from_bytes(rng.bytes(size), "little"),
            "strb": (1 << size) - 1 if full else int(rng.integers(1 << size)),
        }
        for i in range(beats)
    ]


def write_model(cfg, runs):
    memory = {}
    for run in runs:
        at = run[0]["addr"] // cfg.port_bytes * cfg.port_bytes
        for beat in run:
            for i in range(cfg.port_bytes):
                if beat["strb"] >> i & 1:
                    memory[at + i] = beat["data"] >> 8 * i & 255
            at += cfg.port_bytes
    return memory
