"""What distinguishes one residual attention network from another."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

from .units import WIDTH_MULTIPLES


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError that names the argument, what was expected and what came."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def require_choice(name: str, choices: Collection[str], got: object) -> None:
    """Raise ValueError unless ``got`` is one of ``choices``."""
    require(got in choices, name, f"one of {', '.join(map(repr, choices))}", got)


@dataclass(frozen=True)
class NetworkSpec:
    """The plan of a network; the defaults are Attention-56 for ImageNet (table 2 of the paper).

    Raises ValueError where a value cannot be built, naming the field.
    """

    modules: tuple[int, ...] = (1, 1, 1)
    """Attention modules in each stage."""
    widths: tuple[int, ...] = (256, 512, 1024)
    """Channels of each stage."""
    strides: tuple[int, ...] = (1, 2, 2)
    """Stride of the unit that opens each stage."""
    mask_depths: tuple[int, ...] = (3, 2, 1)
    """Max-poolings in the soft mask branches of each stage."""
    stem_width: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: int = 3
    """Kernel of the stem's max-pooling (stride 2), 0 for none."""
    tail_width: int = 2048
    tail_stride: int = 2
    tail_units: int = 3
    """Units after the last attention module."""
    p: int = 1
    """Units of an attention module before it splits into its two branches."""
    t: int = 2
    """Units in the trunk branch."""
    r: int = 1
    """Units between two poolings in the soft mask branch."""
    post_units: int | None = None
    """Units of an attention module after its gate; None for as many as before the branches."""
    unit: str = "preact"
    """"preact" or "resnext" (AttentionNeXt)."""
    activation: str = "mixed"
    """"mixed", "channel" or "spatial": equations 4 to 6."""
    residual: bool = True
    """Attention residual learning, (1 + M) · T; False for naive attention learning, M · T."""
    pool: str = "caffe"
    """"caffe" as the authors trained it, or "torch": see :func:`ran.units.max_pool`."""
    graph: str = "authors"
    """"authors" or "additive": see :class:`ran.attention.SoftMaskBranch`."""

    def __post_init__(self) -> None:
        for name in ("modules", "widths", "strides", "mask_depths"):
            # Lists come from JSON and command lines; a spec stays hashable.
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require_choice("unit", WIDTH_MULTIPLES, self.unit)
        require_choice("activation", ("mixed", "channel", "spatial"), self.activation)
        require_choice("pool", ("caffe", "torch"), self.pool)
        require_choice("graph", ("authors", "additive"), self.graph)
        require_choice("stem_pool", ("0", "2", "3"), str(self.stem_pool))
        require(isinstance(self.residual, bool), "residual", "True or False", self.residual)
        require(len(self.modules) > 0, "modules", "at least one stage", self.modules)
        for name, least in (("modules", 0), ("widths", 1), ("strides", 1), ("mask_depths", 0)):
            values = getattr(self, name)
            require(
                len(values) == len(self.modules) and all(_is_count(v, least) for v in values),
                name,
                f"{len(self.modules)} integers (one a stage) of at least {least}",
                values,
            )
        for name, least in (
            ("stem_width", 1),
            ("stem_stride", 1),
            ("tail_width", 1),
            ("tail_stride", 1),
            ("tail_units", 0),
            ("p", 0),
            ("t", 1),
            ("r", 1),
            *((("post_units", 0),) if self.post_units is not None else ()),
        ):
            value = getattr(self, name)
            require(_is_count(value, least), name, f"an integer of at least {least}", value)
        kernel = self.stem_kernel
        require(_is_count(kernel, 1) and kernel % 2 == 1, "stem_kernel", "an odd integer", kernel)
        multiple = WIDTH_MULTIPLES[self.unit]
        for name, width in (
            *(("widths", width) for width in self.widths),
            ("tail_width", self.tail_width),
        ):
            require(width % multiple == 0, name, f"a multiple of {multiple}", width)

    def scaled(self, multiplier: float) -> "NetworkSpec":
        """The same plan with every width times ``multiplier``, rounded to what units allow."""
        require(multiplier > 0, "width_multiplier", "a positive number", multiplier)
        multiple = max(8, WIDTH_MULTIPLES[self.unit])

        def scale(width: int, multiple: int) -> int:
            return max(multiple, round(width * multiplier / multiple) * multiple)

        return replace(
            self,
            stem_width=scale(self.stem_width, 8),
            widths=tuple(scale(width, multiple) for width in self.widths),
            tail_width=scale(self.tail_width, multiple),
        )

    @property
    def minimum_size(self) -> int:
        """Smallest height or width of an input that every pooling of the network can halve."""
        size = _before_conv(1, self.tail_stride if self.tail_units else 1)
        for stage in reversed(range(len(self.modules))):
            mask = 1
            for _ in range(self.mask_depths[stage] if self.modules[stage] else 0):
                mask = _before_pool(mask, 3, self.pool)
            size = _before_conv(max(size, mask), self.strides[stage])
        if self.stem_pool:
            size = _before_pool(size, self.stem_pool, self.pool)
        return _before_conv(size, self.stem_stride)


SPEC_FIELDS = frozenset(field.name for field in fields(NetworkSpec))


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _before_conv(size: int, stride: int) -> int:
    """Least input size from which a convolution with half-kernel padding gives ``size``."""
    return (size - 1) * stride + 1


def _before_pool(size: int, kernel: int, convention: str) -> int:
    """Least input size from which :func:`ran.units.max_pool` gives ``size``."""
    uncovered = kernel == 3 if convention == "caffe" else kernel == 2
    return 2 * size if uncovered else 2 * size - 1
