"""Kernels of csrc/cuda broken in one place each: the random cases must notice every one of them.

Whoever rewrites a kernel moves the mutation to where its barrier, its bound or its merge is now.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in csrc/cuda/`file`, as the source `unit` is compiled with it."""

    what: str
    kind: str
    unit: str
    file: str
    old: str
    new: str
    only: str
    cases: int = 40


_MERGE = "__syncthreads();\n\n    // A slot"
_ROW = "begin + min(g.chunk, m.cols / V - begin)"
_BYTES = "sizeof(Acc) * g.ty * V * merge.stride;"
_COUNT = "return most * static_cast<int64_t>(sizeof(typename Op::Acc));"
_LANES = "  merge_lanes(acc, log_lanes);\n  if (sample < parts.n"
_REST = "return (l - center[group(i)]) - rest[group(i)];"
_CENTER = "return l - center[group(i)];"
_STAGED = "stage.in(a.trunk, out);\n    __syncthreads();"
_ROWS = "__syncthreads();  // before the next rows overwrite these"
_ONCE = "open.add({tap.first, tap.second, tap.first_weight, 0}, sum);"
_TAIL = "i < run.count;"
_TOTAL = "__syncthreads();  // the last total has been read"


def _columns(what: str, kind: str, old: str, new: str, cases: int = 40) -> Mutation:
    return Mutation(
        what, kind, "channel_pool", "reduce_columns.cuh", old, new, "channel_pool", cases
    )


def _groups(what: str, kind: str, file: str, old: str, new: str) -> Mutation:
    unit = "attention_gate_groups"
    return Mutation(what, kind, unit, f"attention_gate_{file}", old, new, unit, 150)


def _upsample(what: str, kind: str, images: str, old: str, new: str) -> Mutation:
    file = f"upsample_staged_{images}.cuh"
    return Mutation(what, kind, "upsample", file, old, new, "upsample", 60)


MUTATIONS = [
    _columns("no barrier before parts are merged", "race", _MERGE, "\n\n    // A slot"),
    _columns("the same, told by the results", "fast", _MERGE, "\n\n    // A slot"),
    _columns(
        "no barrier before the next sample", "race", "__syncthreads();  // before", "// before", 200
    ),
    _columns("shared memory too small", "asan", _BYTES, f"{_BYTES[:-1]} - 4;"),
    _columns("the same, told by watching", "race", _BYTES, f"{_BYTES[:-1]} - 4;"),
    _columns("a barrier for some threads", "fast", _MERGE, f"if (mine) {_MERGE}"),
    Mutation(
        "no barrier after the rows' terms are loaded",
        *("race", "cbam_gate", "map.cuh"),
        "    __syncthreads();\n    if (mine) {",
        "    if (mine) {",
        "cbam_gate",
    ),
    *(
        Mutation(
            f"a pack past the row's end, told by {kind}",
            *(kind, "channel_pool", "reduce_rows.cuh"),
            _ROW,
            f"{_ROW} + 1",
            "channel_pool",
        )
        for kind in ("asan", "race")
    ),
    Mutation(
        "packs at misaligned pointers",
        *("race", "cbam_gate", "cbam_gate.cu"),
        "return map(op, shape, packed, stream)",
        "return map(op, shape, true, stream)",
        "cbam_gate",
    ),
    Mutation(
        "the same, told by the sanitizer",
        *("asan", "channel_pool", "channel_pool.cu", "aligned(args.x)", "true", "channel_pool"),
    ),
    Mutation(
        "lanes that leave before a shuffle",
        *("fast", "channel_pool", "reduce.cuh"),
        _LANES,
        f"  if (sample >= parts.n) return;\n{_LANES}",
        *("channel_pool", 150),
    ),
    Mutation(
        "a tie goes to the later index",
        *("fast", "channel_pool", "reduce.cuh", "other.index < index", "other.index > index"),
        "channel_pool",
    ),
    Mutation(
        "a NaN is lost",
        *("fast", "channel_pool", "reduce.cuh", "return !(a <= b) && b == b;", "return a > b;"),
        "channel_pool",
    ),
    Mutation(
        "the second map is written in the wrong place",
        *("fast", "spatial_pool", "spatial_pool.cu", "max[hw] =", "max[1] =", "spatial_pool"),
    ),
    Mutation(
        "the workspace is too small",
        *("race", "channel_pool", "reduction.cuh", _COUNT, f"{_COUNT[:-1]} - 4;"),
        *("channel_pool", 150),
    ),
    Mutation(
        "an index keeps its old origin",
        *("fast", "cbam_grad_x", "cbam_grad_x.cu", "term.winner -= by;", "", "cbam_grad_x"),
    ),
    *(
        Mutation(
            f"no barrier between two totals, told by {kind}",
            *(kind, "attention_gate_groups", "attention_gate_walks.cuh", _TOTAL, ""),
            *("attention_gate_groups", 150),
        )
        for kind in ("fast", "race")
    ),
    _groups("what the mean's rounding lost is lost", "fast", "standard.cuh", _REST, _CENTER),
    _groups("sums that overflow stay", "fast", "standard.cuh", "shrunk = infinite;", ""),
    _groups(
        "no barrier after rows are staged", "race", "groups.cu", _STAGED, _STAGED.split("\n")[0]
    ),
    _upsample("no barrier before the next rows", "race", "pixels", _ROWS, ""),
    _upsample("a target's second tap is lost", "fast", "pixels", "open.add(tap, sum);", _ONCE),
    _upsample("a run's last elements are lost", "fast", "planes", _TAIL, "i < run.count / 2;"),
]
