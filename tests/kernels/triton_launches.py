"""Launches of every Triton kernel that compile_triton.py compiles, by "file.function"."""

from typing import Any

import torch

#: Pointers to the data type at hand, to the type it is computed in, and to indices.
DATA, SUM, INDEX = "*data", "*fp32", "*i32"


def upsample_launches() -> dict[str, list[dict[str, Any]]]:
    """Of upsample's kernels: 28×28 to 56×56 in both layouts, 7×7 to 14×14; back along columns and
    along rows, and to 14×14 along columns."""
    scales = {"over_y": 27, "under_y": 55, "over_x": 27, "under_x": 55}
    sizes = {"h": 28, "w": 28, "height": 56, "width": 56, "channels": 256, "positions": 3136}
    small = {"h": 7, "w": 7, "height": 14, "width": 14, "channels": 1024, "positions": 196}
    small |= {"over_y": 6, "under_y": 13, "over_x": 6, "under_x": 13}
    forward = {"x": DATA, "skip": DATA, "out": DATA, **sizes, **scales, "ALIGN": True, "UNIT": 16}
    axis = {"source_size": 28, "target_size": 56, "over": 27, "under": 55, "STEPS": 7}
    return {
        "upsample.upsample_kernel": [
            {**forward, "ADD": True, "CHANNELS_LAST": False, "POSITIONS": 128, "CHANNELS": 8},
            {**forward, "ADD": False, "CHANNELS_LAST": True, "POSITIONS": 8, "CHANNELS": 128},
            {**forward, **small, "ADD": True, "CHANNELS_LAST": False}
            | {"UNIT": 4, "POSITIONS": 128, "CHANNELS": 8},
        ],
        "upsample.upsample_backward_kernel": [
            {"grad": DATA, "grad_x": SUM, "rows": 7168, "inner": 56, **axis, "ALIGN": True}
            | {"UNIT": 8, "ROWS": 16, "INNER": 64},
            {"grad": SUM, "grad_x": DATA, "rows": 200704, "inner": 1, **axis, "ALIGN": False}
            | {"UNIT": 1, "ROWS": 1024, "INNER": 1},
            {"grad": DATA, "grad_x": SUM, "rows": 229376, "inner": 28, "source_size": 14}
            | {"target_size": 28, "over": 13, "under": 27, "STEPS": 6, "ALIGN": True}
            | {"UNIT": 4, "ROWS": 32, "INNER": 32},
        ],
    }


def conv_gate_launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Of a large tile, and of a small one in the dtype's other kind of product."""
    from ran_kernels.triton import conv_gate

    def launch(shape: tuple[int, ...], **given: Any) -> dict[str, Any]:
        x = torch.empty(shape, dtype=dtype, device="meta")
        operands = dict.fromkeys(("weight", "x", "bias", "trunk", "out"), DATA)
        _, planned = conv_gate.plan(x, x)
        return operands | planned | {"RESIDUAL": True, "WIDEN": False} | given

    low = dtype != torch.float32
    # float16 beside bfloat16, exact float32 beside TF32. Rows of 14×14 are no multiple of 16.
    other = dict.fromkeys(("weight", "x", "trunk", "out"), "*fp16") if low else {}
    return {
        "conv_gate.conv_gate_kernel": [
            launch((32, 1024, 14, 14), PRECISION="ieee" if low else "tf32"),
            launch((1, 1024, 14, 14), PRECISION="ieee", bias=None, **other),
        ],
    }


def batch_norm_launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Of each pass with all terms and with as few as there can be, in one stage and in two.

    The last launch is of the dtype's other: float64 beside float32, float16 beside bfloat16.
    """
    from ran_kernels.triton import tiling

    def data(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, DATA)

    def sums(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, SUM)

    small = torch.empty((1, 512, 7, 7), dtype=dtype, device="meta")
    large = torch.empty((128, 256, 56, 56), dtype=dtype, device="meta")
    large = large.contiguous(memory_format=torch.channels_last)
    low = dtype != torch.float32
    other, accumulator = ("*fp16", SUM) if low else ("*fp64", "*fp64")
    planar = large.contiguous().to(torch.float16 if low else torch.float64)
    one, many, rows = (tiling.over_batch(x) for x in (small, large, planar))
    assert one.splits == 1 < min(many.splits, rows.splits)
    numbers, others = (
        {"EPS": 1e-5, "VANISHES": vanishes}
        for vanishes in ((2.0**-134, 2.0**-25) if low else (0.0, 0.0))
    )
    final = {**one.arguments(), "FINAL": True, **numbers}
    shared = {**many.arguments(), "FINAL": False, **numbers}
    strided = {**rows.arguments(), "FINAL": False, **others}
    maps = [
        tiling.pointwise(x, tiling.REDUCTION_BYTES).arguments() | of
        for x, of in ((small, numbers), (large, numbers), (planar, others))
    ]
    channels = sums("mean", "variance", "weight", "bias")
    plain = {"mean": accumulator, "variance": accumulator, "weight": None, "bias": None}
    results = sums("sum_grad", "sum_grad_xhat")
    finish = many.finish()[1]
    return {
        "batch_norm_kernels.batch_norm_statistics_kernel": [
            {**data("x", "addend", "sum"), **sums("mean", "variance"), **final},
            {**data("x", "addend", "sum"), "mean": "*fp64", "variance": SUM, **shared},
            {"x": other, "addend": None, "sum": None, "mean": "*fp64", "variance": accumulator}
            | strided,
        ],
        "batch_norm_kernels.batch_norm_statistics_finish_kernel": [
            {"means": "*fp64", **dict.fromkeys(("squares", "mean", "variance"), accumulator)}
            | many.walk()
            | finish
        ],
        "batch_norm_kernels.batch_norm_apply_kernel": [
            {**data("x", "shortcut", "out"), **channels, "RELU": True, **maps[0]},
            {**data("x", "out"), "shortcut": None, **channels, "RELU": True, **maps[1]},
            {"x": other, "out": other, "shortcut": None, **plain, "RELU": False, **maps[2]},
        ],
        "batch_norm_kernels.batch_norm_reduce_kernel": [
            {**data("grad", "x", "out", "masked"), **channels, **results, "RELU": True, **final},
            {**data("grad", "x"), "out": None, "masked": None, **channels, **results}
            | {"RELU": True, **shared},
            {"grad": other, "x": other, "out": None, "masked": None, **plain}
            | {**dict.fromkeys(results, accumulator), "RELU": False, **strided},
        ],
        "batch_norm_kernels.batch_norm_reduce_finish_kernel": [
            {**dict.fromkeys(("totals", "dots", "variance", *results), accumulator)}
            | {"EPS": 1e-5, **finish}
        ],
        "batch_norm_kernels.batch_norm_grad_kernel": [
            {**data("grad", "x", "addend", "grad_x"), **channels, **results}
            | {"elements": 49, "RELU": True, **maps[0]},
            {**data("grad", "x", "grad_x"), "addend": None, **channels, **results}
            | {"elements": 128 * 56 * 56, "RELU": True, **maps[1]},
            {"grad": other, "x": other, "grad_x": other, "addend": None, **plain}
            | {"sum_grad": None, "sum_grad_xhat": None, "elements": 1, "RELU": False, **maps[2]},
        ],
    }


def norm_relu_conv_launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Of each product with all terms, and in 16 bits with as few as there can be; and of the sums
    after it, which are of no data type."""
    from ran_kernels.triton import norm_relu_conv
    from ran_kernels.triton.products import Problem

    size, device = dtype.itemsize, torch.device("meta")
    numbers = {"EPS": 1e-5, "WIDEN": False, "PRECISION": "tf32" if size == 4 else "ieee"}
    vanishes = {"VANISHES": 0.0 if size == 4 else 2.0**-134}

    def data(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, DATA)

    def sums(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, SUM)

    def product(
        kind: str, columns: int, inner: int, side: int, *, stride: int = 1, **beside: Any
    ) -> dict[str, Any]:
        problem = Problem(kind, 128 * side * side, columns, inner, size, **beside)
        input_size = (side * stride, side * stride)
        return norm_relu_conv.plan(problem, input_size, stride, device)[2] | numbers

    def weight(kind: str, out: int, inner: int, side: int, **beside: Any) -> dict[str, Any]:
        problem = Problem(kind, out, inner, 128 * side * side, size, splits=True, **beside)
        splits, _, planned = norm_relu_conv.plan_weight(problem, (side, side), 1, device)
        assert splits > 1
        return {**data("grad", "x"), "parts": SUM, **planned, **numbers}

    channels = sums("mean", "variance", "weight", "bias")
    none = dict.fromkeys(channels)
    parts = {"means": "*fp64", "squares": SUM}
    results = sums("sum_grad", "sum_grad_xhat")
    finish = {"columns": 256, "BLOCK": norm_relu_conv.FINISH_COLUMNS}
    forward = data("x", "conv", "y") | {"conv_bias": None, "trunk": None, "RESIDUAL": False}
    forward |= {"grad": None, "grad_trunk": None}
    back = data("grad", "x", "conv") | sums("parts") | channels | vanishes
    found = {
        "norm_relu_conv_kernels.norm_relu_conv_kernel": [
            {**forward, **channels, "addend": DATA, **parts, "MEASURE": True}
            | product("norm_relu_conv", 1024, 256, 14, images=2),
            {**forward, **none, "addend": None, **dict.fromkeys(parts), "MEASURE": False}
            | product("conv", 512, 256, 28, stride=2),
            {**forward, **none, "addend": None, **dict.fromkeys(parts), "MEASURE": False}
            | data("conv_bias", "trunk")
            | {"RESIDUAL": True, **product("conv_gate", 256, 256, 56, images=2)},
            {**forward, **channels, "addend": None, **parts, "MEASURE": True, "trunk": DATA}
            | {"RESIDUAL": True, **product("gate", 256, 256, 56, images=2)},
            {**forward, **channels, "addend": None, **dict.fromkeys(parts), "MEASURE": False}
            | {**data("trunk", "grad", "grad_trunk"), "RESIDUAL": True}
            | product("gate_grad", 256, 256, 56, images=4),
        ],
        "norm_relu_conv_kernels.norm_relu_conv_reduce_kernel": [
            {**back, "masked": DATA} | product("reduce", 256, 1024, 14, images=2, numbers=4),
        ],
        "norm_relu_conv_kernels.norm_relu_conv_grad_kernel": [
            {**data("grad", "x", "addend", "conv", "grad_x"), **channels, **results, **vanishes}
            | {"elements": 128 * 56 * 56, **product("grad", 256, 64, 56, images=3, numbers=6)},
            {**data("grad", "conv", "grad_x", "addend"), "x": None, **none, **vanishes}
            | {**dict.fromkeys(results), "elements": 1}
            | product("conv_grad", 256, 64, 56, images=2),
        ],
        "norm_relu_conv_kernels.norm_relu_conv_weight_kernel": [
            {**weight("weight", 64, 256, 56), **channels},
            {**weight("conv_weight", 512, 1024, 14), **none},
        ],
        "norm_relu_conv_kernels.merge_kernel": [
            {**parts, "mean": "*fp64", "variance": SUM, "parts": 3136, "rows": 401408}
            | {"part_rows": 128, "FINAL": False, **finish},
        ],
        "norm_relu_conv_kernels.add_kernel": [
            {"parts_of": "*fp64", **sums("out", "second", "variance"), "parts": 49, "EPS": 1e-5}
            | {**finish, "columns": 512},
        ],
    }
    if size == 4:
        return {name: [w for w in ways[:1] if "PRECISION" in w] for name, ways in found.items()}
    # Under autocast, of an image of float32.
    wide = product("norm_relu_conv", 1024, 256, 14, images=2, wide=True)
    ways = found["norm_relu_conv_kernels.norm_relu_conv_kernel"]
    ways.append({**ways[0], **wide, "x": SUM})
    wide = weight("weight", 256, 1024, 14, wide=True)
    found["norm_relu_conv_kernels.norm_relu_conv_weight_kernel"].append(
        {**wide, **channels, "x": SUM}
    )
    return found


def launches(dtype: torch.dtype) -> dict[str, list[dict[str, Any]]]:
    """Arguments by name: a pointer above, a size as an int, what is constexpr as its value."""
    from ran_kernels.triton import attention_gate, tiling

    def data(*names: str) -> dict[str, Any]:
        return dict.fromkeys(names, DATA)

    # Rows whose length is no multiple of 16, one program each; channels_last, rows in shares.
    large = torch.empty((1024, 1024, 14, 14), dtype=dtype, device="meta")
    few = torch.empty((1, 2048, 56, 56), dtype=dtype, device="meta")
    few = few.contiguous(memory_format=torch.channels_last)

    def walks(tiled: Any, final: dict[str, Any], shared: dict[str, Any]) -> list[dict[str, Any]]:
        one, many = tiled(large), tiled(few)
        assert one.splits == 1 < many.splits
        return [
            {**final, "FINAL": True, **one.arguments()},
            {**shared, "FINAL": False, **many.arguments()},
        ]

    both = [tiling.pointwise(x).arguments() for x in (large, few)]
    gates = data("channel_logits", "spatial_logits")
    maps = {"grad_maps": DATA, "spatial_index": INDEX}
    pooled = {**data("grad_mean", "grad_max"), "channel_index": INDEX}
    plain = dict.fromkeys(gates | maps | pooled)
    stride = {"split_stride": 256 * 196}
    pool = {"x": DATA, "index": INDEX, "sample_stride": 2 * 196, **stride}
    grad_spatial = {**data("grad", "x", "masked"), **gates, **stride}
    grad_channel = {**data("grad", "x"), **gates, **maps, **stride}
    finish = {"count": 8 * 196, "splits": 32, "BLOCK_SPLITS": 32}
    gate = {"n": 2**20, "RESIDUAL": True, "BLOCK": attention_gate.BLOCK}
    # "channel" over columns, "spatial" along rows and over columns; short rows in packs of 2, held,
    # of which Triton 3.6 once refused some.
    groups = [
        {"members": 1024, "inner": 196, "groups": 196, "RESIDUAL": True, "ACTIVATION": 1},
        {"members": 196, "inner": 1, "groups": 1024, "RESIDUAL": True, "ACTIVATION": 2},
        {"members": 196, "inner": 1024, "groups": 32768, "RESIDUAL": True, "ACTIVATION": 2},
        {"members": 6, "inner": 1, "groups": 4096, "RESIDUAL": True, "ACTIVATION": 1},
        {"members": 6, "inner": 1, "groups": 4096, "RESIDUAL": True, "ACTIVATION": 2},
    ]
    for launch in groups:
        launch.update(
            attention_gate._tile_sizes(launch["members"], launch["inner"], launch["groups"])
        )
    assert {"UNIT": 2, "GROUPS": 128, "HELD": True}.items() <= groups[-1].items()
    return {
        "attention_gate.attention_gate_kernel": [{**data("logits", "trunk", "out"), **gate}],
        "attention_gate.attention_gate_backward_kernel": [
            {**data("grad", "logits", "trunk", "grad_logits", "grad_trunk"), **gate}
        ],
        "attention_gate.attention_gate_groups_kernel": [
            {**data("logits", "trunk", "out"), **launch} for launch in groups
        ],
        "attention_gate.attention_gate_groups_backward_kernel": [
            {**data("grad", "logits", "trunk", "grad_logits", "grad_trunk"), **launch}
            for launch in groups
        ],
        "add_affine_relu.add_affine_relu_kernel": [
            {**data("a", "b", "sum", "out"), "scale": SUM, "shift": SUM, **both[0]},
            {"a": DATA, "b": None, "scale": SUM, "shift": SUM, "sum": None, "out": DATA, **both[1]},
        ],
        **batch_norm_launches(dtype),
        **upsample_launches(),
        **conv_gate_launches(dtype),
        **norm_relu_conv_launches(dtype),
        "pooling.pool_kernel": walks(
            tiling.over_channels,
            pool | data("mean", "maximum", "column_logits"),
            pool | {"mean": SUM, "maximum": SUM, "column_logits": None},
        ),
        "pooling.pool_finish_kernel": [
            {
                "totals": SUM,
                "maxima": SUM,
                "indices": INDEX,
                "index": INDEX,
                **data("mean", "maximum"),
                **finish,
                "sample_stride": 2 * 196,
                "rows": 196,
                "columns": 1024,
                "BLOCK": tiling.FINISH_ROWS,
            }
        ],
        "cbam_gate.cbam_gate_kernel": [
            {**data("x", "out", "shortcut"), **gates, "RELU": True, **tiled} for tiled in both
        ],
        "cbam_backward.cbam_grad_spatial_kernel": walks(
            tiling.over_channels,
            grad_spatial | data("out", "grad_spatial"),
            grad_spatial | {"out": None, "grad_spatial": SUM},
        ),
        "cbam_backward.cbam_grad_channel_kernel": walks(
            tiling.over_positions,
            grad_channel | {"grad_channel": DATA},
            grad_channel | {"grad": None, "grad_channel": SUM},
        ),
        "cbam_backward.cbam_grad_finish_kernel": [
            {
                "totals": SUM,
                **data("logits", "grad_logits"),
                **finish,
                "BLOCK": tiling.FINISH_ROWS,
            }
        ],
        "cbam_backward.cbam_grad_x_kernel": [
            {**data("grad", "grad_x"), **gates, **maps, **pooled, **both[0]},
            {**data("grad", "grad_x"), **gates, **maps, **pooled, **both[1]},
            {**plain, **data("grad", "grad_x"), **both[0]},
        ],
    }
