from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covpool import cli
from covpool.research.scaling import Machine, allreduce_bytes, allreduce_seconds, predict, table

MACHINE = Machine(operations_per_s=1e12, bandwidth=1e9, latency=1e-5)


def test_by_hand() -> None:
    assert allreduce_bytes(80e6, 8) == 140e6
    assert allreduce_seconds(80e6, 8, MACHINE) == pytest.approx(0.14 + 14e-5)
    p = predict(8, 32, 1e9, [40e6, 30e6, 10e6], MACHINE, image_bytes=1e5, images=1000)
    assert (p.devices, p.global_batch, p.steps_per_epoch) == (8, 256, 3)
    assert p.compute_s == pytest.approx(6 * 1e9 * 32 / 1e12)  # 0.192
    assert p.sent_bytes == pytest.approx(140e6)
    assert p.reduce_s == pytest.approx(0.14 + 3 * 14e-5)
    # Computing is the longer way: 0.192 and the last group behind it, 17.5 ms + 0.14 ms.
    assert p.overlapped_s == pytest.approx(0.192 + 0.0175 + 14e-5)
    assert p.serial_s == pytest.approx(p.compute_s + p.reduce_s)
    assert p.learning_rate == pytest.approx(0.1)
    assert p.storage_bytes_per_s == pytest.approx(256 / p.overlapped_s * 1e5)
    # With links a tenth as fast the all-reduce is: it follows the forward pass.
    slow = predict(8, 32, 1e9, [40e6, 30e6, 10e6], Machine(1e12, 1e8, 0.0))
    assert slow.overlapped_s == pytest.approx(0.064 + 1.4)


@given(
    st.integers(1, 4096),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=6),
    st.floats(1e6, 1e12),
    st.floats(0, 1e-3),
)
def test_bounds_hold(devices: int, groups: list[int], bandwidth: float, latency: float) -> None:
    p = predict(devices, 64, 2e9, groups, Machine(1e13, bandwidth, latency))
    best, worst = p.efficiency
    assert 0 < worst <= best <= 1
    assert p.compute_s <= p.overlapped_s <= p.serial_s * (1 + 1e-9)
    assert p.sent_bytes <= 2 * sum(groups)
    if devices == 1:
        assert (p.sent_bytes, best, worst) == (0, 1, 1)


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        predict(0, 64, 1e9, [1], MACHINE)
    with pytest.raises(ValueError, match="must be gradients"):
        predict(2, 64, 1e9, [], MACHINE)
    with pytest.raises(ValueError, match="must be positive"):
        Machine(0, 1, 1)


def test_table_has_a_row_for_each() -> None:
    lines = list(table([predict(n, 64, 1e9, [10**8], MACHINE) for n in (1, 8)]))
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 1 | 64 | 20,018 | 384.0 | 0.0 | 0.0 | 384.0 - 384.0 | 167 | 100% - 100% |")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--net_name=resnet10", "--pooling=gcp", "--reduction_dim=64", "--image_size=64", "--devices", "8"]
    assert cli.run(["scaling", *arguments]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("resnet10 + gcp: ") and head.endswith("of them the classifier's")
    assert len(lines) == 3
    assert cli.run(["scaling", "--net_name=resnet19"]) == 2
    assert "resnet18" in capsys.readouterr().err
    assert cli.run(["scaling", *arguments, "--latency=-1"]) == 2
