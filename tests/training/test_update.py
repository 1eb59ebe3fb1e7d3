"""Clipping, accumulation and the moving average: against PyTorch, closed forms, and one large batch."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn, ops

from covpool.checkpoints.format import load_network, read_checkpoint
from covpool.checkpoints.state import Progress, TrainingState
from covpool.checkpoints.store import CheckpointStore
from covpool.config import Config
from covpool.errors import ConfigError, UserError
from covpool.models.classifier import ImageClassifier, batch_norm, convolution
from covpool.runtime.distributed import World
from covpool.training.recipe import recipe_optimizer
from covpool.training.step import build_step
from covpool.training.update import Clip

RATES = np.full(100, 0.1, np.float32)


class Tiny(ImageClassifier):
    """One convolution; what a step does after the gradients does not depend on the network."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 6, 3, 2), batch_norm(6)
        self.build_head(6, "gap", 4, 5, None)

    def forward_backbone(self, x):
        return ops.relu(self.bn1(self.conv1(x)))


def batches(count, size=8):
    random = np.random.RandomState(0)
    for _ in range(count):
        images = random.randn(size, 3, 8, 8).astype(np.float32)
        yield ms.Tensor(images), ms.Tensor(random.randint(0, 5, size).astype(np.int32))


class Run:
    """A tiny network, its optimiser and step, as a training builds them."""

    def __init__(self, **keys):
        ms.set_seed(1)
        self.config = Config(class_num=5, **keys)
        self.network = Tiny()
        self.network.bn1.use_batch_statistics = False if self.config.freeze_bn else None
        self.optimizer = recipe_optimizer(self.config, self.network, RATES)
        self.step = build_step(self.config, self.network, self.optimizer, World()).train_network.set_train()

    def train(self, data):
        """The loss and the values after each step."""
        found = []
        for batch in data:
            loss = float(self.step(*batch).asnumpy())
            found.append((loss, self.values()))
        return found

    def values(self):
        return {p.name: p.asnumpy().copy() for p in self.network.get_parameters()}

    def averages(self):
        return {p.name.removeprefix("average."): p.asnumpy().copy() for p in self.optimizer.average.averages}

    def state(self, folder):
        return TrainingState(self.network, self.optimizer, CheckpointStore(folder, 3), World(), 10, {})


@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("bound", [0.5, 1e4])
def test_clipping_is_that_of_pytorch(mode, bound):
    random = np.random.RandomState(3)
    gradients = [random.randn(*shape).astype(np.float32) for shape in ((20, 7), (5,), (3, 2, 1, 4))]
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = torch.tensor(gradient)
    if mode == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, bound)
    else:
        torch.nn.utils.clip_grad_value_(parameters, bound)
    found = Clip(bound, mode)(tuple(map(ms.Tensor, gradients)))
    for mine, parameter, before in zip(found, parameters, gradients):
        np.testing.assert_allclose(mine.asnumpy(), parameter.grad.numpy(), rtol=1e-6)
        assert (mine.asnumpy() == before).all() == (bound > 1)


def test_a_clipped_step_is_shorter_and_has_the_direction_of_the_gradient():
    """At momentum 0 and without decay the step is rate x gradient."""
    plain, clipped = (Run(momentum=0.0, weight_decay=0.0, clip_grad=bound) for bound in (None, 0.25))
    start = plain.values()
    data = list(batches(1))
    steps = []
    for run in (plain, clipped):
        after = run.train(data)[0][1]
        names = [p.name for p in run.network.trainable_params()]
        steps.append(np.concatenate([(start[name] - after[name]).reshape(-1) for name in names]) / 0.1)
    norm = np.linalg.norm(steps[0])
    assert norm > 0.3
    np.testing.assert_allclose(steps[1], steps[0] * 0.25 / norm, atol=2e-6)


def test_small_batches_add_up_to_a_large_one():
    """Batch statistics are frozen: they alone may differ."""
    whole, parts = Run(freeze_bn=True, batch_size=8), Run(freeze_bn=True, batch_size=2, accumulate_steps=4)
    data = list(batches(4))
    for (loss, values), (loss_of_parts, values_of_parts) in zip(whole.train(data), parts.train(data)):
        assert loss_of_parts == pytest.approx(loss, rel=1e-6)
        for name, value in values.items():
            np.testing.assert_allclose(values_of_parts[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert whole.optimizer.global_step.asnumpy() == parts.optimizer.global_step.asnumpy() == 4


@pytest.mark.parametrize("keys", [{"amp_level": "O1"}, {"device_target": "GPU", "enable_sink": True}])
def test_what_accumulation_does_not_go_with(keys):
    with pytest.raises(ConfigError, match=r"accumulate_steps = 2: not with (amp_level = O1|enable_sink = True)"):
        Config(accumulate_steps=2, **keys)


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_has_its_closed_form_and_leaves_the_training_as_it_is(warmup):
    plain, run = Run(), Run(ema_decay=0.5, ema_warmup=warmup)
    data = list(batches(5))
    averages = {name: value.astype(np.float64) for name, value in run.averages().items()}
    values = run.values()
    assert averages.keys() == {name for name, value in values.items() if value.dtype == np.float32}
    trained = run.train(data)
    for t, ((_, expected), (_, values)) in enumerate(zip(plain.train(data), trained), start=1):
        decay = min(0.5, (1 + t) / (10 + t)) if warmup else 0.5
        assert all((values[name] == expected[name]).all() for name in expected)
        averages = {name: decay * average + (1 - decay) * values[name] for name, average in averages.items()}
    for name, value in run.averages().items():
        np.testing.assert_allclose(value, averages[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_average_is_evaluated_saved_and_resumed_from(tmp_path):
    run = Run(ema_decay=0.9)
    data = list(batches(6))
    run.train(data[:3])
    values, averages = run.values(), run.averages()
    assert any((values[name] != averages[name]).any() for name in averages)
    with run.state(tmp_path).evaluated():
        assert all((run.values()[name] == averages[name]).all() for name in averages)
    assert all((run.values()[name] == values[name]).all() for name in values)

    run.state(tmp_path).save(Progress(0, 3))
    checkpoint = read_checkpoint(next(tmp_path.glob("*.ckpt")))
    network = Tiny()
    for wanted, expected in ((True, {**values, **averages}), (False, values)):
        load_network(network, checkpoint.averaged(wanted))
        assert all((p.asnumpy() == expected[p.name]).all() for p in network.get_parameters())

    unbroken = run.train(data[3:])[-1][1]
    again = Run(ema_decay=0.9)
    assert again.state(tmp_path / "new").restore(checkpoint, {}) == Progress(0, 3)
    resumed = again.train(data[3:])[-1][1]
    assert [name for name in unbroken if (resumed[name] != unbroken[name]).any()] == []
    assert all((again.averages()[name] == value).all() for name, value in run.averages().items())
    with pytest.raises(UserError, match="was not saved with the same ema_decay"):
        Run().state(tmp_path / "other").restore(checkpoint, {})


def test_the_average_begins_with_the_weights_that_are_given(tmp_path):
    run = Run(ema_decay=0.9)
    run.network.fc.weight.set_data(ms.Tensor(np.full(run.network.fc.weight.shape, 7, np.float32)))
    run.state(tmp_path).begin_average()
    assert (run.averages()["fc.weight"] == 7).all()
    assert isinstance(run.optimizer, nn.Momentum)
