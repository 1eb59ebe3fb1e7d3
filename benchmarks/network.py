"""Training and evaluation of whole networks against PyTorch: speed, peak memory, share of the machine's peak.

    python -m benchmarks.network --output docs/benchmarks          writes network.json and network.md there

MindSpore runs the step that train.py runs: `Model` with the project's optimiser and loss in graph mode, with its own
kernels and (where a C++ compiler is) with the project's compiled ones, `cpu_kernels` in the configuration. PyTorch runs
the same network with the poolings of `torch_poolings.py`, with its fused SGD, and channels-last but for transformers.
Both have the same images in memory; ResNets have the same weights, too, and losses of their first steps are compared
where nothing is random. In evaluation the compiled kernels come with folded batch normalisations, as in eval.py. Every
runtime lives in a process of its own for each network, in interleaved rounds of one training step, then of one
evaluation batch; the peak memory is that of the whole process after its training steps, before its first evaluation.
Needs torch, torchvision and timm beside the requirements.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import CORES, Worker

RUNTIMES = {"mindspore": "MindSpore", "compiled": "MindSpore, compiled kernels", "torch": "PyTorch"}
PACKAGES = ("mindspore", "torch", "numpy")
RATE, MOMENTUM, DECAY, SMOOTHING, LOSS_SCALE = 0.01, 0.9, 1e-4, 0.1, 1024.0
SGD = (RATE, MOMENTUM, DECAY)
COMPARED_STEPS = 2


def batch_of(size: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, the same in every process."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 3, size, size), dtype=np.float32)
    return images, rng.integers(0, classes, count).astype(np.int32)


def training_model(
    name: str,
    pooling: str,
    classes: int,
    cpu_kernels: str = "mindspore",
    ranks: int = 1,
    level: str = "O0",
    device: str = "CPU",
    **options: Any,
) -> tuple[Any, Any]:
    """The `Model` that train.py would train, and its network."""
    from mindspore.train import Model

    from covpool.kernels import apply_cpu_kernels, find_kernels
    from covpool.models import create_model
    from covpool.training.losses import LabelSmoothingCrossEntropy
    from covpool.training.optimizers import build_optimizer
    from covpool.training.ranks import reduce_in_order
    from covpool.training.recipe import loss_scale_manager, optimizer_loss_scale
    from covpool.training.step import apply_amp_level

    network = create_model(name, pooling=pooling, num_classes=classes, **options)
    apply_cpu_kernels(network, find_kernels(cpu_kernels))
    rates = np.full(100_000, RATE, np.float32)
    optimizer = build_optimizer(
        list(network.trainable_params()),
        rates,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        loss_scale=optimizer_loss_scale(level, LOSS_SCALE, device),
    )
    model = Model(
        network,
        loss_fn=LabelSmoothingCrossEntropy(SMOOTHING),
        optimizer=optimizer,
        amp_level=apply_amp_level(network, level),
        loss_scale_manager=loss_scale_manager(level, "fixed", LOSS_SCALE, device),
    )
    if ranks > 1:
        reduce_in_order(model.train_network, ranks)
    return model, network


def training_step(
    name: str, pooling: str, classes: int, batch: tuple[np.ndarray, np.ndarray], *settings: Any, **options: Any
) -> tuple[Any, Any]:
    """A function that trains a step on a batch and gives its loss, and the network; see :func:`training_model`."""
    import mindspore as ms

    model, network = training_model(name, pooling, classes, *settings, **options)
    images, labels = (ms.Tensor(a) for a in batch)

    def step() -> float:
        model.train_network.set_train(True)
        return float(model.train_network(images, labels).asnumpy())

    return step, network


def save_weights(network: Any, path: Path) -> None:
    """Write the initial weights for the other side, once."""
    if not path.exists():
        np.savez(path, **{p.name: p.asnumpy() for p in network.get_parameters()})


def mindspore_functions(case: dict[str, Any], weights: Path) -> tuple[Callable[[], float], Callable[[], np.ndarray]]:
    """A training step that gives its loss, and an evaluation that gives logits; writes the initial weights."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    import mindspore as ms

    from covpool.kernels import apply_cpu_kernels, find_kernels
    from covpool.models import create_model, fold_batch_norm
    from covpool.runtime.distributed import set_context

    set_context("GRAPH", "CPU")
    ms.set_seed(0)
    batch = batch_of(case["size"], case["batch"], case["classes"])
    step, network = training_step(case["network"], case["pooling"], case["classes"], batch, case["kernels"])
    save_weights(network, weights)
    images = ms.Tensor(batch[0])

    evaluated: list[Any] = []

    def evaluate() -> np.ndarray:
        if not evaluated:  # a network of its own, prepared as eval.py does it
            kernels = find_kernels(case["kernels"])
            fresh = create_model(case["network"], pooling=case["pooling"], num_classes=case["classes"])
            evaluated.append(fresh if kernels is None else fold_batch_norm(fresh, whole=False))
            apply_cpu_kernels(evaluated[0], kernels)
            evaluated[0].set_train(False)
        logits: np.ndarray = evaluated[0](images).asnumpy()
        return logits

    return step, evaluate


def torch_functions(case: dict[str, Any], weights: Path) -> tuple[Callable[[], float], Callable[[], np.ndarray]]:
    """The same in PyTorch, from the weights that the other side wrote."""
    import torch

    from benchmarks.torch_networks import trained_network

    torch.set_num_threads(CORES)
    network, optimizer = trained_network(case["network"], case["pooling"], case["classes"], weights, "cpu", SGD)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    images, labels = (torch.from_numpy(a) for a in batch_of(case["size"], case["batch"], case["classes"]))
    images, labels = images.contiguous(memory_format=torch.channels_last), labels.long()

    def step() -> float:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def evaluate() -> np.ndarray:
        network.eval()
        with torch.inference_mode():
            return network(images).numpy()

    return step, evaluate


def work(connection: Connection, runtime: str, case: dict[str, Any], weights: Path) -> None:
    """Answer ("losses", n), ("memory",), ("logits",), ("train",) and ("evaluate",), the last two with seconds."""
    make = torch_functions if runtime == "torch" else mindspore_functions
    step, evaluate = make({**case, "kernels": runtime}, weights)

    def clock(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    measure.serve(
        connection,
        ready=lambda: True,
        losses=lambda count: [step() for _ in range(count)],
        memory=lambda: measure.memory("VmHWM"),
        logits=evaluate,
        train=lambda: (step(), clock(step))[1],
        evaluate=lambda: (evaluate(), clock(evaluate))[1],
    )


def compare(arguments: argparse.Namespace, name: str, pooling: str) -> list[dict[str, Any]]:
    """Everything about one network, as one record."""
    case = {
        "network": name,
        "pooling": pooling,
        "batch": arguments.batch_size,
        "size": arguments.image_size,
        "classes": arguments.class_num,
    }
    result: dict[str, Any] = dict(case)
    result["flop"] = Worker(measure.network_work, name, pooling, arguments.image_size).ask()
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "weights.npz"
        workers = {}
        for runtime in arguments.runtimes:  # one after the other: MindSpore writes the weights that PyTorch reads
            workers[runtime] = Worker(work, runtime, case, weights)
            workers[runtime].ask("ready")
        # Before anything is trained: evaluation in MindSpore costs memory that training alone would not take.
        losses = {runtime: worker.ask("losses", COMPARED_STEPS) for runtime, worker in workers.items()}
        train = measure.interleave(workers, arguments.rounds, "train")
        result["memory"] = {runtime: worker.ask("memory") for runtime, worker in workers.items()}
        for worker in workers.values():
            worker.ask("logits")
        evaluate = measure.interleave(workers, arguments.rounds, "evaluate")
        for worker in workers.values():
            worker.stop()
    result["first losses"] = losses
    for phase, seconds in (("training", train), ("evaluation", evaluate)):
        result[phase] = {r: measure.summary([arguments.batch_size / s for s in seconds[r]]) for r in seconds}
        rates = ", ".join(f"{RUNTIMES[r]} {measure.shown(result[phase][r])}" for r in seconds)
        measure.say(f"{name} {pooling} {phase}: {rates} images/s")
    sizes = result["memory"]
    measure.say(
        f"{name} {pooling} peak memory: " + ", ".join(f"{RUNTIMES[r]} {sizes[r] / 2**20:.0f} MiB" for r in sizes)
    )
    return [result]


def markdown(report: dict[str, Any]) -> str:
    """The report as two tables, a line for each network and pooling."""
    peak, results = report["about"]["peak_flops"], report["results"]
    used = [runtime for runtime in RUNTIMES if runtime in results[0]["memory"]]
    own = [runtime for runtime in used if runtime != "torch"]
    rows: list[list[str]] = []
    sizes: list[list[str]] = []
    for found in results:
        case = [found["network"], found["pooling"]]
        for phase, flop in zip(("evaluation", "training"), found["flop"]):
            speed = {runtime: found[phase][runtime]["median"] for runtime in used}
            rates = [f"{measure.shown(found[phase][r])}, {speed[r] * flop / peak:.0%}" for r in used]
            rows.append([*case, phase, *rates, *(f"{speed[r] / speed['torch']:.2f}" for r in own)])
        memory = found["memory"]
        ratios = [f"{memory[r] / memory['torch']:.2f}" for r in own]
        sizes.append([*case, *(f"{memory[r] / 2**20:.0f}" for r in used), *ratios])
    titles = [RUNTIMES[r] for r in used]
    ratio_titles = [f"{RUNTIMES[r]} / PyTorch" for r in own]
    worst = max(_difference(found, runtime) for found in results for runtime in own)
    lines = [
        "# Training and evaluation of whole networks",
        "",
        *measure.heading(report["about"]),
        "Images per second: median (± half of the rounds' interquartile range), share of the best matrix product.",
        "",
        *measure.table(["network", "pooling", "phase", *titles, *ratio_titles], rows),
        "",
        "Peak memory of the whole training process, MiB.",
        "",
        *measure.table(["network", "pooling", *titles, *ratio_titles], sizes),
        "",
        f"Largest relative difference of the losses of the first steps of ResNets (DropCov's are random): {worst:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def _difference(found: dict[str, Any], runtime: str) -> float:
    losses, peer = found["first losses"][runtime], found["first losses"]["torch"]
    same = found["pooling"] != "dropcov" and found["network"].startswith("resnet")  # others begin with other weights
    return max((abs(a / b - 1) for a, b in zip(losses, peer) if same), default=0.0)


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument(
        "--poolings", nargs="+", choices=("gap", "dropcov", "fast_mpn"), default=["gap", "dropcov", "fast_mpn"]
    )
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--class_num", type=int, default=1000)
    parser.add_argument("--small", action="store_true", help="32 pixels, batch 4, 10 classes, 2 rounds: to try it")
    arguments = parser.parse_args()
    arguments.runtimes = [r for r in RUNTIMES if r in arguments.runtimes]
    if arguments.runtimes[0] == "torch" or arguments.runtimes[-1] != "torch":
        parser.error("--runtimes needs torch and one that torch is compared with")
    if arguments.small:
        arguments.image_size, arguments.batch_size, arguments.class_num, arguments.rounds = 32, 4, 10, 2
    about = measure.environment(
        PACKAGES, batch=arguments.batch_size, size=arguments.image_size, rounds=arguments.rounds
    )
    measure.compare_networks(arguments, "network", about, compare, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
