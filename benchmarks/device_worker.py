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
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable

import numpy as np

from benchmarks.network import LOSS_SCALE, SGD, SMOOTHING, batch_of, save_weights, training_model
from benchmarks.pooling import data, gradient_step

CLASSES = 1000
Block = Callable[[int], Any]


def block_of(
    run: Callable[[], Any],
    value: Callable[[Any], Any],
    prepare: Callable[[], Any] = lambda: None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Block:
    """Prepares, repeats ``run`` within a context, and waits at the end by reading a ``value`` from its last result."""

    def repeat(steps: int) -> float:
        prepare()
        with around():
            for _ in range(steps):
                result = run()
            return float(value(result))

    return repeat


class MindSporeRuntime:
    """The steps that train.py and eval.py make, in graph mode."""

    def __init__(self, device: str, level: str, tf32: bool, tuned: bool) -> None:
        from covpool.runtime.environment import prepare_environment

        prepare_environment(device)
        import mindspore as ms

        from covpool.runtime.distributed import set_context

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
        model, network = training_model(name, pooling, CLASSES, level=self.level, device=self.device)
        save_weights(network, weights)
        images, labels = (self._place(a) for a in batch_of(size, batch, CLASSES))

        step = model.train_network

        def loss(result: Any) -> Any:
            return (result[0] if isinstance(result, tuple) else result).asnumpy()

        train = block_of(lambda: step(images, labels), loss, lambda: step.set_train(True))
        return train, block_of(lambda: network(images), lambda y: y[0, 0].asnumpy(), lambda: network.set_train(False))

    def pooling(self, name: str, d: int, batch: int) -> tuple[Block, Block]:
        """Blocks of forward and backward passes, and of forward passes, of a pooling alone."""
        from covpool.pooling import create_pooling

        cell = create_pooling(name, d)
        values, cotangent = data(batch, d)
        x, g = self._place(values), self._place(cotangent[:, : cell.out_features].astype(np.float32))
        step = gradient_step(cell)
        train = block_of(lambda: step(x, g), lambda out: out[1][0, 0, 0, 0].asnumpy(), lambda: step.set_train(True))
        return train, block_of(lambda: cell(x), lambda out: out[0, 0].asnumpy(), lambda: cell.set_train(False))


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
        from benchmarks.torch_networks import trained_network

        torch = self.torch
        network, optimizer = trained_network(name, pooling, CLASSES, weights, self.device, SGD)
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        scaler = torch.amp.GradScaler(self.device, init_scale=LOSS_SCALE, enabled=self.half)
        images, labels = (self._place(a) for a in batch_of(size, batch, CLASSES))
        images, labels = images.contiguous(memory_format=torch.channels_last), labels.long()

        def train() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device, torch.float16, enabled=self.half):
                loss = criterion(network(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss.detach()

        @contextmanager
        def inference() -> Iterator[None]:
            """Once for all steps: autocast keeps the weights that it has cast until its end."""
            with torch.inference_mode(), torch.autocast(self.device, torch.float16, enabled=self.half):
                yield

        evaluate = block_of(lambda: network(images), lambda y: y[0, 0], network.eval, inference)
        return block_of(train, float, network.train), evaluate

    def pooling(self, name: str, d: int, batch: int) -> tuple[Block, Block]:
        """Blocks of forward and backward passes, and of forward passes, of a pooling alone."""
        from benchmarks.torch_poolings import poolings

        function = poolings(d, self.device)[name]
        values, cotangent = data(batch, d)
        leaf = self._place(values).flatten(2).requires_grad_()

        with self.torch.no_grad():
            length = function(leaf[:2], False).shape[1]
        g = self._place(cotangent[:, :length].astype(np.float32))

        def train() -> Any:
            leaf.grad = None
            function(leaf, True).backward(g)
            return leaf.grad

        evaluate = block_of(lambda: function(leaf, False), lambda out: out[0, 0], around=self.torch.no_grad)
        return block_of(train, lambda x: x[0, 0, 0]), evaluate


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
    settings = (arguments.device_target, arguments.level, not arguments.no_tf32, arguments.tuned)
    runtime = MindSporeRuntime(*settings) if arguments.runtime == "mindspore" else TorchRuntime(*settings)
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
