"""What Inductor makes of a training step, in bytes: its own count of what its kernels move."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def counted_by_inductor(loss: Callable[[], Tensor]) -> int:
    """Bytes that the kernels of a compiled forward and backward read and write.

    The step is captured, split and lowered, and its operators fused, as ``torch.compile`` does it;
    no code is generated. `loss` is called in a FakeTensorMode.
    """
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor import compile_fx
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    moved = 0

    def lower(graph: torch.fx.GraphModule, inputs: list[Any], *, backward: bool) -> Any:
        nonlocal moved
        mode = torch._guards.detect_fake_mode(inputs)
        assert mode is not None  # Dynamo makes one where there is none
        with V.set_fake_mode(mode):
            compile_fx._recursive_post_grad_passes(graph, is_inference=False)
            lowered = GraphLowering(
                graph, example_inputs=inputs, shape_env=mode.shape_env, is_backward=backward
            )
            with V.set_graph_handler(lowered), V.set_debug_handler(DebugContext()):
                lowered.run(*inputs)
                lowered._update_scheduler()
                moved += int(lowered.count_bytes()[0])
        return make_boxed_func(graph.forward)

    def partition(joint: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        compile_fx._recursive_joint_graph_passes(joint)
        kwargs["compiler"] = "inductor"
        return min_cut_rematerialization_partition(joint, *args, **kwargs)

    backend = aot_autograd(
        fw_compiler=lambda graph, inputs: lower(graph, inputs, backward=False),
        bw_compiler=lambda graph, inputs: lower(graph, inputs, backward=True),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    torch.compile(loss, backend=backend, fullgraph=True)().backward()
    return moved
