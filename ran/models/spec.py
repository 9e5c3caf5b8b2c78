"""What distinguishes one residual attention network from another."""

from dataclasses import dataclass, fields, replace

from ..checks import is_count, require, require_choice, require_count
from .attention import ACTIVATIONS, GRAPHS
from .units import POOLS, UNITS, WIDTH_MULTIPLES

#: Residual units of a network, a few seconds to build; Attention-452 has 352.
MOST_UNITS = 1_000
MOST_STAGES, MOST_STRIDE, MOST_KERNEL, MOST_WIDTH = 16, 64, 63, 1 << 20
#: A mask of this depth needs features of 131,072 pixels a side.
MOST_DEPTH = 16
MOST_MULTIPLIER = 64


@dataclass(frozen=True)
class NetworkSpec:
    """The plan of a network; the defaults are Attention-56 for ImageNet (table 2 of the paper).

    Raises ValueError where a value cannot be built, naming the field: also where all of them would
    make more than ``MOST_UNITS`` residual units.
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
    """"caffe" as the authors trained it, or "torch": see :func:`ran.models.units.max_pool`."""
    graph: str = "authors"
    """"authors" or "additive": see :class:`ran.models.attention.SoftMaskBranch`."""

    def __post_init__(self) -> None:
        require_choice("unit", UNITS, self.unit)
        require_choice("activation", ACTIVATIONS, self.activation)
        require_choice("pool", POOLS, self.pool)
        require_choice("graph", GRAPHS, self.graph)
        require_choice("residual", (True, False), self.residual)
        require_choice("stem_pool", (0, 2, 3), self.stem_pool)
        for name, least, most in (
            ("modules", 0, MOST_UNITS),
            ("widths", 1, MOST_WIDTH),
            ("strides", 1, MOST_STRIDE),
            ("mask_depths", 0, MOST_DEPTH),
        ):
            self._check_stages(name, least, most)
        for name, least, most in (
            ("stem_width", 1, MOST_WIDTH),
            ("stem_kernel", 1, MOST_KERNEL),
            ("stem_stride", 1, MOST_STRIDE),
            ("tail_width", 1, MOST_WIDTH),
            ("tail_stride", 1, MOST_STRIDE),
            ("tail_units", 0, MOST_UNITS),
            ("p", 0, MOST_UNITS),
            ("t", 1, MOST_UNITS),
            ("r", 1, MOST_UNITS),
        ):
            require_count(name, least, getattr(self, name), most=most)
        if self.post_units is not None:
            require_count("post_units", 0, self.post_units, most=MOST_UNITS)
        together = f"at most {MOST_UNITS:,} residual units of all modules and the tail together"
        require(self.units <= MOST_UNITS, "modules", together, self.units)
        require(self.stem_kernel % 2 == 1, "stem_kernel", "an odd integer", self.stem_kernel)
        multiple = WIDTH_MULTIPLES[self.unit]
        expected = f"multiples of {multiple} for {self.unit!r} units"
        require(
            all(width % multiple == 0 for width in self.widths), "widths", expected, self.widths
        )
        require(self.tail_width % multiple == 0, "tail_width", expected, self.tail_width)

    def _check_stages(self, name: str, least: int, most: int) -> None:
        values = getattr(self, name)
        if isinstance(values, list):
            # Lists come from JSON and command lines; a spec stays hashable.
            values = tuple(values)
            object.__setattr__(self, name, values)
        require(
            isinstance(values, tuple)
            and len(values) == max(1, len(self.modules))
            and len(values) <= MOST_STAGES
            and all(is_count(value, least, most) for value in values),
            name,
            f"one integer of at least {least} and at most {most} for each stage, of at most "
            f"{MOST_STAGES}",
            values,
        )

    def module_units(self, stage: int) -> int:
        """Residual units in one attention module of the stage, both branches counted."""
        depth = self.mask_depths[stage]
        post = self.p if self.post_units is None else self.post_units
        return self.p + self.t + post + 2 * self.r * max(depth, 1) + max(depth - 1, 0)

    @property
    def units(self) -> int:
        """Residual units of the whole network."""
        modules = (count * self.module_units(i) for i, count in enumerate(self.modules))
        return len(self.widths) + sum(modules) + self.tail_units

    def scaled(self, multiplier: float) -> "NetworkSpec":
        """The same plan with every width times ``multiplier``, rounded to what units allow."""
        positive = isinstance(multiplier, int | float) and 0 < multiplier <= MOST_MULTIPLIER
        expected = f"a positive number of at most {MOST_MULTIPLIER}"
        require(positive, "width_multiplier", expected, multiplier)
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


def _before_conv(size: int, stride: int) -> int:
    """Least input size from which a convolution with half-kernel padding gives ``size``."""
    return (size - 1) * stride + 1


def _before_pool(size: int, kernel: int, convention: str) -> int:
    """Least input size from which :func:`ran.models.units.max_pool` gives ``size``."""
    uncovered = kernel == 3 if convention == "caffe" else kernel == 2
    return 2 * size if uncovered else 2 * size - 1
