"""Deployed networks compute what the originals do."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ran
import ran_kernels
from bench.compare import peak_memory
from ran.serving.layers import Conv, Maker
from ran_kernels import backends
from tests.models.helpers import relative, small

from .deployed import NETWORKS, SHALLOW, exact, images, shaped, timm_cbam


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_same_outputs(name: str, layout: str) -> None:
    model, x = shaped(NETWORKS[name]()), images()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    want = exact(model, x)
    deployed = ran.deploy(model, layout=layout)
    assert relative(deployed(x).double(), want) < 1e-5
    assert relative(ran.deploy(model, dtype=torch.float64)(x), want) < 1e-12
    with torch.no_grad(), ran_kernels.backend("reference"):
        theirs = copy.deepcopy(model).bfloat16()(x.bfloat16())
    ours = ran.deploy(model, dtype=torch.bfloat16, layout=layout)(x)
    assert ours.dtype == torch.bfloat16
    assert relative(ours.double(), want) <= 2 * relative(theirs.double(), want)
    # The original is untouched, and what the deployed one holds is its own.
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    before = deployed(x)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(deployed(x), before)


@pytest.mark.parametrize("name", ["authors", "resnext", "CBAM bottleneck"])
def test_inputs_stay_and_shapes_may_change(name: str) -> None:
    model = shaped(NETWORKS[name]())
    deployed = ran.deploy(model, images())
    for batch, size in ((2, 40), (1, 40), (3, 52), (2, 33), (1, 64), (2, 40)):
        x = images(batch, size).to(memory_format=torch.channels_last)
        before = x.clone()
        assert relative(deployed(x).double(), exact(model, x)) < 1e-5
        assert torch.equal(x, before)
    shapes = [len(m._by_shape) for m in deployed.modules() if isinstance(m, Conv)]
    assert max(shapes) <= 4
    assert deployed(images(0)).shape == (0, deployed.num_classes)


def test_no_normalisation_is_left_and_relu_is_in_the_convolutions() -> None:
    alone = {"aten::relu", "aten::relu_"}
    for name, plain in (("authors", alone), ("CBAM bottleneck", {"aten::relu"})):
        deployed = ran.deploy(shaped(NETWORKS[name]()))
        kinds = {type(module) for module in deployed.modules()}
        assert not kinds & {nn.BatchNorm2d, nn.ReLU, nn.Conv2d}
        with torch.profiler.profile() as profile:
            deployed(images())
        names = {event.key for event in profile.key_averages()}
        assert "mkldnn::_convolution_pointwise" in names
        # CBAM's perceptron on (N, C) has a ReLU of its own.
        assert not names & ({"aten::batch_norm", "aten::add_"} | plain)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_backends_agree(backend: str) -> None:
    model, x = shaped(small()), images()
    with ran_kernels.backend(backend):
        assert relative(ran.deploy(model)(x).double(), exact(model, x)) < 1e-5


@pytest.mark.parametrize("options", [{}, {"residual": False}, {"activation": "channel"}], ids=str)
def test_gate_in_the_last_convolution(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = shaped(small(**SHALLOW, **options)), images(1, 32)
    want, plain = exact(model, x), ran.deploy(model)
    deployed = {
        dtype: ran.deploy(model, dtype=dtype, fuse_gate=True)
        for dtype in (torch.float32, torch.float64)
    }
    # Where Triton does not run, nothing is different.
    assert torch.equal(deployed[torch.float32](x), plain(x))
    if reason := ran_kernels.can_run("triton", "conv_gate", x):
        pytest.skip(reason)
    choose = backends.choose
    called: list[str] = []

    def choose_triton(op: str, *tensors: Tensor, kind: str | None = None) -> str:
        called.append(op)
        return "triton" if op == "conv_gate" else choose(op, *tensors, kind=kind)

    monkeypatch.setattr(backends, "choose", choose_triton)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        called.clear()
        unplanned = copy.deepcopy(deployed[dtype])
        assert relative(unplanned(x).double(), want) < limit
        fused = "activation" not in options
        assert ("conv_gate" in called) == fused
        assert ("attention_gate" in called) != fused
    called.clear()
    copy.deepcopy(plain)(x)
    assert "attention_gate" in called  # off unless it is asked for
    assert "conv_gate" not in called


@pytest.mark.parametrize("name", ["authors", "CBAM bottleneck"])
def test_threads_get_right_answers(name: str) -> None:
    model = shaped(NETWORKS[name]())
    deployed = ran.deploy(model)
    batches = [images(1 + n % 3, 33 + n) for n in range(6)]
    wanted = [exact(model, x) for x in batches]
    wrong: list[float] = []
    start = threading.Barrier(len(batches))

    def work(x: Tensor, want: Tensor) -> None:
        start.wait()
        for _ in range(5):
            error = relative(deployed(x).double(), want)
            if not error < 1e-5:
                wrong.append(error)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(batches, wanted, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention56", {"width_multiplier": 0.25}),
        ("cbam_resnet50", {"channels": (32,) * 4}),
    ],
)
def test_peak_memory(name: str, options: dict[str, Any]) -> None:
    model = shaped(ran.create_model(name, num_classes=4, **options))
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 96, 96).to(memory_format=torch.channels_last)
    deployed = ran.deploy(model, example=x)

    @torch.no_grad()
    def plain() -> Tensor:
        with ran_kernels.backend("reference"):
            return model(x)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each further one has scratch memory, much for a network this small
    try:
        plain()
        ours, theirs = (peak_memory(run, "cpu") for run in (lambda: deployed(x), plain))
    finally:
        torch.set_num_threads(threads)
    assert x.nbytes < ours < theirs
    if name == "attention56":
        # The gate has three tensors of the first stage's size, and the mask's features beside them.
        assert ours < 5 * 4 * (4 * 64 * 24 * 24)


def test_where_cudnn_fuses_nothing_the_plain_convolution_runs() -> None:
    maker = Maker(torch.float32, "channels_last")
    layer = maker.conv(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval(), relu=True, name="conv")
    x, added = torch.randn(2, 3, 9, 9), torch.randn(2, 8, 7, 7)
    for other in (None, added):
        layer._cudnn = True
        with pytest.warns(UserWarning, match="cuDNN has no fused convolution in float32"):
            out = layer._by_cudnn(x, other)  # on the CPU, where it runs nothing
        torch.testing.assert_close(out, layer._plain(x, other))
        assert not layer._cudnn
    assert copy.deepcopy(layer).half()._cudnn  # another dtype is tried again


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("part", ["", "layer1.0.se.fc2"])
def test_what_modules_do_besides_is_not_lost_silently(part: str) -> None:
    model = timm_cbam(layers=(1, 1, 1, 1))
    module = model.get_submodule(part)
    for register in (
        module.register_forward_hook,
        module.register_forward_pre_hook,
        module.register_full_backward_hook,
        module.register_full_backward_pre_hook,
        module.register_backward_hook,
    ):
        handle = register(lambda *_: None)
        with pytest.raises(ValueError, match=f"expected no hooks, .*; '{part}' has some"):
            ran.deploy(model)
        handle.remove()
        module._is_full_backward_hook = None
    module.forward = module.forward
    with pytest.raises(ValueError, match=f"expected each class's own forward; '{part}' has"):
        ran.deploy(model)
    del module.forward
    ran.deploy(model)


def test_perceptrons_of_convolutions() -> None:
    model = shaped(timm_cbam(layers=(1, 1, 1, 1)))
    assert isinstance(model.get_submodule("layer1.0.se.fc1"), nn.Conv2d)
    x = images(2, 33)
    want = exact(model, x)
    perceptron = {n: p for n, p in model.named_parameters() if ".se.fc" in n}
    deployed = ran.deploy(model, dtype=torch.float64)
    assert relative(deployed(x), want) < 1e-12
    assert relative(ran.deploy(model.to(memory_format=torch.channels_last))(x), want) < 1e-5
    for parameter in perceptron.values():  # that each takes part
        nn.init.zeros_(parameter)
    assert relative(ran.deploy(model, dtype=torch.float64)(x), want) > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("fuse_gate", [False, True], ids=["two steps", "fused gate"])
def test_on_a_gpu(name: str, graph: bool, fuse_gate: bool) -> None:
    model = shaped(NETWORKS[name]()).cuda()
    deployed = ran.deploy(model, graph=graph, fuse_gate=fuse_gate)
    for batch, size in ((2, 40), (1, 52), (2, 40)):
        x = images(batch, size).cuda()
        want = exact(model, x)
        first = deployed(x)
        assert relative(first.double(), want) < 1e-4
        # A graph's results are not overwritten by the next replay.
        deployed(torch.zeros_like(x))
        assert relative(first.double(), want) < 1e-4
    low = ran.deploy(model, dtype=torch.bfloat16, graph=graph, fuse_gate=fuse_gate)
    with torch.no_grad(), ran_kernels.backend("reference"):
        theirs = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert relative(low(x).double(), want) <= 2 * relative(theirs.double(), want)


@pytest.mark.gpu
def test_a_graph_serves_several_threads_on_their_own_streams() -> None:
    model = shaped(small()).cuda()
    deployed = ran.deploy(model, graph=True)
    batches = [images().cuda() for _ in range(4)]
    wanted = [exact(model, x) for x in batches]
    wrong: list[float] = []

    def work(x: Tensor, want: Tensor) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                error = relative(deployed(x).double(), want)
                if not error < 1e-3:
                    wrong.append(error)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(batches, wanted, strict=True)
    ]
    torch.cuda.synchronize()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
