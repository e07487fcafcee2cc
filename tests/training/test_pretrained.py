"""`model.init_from`: what is taken of a file, what is said of the rest, and that a resumed run no longer needs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import fsspec
import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from ports import free_ports
from tiny import TINY
from torch import Tensor, nn

from braintum import storage
from braintum.config import Experiment
from braintum.data.table import SliceTable, load_table
from braintum.models.output import Output, Translates
from braintum.models.registry import ModelConfig, architectures, model_config_class
from braintum.settings import ConfigError
from braintum.training.checkpoint import CheckpointError, load_model, save_model
from braintum.training.fit import Fit
from braintum.training.pretrained import Initialised, folded, initialise
from braintum.training.progress import Progress
from braintum.training.run import RunSpec, run

FROZEN: dict[str, Any] = {
    "optim.name": "sgd", "optim.lr": 1e-20, "optim.weight_decay": 0.0, "schedule.name": "constant",
    "training.weights": "last", "training.early_stopping": None, "training.epochs": 2,
}  # fmt: skip
"""A training that leaves its weights as they began."""


def experiment_of(name: str, **overrides: Any) -> Experiment:
    given = {path.replace("__", "."): value for path, value in overrides.items()}
    return Experiment.load(None, {"model.name": name, **TINY, **FROZEN, **given})


def saved_unet(place: Path, name: str = "unet", num_classes: int = 3, **options: Any) -> tuple[str, dict[str, Tensor]]:
    """A checkpoint as a training leaves it, of random weights; its place and its weights."""
    experiment = experiment_of(name, **options)
    torch.manual_seed(7)
    weights = experiment.model.build(1, num_classes, 1).state_dict()
    url = str(place / "model.safetensors")
    classes = tuple(str(k) for k in range(num_classes))
    save_model(url, weights, experiment, in_channels=1, classes=classes, masks=("tumour",))
    return url, weights


def starting(url: str, build: Callable[[int, int], nn.Module]) -> ModelConfig:
    """Options of a network of a test's own; `build` is told the numbers of channels and of classes."""

    class Brought(ModelConfig):
        width: int = 8

        def build(self, in_channels: int, num_classes: int, num_masks: int) -> nn.Module:
            return build(in_channels, num_classes)

    return Brought(name="brought", init_from=url)


def begun(url: str, build: Callable[[int, int], nn.Module], num_classes: int = 2) -> tuple[Any, Initialised]:
    """A network of a test's own, for grey images, that has begun with a file; and what it took."""
    network = build(1, num_classes)
    return network, initialise(network, starting(url, build), 1)


def linear(*_: int) -> nn.Module:
    return nn.Linear(2, 2)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + F.relu(self.bn1(self.conv1(x_BCHW)))


class ResNet(nn.Module):
    """An encoder with torchvision's names, and a head."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Residual(8))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, image_BCHW: Tensor) -> Output:
        x = self.layer1(F.relu(self.bn1(self.conv1(image_BCHW))))
        return Output(None, self.fc(x.mean((2, 3))))


class Segmenter(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.mask = ResNet(in_channels, num_classes), nn.Conv2d(8, 1, 1)


class Transformer(nn.Module):
    """Names of its own: the file joins queries, keys and values, and has positions of another grid."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, 8, 4, 4)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.position_1DHW = nn.Parameter(torch.zeros(1, 8, 4, 4))

    def pretrained(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, value in weights.items():
            if name.startswith("patch_embed.proj."):
                found[name.replace("patch_embed.proj", "embed")] = value
            elif name.startswith("attn.qkv."):
                for own, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[name.replace("attn.qkv", own)] = part
            elif name == "pos_embed":
                grid_1DHW = value.reshape(1, 2, 2, 8).permute(0, 3, 1, 2)
                found["position_1DHW"] = F.interpolate(grid_1DHW, size=(4, 4), mode="bilinear")
        return found


def resnet_file(place: Path) -> tuple[str, dict[str, Tensor]]:
    """Colour images, 1000 classes: shapes as in published files, but for the width."""
    shapes = {
        "conv1.weight": (8, 3, 7, 7),
        **{f"bn1.{part}": (8,) for part in ("weight", "bias", "running_mean", "running_var")},
        "layer1.0.conv1.weight": (8, 8, 3, 3),
        **{f"layer1.0.bn1.{part}": (8,) for part in ("weight", "bias", "running_mean", "running_var")},
        "fc.weight": (1000, 8),
        "fc.bias": (1000,),
    }
    weights = {name: torch.rand(shape) for name, shape in shapes.items()}
    counts = {name: torch.tensor(5) for name in ("bn1.num_batches_tracked", "layer1.0.bn1.num_batches_tracked")}
    url = str(place / "resnet.safetensors")
    safetensors.torch.save_file({**weights, **counts}, url)
    return url, weights


def test_a_checkpoint_of_other_classes_gives_all_but_its_head(tmp_path: Path) -> None:
    url, weights = saved_unet(tmp_path, "joint_unet", num_classes=2)
    config = experiment_of("joint_unet", model__init_from=url).model
    network = config.build(1, 4, 1)
    head = {name: value.clone() for name, value in network.state_dict().items() if name.startswith("classifier.")}
    found = initialise(network, config, 1)
    assert set(found.fresh) == set(found.unused) == set(head)
    assert set(found.taken) == weights.keys() - head.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, head[name] if name in head else weights[name])
    assert "left fresh: classifier.1.weight, classifier.1.bias; not used: classifier.1." in str(found)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_torchvisions_names_fit_a_network_and_an_encoder(tmp_path: Path, prefix: str) -> None:
    url, weights = resnet_file(tmp_path)
    network, found = begun(url, Segmenter if prefix else ResNet)
    own = network.state_dict()
    assert torch.equal(own[f"{prefix}layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
    assert torch.equal(own[f"{prefix}bn1.running_var"], weights["bn1.running_var"])
    head = {f"{prefix}fc.weight", f"{prefix}fc.bias"}
    assert set(found.fresh) == head | ({"mask.weight", "mask.bias"} if prefix else set())
    assert set(found.unused) == {"fc.weight", "fc.bias"}


def test_grey_images_are_answered_as_in_colour(tmp_path: Path) -> None:
    url, weights = resnet_file(tmp_path)
    grey_B1HW = torch.rand(2, 1, 32, 32)
    expected = F.conv2d(grey_B1HW.repeat(1, 3, 1, 1), weights["conv1.weight"])
    network, _ = begun(url, ResNet)
    torch.testing.assert_close(F.conv2d(grey_B1HW, network.conv1.weight), expected, rtol=1e-4, atol=1e-4)
    two = F.conv2d(grey_B1HW.repeat(1, 2, 1, 1), folded(weights["conv1.weight"], 2))
    six = F.conv2d(grey_B1HW.repeat(1, 6, 1, 1), folded(weights["conv1.weight"], 6))
    torch.testing.assert_close(six, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two.mean(), expected.mean(), rtol=0.05, atol=0)


class ReadsTwice(nn.Module):
    """Two convolutions read the image, a third one the two masks of a first guess; `wide`: as many as channels."""

    def __init__(self, in_channels: int, wide: bool = False) -> None:
        super().__init__()
        masks = in_channels if wide else 2
        self.guess, self.image = nn.Conv2d(in_channels, masks, 1), nn.Conv2d(in_channels, 4, 3, padding=1)
        self.masks = nn.Conv2d(masks, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.image(image_BCHW) + self.masks(self.guess(image_BCHW))))
        return logits


def test_every_convolution_of_the_image_is_folded(tmp_path: Path) -> None:
    url = str(tmp_path / "file.safetensors")
    source = ReadsTwice(3)
    safetensors.torch.save_file(source.state_dict(), url)
    network, found = begun(url, lambda channels, _: ReadsTwice(channels))
    assert (found.fresh, found.unused) == ((), ())
    grey_B1HW = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(grey_B1HW), source(grey_B1HW.repeat(1, 3, 1, 1)))


def test_no_other_convolution_is_folded(tmp_path: Path) -> None:
    """Though it has as many input channels as the image, and the file's has as many as the file's image."""
    url = str(tmp_path / "file.safetensors")
    source = ReadsTwice(3, wide=True).state_dict()
    safetensors.torch.save_file({name: x for name, x in source.items() if not name.startswith("guess")}, url)

    def build(channels: int, _: int) -> nn.Module:
        network = ReadsTwice(channels)
        network.masks = nn.Conv2d(1, 4, 3, padding=1)
        return network

    says = r"masks.weight is \[4, 3, 3, 3\] in it and \[4, 1, 3, 3\] in brought; it looks like another depth or width;"
    with pytest.raises(ConfigError, match=f"^model.init_from: {url}: {says} set model.width to what it has, or use"):
        begun(url, build)


def test_a_stem_of_another_kind_is_left_fresh(tmp_path: Path) -> None:
    url, weights = resnet_file(tmp_path)
    safetensors.torch.save_file({**weights, "conv1.weight": torch.rand(8, 3, 3, 3)}, url)
    _, found = begun(url, ResNet)
    assert found.fresh == ("conv1.weight", "fc.weight", "fc.bias")


def test_a_network_translates_names_of_its_own(tmp_path: Path) -> None:
    weights = {
        "patch_embed.proj.weight": torch.rand(8, 3, 4, 4),
        "patch_embed.proj.bias": torch.rand(8),
        "attn.qkv.weight": torch.rand(24, 8),
        "attn.qkv.bias": torch.rand(24),
        "pos_embed": torch.rand(1, 4, 8),
        "head.weight": torch.rand(1000, 8),
    }
    url = str(tmp_path / "vit.safetensors")
    safetensors.torch.save_file(weights, url)
    network, found = begun(url, Transformer)
    assert (found.fresh, found.unused) == ((), ("head.weight",))
    assert torch.equal(network.key.weight, weights["attn.qkv.weight"][8:16])
    assert network.embed.weight.shape == (8, 1, 4, 4)
    assert network.key.weight.requires_grad
    assert network.key.weight.is_leaf
    with torch.device("meta"):
        assert begun(url, Transformer)[1] == found, "what is said before is what is done"
    own = str(tmp_path / "own.safetensors")
    safetensors.torch.save_file(network.state_dict(), own)
    assert begun(own, Transformer)[1].fresh == (), "names that it does not know may be its own"
    checkpoint = str(tmp_path / "checkpoint.safetensors")
    save_model(checkpoint, weights, experiment_of("unet"), in_channels=3, classes=("a",), masks=())
    with pytest.raises(ConfigError, match="nothing in it fits"):  # a checkpoint's names are ours
        begun(checkpoint, Transformer)


def test_half_precision_is_taken(tmp_path: Path) -> None:
    url = str(tmp_path / "half.safetensors")
    half = {"weight": torch.rand(2, 2).half(), "bias": torch.rand(2).bfloat16()}
    safetensors.torch.save_file(half, url)
    network, _ = begun(url, linear)
    assert torch.equal(network.weight, half["weight"].float())


def test_the_share_is_of_numbers_not_of_names(tmp_path: Path) -> None:
    def said(**shapes: tuple[int, ...]) -> str:
        url = str(tmp_path / "part.safetensors")
        safetensors.torch.save_file({name: torch.rand(shape) for name, shape in shapes.items()}, url)
        return str(begun(url, lambda *_: nn.Bilinear(1, 1023, 1))[1])

    weight = (1, 1, 1023)
    assert ": 1 tensors taken, 99 % of the weights; left fresh: bias; not used: none; what it " in said(weight=weight)
    assert ": 2 tensors taken, 100 % of the weights; left fresh: none;" in said(weight=weight, bias=(1,))
    url = str(tmp_path / "part.safetensors")
    safetensors.torch.save_file({"1.weight": torch.rand(1, 1)}, url)
    found = begun(url, lambda *_: nn.Sequential(nn.Linear(999, 1), nn.Linear(1, 1)))[1]
    assert ": 1 tensors taken, less than 1 % of the weights; left fresh: 0.weight, 0.bias, 1.bias;" in str(found)


def test_what_fits_by_chance_is_not_enough(tmp_path: Path) -> None:
    """Norms and biases have one axis: that of some network or other is as long."""
    url = str(tmp_path / "file.safetensors")
    norm = {"1.weight": torch.rand(8), "1.bias": torch.rand(8)}
    safetensors.torch.save_file({**norm, "blocks.0.weight": torch.rand(8, 8)}, url)
    longer = str(tmp_path / "longer.safetensors")
    safetensors.torch.save_file({"1.weight": torch.rand(9)}, longer)

    def build(channels: int, _: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.GroupNorm(2, 8))

    for file in (url, longer):
        with pytest.raises(ConfigError, match=r"nothing in it fits brought, which has 0\.weight"):
            begun(file, build)
    safetensors.torch.save_file({**norm, "0.weight": torch.rand(8, 3, 3, 3)}, url)
    assert begun(url, build)[1].taken == ("0.weight", "1.weight", "1.bias")


def test_a_convolution_of_no_channels_is_not_taken(tmp_path: Path) -> None:
    url = str(tmp_path / "file.safetensors")
    safetensors.torch.save_file({"0.weight": torch.rand(4, 0, 3, 3), "1.weight": torch.rand(4, 4, 1, 1)}, url)
    found = begun(url, lambda channels, _: nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 4, 1)))[1]
    assert (found.taken, found.unused) == (("1.weight",), ("0.weight",))


def test_what_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    url = str(tmp_path / "file.safetensors")
    broken = torch.tensor([0.0, float("nan")])
    safetensors.torch.save_file({"weight": torch.rand(2, 2), "bias": broken, "more": broken.clone()}, url)
    with pytest.raises(ConfigError, match=f"^model.init_from: {url}: bias is NaN or infinite in places; the file may"):
        begun(url, linear)


def written(place: Path, header: dict[str, Any], num_bytes: int) -> str:
    """A safetensors file that torch cannot write."""
    about = json.dumps(header).encode()
    url = str(place / "odd.safetensors")
    storage.write_bytes(url, len(about).to_bytes(8, "little") + about + bytes(num_bytes))
    return url


def test_files_that_torch_cannot_write(tmp_path: Path) -> None:
    weight = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    url = written(tmp_path, {"__metadata__": None, "weight": weight}, 16)
    assert begun(url, linear)[1].taken == ("weight",)
    with pytest.raises(CheckpointError, match="not a checkpoint of braintum"):
        load_model(url)
    for kind, shape in (("F8_E8M0", [4]), ("F4", [8])):
        url = written(tmp_path, {"bias": {"dtype": kind, "shape": shape, "data_offsets": [0, 4]}}, 4)
        with pytest.raises(ConfigError, match=rf"cannot be read \(KeyError: '{kind}'\); the file may be damaged"):
            begun(url, linear)
    for about in ("no JSON", "[]", '{"trained_on": [{"data": 1}]}', '{"trained_on": 3}'):
        url = written(tmp_path, {"__metadata__": {"braintum": about}, "weight": weight}, 16)
        with pytest.raises(ConfigError, match="cannot be read"):
            begun(url, linear)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floating_point_is_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    url = str(tmp_path / "file.safetensors")
    safetensors.torch.save_file({"weight": torch.rand(2, 2), "bias": torch.ones(2, dtype=dtype)}, url)
    assert begun(url, linear)[1].taken == ("weight",)
    safetensors.torch.save_file({"weight": torch.ones(2, 2, dtype=dtype)}, url)
    with pytest.raises(ConfigError, match=r"nothing in it fits brought, .*; it has none$"):
        begun(url, linear)


def small(name: str, side: int = 32, **options: Any) -> Experiment:
    """An architecture with all its heads, as small as it comes; what follows from the side is left to do so."""
    cls = model_config_class(name)
    chosen = {field: value for field, value in cls.SMALL.items() if cls.model_fields[field].default is not None}
    heads = {"classify": True} if "classify" in cls.model_fields else {}
    return Experiment.from_dict({"data": {"image_size": side}, "model": {"name": name, **chosen, **heads, **options}})


def save_small(url: str, experiment: Experiment, in_channels: int = 1) -> dict[str, Tensor]:
    weights = experiment.model.build(in_channels, 3, 1).state_dict()
    save_model(url, weights, experiment, in_channels=in_channels, classes=("a", "b", "c"), masks=("tumour",))
    return weights


def said_before(
    experiment: Experiment, url: str, in_channels: int = 1, num_classes: int = 3, num_masks: int = 1
) -> tuple[nn.Module, Initialised]:
    """A network without numbers, and what it would take from the file."""
    config = experiment.model.model_copy(update={"init_from": url})
    with torch.device("meta"):
        network = config.build(in_channels, num_classes, num_masks)
    return network, initialise(network, config, in_channels)


@pytest.fixture(scope="module", params=architectures())
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, dict[str, Tensor]]:
    """Every architecture: its name, a checkpoint of it, and the weights in that."""
    url = str(tmp_path_factory.mktemp("own") / "model.safetensors")
    return request.param, url, save_small(url, small(request.param))


def test_a_checkpoint_fits_other_classes_channels_and_sizes(
    own: tuple[str, str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """All but the heads of every architecture's checkpoint."""
    name, url, weights = own
    network, found = said_before(small(name), url, num_classes=5, num_masks=2)
    heads = [key for key, value in network.named_parameters() if value.shape != weights[key].shape]
    assert heads
    assert list(found.fresh) == heads
    assert said_before(small(name), url, in_channels=3)[1].fresh == ()
    assert said_before(small(name, 48), url)[1].fresh == ()
    back = str(tmp_path / "back.safetensors")
    save_small(back, small(name, 48), in_channels=3)
    assert said_before(small(name), back)[1].fresh == ()


def test_a_checkpoint_of_another_width_is_refused(own: tuple[str, str, dict[str, Tensor]]) -> None:
    name, url, _ = own
    if "width" not in model_config_class(name).model_fields:
        pytest.skip("its width is no option")
    shapes = rf"\S+ is \[[\d, ]+\] in it and \[[\d, ]+\] in {name}"
    with pytest.raises(
        ConfigError, match=rf"^model.init_from: {url}: {shapes}; .* set .*model\.width.* to what it has"
    ):
        said_before(small(name, width=2 * model_config_class(name).SMALL["width"]), url)


LAYERED = [name for name in architectures() if "layers" in model_config_class(name).model_fields]


@pytest.mark.parametrize("name", LAYERED)
def test_a_published_file_of_another_depth_is_refused(name: str, tmp_path: Path) -> None:
    url = str(tmp_path / "published.safetensors")
    weights = small(name).model.build(1, 3, 1).state_dict()
    encoder = {key.removeprefix("encoder."): x for key, x in weights.items() if key.startswith("encoder.")}
    safetensors.torch.save_file(encoder, url)
    assert said_before(small(name), url)[1].unused == ()
    deeper = max(get_args(model_config_class(name).model_fields["layers"].annotation))
    with pytest.raises(ConfigError, match=rf"encoder\.\S+ is .* in {name}; .* another depth .*; set model\.layers"):
        said_before(small(name, layers=deeper), url)


@pytest.fixture(scope="module")
def translators() -> list[tuple[ModelConfig, nn.Module]]:
    """Every architecture that translates published names, as small as it comes."""
    configs = [small(name).model for name in architectures()]
    built = [(config, config.build(1, 2, 1)) for config in configs]
    found = [(config, network) for config, network in built if isinstance(network, Translates)]
    assert found
    return found


ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "scalar": lambda x: x.new_zeros(()),
    "flat": lambda x: x.reshape(-1),
    "one more axis": lambda x: x[None],
    "empty": lambda x: x.new_zeros((0, *x.shape[1:])),
    "last axis empty": lambda x: x.new_zeros((*x.shape[:-1], 0)),
    "integers": lambda x: torch.ones_like(x, dtype=torch.int32),
    "another size": lambda x: x.new_zeros([n + 1 for n in x.shape]),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_tensors_are_taken_or_refused_in_one_line(
    tmp_path: Path, translators: list[tuple[ModelConfig, nn.Module]], odd: Callable[[Tensor], Tensor]
) -> None:
    def said(config: ModelConfig, network: nn.Module) -> str:
        try:
            return str(initialise(network, config.model_copy(update={"init_from": url}), 1))
        except ConfigError as error:
            return str(error)

    url = str(tmp_path / "odd.safetensors")
    for config, network in translators:
        own = network.state_dict()
        names = {**own, **{name.removeprefix("encoder."): value for name, value in own.items()}}  # published ones too
        for part in (
            "",
            "pos_embed",
            "relative_position_bias_table",
            "patch_embed",
            "norm",
        ):  # the rest as it should be
            file = {name: (odd(value) if part in name else value).clone() for name, value in names.items()}
            safetensors.torch.save_file(file, url)
            text = said(config, network)
            assert text.startswith(f"model.init_from: {url}: ")
            assert "\n" not in text


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    def refused(url: str, says: str) -> None:
        with pytest.raises(ConfigError, match=f"^model.init_from: {url}: {says}"):
            begun(url, ResNet)

    refused(f"{tmp_path}/none.safetensors", "no such file")
    refused(str(tmp_path), "a folder; give a .safetensors file")
    refused("nowhere://x", "cannot be read: nowhere://x: Protocol not known")
    pickled = str(tmp_path / "resnet.pth")
    torch.save(ResNet(1, 2).state_dict(), pickled)
    refused(pickled, r"not a safetensors file .* \.pth, are not read: they can run code")
    other = str(tmp_path / "other.safetensors")
    safetensors.torch.save_file(
        {"stem.weight": torch.rand(8, 3, 3, 3), "bn1.num_batches_tracked": torch.tensor(1)}, other
    )
    refused(
        other,
        r"nothing in it fits brought, which has conv1.weight \[8, 1, 7, 7\].*; it has .*stem.weight \[8, 3, 3, 3\]",
    )


@pytest.fixture
def table(tiny_phantom: str) -> SliceTable:
    return load_table(tiny_phantom, experiment_of("unet").data)


def assert_begun(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], part: str) -> None:
    names = [name for name in weights if name.startswith(part)]
    assert names
    for name in names:
        torch.testing.assert_close(state[name], weights[name], rtol=0, atol=1e-6)


def test_a_classifier_begins_with_a_unets_encoder_and_resumes_without_the_file(
    tiny_phantom: str, table: SliceTable, tmp_path: Path
) -> None:
    url, weights = saved_unet(tmp_path)
    experiment = experiment_of("classifier", model__init_from=url)
    whole, stopped = (RunSpec.of(experiment, tiny_phantom, str(tmp_path / n), "1", 3) for n in ("whole", "stopped"))
    list(run(whole, table))
    list(islice(run(stopped, table), 1))
    Path(url).unlink()
    list(run(stopped, table))
    digests = {hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).digest() for n in ("whole", "stopped")}
    assert len(digests) == 1
    assert_begun(load_model(f"{whole.out}/model.safetensors").model.state_dict(), weights, "encoder.")
    found = storage.read_json(f"{stopped.out}/init.json")
    assert set(found["taken"]) == {name for name in weights if name.startswith("encoder.")}
    assert all(name.startswith("dense.") for name in found["fresh"])
    counts = storage.read_json(f"{stopped.out}/summary.json")["init_from"]
    assert counts == {
        "url": url, "sha256": found["sha256"], "taken": len(found["taken"]), "fresh": 4, "unused": len(found["unused"]),
        "share": found["share"], "trained_on": [None],
    }  # fmt: skip


def test_averaged_weights_begin_there_too(table: SliceTable, tmp_path: Path) -> None:
    url, weights = saved_unet(tmp_path)
    fit = Fit(experiment_of("unet", model__init_from=url, training__weights="average"), table, table_rows(table))
    fit.run_epoch()
    assert_begun(fit.kept_weights(), weights, "")


def table_rows(table: SliceTable) -> Any:
    return RunSpec.of(experiment_of("unet"), "", "", "1", 3).split(table).train


def test_every_fold_of_a_trial_begins_there(tiny_phantom: str, table: SliceTable, tmp_path: Path) -> None:
    from braintum.tuning.trial import TrialSpec, trial_epochs  # not by the processes that a test here spawns

    url, _ = saved_unet(tmp_path)
    experiment = experiment_of("unet", model__init_from=url)
    spec = TrialSpec("unet", 0, experiment.to_dict(), "", str(tmp_path / "trial"), 2, {"dice": 1.0})
    assert len(list(islice(trial_epochs(spec, table), 1))) == 1
    found = storage.read_json(f"{spec.out}/init.json")
    assert (found["url"], found["fresh"], found["unused"]) == (url, [], [])
    Path(url).unlink()
    epochs = trial_epochs(spec, table)
    assert [row["epoch"] for row in islice(epochs, 2)] == [1, 2]
    with pytest.raises(ConfigError, match="no such file"):
        next(epochs)


def _begin(rank: int, port: int, data: str, folder: str) -> None:
    """What a rank begins with: of a file that both see, one that only rank 0 has, and one that is odd at rank 1."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    url = f"{folder}/model.safetensors"
    if rank == 0:
        fsspec.filesystem("memory").pipe("memory://model.safetensors", storage.read_bytes(url))
    odd = url if rank == 0 else written(Path(folder), {"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, 4)
    fsspec.filesystem("memory").pipe("memory://odd.safetensors", storage.read_bytes(odd))
    said = []
    for place in (url, "memory://model.safetensors", "memory://odd.safetensors"):
        experiment = experiment_of("unet", model__init_from=place)
        table = load_table(data, experiment.data)
        fit = Fit(experiment, table, table_rows(table), rank=rank, world_size=2)
        try:
            fit.run_epoch()
        except ConfigError as error:
            said.append(str(error))
        else:
            began = {name: x.contiguous() for name, x in fit.state_dict()["model"].items()}  # of bfloat16 it is not
            safetensors.torch.save_file(began, f"{folder}/began-{rank}.safetensors")
    storage.write_json(f"{folder}/said-{rank}.json", said)
    torch.distributed.destroy_process_group()


def test_all_workers_begin_alike_or_none(tiny_phantom: str, tmp_path: Path) -> None:
    _, weights = saved_unet(tmp_path)
    mp.spawn(_begin, args=(free_ports(1)[0], tiny_phantom, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert_begun(safetensors.torch.load_file(tmp_path / f"began-{rank}.safetensors"), weights, "")
        assert storage.read_json(f"{tmp_path}/said-{rank}.json") == [
            "model.init_from: memory://model.safetensors: no such file",
            "model.init_from: memory://odd.safetensors: cannot be read (KeyError: 'F4'); the file may be damaged, "
            "or of another kind of network; use another one",
        ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_training_says_what_it_takes(
    tiny_phantom: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from braintum.training.worker import train

    url, _ = saved_unet(tmp_path)
    monkeypatch.chdir(tmp_path)  # where no worker is
    experiment = experiment_of("joint_unet", model__init_from="model.safetensors", training__epochs=1)
    summary = train(experiment, tiny_phantom, str(tmp_path / "run"), workers=2, progress=Progress("test"))
    assert summary["init_from"]["url"] == url
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("model.init_from: ")]
    assert len(lines) == 1
    taken = summary["init_from"]["taken"]
    assert f"{taken} tensors taken, 98 % of the weights; left fresh: classifier.1.weight, class" in lines[0]
    assert lines[0].endswith("classifier.1.bias; not used: none; what it was trained on is not known")
