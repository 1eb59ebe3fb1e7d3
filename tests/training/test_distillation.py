"""Learning from a teacher: DeiT's formulas against PyTorch, what a step leaves alone, teachers that do not fit."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn
from mindspore.train import Model
from torch.nn import functional as F

from covpool.build import architecture, build_model, build_source, description
from covpool.checkpoints.format import read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.runtime.distributed import World
from covpool.training import fit
from covpool.training.losses import LabelSmoothingCrossEntropy
from covpool.training.objective import Distillation, Objective, Teacher, set_objective
from covpool.training.start import load_teacher
from tests.training.test_start import config as start_config
from tests.training.test_start import make_images

SETTINGS = [("soft", 1.0), ("soft", 3.0), ("hard", 1.0)]


def distillation(student: torch.Tensor, teacher: torch.Tensor, kind: str, tau: float) -> torch.Tensor:
    """Equations 2 and 3 of Touvron et al., as timm computes them."""
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    log_p, log_q = F.log_softmax(teacher / tau, 1), F.log_softmax(student / tau, 1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * tau**2


@pytest.mark.parametrize(("kind", "tau"), SETTINGS)
def test_value_and_gradient_are_those_of_pytorch(mode: str, kind: str, tau: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (4 * rng.standard_normal((6, 10)).astype(np.float32) for _ in range(2))
    value, gradient = ms.value_and_grad(Distillation(kind, tau), 0)(ms.Tensor(student), ms.Tensor(teacher))
    logits = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    expected = distillation(logits, torch.tensor(teacher, dtype=torch.float64), kind, tau)
    expected.backward()
    np.testing.assert_allclose(value.asnumpy(), expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient.asnumpy(), logits.grad.numpy(), atol=1e-5 * logits.grad.abs().max().item())


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="kind must be 'soft' or 'hard', not 'none'"):
        Distillation("none")


class TwoHeads(nn.Cell):
    """Logits for classes and for distillation while it trains, as a DeiT with two tokens: (N, 6) -> 2 x (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Dense(6, 4), nn.Dense(6, 4)

    def construct(self, x: ms.Tensor) -> ms.Tensor | tuple[ms.Tensor, ms.Tensor]:
        if self.training:
            return self.head(x), self.head_dist(x)
        return (self.head(x) + self.head_dist(x)) / 2


@pytest.mark.parametrize(("kind", "tau"), SETTINGS[1:])
@pytest.mark.parametrize("heads", [1, 2])
def test_objective_is_that_of_deit(mode: str, heads: int, kind: str, tau: float) -> None:
    """Loss and the gradient of every weight of the student; of two heads the second learns from the teacher."""
    ms.set_seed(2)
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((5, 6)).astype(np.float32), rng.integers(0, 4, 5).astype(np.int32)
    student, teacher = (TwoHeads() if heads == 2 else nn.Dense(6, 4)), nn.Dense(6, 4)
    weights = [torch.tensor(p.asnumpy(), requires_grad=True) for p in student.trainable_params()]
    answer = F.linear(torch.tensor(x), *(torch.tensor(p.asnumpy()) for p in teacher.get_parameters()))
    objective = Objective(student, LabelSmoothingCrossEntropy(0.1), Teacher(teacher), Distillation(kind, tau), 0.3)
    objective.set_train()
    outputs = [F.linear(torch.tensor(x), *weights[2 * i : 2 * i + 2]) for i in range(heads)]
    base = F.cross_entropy(outputs[0], torch.tensor(labels.astype(np.int64)), label_smoothing=0.1)
    expected = 0.7 * base + 0.3 * distillation(outputs[-1], answer, kind, tau)
    expected.backward()
    own = student.trainable_params()
    value, gradients = ms.value_and_grad(objective, None, own)(ms.Tensor(x), ms.Tensor(labels))
    np.testing.assert_allclose(value.asnumpy(), expected.item(), rtol=1e-5)
    for gradient, weight in zip(gradients, weights):
        np.testing.assert_allclose(gradient.asnumpy(), weight.grad.numpy(), atol=1e-6)


def test_without_a_teacher_two_heads_are_averaged(mode: str) -> None:
    """As in evaluation; through the step of a network that says so."""
    ms.set_seed(2)
    x, labels = ms.Tensor(np.random.default_rng(1).standard_normal((5, 6)), ms.float32), ms.Tensor([0, 1, 2, 3, 0])
    student = TwoHeads()
    student.class_tokens = 2
    expected = LabelSmoothingCrossEntropy()(student.set_train(False)(x), labels).asnumpy()
    model = Model(student, LabelSmoothingCrossEntropy(), nn.Momentum(student.trainable_params(), 0.1, 0.9))
    set_objective(model, Config())
    before = student.head_dist.weight.asnumpy().copy()
    np.testing.assert_allclose(model.train_network.set_train()(x, labels).asnumpy(), expected, rtol=1e-6)
    assert (student.head_dist.weight.asnumpy() != before).any()


class Normalised(nn.Cell):
    """Running statistics, which a teacher must neither change nor replace by those of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.fc = nn.BatchNorm2d(3, moving_mean_init=0.5), nn.Dense(3, 4)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.fc(ms.ops.relu(self.bn(x)).mean((2, 3)))


def test_a_step_trains_the_student_alone(mode: str) -> None:
    """Of a student and a teacher of one kind: the teacher keeps weights and statistics, and works as in evaluation."""
    ms.set_seed(3)
    student, network = Normalised(), Normalised()
    images = ms.Tensor(np.random.default_rng(2).standard_normal((4, 3, 8, 8)).astype(np.float32))
    expected = network.set_train(False)(images).asnumpy()
    names = [p.name for p in student.get_parameters()]
    optimizer = nn.Momentum(student.trainable_params(), 0.1, 0.9)
    model = Model(student, LabelSmoothingCrossEntropy(), optimizer)
    teacher = Teacher(network)
    set_objective(model, Config(teacher="given", distillation="hard", distillation_alpha=1.0), teacher)
    before = {p.name: p.asnumpy().copy() for p in (*student.get_parameters(), *network.get_parameters())}
    assert len(before) == 2 * len(names)  # no two of one name
    step = model.train_network.set_train()
    losses = [float(step(images, ms.Tensor([0, 1, 2, 3], ms.int32)).asnumpy()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert (teacher(images).asnumpy() == expected).all()
    for parameter in network.get_parameters():
        assert (parameter.asnumpy() == before[parameter.name]).all()
    assert [p.name for p in student.get_parameters()] == names
    assert any((p.asnumpy() != before[p.name]).any() for p in student.get_parameters())


def keys(data: Path, run: Path, **changes: object) -> Config:
    return start_config(data, run, epoch_size=1, num_workers=1, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with another pooling and width than the students', with random weights."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.ckpt"
    config = keys(data, path.parent, base_width=3, pooling="gcp", reduction_dim=4)
    save_checkpoint(path, build_model(config), about=description(config, build_source(config, "train", World())))
    return path


def test_a_training_with_a_teacher(data: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the configuration alone, on mixed batches; the checkpoint is the student's, of a kind of its own."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    config = keys(data, tmp_path / "run", teacher=str(saved), mixup=0.8, cutmix=1.0, distillation="hard")
    fit(config, World())
    assert f"learning from resnet10 + gcp of {saved}" in capsys.readouterr().out
    written = read_checkpoint(tmp_path / "run" / "checkpoints" / "epoch_0001.ckpt")
    assert set(written.network) == {p.name for p in build_model(config).get_parameters()}
    assert not [name for name in written.optimizer if "teacher" in name]
    assert load_teacher(keys(data, tmp_path), build_source(config, "train", World())) is None


@pytest.mark.parametrize("why", ["classes", "outputs", "mean", "size", "unknown", "missing"])
def test_teachers_that_do_not_fit(why: str, data: Path, saved: Path, tmp_path: Path) -> None:
    config, kind = keys(data, tmp_path), {"base_width": 3, "pooling": "gcp", "reduction_dim": 4}
    changes, message = {
        "classes": ({}, "classes of the data: 'shoe' is not among the 3"),
        "outputs": ({"class_num": 5}, "it has 3 outputs, the student 5"),
        "mean": ({"mean": [0.5] * 3}, r"mean \[0\.485.*the student of \[0\.5.*the teacher's --mean"),
        "size": ({}, "images of 8x8 do not fit patches of 16x16"),
        "unknown": ({}, "does not say which network it holds"),
        "missing": ({}, r"missing\.ckpt"),
    }[why]
    about = dict(read_checkpoint(saved).about)
    if why == "classes":
        about["class_names"] = ["bag", "coat", "tree"]
    if why == "unknown":
        del about["architecture"]
    path = tmp_path / f"{why}.ckpt"
    if why == "size":
        vision = {"net_name": "deit_tiny_patch16_224", "model_args": {"depth": 1}, "pooling": "gap", "class_num": 3}
        other = Config(**vision, train_image_size=16, eval_image_size=16)
        save_checkpoint(path, build_model(other), about={**about, "architecture": architecture(other)})
    elif why != "missing":
        save_checkpoint(path, build_model(config.replace(**kind)), about=about)
    source = build_source(config, "train", World())
    with pytest.raises(UserError, match=message) as caught:
        load_teacher(config.replace(teacher=str(path), **changes), source)
    assert str(caught.value).startswith("teacher") and "\n" not in str(caught.value)
