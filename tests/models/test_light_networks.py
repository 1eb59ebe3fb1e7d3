"""MobileNetV2 and ShuffleNetV2 against torchvision, and their covariance heads against plain PyTorch."""

from __future__ import annotations

import logging
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.build import build_model
from covpool.checkpoints import convert_state_dict, load_into, to_pytorch
from covpool.checkpoints.format import load_network, read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.export import fold_batch_norm
from covpool.models import create_model, freeze
from covpool.training.optimizers import build_optimizer
from tests.checkpoints.released import rule_images, rule_tensor
from tests.fidelity.pytorch_twin import LIGHT, ReleasedLight
from tests.models.agreement import exported_error, gradient_errors, images, output_error, relative

D, CLASSES = 16, 5
NARROW = {"mobilenet_v2_100": {"width_mult": 0.25}, "shufflenet_v2_x0_5": {}}
# Parameters with 1000 classes: average pooling, d = 256, d = 128.
PARAMETERS = {
    "mobilenet_v2_100": (3_504_872, 35_449_064, 10_644_968),
    "shufflenet_v2_x0_5": (1_366_792, 33_501_448, 8_730_120),
    "shufflenet_v2_x1_0": (2_278_604, 34_413_260, 9_641_932),
    "shufflenet_v2_x1_5": (3_503_624, 35_638_280, 10_866_952),
    "shufflenet_v2_x2_0": (7_393_996, 38_766_796, 13_864_396),
}


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def small(name: str, pooling: str = "fast_mpn", **args: Any) -> nn.Cell:
    return create_model(
        name, **{"pooling": pooling, "reduction_dim": D, "num_classes": CLASSES, **NARROW[name], **args}
    )


def pair(name: str, pooling: str = "fast_mpn", **args: Any) -> tuple[nn.Cell, ReleasedLight]:
    """The network and its twin with the same weights and with statistics of some training, in evaluation."""
    twin = ReleasedLight(name, pooling, **args)
    state = {key: rule_tensor(key, tuple(value.shape)) for key, value in twin.state_dict().items()}
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    dropout = {"dropout": 0.0} if name.startswith("mobilenet") else {}
    network = create_model(name, pooling=pooling, reduction_dim=D, num_classes=CLASSES, **args, **dropout)
    assert load_into(network, convert_state_dict(state)) == []
    return network.set_train(False), twin.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_digit(name, pynative_mode):
    counts = [sum(p.size for p in create_model(name, pooling="gap").trainable_params())]
    for d in (256, 128):
        network = create_model(name, pooling="gcp", reduction_dim=d, num_classes=0)
        counts.append(sum(p.size for p in network.trainable_params()) + (d * (d + 1) // 2 + 1) * 1000)
    assert tuple(counts) == PARAMETERS[name]


@pytest.mark.parametrize("name", LIGHT)
def test_logits_are_torchvisions(name, pynative_mode):
    network, twin = pair(name, "gap")
    for size, batch in ((64, 2), ((75, 97), 1)):
        assert output_error(network, twin, images(size, batch)) < 1e-5


@pytest.mark.parametrize("width", [0.35, 0.5, 1.4])
def test_other_widths_are_torchvisions(width, pynative_mode):
    theirs = arrays(LIGHT["mobilenet_v2_100"](width_mult=width, num_classes=CLASSES))
    ours = create_model(f"mobilenet_v2_{round(100 * width):03d}", pooling="gap", num_classes=CLASSES)
    assert load_into(ours, convert_state_dict(theirs)) == []


@pytest.mark.parametrize("name", NARROW)
def test_gradients_of_all_parameters(name, pynative_mode):
    """With running statistics: those of a batch take the gradient of a shift before them away."""
    network, twin = pair(name, **NARROW[name])
    errors = gradient_errors(network, twin, rule_images(3, 64, 3))
    assert set(errors) == {p.name for p in network.trainable_params()} and max(errors.values()) < 1e-4


def smooth(cell: nn.Cell, module: torch.nn.Module) -> None:
    """SiLU for every ReLU and ReLU6 of a network and of its twin."""
    for _, parent in list(cell.cells_and_names()):
        for index, (name, child) in enumerate(parent.name_cells().items()):
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                if isinstance(parent, nn.SequentialCell):
                    parent[index] = nn.SiLU()
                else:
                    setattr(parent, name, nn.SiLU())
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (torch.nn.ReLU, torch.nn.ReLU6)):
                setattr(parent, name, torch.nn.SiLU())


@pytest.mark.parametrize("name", NARROW)
def test_ten_steps_of_training(name, graph_mode):
    """With the statistics of batches and the decay of all parameters.

    Without dropout, whose masks differ, and with a smooth function for ReLU: over 50 layers of batch statistics its
    kinks take PyTorch 1e-2 away from itself within these steps when weights change by 1e-6, the smooth one 1e-4.
    """
    network, twin = pair(name, **NARROW[name])
    smooth(network, twin)
    rates = np.linspace(0.02, 0.01, 10).astype(np.float32)
    ours = build_optimizer(list(network.trainable_params()), rates, weight_decay=1e-2, decay_all=True)
    theirs = torch.optim.SGD(twin.train().parameters(), lr=0.02, momentum=0.9, weight_decay=1e-2)
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.CrossEntropyLoss()), ours).set_train()
    labels = np.arange(8) % CLASSES
    losses: list[list[float]] = [[], []]
    for index, rate in enumerate(rates):
        x = rule_images(index, 64, 8)
        losses[0].append(float(step(ms.Tensor(x), ms.Tensor(labels, ms.int32)).asnumpy()))
        theirs.param_groups[0]["lr"] = float(rate)
        theirs.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(torch.from_numpy(x)), torch.from_numpy(labels))
        loss.backward()
        theirs.step()
        losses[1].append(loss.item())
    np.testing.assert_allclose(*losses, rtol=1e-4)
    found = to_pytorch({p.name: p for p in network.get_parameters()})
    expected = arrays(twin)
    norm = np.linalg.norm
    error, worst = max((norm(found[key] - value) / norm(value), key) for key, value in expected.items() if value.ndim)
    print(f"losses {np.abs(np.divide(*losses) - 1).max():.1e}, {worst} {error:.1e}")
    assert error < 1e-3, worst


@pytest.mark.parametrize("name", NARROW)
def test_names_of_released_files_both_ways(name, tmp_path, caplog):
    """As the study saved them: below ``state_dict``, each name after ``module.``."""
    twin = ReleasedLight(name, "fast_mpn", **NARROW[name])
    source = {key: rule_tensor(key, value.shape) for key, value in arrays(twin).items()}
    assert {"dimension_reduction.1.running_var", "classifier.1.bias" if twin.mobile else "fc.bias"} < set(source)
    content = {"state_dict": {f"module.{key}": torch.from_numpy(value) for key, value in source.items()}}
    torch.save(content, tmp_path / "released.pth.tar")
    network = small(name, pretrained=tmp_path / "released.pth.tar")
    again = to_pytorch({p.name: p for p in network.get_parameters()})
    assert set(again) == set(source)
    assert all(again[key].tobytes() == value.tobytes() for key, value in source.items())
    del content["state_dict"]["module.dimension_reduction.1.bias"]
    torch.save(content, tmp_path / "released.pth.tar")
    with pytest.raises(UserError, match=r"missing in the checkpoint \(1\): layer_reduce_bn.beta"):
        small(name, pretrained=tmp_path / "released.pth.tar")
    torch.save(ReleasedLight(name, "gap", 1000, **NARROW[name]).state_dict(), tmp_path / "plain.pth")
    caplog.set_level(logging.INFO)
    network = small(name, "dropcov", pretrained=tmp_path / "plain.pth")
    assert "a plain network with global average pooling" in caplog.text
    assert convert_state_dict(to_pytorch({p.name: p for p in network.get_parameters()})).keys() == {
        p.name for p in network.get_parameters()
    }


@pytest.mark.parametrize("percent", ["035", "140"])
def test_timms_names_of_mobilenet(percent, tmp_path, pynative_mode):
    torch.manual_seed(0)
    twin = timm.create_model(f"mobilenetv2_{percent}", num_classes=CLASSES).eval()
    for norm in twin.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
    torch.save(twin.state_dict(), tmp_path / "timm.pth")
    args = {"pooling": "gap", "num_classes": CLASSES, "pretrained": tmp_path / "timm.pth"}
    network = create_model(f"mobilenet_v2_{percent}", **args).set_train(False)
    assert output_error(network, twin, rule_images(1, 64, 3)) < 1e-5


def test_another_network_is_named(tmp_path):
    torch.save(LIGHT["shufflenet_v2_x1_0"]().state_dict(), tmp_path / "x1.pth")
    for name, words in (
        ("shufflenet_v2_x0_5", "channels of the first block: 58 in the checkpoint, 24 in the network"),
        ("mobilenet_v2_100", "net_name: shufflenet_v2 in the checkpoint, mobilenet_v2 in the network"),
        ("resnet18", r"net_name: shufflenet_v2 in the checkpoint, basic blocks .*\(resnet18\) in the network"),
    ):
        with pytest.raises(UserError, match=words):
            create_model(name, pooling="gap", pretrained=tmp_path / "x1.pth")


@pytest.mark.parametrize("name", NARROW)
def test_exported_files_and_folding(name, tmp_path, pynative_mode):
    network, _ = pair(name, **NARROW[name])
    x = rule_images(2, 64, 3)
    expected = network(ms.Tensor(x)).asnumpy()
    folded = fold_batch_norm(network)
    assert not any(isinstance(cell, nn.BatchNorm2d) for _, cell in folded.cells_and_names())
    assert relative(folded(ms.Tensor(x)).asnumpy(), expected) < 1e-5
    for file_format in ("MINDIR", "ONNX"):
        assert exported_error(network, tmp_path, file_format, x) < 1e-5


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize(
    ("stem", "pooling", "reductions"), [("imagenet", "gcp", [2, 4, 8, 16, 32]), ("small", "gap", [1, 1, 2, 4, 8])]
)
def test_stages(name, stem, pooling, reductions, pynative_mode):
    ms.set_seed(1)
    full = small(name, pooling, stem=stem, in_channels=1).set_train(False)
    ms.set_seed(1)
    cell = small(name, pooling, stem=stem, in_channels=1, features_only=True).set_train(False)
    x = ms.Tensor(rule_images(1, 64, 2, 1))
    maps = cell(x)
    assert cell.feature_info.reduction() == reductions
    assert [m.shape for m in maps] == [(2, s.channels, 64 // s.reduction, 64 // s.reduction) for s in cell.feature_info]
    names = [p.name for p in cell.get_parameters()]
    assert names == [p.name for p in full.get_parameters()][: len(names)]
    last = full.features[-1] if name.startswith("mobilenet") else full.conv5
    np.testing.assert_array_equal(last(maps[-1]).asnumpy(), full.forward_backbone(x).asnumpy())
    assert full(x).shape == (2, CLASSES)
    assert full.forward_head(full.forward_features(x), pre_logits=True).shape == (2, full.pooling.out_features)
    some = small(name, pooling, stem=stem, in_channels=1, features_only=True, out_indices=(1, 3))
    assert [m.shape for m in some(x)] == [maps[1].shape, maps[3].shape]


@pytest.mark.parametrize(
    ("name", "upto", "first"),
    [
        ("mobilenet_v2_100", "features.6", "features.7."),
        ("shufflenet_v2_x0_5", "stage3", "stage4."),
    ],
)
def test_frozen_parts_and_another_classifier(name, upto, first, pynative_mode):
    cell = small(name)
    freeze(cell, upto=upto)
    assert cell.trainable_params()[0].name.startswith(first)
    cell.reset_classifier(7)
    x = ms.Tensor(rule_images(1, 64, 2))
    assert cell(x).shape == (2, 7)
    if name.startswith("mobilenet"):
        weight = cell.fc.weight.asnumpy()
        assert weight.std() == pytest.approx(0.01, rel=0.1) and not cell.fc.bias.asnumpy().any()
    cell.reset_classifier(0)
    cell.set_train(True)
    assert cell(x).shape == (2, D * (D + 1) // 2) and (name[0] == "s" or int(cell.dropout.counter.asnumpy()) == 0)


def test_shufflenet_starts_as_pytorch_does():
    ms.set_seed(1)
    network = create_model("shufflenet_v2_x1_0", pooling="gcp", reduction_dim=32, num_classes=2)
    for name, cell in network.cells_and_names():
        if isinstance(cell, nn.Conv2d):
            weight = cell.weight.asnumpy().astype(np.float64)
            z = weight * np.sqrt(np.prod(weight.shape[1:]))
            assert np.abs(z).max() <= 1 and abs(z.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / z.size), name


@pytest.mark.parametrize("pooling", ["gap", "dropcov"])
def test_dropout_goes_on_after_a_checkpoint(pooling, tmp_path, mode):
    """The fourth step of a network that was saved after the third is that of the unbroken one."""
    config = Config(
        net_name="mobilenet_v2_100", pooling=pooling, reduction_dim=D, class_num=3, model_args={"width_mult": 0.1}
    )
    first, second = build_model(config), build_model(config.replace(seed=1))
    vectors = ms.Tensor(np.ones((4, first.fc.in_channels), np.float32))
    dropout = first.dropout.set_train()
    masks = [dropout(vectors).asnumpy() for _ in range(3)]
    assert all(set(np.unique(mask)) == {0.0, np.float32(1.25)} for mask in masks)
    assert np.mean(masks) == pytest.approx(1, abs=0.1) and (masks[0] != masks[1]).any()
    save_checkpoint(tmp_path / "x.ckpt", first)
    load_network(second, read_checkpoint(tmp_path / "x.ckpt"))
    again = second.dropout.set_train()(vectors).asnumpy()
    np.testing.assert_array_equal(again, dropout(vectors).asnumpy())
    np.testing.assert_array_equal(dropout.set_train(False)(vectors).asnumpy(), vectors.asnumpy())
    if pooling == "dropcov":
        assert first.pooling.dropout.seed != dropout.seed


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("mobilenet_v2_100", {"width_mult": 0.0}, "width_mult must be above 0"),
        ("mobilenet_v2_100", {"dropout": 1.0}, "rate must be"),
        ("mobilenet_v2_100", {"stem": "tiny"}, "stem must be"),
        ("shufflenet_v2_x0_5", {"in_channels": 0}, "in_channels must be"),
        ("shufflenet_v2_x0_5", {"features_only": True, "out_indices": (5,)}, "within 0 to 4"),
    ],
)
def test_bad_arguments(name, args, message):
    with pytest.raises(ValueError, match=message):
        small(name, **args)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_width": 8}, "base_width = 8: mobilenet_v2_100 does not take it"),
        ({"model_args": {"depth": 4}}, "mobilenet_v2_100 does not take depth"),
    ],
)
def test_keys_that_say_nothing(keys, message):
    with pytest.raises(UserError, match=message):
        build_model(Config(net_name="mobilenet_v2_100", **keys))
