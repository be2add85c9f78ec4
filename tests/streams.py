"""Testbenches for streams: send, receive what must not change until taken, by a deadline."""

from amaranth.sim import Simulator


def simulate(dut, benches, background=(), deadline=20000):
    """Runs until all benches are through; a bench that is not by the deadline fails the test.

    ``background``: benches that need not end, or objects whose ``run`` is one.
    """
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    done = []

    def closing(bench):
        async def run(ctx):
            await bench(ctx)
            done.append(bench)

        return run

    async def watchdog(ctx):
        for _ in range(deadline):
            if len(done) == len(benches):
                return
            await ctx.tick()
        raise AssertionError(f"{len(benches) - len(done)} benches not through in {deadline} cycles")

    for bench in background:
        sim.add_testbench(getattr(bench, "run", bench), background=True)
    for bench in benches:
        sim.add_testbench(closing(bench), background=True)
    sim.add_testbench(watchdog)
    sim.run()


def sender(port, payloads, rng=None, stall=0, times=None):
    """Offers the payloads one after another; each waits with the chance ``stall`` per cycle."""

    async def bench(ctx):
        now = 0
        for payload in payloads:
            while stall and rng.random() < stall:
                await ctx.tick()
                now += 1
            ctx.set(port.payload, payload)
            ctx.set(port.valid, 1)
            ready = 0
            while not ready:
                _, _, ready = await ctx.tick().sample(port.ready)
                now += 1
            ctx.set(port.valid, 0)
            if times is not None:
                times.append(now)

    return bench


def receiver(port, count, got, rng=None, stall=0, times=None):
    """Takes ``count`` payloads and checks that what is offered stays until taken."""

    async def bench(ctx):
        held, ready, now = None, 0, 0
        while len(got) < count:
            _, _, valid, payload = await ctx.tick().sample(port.valid, port.payload)
            now += 1
            assert held is None or (valid and payload == held), "changed or dropped before taken"
            held = payload if valid and not ready else None
            if valid and ready:
                got.append(payload)
                if times is not None:
                    times.append(now)
            ready = not stall or rng.random() >= stall
            ctx.set(port.ready, ready)
        ctx.set(port.ready, 0)

    return bench
