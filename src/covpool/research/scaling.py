"""What data-parallel training needs on n devices, by formula: computing, all-reduce, storage, learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from covpool.research.tables import table_head, table_row

# Forward one part, backward two: gradients by inputs and by weights. A multiply-add is two operations.
OPERATIONS_PER_MULTIPLY_ADD = 2
TRAINING_PASSES = 3
IMAGENET_IMAGES = 1_281_167
IMAGENET_IMAGE_BYTES = 147_897_477_120 // IMAGENET_IMAGES  # of the published archive of training images


@dataclass(frozen=True)
class Machine:
    """What the prediction assumes of the machines."""

    operations_per_s: float  # sustained floating-point operations of one device, 1/s
    bandwidth: float  # of the slowest link of the ring, bytes/s each way
    latency: float  # of one message on it, s

    def __post_init__(self) -> None:
        if self.operations_per_s <= 0 or self.bandwidth <= 0 or self.latency < 0:
            raise ValueError("operations_per_s and bandwidth must be positive, latency not negative")


@dataclass(frozen=True)
class Prediction:
    """One step of a training on several devices."""

    devices: int  # n
    global_batch: int  # images of a step
    steps_per_epoch: int  # whole global batches in the data set
    compute_s: float  # forward and backward pass of a device's share
    sent_bytes: float  # what every device sends (and receives) for the all-reduce
    reduce_s: float  # duration of the all-reduce
    overlapped_s: float  # the step, if the all-reduce of a group starts as soon as its gradients are there
    serial_s: float  # the step, if the all-reduce starts after the backward pass
    learning_rate: float  # by the linear rule, 0.1 for 256 images
    storage_bytes_per_s: float  # what the storage must deliver to all devices together in the overlapped case

    @property
    def images_per_s(self) -> float:
        """Over all devices, overlapped."""
        return self.global_batch / self.overlapped_s

    @property
    def efficiency(self) -> tuple[float, float]:
        """Speed of n devices over n times that of one: overlapped and serial."""
        return self.compute_s / self.overlapped_s, self.compute_s / self.serial_s


def allreduce_bytes(size: float, devices: int) -> float:
    """Bytes that every device of a ring sends to all-reduce ``size`` bytes: 2 (n - 1) / n of them."""
    return 2 * (devices - 1) / devices * size


def allreduce_seconds(size: float, devices: int, machine: Machine) -> float:
    """Duration of a ring all-reduce: 2 (n - 1) messages of size / n bytes, one after the other."""
    return allreduce_bytes(size, devices) / machine.bandwidth + 2 * (devices - 1) * machine.latency


def predict(
    devices: int,
    batch_size: int,
    multiply_adds: float,
    groups: Sequence[int],
    machine: Machine,
    image_bytes: float = IMAGENET_IMAGE_BYTES,
    images: int = IMAGENET_IMAGES,
) -> Prediction:
    """Predict a step of data-parallel training with ``batch_size`` images of ``multiply_adds`` forward on each device.

    Computing takes 6 multiply_adds batch_size / operations_per_s. The first group of gradients (the classifier's) is
    there after the forward pass, a third of that; the last one at its end. So an overlapped step cannot end before the
    last group has been reduced after computing, nor before all groups have been reduced after the forward pass.
    ``groups`` are the bytes of the gradients of each all-reduce, in their order.
    """
    if devices < 1 or batch_size < 1 or not groups:
        raise ValueError("devices and batch_size must be at least 1, and there must be gradients")
    compute = OPERATIONS_PER_MULTIPLY_ADD * TRAINING_PASSES * multiply_adds * batch_size / machine.operations_per_s
    times = [allreduce_seconds(size, devices, machine) for size in groups]
    overlapped = max(compute + times[-1], compute / TRAINING_PASSES + sum(times))
    batch = devices * batch_size
    return Prediction(
        devices=devices,
        global_batch=batch,
        steps_per_epoch=images // batch,
        compute_s=compute,
        sent_bytes=allreduce_bytes(sum(groups), devices),
        reduce_s=sum(times),
        overlapped_s=overlapped,
        serial_s=compute + sum(times),
        learning_rate=0.1 * batch / 256,
        storage_bytes_per_s=batch / overlapped * image_bytes,
    )


def table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield from table_head(
        [
            *("devices", "global batch", "steps / epoch", "compute (ms)", "sent per device (MB)", "all-reduce (ms)"),
            *("step, overlapped - serial (ms)", "images/s", "efficiency", "storage (GB/s)", "linear rate"),
        ]
    )
    for p in predictions:
        best, worst = p.efficiency
        cells = [
            str(p.devices),
            f"{p.global_batch:,}",
            f"{p.steps_per_epoch:,}",
            f"{p.compute_s * 1e3:.1f}",
            f"{p.sent_bytes / 1e6:.1f}",
            f"{p.reduce_s * 1e3:.1f}",
            f"{p.overlapped_s * 1e3:.1f} - {p.serial_s * 1e3:.1f}",
            f"{p.images_per_s:,.0f}",
            f"{best:.0%} - {worst:.0%}",
            f"{p.storage_bytes_per_s / 1e9:.2f}",
            f"{p.learning_rate:g}",
        ]
        yield table_row(cells)
