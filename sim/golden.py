"""The golden device: the instruction set, interpreted with numpy. Its living definition.

Obvious rather than fast. Hardware that differs from it is wrong.
"""

from __future__ import annotations

import numpy as np
from tokenfabric.core import isa, ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.fixed import ceil_div, saturate
from tokenfabric.core.isa import Dest, Instruction, Op, RowFlag
from tokenfabric.core.registers import SATURATION_COUNTERS, Error, State
from tokenfabric.core.weights import INT8, format_of, from_superblocks, memory_offsets
from tokenfabric.host.device import DeviceError

__all__ = ["GoldenDevice"]

NO_TOKEN = 0xFFFFFFFF
RES_CLASS = 0  # saturations of the residual additions themselves


class GoldenDevice:
    """A :class:`~tokenfabric.host.device.Device` whose run is over when ``start`` returns."""

    def __init__(self, cfg: FabricConfig, memory: tuple[int, int]):
        self.cfg = cfg
        self.fingerprint = cfg.fingerprint
        self.windows = [np.zeros(size, np.uint8) for size in memory]
        self.state, self.tokens_done, self.error, self.pc = State.IDLE, 0, Error.NONE, 0

    # --- Device --------------------------------------------------------------------------------

    def write(self, address: int, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).ravel()
        self._at(address, data.size)[:] = data

    def read(self, address: int, count: int) -> np.ndarray:
        return self._at(address, count).copy()

    def start(self) -> None:
        self.state, self.tokens_done, self.error, self.pc = State.RUNNING, 0, Error.NONE, 0
        try:
            self._run()
            self.state = State.DONE
        except DeviceError as problem:
            self.state, self.error = State.ERROR, problem.code

    def poll(self) -> tuple[State, int, Error]:
        return self.state, self.tokens_done, self.error

    def wait(self, deadline: float) -> State:
        return self.state

    def stop(self) -> None:
        pass

    def reset(self, deadline: float) -> None:
        pass

    def saturations(self) -> list[int]:
        """Saturated values of the last run, by tensor class."""
        return [int(n) for n in self.saturated]

    # --- memory --------------------------------------------------------------------------------

    def _at(self, address: int, count: int) -> np.ndarray:
        window, offset = divmod(address, isa.JOB)
        if not 0 <= window <= 1 or offset + count > self.windows[window].size:
            raise DeviceError(Error.WINDOW, self.pc)
        return self.windows[window][offset : offset + count]

    def _ints(self, address: int, count: int, dtype: str) -> np.ndarray:
        return self._at(int(address), count * np.dtype(dtype).itemsize).view(dtype).astype(np.int64)

    # --- a run ---------------------------------------------------------------------------------

    def _run(self) -> None:
        cfg = self.cfg
        words = self._ints(isa.JOB, isa.DESCRIPTOR_WORDS, "<u4")
        self.job = job = dict(zip((name for name, _ in isa.DESCRIPTOR), map(int, words)))
        if job["magic"] != isa.DESCRIPTOR_MAGIC or not 0 < job["rows"] <= cfg.max_rows:
            raise DeviceError(Error.DESCRIPTOR, 0)
        if job["program_words"] > cfg.program_words:
            raise DeviceError(Error.DESCRIPTOR, 0)
        table = self._ints(isa.JOB + 4 * isa.DESCRIPTOR_WORDS, job["rows"] * isa.ROW_WORDS, "<u4")
        names = [name for name, _ in isa.ROW]
        self.rows = [dict(zip(names, map(int, row))) for row in table.reshape(-1, isa.ROW_WORDS)]
        self.want = [i for i, row in enumerate(self.rows) if row["flags"] & RowFlag.WANT_LOGITS]
        self.done = [False] * len(self.rows)
        size = isa.INSTRUCTION_BYTES
        code = self._at(job["program"], job["program_words"] * size)
        program = [code[at : at + size].tobytes() for at in range(0, code.size, size)]
        self.in_ = np.zeros((cfg.in_chunks, cfg.cols), np.int64)
        self.out = np.zeros((cfg.out_chunks, cfg.cols), np.int64)
        self.res = np.zeros((cfg.res_chunks, cfg.cols), np.int64)
        self.param = np.zeros((cfg.param_chunks, cfg.cols), np.int64)
        self.saturated = np.zeros(SATURATION_COUNTERS, np.int64)
        blocks = job["stream_full"] if self.want else job["stream_body"]
        data = self._at(job["stream"], blocks * cfg.superblock_bytes)
        self.stream = from_superblocks(cfg, data)
        self.logits_at = job["logits"]
        for _ in range(job["steps"]):
            self._step(program)
            if all(self.done):
                break

    def _step(self, program: list[bytes]) -> None:
        self.taken = 0  # words of the weight stream
        self.chosen: dict[int, int] = {}
        if any(row["position"] >= self.job["context"] for row in self.rows):
            raise DeviceError(Error.CONTEXT, 0)
        for self.pc, data in enumerate(program):
            try:
                instruction = isa.decode(data)
            except ValueError:
                raise DeviceError(Error.ILLEGAL, self.pc) from None
            if instruction.op is Op.END:
                return self._end()
            if not (instruction.want and not self.want):
                getattr(self, "_" + instruction.op.name.lower())(instruction)
        raise DeviceError(Error.ILLEGAL, self.pc)

    def _end(self) -> None:
        """Choose tokens, write the ring, advance the row table."""
        job = self.job
        stops = [job[f"stop{i}"] for i in range(4)]
        for i, row in enumerate(self.rows):
            token = self.chosen.get(i, NO_TOKEN) if not self.done[i] else NO_TOKEN
            entry = job["ring"] + 8 * (self.tokens_done * len(self.rows) + i)
            self._at(entry, 4).view("<u4")[0] = token
            if token != NO_TOKEN:
                row["token"] = token
                self.done[i] = bool(row["flags"] & RowFlag.STOP) and token in stops
            row["position"] += 1
            row["kv_row"] += job["head_bytes"]
        self.tokens_done += 1

    # --- operands ------------------------------------------------------------------------------

    def _count(self, index: int, wide, bits: int) -> None:
        self.saturated[index] += ops.count_saturated(wide, bits)

    def _rows_of(self, i: Instruction) -> list[int]:
        return self.want if i.want else list(range(len(self.rows)))

    def _load_rows(self, memory, i: Instruction, count: int, offset: int = 0) -> np.ndarray:
        starts = [i.src + row * i.src_stride + offset for row in self._rows_of(i)]
        return np.stack([memory[at : at + count].ravel() for at in starts])

    def _store_rows(self, memory, i: Instruction, values, offset: int = 0) -> None:
        for row, value in zip(self._rows_of(i), values):
            at = i.dst + row * i.dst_stride + offset
            chunks = value.reshape(-1, self.cfg.cols)
            memory[at : at + len(chunks)] = chunks

    def _words(self, count: int) -> np.ndarray:
        self.taken += count
        return self.stream[self.taken - count : self.taken]

    def _weights(self, i: Instruction) -> tuple[np.ndarray, np.ndarray]:
        """The matrix of a MATMUL from the stream: int8 [n, k] and its multipliers."""
        inputs, how = i.k * self.cfg.cols, format_of(i)
        words = self._words(how.words(self.cfg, i.n, inputs))
        weight, mult = how.unpack(self.cfg, words, i.n, inputs)
        return weight, mult.astype(np.int64)

    def _rope_rows(self, heads: int, head_dim: int) -> np.ndarray:
        at = [self.job["rope"] + row["position"] * head_dim * 2 for row in self.rows]
        return np.stack([self._ints(a, head_dim, "<i2") for a in at])[:, None, :]

    # --- operations ----------------------------------------------------------------------------

    def _load(self, i: Instruction) -> None:
        chunks = self._words(i.n).view("<i2").reshape(-1, self.cfg.cols)
        self.param[i.param : i.param + len(chunks)] = chunks

    def _embed(self, i: Instruction) -> None:
        cfg, job = self.cfg, self.job
        for row, record in enumerate(self.rows):
            group, within = divmod(record["token"], cfg.scale_channels)
            base = group * job["embedding_group"]
            mult_at, weights_at = INT8.channel(cfg, i.k * cfg.cols, within)
            mult = self._embedding(base + mult_at + np.arange(2)).view("<u2")[0]
            w = self._embedding(base + weights_at).view(np.int8)
            wide = ops.requantize(w, int(mult), i.shift)
            self._count(i.sat, wide, 32)
            at = i.dst + row * i.dst_stride
            self.res[at : at + i.k] = saturate(wide, 32).reshape(-1, cfg.cols)

    def _embedding(self, at: np.ndarray) -> np.ndarray:
        """Bytes of the embedding, which lies in memory as a classifier in the stream does."""
        where = memory_offsets(self.cfg, at)
        self._at(self.job["embedding"] + int(where.max()), 1)
        return self.windows[0][self.job["embedding"] + where]

    def _norm(self, i: Instruction) -> None:
        x = self._load_rows(self.res, i, i.k)
        gain = self.param[i.param : i.param + i.k].ravel()
        wide = ops.rmsnorm_wide(x, i.shift2, i.imm, gain, i.shift)
        self._count(i.sat, wide, 16)
        self._store_rows(self.in_, i, saturate(wide, 16))

    def _matmul(self, i: Instruction) -> None:
        cfg = self.cfg
        w, mult = self._weights(i)
        x = self._load_rows(self.in_, i, i.k)
        odd = np.arange(len(w)) // cfg.cols & 1
        shift = np.where(odd, i.shift2, i.shift)
        wide = ops.requantize(ops.matmul(x, w[:, : x.shape[1]]), mult, shift)
        bits = {Dest.OUT: 16, Dest.OUT8: 8, Dest.RES: 32, Dest.LOGITS: 32}[Dest(i.mode)]
        self._count(i.sat, wide, bits)
        y = saturate(wide, bits)
        if i.mode == Dest.RES:
            for row, delta in zip(self._rows_of(i), y):
                at = i.dst + row * i.dst_stride
                res = self.res[at : at + i.n].ravel()
                self._count(RES_CLASS, res + delta, 32)
                self.res[at : at + i.n] = ops.residual_add(res, delta).reshape(-1, cfg.cols)
        elif i.mode == Dest.LOGITS:
            self.chosen = dict(zip(self.want, map(int, ops.argmax(y, self.job["vocab"]))))
            for row, logits in zip(self.want, y):
                if self.rows[row]["flags"] & RowFlag.DUMP_LOGITS:
                    self._at(self.logits_at, 4 * logits.size).view("<i4")[:] = logits
                    self.logits_at += self.job["logits_stride"]
        else:
            self._store_rows(self.out, i, y)

    def _rope(self, i: Instruction) -> None:
        cfg = self.cfg
        head_dim = i.head_chunks * cfg.cols
        q = self._load_rows(self.out, i, i.heads * i.head_chunks).reshape(-1, i.heads, head_dim)
        wide = ops.rope_wide(q, self._rope_rows(i.heads, head_dim))
        self._count(i.sat, wide, 16)
        pitch = ceil_div(i.head_chunks, cfg.k_chunks) * cfg.k_chunks
        for head in range(i.heads):
            self._store_rows(self.in_, i, saturate(wide[:, head], 16), head * pitch)

    def _append(self, i: Instruction) -> None:
        job = self.job
        head_dim = i.head_chunks * self.cfg.cols
        kv = self._load_rows(self.out, i, 2 * i.heads * i.head_chunks)
        k, v = kv.reshape(len(self.rows), 2, i.heads, head_dim).transpose(1, 0, 2, 3)
        wide = ops.rope_wide(k, self._rope_rows(i.heads, head_dim))
        self._count(i.sat, wide, 16)
        mean = self.param[i.param : i.param + i.heads * i.head_chunks].reshape(i.heads, head_dim)
        k8, amax = ops.quantize_k(saturate(wide, 16), mean)
        for r, row in enumerate(self.rows):
            for h in range(i.heads):
                at = i.imm + row["kv_row"] + h * job["kv_head"]
                self._at(at, head_dim).view(np.int8)[:] = k8[r, h]
                self._at(at + job["v_offset"], head_dim).view(np.int8)[:] = v[r, h]
                at = i.imm2 + row["scale_slot"] + h * job["scale_head"] + 2 * row["position"]
                self._at(at, 2).view("<u2")[0] = amax[r, h]

    def _attend(self, i: Instruction) -> None:
        cfg, job = self.cfg, self.job
        head_dim = i.head_chunks * cfg.cols
        pitch = ceil_div(i.head_chunks, cfg.k_chunks) * cfg.k_chunks
        for r, row in enumerate(self.rows):
            count = row["position"] + 1
            for h in range(i.heads):
                at = i.imm + row["kv_slot"] + h * job["kv_head"]
                k = self._ints(at, count * head_dim, "i1").reshape(count, head_dim)
                v = self._ints(at + job["v_offset"], count * head_dim, "i1")
                v = v.reshape(count, head_dim)
                scale = self._ints(i.imm2 + row["scale_slot"] + h * job["scale_head"], count, "<u2")
                for g in range(h * i.group, (h + 1) * i.group):
                    at = i.src + r * i.src_stride + g * pitch
                    q = self.in_[at : at + i.head_chunks].ravel()
                    wide = ops.requantize(ops.matmul(q, k), scale, i.shift)
                    self._count(i.sat, wide, 16)
                    p, total = ops.softmax(saturate(wide, 16), np.ones(count, bool), i.shift2)
                    wide = ops.requantize(ops.matmul(p, v.T), *ops.attention_scale(total))
                    self._count(i.sat + 1, wide, 16)
                    at = i.dst + r * i.dst_stride + g * i.head_chunks
                    self.in_[at : at + i.head_chunks] = saturate(wide, 16).reshape(-1, cfg.cols)

    def _swiglu(self, i: Instruction) -> None:
        pairs = self._load_rows(self.out, i, 2 * i.n).reshape(len(self.rows), i.n, 2, -1)
        gate, up = pairs[:, :, 0].reshape(len(pairs), -1), pairs[:, :, 1].reshape(len(pairs), -1)
        wide = ops.swiglu_wide(gate, up, i.shift2, i.shift)
        self._count(i.sat, wide, 16)
        self._store_rows(self.in_, i, saturate(wide, 16))
