"""Twenty steps of training, here and in PyTorch, from the same weights on the same batches.

The gradient of a ReLU jumps where its input changes sign, so two trainings in float32 part as soon as rounding puts one
input on the other side; PyTorch parts from itself that way when its weights change by 1e-7. Two things keep the steps
calm: residual branches that start at zero, and seeds and rates at which PyTorch's own losses move by under 2e-5 when
its weights change by 1e-6, ten times what rounding does.
"""

from __future__ import annotations

from typing import Callable

import mindspore as ms
import numpy as np
import pytest
import torch  # after mindspore: both bring an OpenMP runtime
from mindspore import nn

from covpool.checkpoints import convert_state_dict, load_into, to_pytorch
from covpool.models import create_model
from covpool.models.classifier import batch_norm
from covpool.training.losses import LabelSmoothingCrossEntropy
from covpool.training.optimizers import build_optimizer
from covpool.training.schedules import learning_rates
from tests.fidelity.pytorch_twin import TwinResNet

EPOCHS, STEPS, BATCH, SIZE, CLASSES = 4, 5, 16, 32, 10
NETWORK = {"reduction_dim": 16, "num_classes": CLASSES}
MOMENTUM, DECAY, SMOOTHING = 0.9, 1e-2, 0.1
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 2e-4, 1e-2


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Blocks of colour, one pattern for each class, under noise: easy enough to be learned in twenty steps."""
    random = np.random.Generator(np.random.PCG64(11))
    patterns = np.kron(random.standard_normal((CLASSES, 3, SIZE // 4, SIZE // 4)), np.ones((1, 1, 4, 4)))
    found = []
    for _ in range(EPOCHS * STEPS):
        labels = random.integers(0, CLASSES, BATCH)
        images = patterns[labels] + 0.5 * random.standard_normal((BATCH, 3, SIZE, SIZE))
        found.append((images.astype(np.float32), labels.astype(np.int32)))
    return found


def weights_and_vectors(model: torch.nn.Module, decay_of_vectors: float = 0.0) -> list[dict]:
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": DECAY}, {"params": vectors, "weight_decay": decay_of_vectors}]


# One of PyTorch's own schedulers for each mode, and whether it steps after every batch or after every epoch.
def cosine(optimizer: torch.optim.Optimizer) -> tuple:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS), "step"


def multi_step(optimizer: torch.optim.Optimizer) -> tuple:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], gamma=0.3), "epoch"


def adjusted(optimizer: torch.optim.Optimizer) -> tuple:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: (1 - (e - 1) / 49) ** 2), "epoch"


SCHEDULES = {
    "cosine": (cosine, {}),
    "step": (multi_step, {"milestones": (1, 3), "gamma": 0.3}),
    "lr_adju": (adjusted, {}),
}


def train_pytorch(
    model: TwinResNet,
    rate: float,
    schedule: str = "cosine",
    nesterov: bool = False,
    decay_of_vectors: float = 0.0,
    late: bool = False,
    loss_fn: Callable | None = None,
) -> tuple[list[float], list[float]]:
    """Losses and rates of every step; the last three arguments break a convention."""
    groups = weights_and_vectors(model, decay_of_vectors)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=nesterov)
    scheduler, unit = SCHEDULES[schedule][0](optimizer)
    loss_fn = loss_fn or torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    model.train()
    losses, rates = [], []
    for step, (images, labels) in enumerate(batches()):
        optimizer.zero_grad()
        loss = loss_fn(model(torch.from_numpy(images)), torch.from_numpy(labels).long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        if (unit == "step" or (step + 1) % STEPS == 0) and not (late and step == 0):
            scheduler.step()
    return losses, rates


def train_here(network: nn.Cell, rates: np.ndarray, nesterov: bool = False) -> list[float]:
    optimizer = build_optimizer(
        list(network.trainable_params()), rates, momentum=MOMENTUM, nesterov=nesterov, weight_decay=DECAY
    )
    step = nn.TrainOneStepCell(nn.WithLossCell(network, LabelSmoothingCrossEntropy(SMOOTHING)), optimizer)
    step.set_train()
    return [float(step(ms.Tensor(images), ms.Tensor(labels)).asnumpy()) for images, labels in batches()]


def relative_errors(network: nn.Cell, twin: TwinResNet) -> dict[str, float]:
    """Norm of the difference over the norm, of every tensor after training."""
    ours = to_pytorch({p.name: p for p in network.get_parameters()})
    theirs = {name: value.numpy() for name, value in twin.state_dict().items()}
    assert set(ours) == set(theirs)
    return {
        name: float(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]))
        for name in theirs
        if not name.endswith("num_batches_tracked")
    }


def make_twin(pooling: str, seed: int) -> TwinResNet:
    torch.manual_seed(seed)
    return TwinResNet("resnet18", pooling, width=8, **NETWORK)


def pair(pooling: str, seed: int) -> tuple[nn.Cell, TwinResNet]:
    """The network and its twin with the same initial weights."""
    twin = make_twin(pooling, seed)
    arguments = {"rate": 0.0} if pooling == "dropcov" else None  # masks differ between the frameworks
    network = create_model("resnet18", pooling=pooling, base_width=8, pooling_args=arguments, **NETWORK)
    initial = {k: v.numpy().copy() for k, v in twin.state_dict().items()}
    assert load_into(network, convert_state_dict(initial)) == []
    return network, twin


def compare(pooling: str, schedule: str, rate: float, seed: int, nesterov: bool = False) -> None:
    network, twin = pair(pooling, seed)
    options = SCHEDULES[schedule][1]
    rates = learning_rates(schedule, lr_max=rate, epochs=EPOCHS, steps_per_epoch=STEPS, **options)
    their_losses, their_rates = train_pytorch(twin, rate, schedule, nesterov)
    np.testing.assert_allclose(rates, their_rates, rtol=1e-5)
    losses = train_here(network, rates, nesterov)
    np.testing.assert_allclose(losses, their_losses, rtol=LOSS_TOLERANCE)
    errors = relative_errors(network, twin)
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < WEIGHT_TOLERANCE, worst
    measured = np.abs(np.divide(losses, their_losses) - 1).max()
    print(f"{pooling}, {schedule}: losses {measured:.1e}, {worst} {errors[worst]:.1e}")
    assert np.mean(losses[-4:]) < 0.85 * losses[0], "nothing was learned: the comparison would say little"


@pytest.mark.parametrize(
    ("pooling", "schedule", "rate", "seed"),
    [
        ("gap", "cosine", 0.02, 8),
        ("gcp", "step", 0.05, 13),
        ("fast_mpn", "lr_adju", 0.05, 13),
        ("dropcov", "cosine", 0.02, 6),
    ],
)
def test_same_training(pooling, schedule, rate, seed, graph_mode):
    compare(pooling, schedule, rate, seed)


def test_same_training_with_nesterov_momentum_and_without_graphs():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    compare("gap", "cosine", 0.02, 6, nesterov=True)


def smoothing_over_wrong_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Label smoothing of the public MindSpore ports: nothing of it goes to the right class."""
    target = torch.full_like(logits, SMOOTHING / (CLASSES - 1)).scatter_(1, labels[:, None], 1 - SMOOTHING)
    return torch.nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize(
    "broken",
    [{"decay_of_vectors": DECAY}, {"late": True}, {"loss_fn": smoothing_over_wrong_classes}, {"nesterov": True}],
)
def test_the_comparison_would_notice(broken):
    right, _ = train_pytorch(make_twin("gap", 8), 0.02)
    wrong, _ = train_pytorch(make_twin("gap", 8), 0.02, **broken)
    assert np.abs(np.divide(wrong, right) - 1).max() > 10 * LOSS_TOLERANCE


def test_batch_normalisation_counts_the_variance_without_bias(mode):
    """Normalised by the biased variance of the batch; the running one is updated by n / (n - 1) times that."""
    random = np.random.Generator(np.random.PCG64(2))
    x = random.standard_normal((3, 4, 2, 1)).astype(np.float32)  # n = 6: the two estimates differ by a fifth
    ours, theirs = batch_norm(4), torch.nn.BatchNorm2d(4)
    ours.set_train()
    np.testing.assert_allclose(ours(ms.Tensor(x)).asnumpy(), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.moving_mean.asnumpy(), theirs.running_mean.numpy(), atol=1e-7)
    np.testing.assert_allclose(ours.moving_variance.asnumpy(), theirs.running_var.numpy(), atol=1e-7)
