"""Two network namespaces as two hosts: mpirun across them, and the loss of the link between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from road_commands import ROOT, SMALL

from covpool.training.run_folder import RunFolder

pytestmark = [
    pytest.mark.world_size,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
    ),
]
TIMEOUT = 8


@dataclass(frozen=True)
class Hosts:
    """Two namespaces that see each other and nothing else."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def command(self, folder: Path, images: Path, *arguments: str) -> list[str]:
        """A distributed training that is started on the first host."""
        (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in self.addresses))
        cases = "".join(f"{address}) ns={name};; " for name, address in zip(self.names, self.addresses))
        agent = folder / "agent.sh"
        agent.write_text(f'#!/bin/sh\ncase "$1" in {cases}esac\nshift\nexec ip netns exec "$ns" sh -c "$*"\n')
        agent.chmod(0o755)
        network = self.addresses[0].rpartition(".")[0] + ".0/24"
        options = {
            "plm_rsh_agent": str(agent),
            "btl": "self,tcp",
            "pml": "ob1",
            "btl_tcp_if_include": network,
            "oob_tcp_if_include": network,
        }
        return [
            *("ip", "netns", "exec", self.names[0], "mpirun", "--allow-run-as-root", "--hostfile", "hosts", "-n", "2"),
            *(word for option in options.items() for word in ("--mca", *option)),
            *("-x", f"GCP_SCHEDULER_HOST={self.addresses[0]}", "-x", "PATH"),
            *(sys.executable, str(ROOT / "train.py"), f"--config_path={ROOT / 'config' / 'quickstart.yaml'}", *SMALL),
            *("--run_distribute=True", "--device_num=2", "--batch_size=16", "--log_interval=1"),
            *(f"--rank_timeout={TIMEOUT}", f"--data_path={images}", "--output_path=run", *arguments),
        ]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    names, addresses = (f"gcp{os.getpid()}a", f"gcp{os.getpid()}b"), ("10.77.0.1", "10.77.0.2")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, timeout=20)

    for name in names:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    try:
        ip("link", "add", "link0", "netns", names[0], "type", "veth", "peer", "name", "link0", "netns", names[1])
        for name, address in zip(names, addresses):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "link0")
            ip("-n", name, "link", "set", "link0", "up")
        yield Hosts(names, addresses)
    finally:
        for process in inside(names):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for name in names:
            ip("netns", "del", name)


def inside(names: tuple[str, str]) -> list[psutil.Process]:
    """Processes in these namespaces."""
    found = []
    for name in names:
        out = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True, timeout=20)
        for pid in out.stdout.split():
            with suppress(psutil.NoSuchProcess):  # one that has ended since
                found.append(psutil.Process(int(pid)))
    return found


@pytest.fixture
def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_", "GLOG_"))}
    return {**clean, "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}"}


@pytest.mark.only_with_all  # the other test trains, too, but for the end of a job that ends well
def test_training_across_hosts(hosts: Hosts, images: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    command = hosts.command(tmp_path, images, "--epoch_size=1")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["num_samples"] == 103
    assert not inside(hosts.names)


def test_a_lost_link_ends_the_job_on_both_hosts(
    hosts: Hosts, images: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    job = subprocess.Popen(
        hosts.command(tmp_path, images, "--epoch_size=200"),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 180
    while not (log.is_file() and '"step": 3,' in log.read_text()):
        assert job.poll() is None and time.monotonic() < deadline, "ended or hung before its time"
        time.sleep(0.1)
    subprocess.run(["ip", "-n", hosts.names[0], "link", "set", "link0", "down"], check=True, timeout=20)
    cut = time.monotonic()
    errors = job.communicate(timeout=60)[1]
    assert job.returncode != 0
    assert "rank 1 (process " in errors and f"has not answered for {TIMEOUT} s" in errors
    while inside(hosts.names):
        assert time.monotonic() - cut < 60, f"left behind: {inside(hosts.names)}"
        time.sleep(0.2)
