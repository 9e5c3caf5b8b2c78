"""Networks for other programs, as ONNX, a program of torch.export or compiled: ``ran export``."""

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tvf

import ran_kernels

from ..data.images import Preprocessing
from ..errors import UserError
from ..files import replacing, require_path, require_writable
from ..weights.inference import load_images
from ..weights.network_card import NetworkCard, load_network
from .aoti import require_native, write_package
from .deploy import deploy as make_deployed

#: What each suffix needs beside torch.
NEEDS: dict[str, tuple[str, ...]] = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
#: Batch sizes that the written file is checked with; it was traced with another.
CHECKED_BATCHES = (1, 3)
_TRACED_BATCH = 2
#: The file's logits may be off from those in float64 by so many times as much as the network's own
#: float32 logits are, or by the least relative to their norm: both add in another order, and deep
#: networks enlarge that. By no more than the most, whatever the network's own are.
ERROR_FACTOR, LEAST_ERROR, MOST_ERROR = 4.0, 1e-5, 1e-2
#: Names of the file's input and output.
INPUT, OUTPUT = "images", "logits"
#: Under this key the file holds the network's card as JSON: classes and preprocessing.
CARD_KEY = "ran-network.json"

#: Images (N, C, H, W), normalised, to logits (N, classes).
Program = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how exact it is.

    Attributes:
        path: of the file.
        batches: sizes of the batches of real images that were compared.
        error: how far the file's logits are from the network's in float64, relative to their norm;
            the greatest over the batches.
        network_error: the same of the network's own in float32.
        operators: of the written graph, without repetition.
        library: what a process must load before the file, ``ran_kernels.library_path()``; None
            where the file needs nothing of this package.
    """

    path: Path
    batches: tuple[int, ...]
    error: float
    network_error: float
    operators: tuple[str, ...]
    library: Path | None = None


def export(
    checkpoint: nn.Module | str | Path,
    output: str | Path,
    *,
    images: str | Path | Sequence[str | Path] = (),
    image_size: int | None = None,
    overwrite: bool = False,
    deploy: bool = True,
    aoti: bool = False,
) -> ExportReport:
    """Writes a network as a file that needs neither this package nor, but for `aoti`, its kernels.

    The file takes normalised images (N, C, image_size, image_size) float32, for any N, and gives
    logits (N, classes). It holds the network's card as JSON: a metadata property of ONNX and of a
    compiled package, an extra file of .pt2. After it is written it is read again and compared with
    the network on real images in batches of one and of several; only if they agree does it get its
    name.

    Args:
        checkpoint: a folder or file, or a network in memory, which stays as it is; as for
            ``ran.weights.network_card.load_network``.
        output: ``.onnx``, which ONNX Runtime must run, or ``.pt2``, for ``torch.export.load``.
        images: path of an image file to compare on, or several, of which the first three count;
            two photographs that come with scikit-learn if none.
        image_size: side in pixels of what the file takes; that of its training if None.
        overwrite: replace ``output`` if it is there.
        deploy: write what ``ran.deploy`` makes of the network, whose normalisations are part of its
            convolutions, and not the network layer by layer.
        aoti: compile it with AOTInductor, for `torch._inductor.aoti_load_package` and C++'s
            ``AOTIModelPackageLoader`` on processors of this machine's kind. Its kernels are this
            package's, from a library without Python; see ``ran_kernels.library_path``.

    Raises:
        UserError: an argument is wrong, a package is missing, a file is unreadable, ``output``
            cannot be written, or the file computes something else than the network. ``output`` is
            then as it was.
    """
    output = require_path("output", output)
    suffix = output.suffix.lower()
    if suffix not in NEEDS:
        raise UserError(f"{output}: expected a name that ends in .onnx or .pt2")
    if aoti and suffix != ".pt2":
        raise UserError(f"{output}: expected a name that ends in .pt2 for a compiled package")
    require_writable(output, overwrite=overwrite)
    missing = [name for name in NEEDS[suffix] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{output}: expected {', '.join(missing)} to be installed for {suffix}: "
            "pip install 'ran-attention[export]'"
        )
    network, card = load_network(checkpoint)
    network.float()
    card = _resized(network, card, image_size)
    batch = _real_images(card, [images] if isinstance(images, str | Path) else images)
    wanted, own = _exact_logits(network, batch)
    program = _trace(make_deployed(network) if deploy else network, batch, kernels=aoti)
    operators = _operators(program)
    library = None
    if not aoti:
        _require_plain(operators)
    elif require_native(operators):
        library = ran_kernels.library_path()
    write = _write_onnx if suffix == ".onnx" else _write_aoti if aoti else _write_pt2
    try:
        with replacing(output) as partial, torch.no_grad():
            loaded = write(program, partial, card)
            off = max(_error(loaded(batch[:n]), wanted[:n]) for n in CHECKED_BATCHES)
            allowed = min(max(LEAST_ERROR, ERROR_FACTOR * own), MOST_ERROR)
            if not off <= allowed:  # NaN too
                raise UserError(
                    f"{output}: expected the logits of {card.model}, the file's are off by "
                    f"{off:.1e} of their norm, more than {allowed:.0e}; not written"
                )
            if suffix == ".onnx":
                operators = _onnx_operators(partial)
    except UserError:
        raise
    except (OSError, RuntimeError) as error:  # of torch's writers when the disk is full, too
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{output}: cannot write the file: {reason}") from error
    return ExportReport(output, CHECKED_BATCHES, off, own, operators, library)


def _resized(network: nn.Module, card: NetworkCard, image_size: int | None) -> NetworkCard:
    """``card`` of a file that takes images of ``image_size``."""
    size = card.preprocessing.image_size if image_size is None else image_size
    least: int = getattr(network, "minimum_size", 1)
    if size < least:
        raise UserError(f"image size {size}: expected at least {least} for {card.model}")
    return replace(card, preprocessing=replace(card.preprocessing, image_size=size))


def _real_images(card: NetworkCard, paths: Sequence[str | Path]) -> Tensor:
    """As many normalised images as the largest batch that is traced or checked."""
    pictures = load_images(paths, card) if paths else _photographs(card.preprocessing)
    count = max(*CHECKED_BATCHES, _TRACED_BATCH)
    pictures = pictures.repeat(-(-count // len(pictures)), 1, 1, 1)[:count]
    return card.preprocessing.normalize(pictures).contiguous()


def _photographs(preprocessing: Preprocessing) -> Tensor:
    """Two photographs and parts of them, as the network sees them."""
    from sklearn.datasets import load_sample_images  # scikit-learn takes a while to load

    photos = torch.stack(
        [torch.tensor(photo).permute(2, 0, 1) for photo in load_sample_images().images]
    )
    if preprocessing.channels == 1:
        photos = tvf.rgb_to_grayscale(photos)
    # A network of other channels gets the colours over and over: they are only compared.
    photos = photos[:, [i % photos.shape[1] for i in range(preprocessing.channels)]]
    width = photos.shape[-1]
    halves = [photos[..., : width // 2], photos[..., width // 2 :]]
    return torch.cat([preprocessing.resize(part) for part in [photos, *halves]])


def _trace(
    network: nn.Module, batch: Tensor, *, kernels: bool = False
) -> torch.export.ExportedProgram:
    # The reference is plain PyTorch: the traced graph has no operator of this package.
    with ran_kernels.backend("auto" if kernels else "reference"), torch.no_grad():
        return torch.export.export(
            network,
            (batch[:_TRACED_BATCH],),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )


def _operators(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return tuple(sorted({str(target) for target in targets}))


def _require_plain(names: tuple[str, ...]) -> None:
    if foreign := [name for name in names if name.startswith("ran.")]:
        raise UserError(f"expected PyTorch's own operators in the graph, found {foreign[0]}")


def _write_pt2(program: torch.export.ExportedProgram, path: Path, card: NetworkCard) -> Program:
    # To memory first: where torch's writer meets a full disk, it ends the whole process.
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content, extra_files={CARD_KEY: json.dumps(card.to_json())})
        path.write_bytes(content.getbuffer())
        # As a file that is open: torch, and ONNX Runtime below, know no name that is not UTF-8.
        with path.open("rb") as file:
            module = torch.export.load(file).module()
    return lambda x: module(x)


def _write_aoti(program: torch.export.ExportedProgram, path: Path, card: NetworkCard) -> Program:
    with _quiet():
        return write_package(program, path, {CARD_KEY: json.dumps(card.to_json())})


def _write_onnx(program: torch.export.ExportedProgram, path: Path, card: NetworkCard) -> Program:
    import onnxruntime

    with _quiet():
        written = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    assert written is not None
    written.model.metadata_props[CARD_KEY] = json.dumps(card.to_json())
    written.save(path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(x.numpy())})
        return torch.from_numpy(logits)

    return run


def _onnx_operators(path: Path) -> tuple[str, ...]:
    """The operators of the file, which are ONNX's own."""
    import onnx

    graph = onnx.load(path).graph
    foreign = [node.op_type for node in graph.node if node.domain not in ("", "ai.onnx")]
    if foreign:
        raise UserError(f"{path}: expected ONNX's own operators, found {foreign[0]}")
    return tuple(sorted({node.op_type for node in graph.node}))


@torch.no_grad()
def _exact_logits(network: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """The logits in float64, and how far the network's own in float32 are from them."""
    own = network(images)
    exact = network.double()(images.double())
    network.float()  # what float32 held comes back as it was
    return exact, max(_error(own[:n], exact[:n]) for n in CHECKED_BATCHES)


def _error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference relative to the norm of ``exact``, infinity for another shape."""
    if found.shape != exact.shape:
        return float("inf")
    return float((found.double() - exact).norm() / exact.norm())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what the exporters say of their own workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
