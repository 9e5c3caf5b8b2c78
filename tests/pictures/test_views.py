from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ran
from ran.data import Preprocessing
from ran.errors import UserError
from ran.pictures.drawing import ABOVE, CELL, HEADING, TITLE, WIDTH, ImageView, _columns, save_page
from ran.pictures.masks import plot_masks
from ran.pictures.views import ChannelView, ModuleView, attention_views, telling_channels
from ran.weights.network_card import NetworkCard, save_network
from tests.tiny import TINY_OPTIONS, random_image

CBAM_OPTIONS = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}


def card_of(model: str, options: dict[str, Any]) -> NetworkCard:
    preprocessing = Preprocessing(32, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return NetworkCard(model, ("cat", "dog"), preprocessing, options)


def saved(folder: Path, model: str, options: dict[str, Any], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    card = card_of(model, options)
    network = card.build()
    network(4 * torch.randn(8, 3, 32, 32))  # moves the running statistics off their first values
    save_network(network, card, folder)
    return folder


def test_telling_channels_vary_have_features_and_differ() -> None:
    rising = torch.linspace(0, 1, 5).expand(5, 5)
    mask = torch.stack(
        [
            torch.full((5, 5), 0.9),  # the same everywhere
            rising,
            0.9 * rising,  # the same again, weaker
            0.5 * rising.T,
            1.0 - rising,  # but no features behind it
        ]
    )
    features = torch.ones(5, 5, 5)
    features[4] = 0.01
    assert telling_channels(mask, features, 2) == (1, 3)
    assert telling_channels(mask, features, 9)[0] == 1
    assert sorted(telling_channels(mask, features, 9)) == [0, 1, 2, 3, 4]


def test_views_of_a_residual_attention_network() -> None:
    network = card_of("attention56_cifar_pool", TINY_OPTIONS).build().eval()
    x = torch.randn(1, 3, 32, 32)
    (view,) = attention_views(network, x)
    features = network.attention_features(x)["stages.0.attention1"]  # type: ignore[operator]
    assert (view.name, view.width, view.gates) == ("stages.0.attention1", 32, None)
    np.testing.assert_array_equal(view.mask, features.mask[0].mean(0).numpy())
    assert len(view.channels) == 2
    for channel in view.channels:
        assert channel.mask is not None
        np.testing.assert_array_equal(channel.before, features.trunk[0, channel.number].numpy())
        np.testing.assert_allclose(
            channel.after, (1 + channel.mask) * channel.before, rtol=1e-5, atol=1e-6
        )
    (again,) = attention_views(network, x, channels={view.name: (5,)})
    assert [channel.number for channel in again.channels] == [5]


def test_views_of_a_cbam_network_are_what_its_forward_computed() -> None:
    network = ran.cbam_resnet18(num_classes=2, **CBAM_OPTIONS).eval()
    x = torch.randn(1, 3, 32, 32)
    views = attention_views(network, x)
    assert [view.name for view in views] == [f"layer{n}.0.cbam" for n in range(1, 5)]
    assert not any(module._forward_pre_hooks for module in network.modules())
    seen: list[torch.Tensor] = []
    cbam: Any = network.get_submodule("layer1.0.cbam")
    hook = cbam.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(x)
        hook.remove()
        gated = cbam(seen[0])[0]
    view = views[0]
    assert view.gates is not None
    for channel in view.channels:
        np.testing.assert_allclose(channel.before, seen[0][0, channel.number].numpy())
        np.testing.assert_allclose(channel.after, gated[channel.number].numpy(), atol=1e-6)
        assert channel.gate == view.gates[channel.number]
    assert (
        view.gates[[channel.number for channel in view.channels]].tolist()
        == sorted(view.gates.tolist(), reverse=True)[:2]
    )


def test_modules_are_chosen_by_pattern() -> None:
    network = ran.cbam_resnet18(num_classes=2, **CBAM_OPTIONS).eval()
    x = torch.randn(1, 3, 32, 32)
    found = attention_views(network, x, pattern="layer[34].*")
    assert [view.name for view in found] == ["layer3.0.cbam", "layer4.0.cbam"]
    with pytest.raises(UserError, match=r"layer1\.0\.cbam, .* 'stages\.\*'"):
        attention_views(network, x, pattern="stages.*")


def test_a_page_shows_masks_and_features_where_they_are(tmp_path: Path) -> None:
    rising = np.linspace(0, 1, 9, dtype=np.float32)[None].repeat(9, 0)
    first = ChannelView(3, None, before=rising, mask=rising.T, after=2 * rising)
    second = ChannelView(4, None, before=-rising, mask=1 - rising, after=-rising)
    module = ModuleView("stages.0.attention1", 16, rising, None, (first, second))
    gray = np.full((32, 32, 3), 128, dtype=np.uint8)
    save_page(tmp_path / "page.png", [ImageView(gray, "cat", (module,))], title="test")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert pixels.shape[1] == WIDTH
    _, over_image, cells = _columns(3)
    top = TITLE + HEADING + ABOVE

    def color(x: float, across: float, down: float = 0.5) -> list[int]:
        """Of the cell that starts at x, at shares of its width and height."""
        found: list[int] = pixels[int(top + down * CELL), int(x + across * CELL)].tolist()
        return found

    def warmth(x: float, across: float, down: float = 0.5) -> int:
        red, _, blue = color(x, across, down)
        return red - blue

    start, middle, end = 0.06, 0.5, 0.94
    assert warmth(over_image, start) < -50 < 50 < warmth(over_image, end)
    assert warmth(cells[1], middle, start) < -50 < 50 < warmth(cells[1], middle, end)
    assert warmth(cells[4], end) < -50 < 50 < warmth(cells[4], start)
    # Features of a channel: zero is white, and one scale holds before (to 1) and after (to 2).
    for cell in (cells[0], cells[2], cells[3], cells[5]):
        assert min(color(cell, start)) > 240
    assert color(cells[0], end) == color(cells[2], middle) != color(cells[2], end)
    assert warmth(cells[0], end) > 50
    assert warmth(cells[3], end) < -20
    assert color(cells[3], end) == color(cells[5], end)


@pytest.mark.parametrize(
    ("model", "options"),
    [("attention56_cifar_pool", TINY_OPTIONS), ("cbam_resnet18", CBAM_OPTIONS)],
)
def test_pictures_of_files(tmp_path: Path, model: str, options: dict[str, Any]) -> None:
    random_image((40, 30), 0).save(tmp_path / "photo.jpg")
    saved(tmp_path, model, options)
    heights = []
    for count in (1, 2):
        output = tmp_path / f"{count}.png"
        plot_masks(tmp_path, [tmp_path / "photo.jpg"] * count, output)
        with Image.open(output) as picture:
            assert picture.width == WIDTH
            heights.append(picture.height)
    assert heights[1] > heights[0] + 200
    plot_masks(tmp_path, [tmp_path / "photo.jpg"], tmp_path / "masks.svg")
    assert (tmp_path / "masks.svg").read_text().startswith("<?xml")


def test_an_animation_has_a_frame_for_each_checkpoint(tmp_path: Path) -> None:
    random_image((32, 32), 0).save(tmp_path / "a.png")
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        saved(folder, "attention56_cifar_pool", TINY_OPTIONS, seed)
    output = tmp_path / "masks.gif"
    plot_masks(folders, [tmp_path / "a.png"], output)
    with Image.open(output) as animation:
        assert animation.n_frames == 3
        frames = []
        for number in range(3):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    # Another network, another mask: the frames differ beyond their titles.
    for frame in frames[1:]:
        assert np.abs(frame - frames[0])[TITLE + HEADING :].mean() > 1

    other = tmp_path / "other"
    other.mkdir()
    saved(other, "cbam_resnet18", CBAM_OPTIONS)
    with pytest.raises(UserError, match=r"one: expected the same network as in .*other"):
        plot_masks([folders[0], other], [tmp_path / "a.png"], tmp_path / "bad.gif")
    with pytest.raises(UserError, match=r"bad\.png: expected a \.gif file"):
        plot_masks(folders, [tmp_path / "a.png"], tmp_path / "bad.png")
    assert not list(tmp_path.glob("*bad*"))


def test_networks_of_other_channels_and_too_tall_pages_are_refused(tmp_path: Path) -> None:
    random_image((8, 8), 0).save(tmp_path / "a.png")
    card = NetworkCard(
        "attention56_cifar_pool",
        ("cat", "dog"),
        Preprocessing(16, 1.0, (0.5,) * 4, (0.3,) * 4),
        TINY_OPTIONS,
    )
    save_network(card.build(), card, tmp_path)
    with pytest.raises(UserError, match="expected a network of 1 or 3 input channels"):
        plot_masks(tmp_path, [tmp_path / "a.png"], tmp_path / "out.png")
    module = ModuleView("m", 1, np.zeros((2, 2)), None, ())
    view = ImageView(np.zeros((4, 4, 3), np.uint8), "", (module,) * 40)
    with pytest.raises(UserError, match="images: expected fewer, or fewer modules"):
        save_page(tmp_path / "out.png", [view] * 8, title="")
    assert not (tmp_path / "out.png").exists()
