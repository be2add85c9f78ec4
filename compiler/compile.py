"""From a quantized model to an image: memory layout, weight stream, program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenfabric.core import isa, ops
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import ceil_div, round_up
from tokenfabric.core.image import PAGE, Image, MemoryMap
from tokenfabric.core.isa import Dest, Instruction, Op, Unit
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.tensors import TensorClass
from tokenfabric.core.work import work_of
from tokenfabric.quant.qmodel import Linear, Norm, QLayer, QModel

__all__ = ["compile_model", "memory_needs", "pack_linear", "program_of", "stream_words"]

CONTEXT_STEP = 64  # positions: whole bursts of K scales
MAX_SLOTS = 256  # the accelerator tells slots apart by 8 bits


def pack_linear(cfg: FabricConfig, weight: np.ndarray, mult: np.ndarray) -> np.ndarray:
    """A matrix as words of the weight stream: uint8 [words, word_bytes].

    weight int8 [n, k], n a multiple of cols; mult uint16 [n]. Layout: docs/microarchitecture.md.
    """
    n, k = weight.shape
    k_blocks = ceil_div(k, cfg.rows)
    padded = np.zeros((n, k_blocks * cfg.rows), np.int8)
    padded[:, :k] = weight
    tiles = padded.reshape(n // cfg.cols, cfg.cols, k_blocks, cfg.rows).transpose(0, 2, 1, 3)
    tiles = tiles.reshape(n // cfg.cols, -1, cfg.word_bytes).view(np.uint8)
    per_group = cfg.scale_channels // cfg.cols
    scales = np.zeros(round_up(n, cfg.scale_channels), "<u2")
    scales[:n] = mult
    mults = scales.view(np.uint8).reshape(-1, 1, cfg.word_bytes)
    full = len(tiles) // per_group
    group_words = per_group * k_blocks * cfg.tile_cycles
    words = tiles[: full * per_group].reshape(full, group_words, cfg.word_bytes)
    words = np.concatenate([mults[:full], words], axis=1).reshape(-1, cfg.word_bytes)
    rest = tiles[full * per_group :].reshape(-1, cfg.word_bytes)
    return np.concatenate([words, *mults[full:], rest])


def stream_words(cfg: FabricConfig, instruction: Instruction) -> int:
    """Words of the weight stream that an instruction takes."""
    if instruction.op is Op.LOAD:
        return instruction.n
    if instruction.op is not Op.MATMUL:
        return 0
    tiles = instruction.n * ceil_div(instruction.k, cfg.k_chunks)
    return ceil_div(instruction.n * cfg.cols, cfg.scale_channels) + tiles * cfg.tile_cycles


def to_superblocks(cfg: FabricConfig, words: np.ndarray) -> np.ndarray:
    """Words of the stream, padded to whole superblocks, in the byte order of memory."""
    padded = np.zeros((round_up(len(words), BURST_BEATS), cfg.word_bytes), np.uint8)
    padded[: len(words)] = words
    beats = padded.reshape(-1, BURST_BEATS, cfg.ports, cfg.port_bytes)
    return np.ascontiguousarray(beats.transpose(0, 2, 1, 3)).reshape(-1)


def _pad_rows(linear: Linear, rows: np.ndarray) -> Linear:
    """The output channels ``rows`` of a matrix; -1 stands for a channel of zeros."""
    weight = np.where(rows[:, None] >= 0, linear.weight[rows], 0).astype(np.int8)
    mult = np.where(rows >= 0, linear.mult[rows], 0).astype(np.uint16)
    return Linear(weight, mult, linear.shift)


def _chunked(count: int, size: int, cols: int) -> np.ndarray:
    """Channel numbers of ``count`` heads of ``size``, each padded to whole chunks with -1."""
    padded = np.full((count, round_up(size, cols)), -1)
    padded[:, :size] = np.arange(count * size).reshape(count, size)
    return padded.ravel()


@dataclass(frozen=True)
class _Sizes:
    """Chunks, and where tensors stand in the activation memories."""

    dim: int
    head: int  # chunks of a head
    pitch: int  # of a head of q in IN: whole row-blocks
    hidden: int
    pieces: int  # of the hidden layer, so that SWIGLU of one hides behind MATMUL of the next
    rows: int
    x_stride: int  # IN: norm outputs, attention output
    h: int  # IN: first chunk of q and of the hidden layer
    h_stride: int
    out_stride: int


def memory_needs(cfg: FabricConfig, s: ModelShape) -> dict[str, int]:
    """Chunks that a model needs of the activation memories for each row of a step, and of PARAM."""
    dim, head = ceil_div(s.dim, cfg.cols), ceil_div(s.head_dim, cfg.cols)
    x_stride = round_up(max(dim, s.heads * head), cfg.k_chunks)
    fill = BURST_BEATS * cfg.scale_channels // cfg.cols  # chunks in a superblock
    return {
        "in_chunks": x_stride + _h_stride(cfg, s),
        "out_chunks": (2 * s.kv_heads + s.heads) * head,
        "res_chunks": dim,
        "param_chunks": 2 * dim + s.kv_heads * head + fill,
    }


def _h_stride(cfg: FabricConfig, s: ModelShape) -> int:
    """Chunks of q or of the hidden layer, whichever is longer: they take turns."""
    pitch = round_up(ceil_div(s.head_dim, cfg.cols), cfg.k_chunks)
    return max(s.heads * pitch, round_up(ceil_div(s.hidden, cfg.cols), cfg.k_chunks))


def _sizes(cfg: FabricConfig, s: ModelShape) -> _Sizes:
    dim, hidden = ceil_div(s.dim, cfg.cols), ceil_div(s.hidden, cfg.cols)
    head = ceil_div(s.head_dim, cfg.cols)
    pitch = round_up(head, cfg.k_chunks)
    if head * cfg.cols > cfg.max_head_dim:
        raise UserError(
            f"head_dim {s.head_dim} does not fit {cfg.name}: at most {cfg.max_head_dim}; "
            "choose another preset"
        )
    needs, h_stride = memory_needs(cfg, s), _h_stride(cfg, s)
    x_stride = needs["in_chunks"] - h_stride
    limits = {
        "input activations": cfg.in_chunks // needs["in_chunks"],
        "output activations": cfg.out_chunks // needs["out_chunks"],
        "residual stream": cfg.res_chunks // needs["res_chunks"],
        "parameters": cfg.param_chunks // needs["param_chunks"],
        "accumulators": cfg.acc_words // head,
        "longest sum": cfg.max_k // max(s.hidden, s.dim, s.heads * head * cfg.cols),
    }
    tightest = min(limits, key=lambda name: limits[name])
    if limits[tightest] < 1:
        raise UserError(
            f"a model of dim {s.dim}, hidden {s.hidden}, {s.heads} heads of {s.head_dim} does not "
            f"fit {cfg.name}: its {tightest} memory holds less than one row; choose a larger preset"
        )
    rows = min(cfg.max_rows, *(limits[n] for n in limits if n not in ("parameters", "longest sum")))
    out_stride = cfg.out_chunks // rows & ~1
    pieces = 1 if hidden <= 24 and 2 * hidden <= out_stride else 2
    while pieces > 1 and 4 * ceil_div(hidden, pieces) > out_stride:
        pieces += 1
    return _Sizes(
        dim, head, pitch, hidden, pieces, rows, x_stride, rows * x_stride, h_stride, out_stride
    )


class _Program:
    """Collects instructions and, in the same order, the words of the weight stream.

    Without ``pack`` there are no words, and nothing looks at a weight.
    """

    def __init__(self, cfg: FabricConfig, pack: bool):
        self.cfg, self.pack = cfg, pack
        self.code: list[Instruction] = []
        self.words: list[np.ndarray] = []

    def add(self, op: Op, wait: Unit | int = 0, **fields_: int) -> None:
        self.code.append(Instruction(op=op, wait=int(wait), **fields_))

    def load(self, params: list[np.ndarray], wait: Unit, fill: bool = False) -> None:
        """LOAD of int16 vectors, each from a chunk of its own, to PARAM from 0 on.

        ``fill``: and of zeros up to the end of a superblock.
        """
        cols = self.cfg.cols
        chunks = np.concatenate(
            [np.resize(_padded(p, cols), round_up(p.size, cols)) for p in params]
        )
        lanes = self.cfg.word_bytes // 2
        words = _padded(chunks, lanes).astype("<i2").view(np.uint8)
        words = words.reshape(-1, self.cfg.word_bytes)
        if fill:
            total = sum(stream_words(self.cfg, i) for i in self.code) + len(words)
            words = np.pad(words, ((0, -total % BURST_BEATS), (0, 0)))
        self.words.append(words)
        self.add(Op.LOAD, wait, n=len(self.words[-1]))

    def matmul(
        self,
        linear: Linear,
        rows: np.ndarray,
        wait: Unit | int = 0,
        arranged: Callable[[], Linear] | None = None,
        odd_shift: int | None = None,
        **fields_: int,
    ) -> None:
        """MATMUL with the output channels ``rows`` of ``linear``, or with what ``arranged`` makes
        of them: as many channels as ``rows`` has."""
        if self.pack:
            packed = _pad_rows(linear, rows) if arranged is None else arranged()
            self.words.append(pack_linear(self.cfg, packed.weight, packed.mult))
        fields_.setdefault("k", ceil_div(linear.weight.shape[1], self.cfg.cols))
        self.add(
            Op.MATMUL,
            wait,
            n=len(rows) // self.cfg.cols,
            shift=linear.shift,
            shift2=linear.shift if odd_shift is None else odd_shift,
            **fields_,
        )


def _padded(values: np.ndarray, multiple: int) -> np.ndarray:
    out = np.zeros(round_up(values.size, multiple), np.int64)
    out[: values.size] = values.ravel()
    return out


def _layer(
    p: _Program, cfg: FabricConfig, s: ModelShape, z: _Sizes, layer: QLayer, kv: int, scales: int
) -> None:
    head_rows = {n: _chunked(n, s.head_dim, cfg.cols) for n in {s.heads, s.kv_heads}}
    mean = np.zeros((s.kv_heads, z.head * cfg.cols), np.int64)
    mean[:, : s.head_dim] = layer.k_mean
    p.load([layer.attn_norm.gain, mean, layer.ffn_norm.gain], Unit.VECTOR)
    mean_at = z.dim
    ffn_gain = mean_at + s.kv_heads * z.head
    x: dict[str, Any] = {"src": 0, "src_stride": z.x_stride}
    out: dict[str, Any] = {"dst_stride": z.out_stride}

    def norm(n, gain_at: int, wait: Unit) -> None:
        p.add(
            Op.NORM,
            wait,
            src_stride=z.dim,
            dst_stride=z.x_stride,
            k=z.dim,
            param=gain_at,
            shift=n.out_shift,
            shift2=n.in_shift,
            imm=n.eps,
            sat=TensorClass.NORM,
        )

    dim_rows = _chunked(1, s.dim, cfg.cols)
    to_res: dict[str, Any] = {"dst_stride": z.dim, "mode": Dest.RES}

    norm(layer.attn_norm, 0, Unit.ARRAY | Unit.EMBED)
    kv_rows, q_rows = head_rows[s.kv_heads], head_rows[s.heads]
    kv_chunks = s.kv_heads * z.head
    p.matmul(layer.wk, kv_rows, Unit.VECTOR, **x, **out, dst=0, mode=Dest.OUT, sat=TensorClass.K)
    p.matmul(layer.wv, kv_rows, **x, **out, dst=kv_chunks, mode=Dest.OUT8, sat=TensorClass.V)
    heads: dict[str, Any] = {"head_chunks": z.head, "imm": kv, "imm2": scales}
    p.add(
        Op.APPEND,
        Unit.ARRAY,
        src=0,
        src_stride=z.out_stride,
        heads=s.kv_heads,
        param=mean_at,
        sat=TensorClass.ROPE_K,
        **heads,
    )
    p.matmul(layer.wq, q_rows, **x, **out, dst=2 * kv_chunks, mode=Dest.OUT, sat=TensorClass.Q)
    p.add(
        Op.ROPE,
        Unit.ARRAY,
        src=2 * kv_chunks,
        src_stride=z.out_stride,
        dst=z.h,
        dst_stride=z.h_stride,
        heads=s.heads,
        head_chunks=z.head,
        sat=TensorClass.ROPE_Q,
    )
    p.add(
        Op.ATTEND,
        Unit.VECTOR | Unit.WRITER | Unit.ARRAY,
        src=z.h,
        src_stride=z.h_stride,
        dst=0,
        dst_stride=z.x_stride,
        heads=s.kv_heads,
        group=s.heads // s.kv_heads,
        shift=layer.score_shift,
        shift2=layer.score_align,
        sat=TensorClass.SCORES,
        **heads,
    )

    def wo() -> Linear:
        """Inputs as heads padded to whole chunks."""
        weight = np.zeros((s.dim, s.heads, z.head * cfg.cols), np.int8)
        weight[:, :, : s.head_dim] = layer.wo.weight.reshape(s.dim, s.heads, s.head_dim)
        padded = Linear(weight.reshape(s.dim, -1), layer.wo.mult, layer.wo.shift)
        return _pad_rows(padded, dim_rows)

    p.matmul(
        layer.wo,
        dim_rows,
        Unit.ATTENTION,
        arranged=wo,
        k=s.heads * z.head,
        **x,
        **to_res,
        sat=TensorClass.WO,
    )
    norm(layer.ffn_norm, ffn_gain, Unit.ARRAY)
    _feed_forward(p, cfg, s, z, layer)
    p.matmul(
        layer.w2,
        dim_rows,
        Unit.VECTOR,
        src=z.h,
        src_stride=z.h_stride,
        **to_res,
        sat=TensorClass.W2,
    )


def _feed_forward(p: _Program, cfg: FabricConfig, s: ModelShape, z: _Sizes, layer: QLayer) -> None:
    """gate and up, chunk by chunk in turn, and SWIGLU, in pieces that take turns in OUT."""
    rows = _chunked(1, s.hidden, cfg.cols).reshape(-1, cfg.cols)
    piece = ceil_div(z.hidden, z.pieces)
    for number, first in enumerate(range(0, z.hidden, piece)):
        these = rows[first : first + piece].ravel()
        count = len(these) // cfg.cols

        def both(these=these, count=count) -> Linear:
            gate, up = _pad_rows(layer.w1, these), _pad_rows(layer.w3, these)
            return Linear(
                np.stack([a.weight.reshape(count, cfg.cols, -1) for a in (gate, up)], 1).reshape(
                    2 * len(these), -1
                ),
                np.stack([a.mult.reshape(count, cfg.cols) for a in (gate, up)], 1).ravel(),
                gate.shift,
            )

        at = 2 * piece * (number % 2)
        p.matmul(
            layer.w1,
            np.repeat(these, 2),
            Unit.VECTOR if number == 0 else 0,
            arranged=both,
            odd_shift=layer.w3.shift,
            src=0,
            src_stride=z.x_stride,
            dst=at,
            dst_stride=z.out_stride,
            mode=Dest.OUT,
            sat=TensorClass.GATE_UP,
        )
        p.add(
            Op.SWIGLU,
            Unit.ARRAY,
            src=at,
            src_stride=z.out_stride,
            dst=z.h + first,
            dst_stride=z.h_stride,
            n=count,
            shift=layer.glu_shift,
            shift2=layer.glu_align,
            sat=TensorClass.SWIGLU,
        )


def _step(
    p: _Program,
    cfg: FabricConfig,
    model: QModel,
    z: _Sizes,
    kv_layer: int,
    scale_layer: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """The whole program; UserError if it is too long. The classifier's words come last."""
    s = model.shape
    p.add(
        Op.EMBED,
        Unit.ARRAY,
        dst_stride=z.dim,
        k=z.dim,
        shift=model.embedding.shift,
        sat=TensorClass.RES,
    )
    for number, layer in enumerate(model.layers):
        scales = s.layers * kv_layer + number * scale_layer
        _layer(p, cfg, s, z, layer, number * kv_layer, scales)
        if progress is not None:
            progress(number + 1, s.layers)
    # The last LOAD takes the zeros that fill the body's last superblock, too.
    p.load([model.final_norm.gain], Unit.VECTOR, fill=True)
    p.add(
        Op.NORM,
        Unit.ARRAY,
        src_stride=z.dim,
        dst_stride=z.x_stride,
        k=z.dim,
        shift=model.final_norm.out_shift,
        shift2=model.final_norm.in_shift,
        imm=model.final_norm.eps,
        sat=TensorClass.NORM,
        want=1,
    )
    p.matmul(
        model.classifier,
        _chunked(1, s.vocab, cfg.cols),
        Unit.VECTOR,
        src_stride=z.x_stride,
        mode=Dest.LOGITS,
        sat=TensorClass.LOGITS,
        want=1,
    )
    # Zeros fill the last superblock; a LOAD takes them so that the next step begins at its start.
    fill = -stream_words(cfg, p.code[-1]) % BURST_BEATS
    if fill:
        p.add(Op.LOAD, Unit.VECTOR, n=fill, want=1)
    p.add(Op.END)
    if len(p.code) > cfg.program_words:
        raise UserError(
            f"the program of {s.layers} layers has {len(p.code)} instructions, {cfg.name} has room "
            f"for {cfg.program_words}; choose a larger preset"
        )


def program_of(shape: ModelShape, cfg: FabricConfig) -> tuple[int, list[Instruction]]:
    """Rows of a step, and the program that :func:`compile_model` makes of a model of this shape.

    At once and without weights: shifts and addresses of memory are 0. UserError if it does not fit.
    """
    z, p = _sizes(cfg, shape), _Program(cfg, pack=False)
    _step(p, cfg, _hollow(shape), z, 0, 0)
    return z.rows, p.code


def _hollow(s: ModelShape) -> QModel:
    """A model of this shape without contents: a matrix of it takes no memory."""

    def linear(n: int, k: int) -> Linear:
        weight, mult = np.zeros((1, 1), np.int8), np.zeros(1, np.uint16)
        return Linear(np.broadcast_to(weight, (n, k)), np.broadcast_to(mult, (n,)), 0)

    norm = Norm(np.zeros(s.dim, np.int16), 0, 0, 0, 0)
    zeros = np.zeros((s.kv_heads, s.head_dim), np.int16)
    layer = QLayer(
        attn_norm=norm,
        wq=linear(s.q_dim, s.dim),
        wk=linear(s.kv_dim, s.dim),
        wv=linear(s.kv_dim, s.dim),
        wo=linear(s.dim, s.q_dim),
        ffn_norm=norm,
        w1=linear(s.hidden, s.dim),
        w2=linear(s.dim, s.hidden),
        w3=linear(s.hidden, s.dim),
        k_mean=zeros,
        k_scale=zeros,
        v_scale=zeros,
        score_shift=0,
        score_align=0,
        glu_align=0,
        glu_shift=0,
        q_frac=0,
        k_frac=0,
        up_frac=0,
        h_frac=0,
    )
    classifier = linear(s.vocab, s.dim)
    return QModel(s, "", 0, 0, classifier, [layer] * s.layers, norm, classifier)


def compile_model(
    model: QModel,
    cfg: FabricConfig,
    *,
    name: str = "model",
    context: int | None = None,
    slots: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Image:
    """Compile ``model`` for the accelerator ``cfg``.

    context: positions of a slot, the model's (or what the accelerator has room for) by default.
    slots: sequences that can be in memory at a time. UserError where the model does not fit.
    """
    s = model.shape
    context = min(s.context, cfg.max_context) if context is None else context
    if not 0 < context <= min(s.context, cfg.max_context):
        raise UserError(
            f"context {context} does not fit: the model has {s.context} positions, {cfg.name} "
            f"has room for {cfg.max_context}; choose from 1 to {min(s.context, cfg.max_context)}"
        )
    if not 0 < slots <= MAX_SLOTS:
        raise UserError(f"{slots} slots; choose from 1 to {MAX_SLOTS}")
    z = _sizes(cfg, s)
    head_bytes = z.head * cfg.cols
    room = round_up(context, CONTEXT_STEP)
    kv_head = room * head_bytes
    kv_slot = s.kv_heads * kv_head
    v_offset = slots * kv_slot
    kv_layer = 2 * v_offset
    scale_head = 2 * room
    scale_slot = s.kv_heads * scale_head
    scale_layer = slots * scale_slot
    # K, V and scales stand after the constant part, whose length is known once it is packed:
    # the program is built with addresses from 0 and moved there at the end.
    p = _Program(cfg, pack=True)
    _step(p, cfg, model, z, kv_layer, scale_layer, progress)
    head = to_superblocks(cfg, p.words.pop())  # of the classifier
    body = to_superblocks(cfg, np.concatenate(p.words))
    vocab_rows = _chunked(1, s.vocab, cfg.cols)
    parts: list[tuple[int, np.ndarray]] = []
    end = PAGE

    def place(data: np.ndarray) -> int:
        nonlocal end
        at, end = end, round_up(end + data.size, PAGE)
        parts.append((at, data))
        return at

    program = place(np.zeros(len(p.code) * isa.INSTRUCTION_BYTES, np.uint8))
    stream = place(np.concatenate([body, head]))
    embedding = stream + body.size
    if not s.tied:
        padded = _pad_rows(model.embedding, vocab_rows)
        embedding = place(to_superblocks(cfg, pack_linear(cfg, padded.weight, padded.mult)))
    table = np.zeros((room, head_bytes), "<i2")
    table[:, : s.head_dim] = ops.rope_table(np.arange(room), s.head_dim, s.rope_theta)
    rope = place(table.view(np.uint8).ravel())
    kv = end
    code = b"".join(
        isa.encode(
            i
            if i.op not in (Op.APPEND, Op.ATTEND)
            else Instruction(**{**vars(i), "imm": kv + i.imm, "imm2": kv + i.imm2})
        )
        for i in p.code
    )
    parts[0][1][:] = np.frombuffer(code, np.uint8)
    payload = np.zeros(kv - PAGE, np.uint8)
    for at, data in parts:
        payload[at - PAGE : at - PAGE + data.size] = data
    ring = isa.JOB + PAGE
    group_blocks = cfg.scale_channels // cfg.cols
    k_blocks = ceil_div(z.dim, cfg.k_chunks)
    return Image(
        preset=cfg.name,
        fingerprint=cfg.fingerprint,
        name=name,
        rows=z.rows,
        context=context,
        layers=s.layers,
        slots=slots,
        vocab=s.vocab,
        head_bytes=head_bytes,
        logits_frac=model.logits_frac,
        **vars(work_of(s)),
        map=MemoryMap(
            program=program,
            program_words=len(p.code),
            stream=stream,
            stream_body=body.size // cfg.superblock_bytes,
            stream_full=(body.size + head.size) // cfg.superblock_bytes,
            embedding=embedding,
            embedding_group=(1 + group_blocks * k_blocks * cfg.tile_cycles) * cfg.word_bytes,
            rope=rope,
            kv=kv,
            v_offset=v_offset,
            kv_slot=kv_slot,
            kv_head=kv_head,
            scale_slot=scale_slot,
            scale_head=scale_head,
            ring=ring,
            logits=ring + round_up(8 * room * cfg.max_rows, PAGE),
            logits_stride=4 * len(vocab_rows),
            end=round_up(kv + s.layers * (kv_layer + scale_layer), PAGE),
        ),
        tokenizer=model.tokenizer,
        payload=payload,
    )
