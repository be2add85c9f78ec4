"""From a quantized model to a program: every layer's sublayers as instructions, in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.compiler.program import Program, chunks_of
from tokenfabric.compiler.sizes import Sizes
from tokenfabric.core.arch import Attention, FeedForward, Matrix
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import ceil_div, round_up
from tokenfabric.core.isa import Dest, Op
from tokenfabric.core.kv import KvLayout
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.tensors import TensorClass
from tokenfabric.quant.qmodel import Linear, Norm, QLayer, QModel

__all__ = ["channels", "lower", "outline", "select"]

Array = npt.NDArray[Any]


def channels(count: int, size: int, cols: int) -> Array:
    """Channel numbers of ``count`` heads of ``size``, each padded to whole chunks with -1."""
    padded = np.full((count, round_up(size, cols)), -1)
    padded[:, :size] = np.arange(count * size).reshape(count, size)
    return padded.ravel()


def select(linear: Linear, rows: Array) -> Linear:
    """The output channels ``rows`` of a matrix; -1 stands for a channel of zeros."""
    weight = np.where(rows[:, None] >= 0, linear.weight[rows], 0).astype(np.int8)
    mult = np.where(rows >= 0, linear.mult[rows], 0).astype(np.uint16)
    return Linear(weight, mult, linear.shift)


def lower(
    cfg: FabricConfig,
    model: QModel,
    sizes: Sizes,
    kv: KvLayout,
    progress: Callable[[int, int], None] | None = None,
) -> Program:
    """The program of a step. UserError if it is too long for the accelerator."""
    s = model.shape
    work = _Lowering(cfg, s, sizes, kv)
    p = work.program
    p.add(
        Op.EMBED,
        dst_stride=sizes.dim,
        k=sizes.dim,
        shift=model.embedding.shift,
        sat=TensorClass.RES,
    )
    for number, layer in enumerate(model.layers):
        work.layer(number, layer)
        if progress is not None:
            progress(number + 1, s.layers)
    work.classifier(model)
    p.add(Op.END)
    if len(p.items) > cfg.program_words:
        raise UserError(
            f"layers = {s.layers} makes a program of {len(p.items)} instructions, {cfg.name} has "
            f"room for {cfg.program_words}; choose a larger preset ('tokenfabric explore' finds "
            "one) or a model with fewer layers"
        )
    return p


class _Lowering:
    """The state of :func:`lower`: one model, one accelerator, the program so far."""

    def __init__(self, cfg: FabricConfig, shape: ModelShape, sizes: Sizes, kv: KvLayout):
        self.cfg, self.shape, self.sizes, self.kv = cfg, shape, sizes, kv
        self.program = Program(cfg, sizes.rows)
        self.x: dict[str, Any] = {
            "src": 0,
            "src_stride": sizes.x_stride,
        }  # IN: norm outputs, attention output
        self.h: dict[str, Any] = {
            "src": sizes.h,
            "src_stride": sizes.h_stride,
        }  # IN: the hidden layer
        self.to_res: dict[str, Any] = {"dst_stride": sizes.dim, "mode": Dest.RES}

    def layer(self, number: int, layer: QLayer) -> None:
        """LOAD of all that the layer's sublayers keep in PARAM, then the sublayers."""
        values: list[Array] = []
        at: dict[str, int] = {}  # first chunk in PARAM, by name
        for sublayer in self.shape.architecture.sublayers:
            kept = {sublayer.norm.name: layer.norms[sublayer.norm.name].gain}
            if isinstance(sublayer, Attention):
                kept["k_mean"] = self._padded_means(layer.k_mean)
            for name, value in kept.items():
                at[name] = sum(ceil_div(v.size, self.cfg.cols) for v in values)
                values.append(value)
        self.program.load(chunks_of(values, self.cfg.cols))
        for sublayer in self.shape.architecture.sublayers:
            name = sublayer.norm.name
            self._norm(layer.norms[name], at[name])
            if isinstance(sublayer, Attention):
                self._attention(sublayer, number, layer, at["k_mean"])
            else:
                self._feed_forward(sublayer, layer)

    def classifier(self, model: QModel) -> None:
        """The last norm, the classifier, and what brings the stream to the end of a superblock."""
        p = self.program
        gain = chunks_of([model.final_norm.gain], self.cfg.cols)
        # Zeros fill the body's last superblock: this LOAD takes them, too.
        need = ceil_div(gain.size * 2, self.cfg.word_bytes)
        before = p.stream_words(want=0)
        p.load(gain, words=round_up(before + need, BURST_BEATS) - before)
        self._norm(model.final_norm, 0, want=1)
        rows = channels(1, self.shape.vocab, self.cfg.cols)
        self._matmul(
            model.classifier, rows, src_stride=self.sizes.x_stride, mode=Dest.LOGITS,
            sat=TensorClass.LOGITS, want=1,
        )  # fmt: skip
        fill = -p.stream_words(want=1) % BURST_BEATS
        if fill:  # so that the next step begins at the start of a superblock
            p.load(np.zeros(0, np.int64), words=fill, want=1)

    # --- pieces --------------------------------------------------------------------------------

    def _norm(self, norm: Norm, gain_at: int, want: int = 0) -> None:
        self.program.add(
            Op.NORM,
            src_stride=self.sizes.dim,
            dst_stride=self.sizes.x_stride,
            k=self.sizes.dim,
            param=gain_at,
            shift=norm.out_shift,
            shift2=norm.in_shift,
            imm=norm.eps,
            sat=TensorClass.NORM,
            want=want,
        )

    def _matmul(
        self,
        linear: Linear,
        rows: Array,
        arranged: Callable[[], Linear] | None = None,
        odd_shift: int | None = None,
        **fields: int,
    ) -> None:
        """MATMUL with the output channels ``rows`` of ``linear``, or with what ``arranged`` makes
        of them: as many channels as ``rows`` has."""
        cfg = self.cfg

        def words() -> Array:
            packed = select(linear, rows) if arranged is None else arranged()
            return packed.format.pack(cfg, packed.weight, packed.mult)

        fields.setdefault("k", ceil_div(linear.weight.shape[1], cfg.cols))
        self.program.add(
            Op.MATMUL,
            words,
            n=len(rows) // cfg.cols,
            shift=linear.shift,
            shift2=linear.shift if odd_shift is None else odd_shift,
            **fields,
        )

    def _padded_means(self, k_mean: Array) -> Array:
        """[kv_heads, head_dim], each head padded to whole chunks."""
        means = np.zeros((self.shape.kv_heads, self.sizes.head * self.cfg.cols), np.int64)
        means[:, : self.shape.head_dim] = k_mean
        return means

    def _attention(self, a: Attention, number: int, layer: QLayer, means: int) -> None:
        """K and V first: they are on their way to memory while q is computed."""
        p, s, z = self.program, self.shape, self.sizes
        kv_chunks = s.kv_heads * z.head
        q_at = 2 * kv_chunks
        heads: dict[str, Any] = {
            "head_chunks": z.head,
            "imm": self.kv.k_of(number),
            "imm2": self.kv.scales_of(number),
        }

        def project(m: Matrix, count: int, at: int, mode: Dest) -> None:
            rows = channels(count, s.head_dim, self.cfg.cols)
            self._matmul(
                layer.linears[m.name], rows, **self.x, dst=at, dst_stride=z.out_stride,
                mode=mode, sat=m.counted,
            )  # fmt: skip

        project(a.k, s.kv_heads, 0, Dest.OUT)
        project(a.v, s.kv_heads, kv_chunks, Dest.OUT8)
        p.add(
            Op.APPEND,
            src=0,
            src_stride=z.out_stride,
            heads=s.kv_heads,
            param=means,
            sat=TensorClass.ROPE_K,
            **heads,
        )
        project(a.q, s.heads, q_at, Dest.OUT)
        p.add(
            Op.ROPE,
            src=q_at,
            src_stride=z.out_stride,
            dst=z.h,
            dst_stride=z.h_stride,
            heads=s.heads,
            head_chunks=z.head,
            sat=TensorClass.ROPE_Q,
        )
        p.add(
            Op.ATTEND,
            **self.h,
            dst=0,
            dst_stride=z.x_stride,
            heads=s.kv_heads,
            group=s.heads // s.kv_heads,
            shift=layer.score_shift,
            shift2=layer.score_align,
            sat=TensorClass.SCORES,
            **heads,
        )
        self._output(a.o, layer.linears[a.o.name])

    def _output(self, o: Matrix, linear: Linear) -> None:
        """The matrix behind the attention, its inputs as heads padded to whole chunks."""
        s, z = self.shape, self.sizes
        rows = channels(1, s.dim, self.cfg.cols)

        def arranged() -> Linear:
            weight = np.zeros((s.dim, s.heads, z.head * self.cfg.cols), np.int8)
            weight[:, :, : s.head_dim] = linear.weight.reshape(s.dim, s.heads, s.head_dim)
            return select(Linear(weight.reshape(s.dim, -1), linear.mult, linear.shift), rows)

        self._matmul(
            linear, rows, arranged=arranged, k=s.heads * z.head, **self.x,
            **self.to_res, sat=o.counted,
        )  # fmt: skip

    def _feed_forward(self, f: FeedForward, layer: QLayer) -> None:
        """gate and up, chunk by chunk in turn, and SWIGLU, in pieces that take turns in OUT."""
        z, cols = self.sizes, self.cfg.cols
        gate, up = layer.linears[f.gate.name], layer.linears[f.up.name]
        rows = channels(1, gate.weight.shape[0], cols).reshape(-1, cols)
        piece = ceil_div(z.hidden, z.pieces)
        for number, first in enumerate(range(0, z.hidden, piece)):
            these = rows[first : first + piece].ravel()
            out: dict[str, Any] = {
                "dst": 2 * piece * (number % 2),
                "dst_stride": z.out_stride,
                "mode": Dest.OUT,
            }
            self._matmul(
                gate,
                np.repeat(these, 2),
                arranged=partial(_interleaved, gate, up, these, cols),
                odd_shift=up.shift,
                sat=f.gate.counted,
                **self.x,
                **out,
            )
            self.program.add(
                Op.SWIGLU,
                src=out["dst"],
                src_stride=z.out_stride,
                dst=z.h + first,
                dst_stride=z.h_stride,
                n=len(these) // cols,
                shift=layer.glu_shift,
                shift2=layer.glu_align,
                sat=TensorClass.SWIGLU,
            )
        rows = channels(1, self.shape.dim, cols)
        self._matmul(
            layer.linears[f.down.name], rows, **self.h, **self.to_res,
            sat=f.down.counted,
        )  # fmt: skip


def _interleaved(gate: Linear, up: Linear, rows: Array, cols: int) -> Linear:
    """Channels ``rows`` of both matrices, a chunk of one and a chunk of the other in turn."""
    both = [select(linear, rows) for linear in (gate, up)]
    count = len(rows) // cols
    weight = np.stack([x.weight.reshape(count, cols, -1) for x in both], 1)
    mult = np.stack([x.mult.reshape(count, cols) for x in both], 1)
    return Linear(weight.reshape(2 * len(rows), -1), mult.ravel(), gate.shift)


def outline(s: ModelShape) -> QModel:
    """A model of this shape without contents, for what needs its program only."""

    def linear(n: int, k: int) -> Linear:
        weight, mult = np.zeros((1, 1), np.int8), np.zeros(1, np.uint16)
        return Linear(np.broadcast_to(weight, (n, k)), np.broadcast_to(mult, (n,)), 0)

    norm = Norm(np.zeros(s.dim, np.int16), 0, 0, 0, 0)
    zeros = np.zeros((s.kv_heads, s.head_dim), np.int16)
    layer = QLayer(
        norms={gain.name: norm for gain in s.architecture.norms},
        linears={m.name: linear(*m.dims(s)) for m in s.architecture.matrices},
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
