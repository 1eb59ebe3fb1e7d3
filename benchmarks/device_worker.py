"""One runtime of `device.py` in a process of its own, MindSpore or PyTorch: commands come as JSON lines, so do answers.

A process of its own lets either runtime have the Python interpreter that it is installed for. Times are of whole blocks
of steps between two waits for the device; images, labels and features lie in the device's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RATE, MOMENTUM, DECAY, SMOOTHING = 0.01, 0.9, 1e-4, 0.1
LOSS_SCALE = 1024.0
CLASSES = 1000
SIDE = 14
Block = Callable[[int], Any]


def batch_of(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, the same in every process."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 3, size, size), dtype=np.float32)
    return images, rng.integers(0, CLASSES, count).astype(np.int32)


def features_of(count: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectified, correlated features as a network gives them, and a gradient of the result."""
    rng = np.random.default_rng(0)
    mixing = np.eye(d) + 0.5 * rng.standard_normal((d, d)) / np.sqrt(d)
    x = np.maximum(mixing @ rng.standard_normal((count, d, SIDE * SIDE)) + 0.3, 0)
    return x.reshape(count, d, SIDE, SIDE).astype(np.float32), rng.standard_normal((count, d * (d + 1) // 2))


class MindSporeRuntime:
    """The steps that train.py and eval.py make, in graph mode."""

    def __init__(self, device: str, level: str, tf32: bool, tuned: bool) -> None:
        from src.runtime.environment import prepare_environment

        prepare_environment(device)
        import mindspore as ms

        from src.runtime.distributed import set_context

        set_context("GRAPH", device)
        if device == "GPU":
            settings: dict[str, Any] = {"conv_allow_tf32": tf32}
            if tuned:
                settings.update({f"conv_{kind}_algo": "performance" for kind in ("fprop", "dgrad", "wgrad")})
            ms.set_context(gpu_config=settings)
        ms.set_seed(0)
        self.ms, self.device, self.level = ms, device, level
        self.about = {"mindspore": ms.__version__}

    def _place(self, values: np.ndarray) -> Any:
        """A tensor in the device's memory: the result of an operation lies there."""
        return self.ms.ops.add(self.ms.Tensor(values), self.ms.Tensor(np.zeros(1, values.dtype)))

    def network(self, name: str, pooling: str, batch: int, size: int, weights: Path) -> tuple[Block, Block]:
        """Blocks of training steps and of evaluated batches."""
        from mindspore.train import Model

        from src.models import create_model
        from src.training.losses import LabelSmoothingCrossEntropy
        from src.training.mixed_precision import apply_amp_level
        from src.training.optimizers import build_optimizer
        from src.training.precision import loss_scale_manager

        network = create_model(name, pooling=pooling, num_classes=CLASSES)
        if not weights.exists():
            np.savez(weights, **{p.name: p.asnumpy() for p in network.get_parameters()})
        rates = np.full(100_000, RATE, np.float32)
        optimizer = build_optimizer(list(network.trainable_params()), rates, momentum=MOMENTUM, weight_decay=DECAY)
        model = Model(
            network,
            loss_fn=LabelSmoothingCrossEntropy(SMOOTHING),
            optimizer=optimizer,
            amp_level=apply_amp_level(network, self.level),
            loss_scale_manager=loss_scale_manager(self.level, "fixed", LOSS_SCALE, self.device),
        )
        images, labels = (self._place(a) for a in batch_of(batch, size))

        def train(steps: int) -> float:
            model.train_network.set_train(True)
            for _ in range(steps):
                loss = model.train_network(images, labels)
            return float((loss[0] if isinstance(loss, tuple) else loss).asnumpy())

        def evaluate(steps: int) -> float:
            network.set_train(False)
            for _ in range(steps):
                logits = network(images)
            return float(logits[0, 0].asnumpy())

        return train, evaluate

    def pooling(self, name: str, d: int, batch: int) -> tuple[Block, Block]:
        """Blocks of forward and backward passes, and of forward passes, of a pooling alone."""
        ms = self.ms
        from mindspore import nn, ops

        from src.pooling import create_pooling

        class Step(nn.Cell):
            """The result and the gradients with respect to features and parameters."""

            def __init__(self, cell: nn.Cell) -> None:
                super().__init__(auto_prefix=False)
                self.cell = cell
                self.weights = ms.ParameterTuple(cell.trainable_params())

            def construct(self, x: Any, g: Any) -> Any:
                if not self.weights:
                    out, backward = ops.vjp(self.cell, x)
                    return out, backward(g)[0]
                out, backward = ops.vjp(self.cell, x, weights=self.weights)
                grads, of_weights = backward(g)
                return out, grads[0], of_weights

        cell = create_pooling(name, d)
        values, cotangent = features_of(batch, d)
        x, g = self._place(values), self._place(cotangent[:, : cell.out_features].astype(np.float32))
        step = Step(cell)

        def train(steps: int) -> float:
            step.set_train(True)
            for _ in range(steps):
                out = step(x, g)
            return float(out[1][0, 0, 0, 0].asnumpy())

        def evaluate(steps: int) -> float:
            cell.set_train(False)
            for _ in range(steps):
                out = cell(x)
            return float(out[0, 0].asnumpy())

        return train, evaluate


class TorchRuntime:
    """The same in PyTorch: channels-last, fused SGD; autocast to float16 with a scaler where MindSpore has O2."""

    def __init__(self, device: str, level: str, tf32: bool, tuned: bool) -> None:
        import torch

        self.torch, self.device = torch, "cuda" if device == "GPU" else "cpu"
        self.half = level != "O0"
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = False  # as in MindSpore: only convolutions
        torch.backends.cudnn.benchmark = tuned
        torch.manual_seed(0)
        self.about = {"torch": torch.__version__}
        if device == "GPU":
            self.about["card"] = torch.cuda.get_device_name()

    def _place(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values).to(self.device)

    def network(self, name: str, pooling: str, batch: int, size: int, weights: Path) -> tuple[Block, Block]:
        """Blocks of training steps and of evaluated batches."""
        from benchmarks.torch_networks import load_weights
        from benchmarks.torch_training import TrainedNetwork

        torch = self.torch
        network = load_weights(TrainedNetwork(name, pooling, num_classes=CLASSES), np.load(weights))
        network = network.to(self.device).to(memory_format=torch.channels_last)
        plain = [p for p in network.parameters() if p.ndim <= 1]
        decayed = [p for p in network.parameters() if p.ndim > 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain}]
        optimizer = torch.optim.SGD(groups, RATE, momentum=MOMENTUM, fused=True)
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        scaler = torch.amp.GradScaler(self.device, init_scale=LOSS_SCALE, enabled=self.half)
        images, labels = (self._place(a) for a in batch_of(batch, size))
        images, labels = images.contiguous(memory_format=torch.channels_last), labels.long()

        def train(steps: int) -> float:
            network.train()
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(self.device, torch.float16, enabled=self.half):
                    loss = criterion(network(images), labels)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            return float(loss.detach())

        def evaluate(steps: int) -> float:
            network.eval()
            with torch.inference_mode(), torch.autocast(self.device, torch.float16, enabled=self.half):
                for _ in range(steps):
                    logits = network(images)
                return float(logits[0, 0])

        return train, evaluate

    def pooling(self, name: str, d: int, batch: int) -> tuple[Block, Block]:
        """Blocks of forward and backward passes, and of forward passes, of a pooling alone."""
        from benchmarks.torch_poolings import poolings

        torch = self.torch
        function = poolings(d, self.device)[name]
        values, cotangent = features_of(batch, d)
        leaf = self._place(values).flatten(2).requires_grad_()
        with torch.no_grad():
            length = function(leaf[:2], False).shape[1]
        g = self._place(cotangent[:, :length].astype(np.float32))

        def train(steps: int) -> float:
            for _ in range(steps):
                leaf.grad = None
                function(leaf, True).backward(g)
            return float(leaf.grad[0, 0, 0])

        def evaluate(steps: int) -> float:
            with torch.no_grad():
                for _ in range(steps):
                    out = function(leaf, False)
                return float(out[0, 0])

        return train, evaluate


def main() -> int:
    """Answer commands until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("mindspore", "torch"), required=True)
    parser.add_argument("--device_target", default="GPU")
    parser.add_argument("--level", default="O0")
    parser.add_argument("--no_tf32", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    make = {"mindspore": MindSporeRuntime, "torch": TorchRuntime}[arguments.runtime]
    runtime = make(arguments.device_target, arguments.level, not arguments.no_tf32, arguments.tuned)
    blocks: dict[str, tuple[Block, Block]] = {}

    def time_of(block: Block, steps: int) -> dict[str, float]:
        start = time.perf_counter()
        value = block(steps)
        return {"seconds": (time.perf_counter() - start) / steps, "value": value}

    def prepare(key: str, kind: str, *case: Any) -> dict[str, Any]:
        case = tuple(Path(c) if str(c).endswith(".npz") else c for c in case)
        blocks[key] = getattr(runtime, kind)(*case)
        train, evaluate = blocks[key]
        first = time_of(train, 1)
        second = time_of(train, 1)
        return {"first": first, "losses": [first["value"], second["value"]], "first evaluation": time_of(evaluate, 1)}

    commands: dict[str, Callable[..., Any]] = {
        "about": lambda: runtime.about,
        "prepare": prepare,
        "train": lambda key, steps: time_of(blocks[key][0], steps),
        "evaluate": lambda key, steps: time_of(blocks[key][1], steps),
        "forget": lambda key: blocks.pop(key) and None,
    }
    for line in sys.stdin:
        name, *rest = json.loads(line)
        try:
            answer = {"answer": commands[name](*rest)}
        except Exception as error:  # the other side decides what becomes of the rest
            answer = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
            print(f"{name} {rest}: {error}", file=sys.stderr, flush=True)
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
