"""The launchers of csrc/cuda and what each of their buffers is.

To add a kernel to all that the emulator checks:

1. a line in launchers.cpp: LAUNCHER(name), and WORKSPACE(name) where it takes one;
2. an entry here, with its sizes and buffers in the order of that line: from then on its launches
   are checked at every shape and beyond 2³¹ elements;
3. a random case in gates.py, images.py, pools.py, cbam.py, affine.py or norms.py: its inputs, and
   a formula in float64 for its outputs;
4. rows in tests/regression/traffic.py (``python -m tests.regression.measure traffic`` renews the
   baseline).

Where PyTorch's dispatcher has the operator, nothing else: its tests run at ``native-emulated`` as
soon as they run at ``native-cpu``.
"""

from dataclasses import dataclass

import numpy as np

from .formats import BYTES, COMPUTED

#: Integers of a launcher, by what it works on.
SIZES = {
    "features": ("n", "c", "hw", "channels_last"),
    "groups": ("activation", "outer", "members", "inner"),
    "images": ("n", "c", "h", "w", "height", "width", "align_corners", "channels_last"),
}


@dataclass(frozen=True)
class Buffer:
    """A pointer of a launcher.

    `kind` is its shape: "map" as the features; "channel" (N, C); "position" (N, HW); "maps"
    (N, 2, HW); "affine" (C,), in the type that is computed in; "group" as the groups; "small" and
    "large", the images of an interpolation. `index`: 32-bit integers.
    """

    kind: str
    out: bool = False
    index: bool = False


@dataclass(frozen=True)
class Launcher:
    on: str
    buffers: dict[str, Buffer]
    flags: tuple[str, ...] = ()
    workspace: bool = False
    #: Buffers that may be null, in groups of those that are null together.
    optional: tuple[tuple[str, ...], ...] = ()

    def sizes(self, of: dict[str, int]) -> list[int]:
        """What `launch_NAME` takes as `sizes`."""
        return [int(of.get(name, 0)) for name in (*SIZES[self.on], *self.flags)]

    def shape(self, name: str, of: dict[str, int]) -> tuple[int, ...]:
        """The shape of a buffer, as it lies in memory."""
        kind = self.buffers[name].kind
        if self.on == "groups":
            return of["outer"], of["members"], of["inner"]
        n, c, last = of["n"], of["c"], of["channels_last"]
        if kind in ("small", "large"):
            h, w = (of["h"], of["w"]) if kind == "small" else (of["height"], of["width"])
            return (n, h, w, c) if last else (n, c, h, w)
        hw = of["hw"]
        return {
            "map": (n, hw, c) if last else (n, c, hw),
            "channel": (n, c),
            "position": (n, hw),
            "maps": (n, 2, hw),
            "affine": (c,),
        }[kind]

    def bytes(self, name: str, dtype: int, of: dict[str, int]) -> int:
        buffer = self.buffers[name]
        count = 1
        for size in self.shape(name, of):
            count *= size
        if buffer.index:
            return 4 * count
        return count * (
            np.dtype(COMPUTED[dtype]).itemsize if buffer.kind == "affine" else BYTES[dtype]
        )


MAP, OUT_MAP = Buffer("map"), Buffer("map", out=True)
CHANNEL, OUT_CHANNEL = Buffer("channel"), Buffer("channel", out=True)
POSITION, OUT_POSITION = Buffer("position"), Buffer("position", out=True)
MAPS, OUT_MAPS = Buffer("maps"), Buffer("maps", out=True)
CHANNEL_INDEX = Buffer("channel", index=True)
POSITION_INDEX = Buffer("position", index=True)
AFFINE, OUT_AFFINE = Buffer("affine"), Buffer("affine", out=True)
GROUP, OUT_GROUP = Buffer("group"), Buffer("group", out=True)

INCOMING = {
    "grad": MAP,
    "spatial_logits": POSITION,
    "grad_maps": MAPS,
    "spatial_index": POSITION_INDEX,
}

NORM = {"mean": AFFINE, "variance": AFFINE, "weight": AFFINE, "bias": AFFINE}

LAUNCHERS = {
    "attention_gate": Launcher(
        "groups",
        {"logits": GROUP, "trunk": GROUP, "out": OUT_GROUP},
        flags=("residual",),
    ),
    "attention_gate_backward": Launcher(
        "groups",
        {
            "grad": GROUP,
            "logits": GROUP,
            "trunk": GROUP,
            "grad_logits": OUT_GROUP,
            "grad_trunk": OUT_GROUP,
        },
        flags=("residual",),
    ),
    "upsample": Launcher(
        "images",
        {"x": Buffer("small"), "skip": Buffer("large"), "out": Buffer("large", out=True)},
        optional=(("skip",),),
    ),
    "upsample_backward": Launcher(
        "images", {"grad": Buffer("large"), "grad_x": Buffer("small", out=True)}
    ),
    "channel_pool": Launcher(
        "features",
        {
            "x": MAP,
            "mean": OUT_CHANNEL,
            "max": OUT_CHANNEL,
            "index": Buffer("channel", out=True, index=True),
        },
        workspace=True,
    ),
    "spatial_pool": Launcher(
        "features",
        {
            "x": MAP,
            "channel_logits": CHANNEL,
            "maps": OUT_MAPS,
            "index": Buffer("position", out=True, index=True),
        },
        workspace=True,
        optional=(("channel_logits",),),
    ),
    "cbam_gate": Launcher(
        "features",
        {
            "x": MAP,
            "channel_logits": CHANNEL,
            "spatial_logits": POSITION,
            "shortcut": MAP,
            "out": OUT_MAP,
        },
        flags=("relu",),
        optional=(("channel_logits",), ("spatial_logits",), ("shortcut",)),
    ),
    "cbam_grad_spatial": Launcher(
        "features",
        {
            "grad": MAP,
            "x": MAP,
            "channel_logits": CHANNEL,
            "spatial_logits": POSITION,
            "out": MAP,
            "grad_spatial": OUT_POSITION,
            "masked": OUT_MAP,
        },
        workspace=True,
        optional=(("channel_logits",), ("out", "masked")),
    ),
    "cbam_grad_channel": Launcher(
        "features",
        {**INCOMING, "x": MAP, "channel_logits": CHANNEL, "grad_channel": OUT_CHANNEL},
        workspace=True,
        optional=(("spatial_logits",), ("grad_maps", "spatial_index")),
    ),
    "cbam_grad_x": Launcher(
        "features",
        {
            **INCOMING,
            "channel_logits": CHANNEL,
            "grad_mean": CHANNEL,
            "grad_max": CHANNEL,
            "channel_index": CHANNEL_INDEX,
            "grad_x": OUT_MAP,
        },
        optional=(
            *(("spatial_logits",), ("grad_maps", "spatial_index"), ("channel_logits",)),
            ("grad_mean", "grad_max", "channel_index"),
        ),
    ),
    "add_affine_relu": Launcher(
        "features",
        {
            "a": MAP,
            "b": MAP,
            "scale": AFFINE,
            "shift": AFFINE,
            "sum": OUT_MAP,
            "out": OUT_MAP,
        },
        optional=(("b", "sum"),),
    ),
    "batch_norm_statistics": Launcher(
        "features",
        {"x": MAP, "addend": MAP, "sum": OUT_MAP, "mean": OUT_AFFINE, "variance": OUT_AFFINE},
        workspace=True,
        optional=(("addend", "sum"),),
    ),
    "batch_norm_apply": Launcher(
        "features",
        {"x": MAP, "shortcut": MAP, **NORM, "out": OUT_MAP},
        flags=("relu",),
        optional=(("shortcut",), ("weight",), ("bias",)),
    ),
    "batch_norm_reduce": Launcher(
        "features",
        {
            "grad": MAP,
            "x": MAP,
            "out": MAP,
            **NORM,
            "masked": OUT_MAP,
            "sum_grad": OUT_AFFINE,
            "sum_grad_xhat": OUT_AFFINE,
        },
        flags=("relu",),
        workspace=True,
        optional=(("out", "masked"), ("weight",), ("bias",)),
    ),
    "batch_norm_grad": Launcher(
        "features",
        {
            "grad": MAP,
            "x": MAP,
            "addend": MAP,
            **NORM,
            "sum_grad": AFFINE,
            "sum_grad_xhat": AFFINE,
            "grad_x": OUT_MAP,
        },
        flags=("relu",),
        optional=(("addend",), ("weight",), ("bias",), ("sum_grad", "sum_grad_xhat")),
    ),
}
