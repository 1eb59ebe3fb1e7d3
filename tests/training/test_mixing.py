"""Mixup and CutMix: the draws of every step, batches as timm mixes them, and steps that train on them."""

from __future__ import annotations

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn
from mindspore.train import Model

from benchmarks.torch_peers import timm
from covpool.build import batch_mixing, build_dataset
from covpool.config import Config
from covpool.data import ImageTransform, Mixing, array_source, create_dataset
from covpool.runtime.distributed import World
from covpool.training.losses import LabelSmoothingCrossEntropy
from covpool.training.objective import BatchMixer, batch_mixer, set_objective
from covpool.training.recipe import loss_scale_manager
from covpool.training.step import apply_amp_level
from covpool.training.update import AccumulatedStep
from tests.data.image_files import dataset

BOTH = Mixing(mixup=0.8, cutmix=1.0, probability=0.8)


def kind(draw: np.ndarray) -> str:
    if draw[0] < 1:
        return "mixup"
    return "cutmix" if draw[1:].any() else "none"


def test_batches_are_those_of_timm(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's Mixup with the same random numbers, batch by batch."""
    rng, mixer, kinds = np.random.default_rng(0), BatchMixer(5, 0.1), []
    theirs = timm.data.Mixup(0.8, 1.0, prob=0.8, label_smoothing=0.1, num_classes=5)
    for step in range(12):
        generator = np.random.Generator(np.random.PCG64([3, 1, 2, step]))
        draws = SimpleNamespace(rand=generator.random, beta=generator.beta, randint=generator.integers)
        monkeypatch.setattr("timm.data.mixup.np", SimpleNamespace(random=draws, sqrt=np.sqrt, clip=np.clip))
        images = rng.standard_normal((6, 3, 8, 11)).astype(np.float32)
        labels = rng.integers(0, 5, 6).astype(np.int32)
        expected, targets = theirs(torch.tensor(images), torch.tensor(labels.astype(np.int64)))
        draw = BOTH.draw(8, 11, seed=3, epoch=1, step=step)
        kinds.append(kind(draw))
        found, mixed = (t.asnumpy() for t in mixer(ms.Tensor(images), ms.Tensor(labels), ms.Tensor(draw)))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(mixed, targets.numpy(), atol=1e-6)
        np.testing.assert_allclose(mixed.sum(1), 1.0, atol=1e-6)
        if kinds[-1] != "mixup":
            assert (found == expected.numpy()).all()
    assert set(kinds) == {"mixup", "cutmix", "none"}


def test_the_image_in_the_middle_of_an_odd_batch_is_its_own_partner(graph_mode: None) -> None:
    images = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
    draw = ms.Tensor(np.array([1, 0, 2, 1, 4], np.float32))  # 2 x 3 of 16 pixels
    found, mixed = BatchMixer(3)(ms.Tensor(images), ms.Tensor([0, 1, 2], ms.int32), draw)
    expected = images.copy()
    expected[:, :, :2, 1:] = images[::-1, :, :2, 1:]
    assert (found.asnumpy() == expected).all()
    np.testing.assert_allclose(mixed.asnumpy(), [[0.625, 0, 0.375], [0, 1, 0], [0.375, 0, 0.625]])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_distribution_of_the_draws(alpha: float) -> None:
    """Parts of the batches by kind; the part kept is Beta(alpha, alpha); a box takes 1 - kept where no border cuts."""
    mixing = Mixing(mixup=alpha, cutmix=alpha, probability=0.7, switch_probability=0.25)
    draws = np.stack([mixing.draw(64, 48, 5, 0, step) for step in range(4000)])
    kinds = np.array([kind(draw) for draw in draws])
    assert np.mean(draws[:, 0] < 1) == pytest.approx(0.7 * 0.75, abs=0.03)
    assert np.mean(kinds == "cutmix") == pytest.approx(0.7 * 0.25, abs=0.03)
    kept = draws[kinds == "mixup", 0]
    assert kept.mean() == pytest.approx(0.5, abs=0.03)
    assert kept.var() == pytest.approx(0.25 / (2 * alpha + 1), abs=0.015)
    boxes = draws[kinds == "cutmix", 1:]
    assert (boxes == boxes.round()).all() and (boxes >= 0).all()
    assert (boxes[:, 0] <= boxes[:, 1]).all() and (boxes[:, 1] <= 64).all()
    assert (boxes[:, 2] <= boxes[:, 3]).all() and (boxes[:, 3] <= 48).all()


def test_draws_follow_seed_epoch_and_step_alone() -> None:
    first = BOTH.draw(32, 32, 1, 0, 0)
    assert (first == BOTH.draw(32, 32, 1, 0, 0)).all()
    others = [BOTH.draw(32, 32, *place) for place in ((2, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert all((first != other).any() for other in others)
    late = Mixing(mixup=0.8, off_epoch=2)
    assert kind(late.draw(32, 32, 1, 1, 0)) == "mixup"
    assert [kind(late.draw(32, 32, 1, epoch, 0)) for epoch in (2, 3)] == ["none", "none"]
    assert {kind(Mixing(cutmix=1.0).draw(32, 32, 1, 0, step)) for step in range(20)} == {"cutmix"}
    with pytest.raises(ValueError, match="one must be above 0"):
        Mixing()


def source():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 6, 6, 3), np.uint8), np.arange(40, dtype=np.int32) % 4
    return array_source("noise", "train", ["a", "b", "c", "d"], images, labels, [0.5] * 3, [0.25] * 3)


def columns(**options):
    made = dataset(source(), True, 6, augmentation="small", batch_size=4, seed=7, epoch=1, **options)
    return made.get_col_names(), list(made.create_tuple_iterator(num_epochs=1, output_numpy=True))


def test_a_resumed_epoch_and_every_rank_have_the_same_draws() -> None:
    names, batches = columns(mixing=BOTH)
    assert names == ["image", "label", "mix"] and len(batches) == 10
    for step, (_, _, mix) in enumerate(batches):
        assert mix.dtype == np.float32 and (mix == BOTH.draw(6, 6, 7, 1, step)).all()
    _, resumed = columns(mixing=BOTH, first_step=4, num_workers=2)
    assert len(resumed) == 6
    for mine, whole in zip(resumed, batches[4:]):
        assert all((a == b).all() for a, b in zip(mine, whole))
    for rank in (0, 1):
        _, shared = columns(mixing=BOTH, rank=rank, world_size=2)
        assert [mix.tolist() for *_, mix in shared] == [mix.tolist() for *_, mix in batches[:5]]
    names, plain = columns()
    assert names == ["image", "label"]
    assert all((a == b).all() for mine, whole in zip(plain, batches) for a, b in zip(mine, whole))


def test_an_evaluation_is_not_mixed() -> None:
    config = Config(mixup=0.8, class_num=4, eval_image_size=6, train_image_size=6, batch_size=4, augmentation="none")
    transform = ImageTransform.for_source(source(), 6)
    assert create_dataset(source(), transform, 4, mixing=BOTH).get_col_names() == ["image", "label"]
    for training, names in ((True, ["image", "label", "mix"]), (False, ["image", "label"])):
        assert build_dataset(config, source(), training, World()).get_col_names() == names


def test_keys_that_mix_nothing() -> None:
    keys = {"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.9, "mix_switch_probability": 0.3, "mix_off_epoch": 5}
    assert batch_mixing(Config(**keys)) == Mixing(0.8, 1.0, 0.9, 0.3, 5)
    for off in ({}, {"mixup": 0.8, "mix_probability": 0.0}):
        assert batch_mixing(Config(**off)) is None and batch_mixer(Config(**off)) is None
    mixer = batch_mixer(Config(cutmix=1.0, class_num=4, label_smooth_factor=0.2))
    assert mixer is not None and (mixer.low, mixer.high) == pytest.approx((0.05, 0.85))


class Tiny(nn.Cell):
    """A dense layer of mean colours: (N, 3, 6, 6) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Dense(3, 4, weight_init="HeUniform")

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.fc(x.mean((2, 3)))


def model_of(level: str, mixes: bool = True) -> Model:
    ms.set_seed(0)
    network = Tiny()
    optimizer = nn.Momentum(network.trainable_params(), 0.3, 0.9, loss_scale=1.0 if level == "O0" else 8.0)
    manager = loss_scale_manager(level, "fixed", 8.0, "CPU")
    left = apply_amp_level(network, level)
    model = Model(network, LabelSmoothingCrossEntropy(), optimizer, amp_level=left, loss_scale_manager=manager)
    set_objective(model, Config(), None, BatchMixer(4) if mixes else None)
    return model


def batch_of_colours(size: int) -> tuple[ms.Tensor, ms.Tensor]:
    """Images whose mean tells their class."""
    rng, labels = np.random.default_rng(1), np.arange(size, dtype=np.int32) % 4
    images = 0.3 * rng.standard_normal((size, 3, 6, 6)) + np.eye(4, 3)[labels][:, :, None, None] * 2
    return ms.Tensor(images.astype(np.float32)), ms.Tensor(labels)


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_mixing_trains(mode: str, level: str) -> None:
    """The loss of unmixed images falls; a model takes the three columns."""
    model, batch = model_of(level), batch_of_colours(16)
    objective, unmixed = model.train_network.network, ms.Tensor(np.array([1, 0, 0, 0, 0], np.float32))
    before = float(objective(*batch, unmixed).asnumpy())
    rows = [np.concatenate([t.asnumpy()] * 12) for t in batch]
    made = ms.dataset.NumpySlicesDataset(tuple(rows), ["image", "label"], shuffle=False).batch(16)
    model.train(1, made.zip(BOTH.dataset(6, 6, 0, 0, range(12))), dataset_sink_mode=False)
    assert float(objective(*batch, unmixed).asnumpy()) < 0.8 * before


def test_a_step_that_mixes_nothing_is_mindspores() -> None:
    model = model_of("O0", mixes=False)
    assert type(model.train_network.network) is nn.WithLossCell
    assert model._loss_fn is not None


def test_an_accumulated_batch_is_mixed_as_a_whole(mode: str) -> None:
    """Four parts of a batch, mixed before it is cut, give the update of the whole."""
    batch, draw = batch_of_colours(16), ms.Tensor(np.array([0.3, 0, 0, 0, 0], np.float32))
    whole, parts = model_of("O0"), model_of("O0", mixes=False)
    once = whole.train_network(*batch, draw)
    accumulated = AccumulatedStep(parts.train_network, 4, BatchMixer(4))
    loss = accumulated(*batch, draw)
    np.testing.assert_allclose(loss.asnumpy(), once.asnumpy(), rtol=1e-5)
    for mine, theirs in zip(parts.train_network.weights, whole.train_network.weights):
        np.testing.assert_allclose(mine.asnumpy(), theirs.asnumpy(), rtol=1e-5, atol=1e-6)
