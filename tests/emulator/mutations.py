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
_PARTS = "__syncthreads();\n\n  const int lane"
_CHANNELS = "__syncthreads();\n#pragma unroll\n    for (int i = 0; i < kHeld"
_SHARED = "kParts * (kThreads + 1);"
_SHARED_LESS = "(kParts * (kThreads + 1) - 1) - 4;"  # the last part is unused
_PLANES = "Op::kPlanes * static_cast<int64_t>(sizeof(typename Op::A));"
_KEPT = "partials + int64_t{chunk} * g.c + c, stride"
_PASSING = "relu ? kVanishes<T> :"
_SUMS_PACKED = "op.norm.packed = op.norm.packed && aligned(args.sum_grad, args.sum_grad_xhat);"


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


def _norm(
    what: str, of: str, file: str, old: str, new: str, kind: str = "fast", cases: int = 60
) -> Mutation:
    unit = f"batch_norm_{of}"
    return Mutation(what, kind, unit, file, old, new, unit, cases)


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
        *("race", "channel_pool", "reduction.cuh", _COUNT, f"{_COUNT[:-1]} - (most > 0 ? 4 : 0);"),
        *("channel_pool", 150),
    ),
    Mutation(
        "an index keeps its old origin",
        *("fast", "cbam_grad_x", "cbam_grad_x.cu", "term.winner -= by;", "", "cbam_grad_x"),
    ),
    # Results would not tell: each warp writes after a shuffle, before which all have read.
    Mutation(
        "no barrier between two totals",
        *("race", "attention_gate_groups", "attention_gate_walks.cuh", _TOTAL, ""),
        *("attention_gate_groups", 150),
    ),
    _groups("what the mean's rounding lost is lost", "fast", "standard.cuh", _REST, _CENTER),
    _groups("sums that overflow stay", "fast", "standard.cuh", "shrunk = infinite;", ""),
    _groups(
        "no barrier after rows are staged", "race", "groups.cu", _STAGED, _STAGED.split("\n")[0]
    ),
    _upsample("no barrier before the next rows", "race", "pixels", _ROWS, ""),
    _upsample("a target's second tap is lost", "fast", "pixels", "open.add(tap, sum);", _ONCE),
    _upsample("a run's last elements are lost", "fast", "planes", _TAIL, "i < run.count / 2;"),
    *(
        _norm(
            f"no barrier before a batch's parts are merged, told by {kind}",
            *("statistics", "reduce_batch.cuh", _PARTS, _PARTS[16:], kind),
        )
        for kind in ("fast", "race")
    ),
    _norm(
        "no barrier after a batch's channels are loaded",
        *("reduce", "reduce_batch.cuh", _CHANNELS, _CHANNELS[16:], "race"),
    ),
    *(
        _norm(
            f"shared memory too small for a batch's parts, told by {kind}",
            *("reduce", "reduce_batch.cuh", _SHARED, _SHARED_LESS, kind),
        )
        for kind in ("asan", "race")
    ),
    _norm(
        "the workspace of a batch is too small",
        *(
            "reduce",
            "reduce_batch.cuh",
            _PLANES,
            f"{_PLANES[:-1]} - (most > 0 ? 4 : 0);",
            "race",
            150,
        ),
    ),
    *(
        _norm(
            f"a partial of {of} in another channel's place",
            *(of, "reduce_batch.cuh", _KEPT, _KEPT.replace("chunk} * g.c", "chunk}")),
        )
        for of in ("statistics", "reduce")
    ),
    _norm(
        "the last chunk counts as a whole one",
        *("statistics", "reduce_batch.cuh", "rows * g.per_row", "g.chunk * g.per_row"),
    ),
    _norm(
        "a pack's second channel goes to the first",
        *("reduce", "reduce_batch.cuh", "} else if (i < turn) {", "} else if (i <= turn) {"),
    ),
    _norm(
        "packs in flight together have one number",
        *("statistics", "reduce_batch.cuh", "op.step(step + u + 1)", "op.step(step + 1)"),
    ),
    _norm(
        "lanes' parts are left out",
        *("reduce", "reduce_batch.cuh", "merge_lanes(total, g.log_lanes);", ""),
    ),
    _norm(
        "a merge takes the other part's count",
        *("statistics", "batch_norm_statistics.cu"),
        "share = other.count / total",
        "share = count / total",
    ),
    _norm(
        "a merge takes the other part's mean without its origin",
        *("statistics", "batch_norm_statistics.cu", "        origin = other.origin;\n", ""),
    ),
    _norm(
        "deviations from what is no number",
        *("statistics", "batch_norm_statistics.cu", "x - x == A(0) ? x : A(0)", "x"),
    ),
    _norm(
        "statistics of the sum before it is rounded",
        *("statistics", "batch_norm_statistics.cu", "widen(narrow<T>(v[0] + v[1]))", "v[0] + v[1]"),
    ),
    *(
        _norm(
            f"the mask in {of} is that of the result before it is rounded",
            *(of, "batch_norm_channels.cuh", _PASSING, "relu ? accumulate_t<T>(0) :"),
        )
        for of in ("reduce", "grad")
    ),
    _norm(
        "the ReLU clips a NaN",
        *("apply", "batch_norm_apply.cu", "out < floor ? floor : out", "out > floor ? out : floor"),
    ),
    _norm(
        "a gradient without sums, of x all the same",
        *("grad", "batch_norm_grad.cu", "sloped ? slope : g * affine.scale", "slope"),
    ),
    _norm(
        "neighbouring channels are loaded together, wherever they are",
        *("grad", "batch_norm_grad.cu", _SUMS_PACKED, "", "race", 600),
    ),
]
