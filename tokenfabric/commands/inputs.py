"""What a user may give as a model: our files, a checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenfabric.core.errors import UserError

if TYPE_CHECKING:
    from tokenfabric.core.config import FabricConfig
    from tokenfabric.core.image import Image
    from tokenfabric.core.shape import ModelShape
    from tokenfabric.host.tokenizer import Tokenizer
    from tokenfabric.progress import Progress
    from tokenfabric.quant.checkpoint import Checkpoint
    from tokenfabric.quant.qmodel import QModel

RECIPE = "w8"  # of checkpoints that are quantized on the fly


def shipped_model() -> Path:
    """The model that comes with this package: as a wheel installs it, or in the checkout.

    UserError where somebody has removed it.
    """
    package = Path(__file__).resolve().parent.parent
    places = [folder / "models" / "stories" for folder in (package, package.parent)]
    for path in places:
        if (path / "config.json").is_file():
            return path
    raise UserError(
        f"no model given, and the one that tokenfabric ships is not at {places[0]}; install "
        "tokenfabric again, or give --model FILE"
    )


def kind_of(path: Path) -> str:
    """ "model", "image" or "checkpoint"; UserError for a file that is not there or empty."""
    from tokenfabric.core.files import file_size
    from tokenfabric.core.image import MAGIC as IMAGE_MAGIC
    from tokenfabric.quant.model_file import MAGIC as MODEL_MAGIC

    if path.is_dir():
        return "checkpoint"
    file_size(path)
    with path.open("rb") as file:
        start = file.read(len(MODEL_MAGIC) - 1)  # without the version
    kinds = {MODEL_MAGIC[:-1]: "model", IMAGE_MAGIC[:-1]: "image"}
    return kinds.get(start, "checkpoint")


def load_checkpoint(path: Path, tokenizer: str | None) -> tuple[Checkpoint, Tokenizer]:
    """A checkpoint with the tokenizer that was given or lies with it."""
    from tokenfabric.host.tokenizer import find_tokenizer, load_tokenizer
    from tokenfabric.quant.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    vocab = checkpoint.shape.vocab
    return checkpoint, load_tokenizer(tokenizer or find_tokenizer(path, vocab), vocab)


def load_model(
    path: Path,
    tokenizer: str | None,
    progress: Progress,
    check: Callable[[ModelShape], None] = lambda shape: None,
) -> QModel:
    """A model file, or a checkpoint that is quantized now (or was before: kept in the cache).

    check: looks at the shape of a checkpoint before that.
    """
    from tokenfabric.quant.qmodel import QModel

    kind = kind_of(path)
    if kind == "image":
        raise UserError(f"{path}: is an image, a model file or a checkpoint is needed here")
    if kind == "checkpoint":
        return _quantized(path, tokenizer, progress, check)
    if tokenizer is not None:
        raise UserError(f"{path}: a model file brings its own tokenizer; leave out --tokenizer")
    return QModel.read(path)


def _quantized(
    path: Path, tokenizer: str | None, progress: Progress, check: Callable[[ModelShape], None]
) -> QModel:
    from tokenfabric.flow.toolchain import cached, digest
    from tokenfabric.quant.qmodel import QModel

    checkpoint, words = load_checkpoint(path, tokenizer)
    check(checkpoint.shape)

    def make(directory: Path) -> None:
        from tokenfabric.quant.quantize import quantize_checkpoint

        model = quantize_checkpoint(checkpoint, words, RECIPE, progress=progress)
        model.write(directory / "model.tfm")

    # What has been read, in whichever files it stood, and not the files: it is all that counts.
    tensors = [part for name, array in checkpoint.tensors() for part in (name, array.data)]
    key = digest(RECIPE, repr(checkpoint.shape), *tensors, words.to_bytes(), *_sources())
    return QModel.read(cached("models", key, make, progress) / "model.tfm")


def _sources() -> list[bytes]:
    """What decides how a checkpoint is quantized: our own code for it."""
    from tokenfabric.flow.sources import sources

    return [path.read_bytes() for path in sources("tokenfabric.quant.quantize")]


def load_image(
    path: Path,
    tokenizer: str | None,
    accelerator: str | FabricConfig | None,
    context: int | None,
    progress: Progress,
    slots: int = 1,
) -> tuple[FabricConfig, Image]:
    """An image for an accelerator (or the preset of that name): read, or compiled now."""
    from tokenfabric.compiler.compile import check_fits, compile_model
    from tokenfabric.core.config import preset
    from tokenfabric.core.image import Image

    if kind_of(path) == "image":
        if tokenizer is not None or context is not None:
            option = "--tokenizer" if tokenizer is not None else "--context"
            raise UserError(f"{path}: an image is compiled already; leave out {option}")
        image = Image.read(path)
        accelerator = accelerator or image.preset
        return preset(accelerator) if isinstance(accelerator, str) else accelerator, image
    accelerator = accelerator or "pynq-z2"
    cfg = preset(accelerator) if isinstance(accelerator, str) else accelerator

    def check(shape: ModelShape) -> None:
        check_fits(shape, cfg, context=context, slots=slots)

    model = load_model(path, tokenizer, progress, check)

    def compiling(done: int, total: int) -> None:
        progress("compiling", done, total)

    image = compile_model(
        model, cfg, name=path.stem, context=context, slots=slots, progress=compiling
    )
    return cfg, image


def tokenizer_of(data: bytes, path: Path) -> Tokenizer:
    """The tokenizer inside a model file or an image."""
    from tokenfabric.host.tokenizer import Tokenizer

    return Tokenizer.from_bytes(data, f"{path} (tokenizer)")
