"""Synchronisation with an object store, by a `moxing` that copies folders of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from covpool.config import Config, ConfigError
from covpool.config.modelarts import download, synchronised, upload
from covpool.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

MOXING = '''\
"""Folders stand for the object store; every copy is noted in copies.log beside this file."""
import pathlib, shutil, time

class file:
    @staticmethod
    def copy_parallel(source, target):
        time.sleep(0.1)
        shutil.copytree(source, target, dirs_exist_ok=True)
        with pathlib.Path(__file__).with_name("copies.log").open("a") as log:
            log.write(f"{source} {target}\\n")
'''


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a data set and a checkpoint, and a `moxing` on the path."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "moxing.py").write_text(MOXING, encoding="utf-8")
    for name in ("data/train/a/1.png", "checkpoints/best.ckpt"):
        file = tmp_path / "store" / name
        file.parent.mkdir(parents=True)
        file.write_text(name, encoding="utf-8")
    monkeypatch.syspath_prepend(package)
    yield tmp_path
    sys.modules.pop("moxing", None)


def make_config(store, **changes):
    values = {
        "enable_modelarts": True,
        "data_url": str(store / "store/data"),
        "data_path": str(store / "cache/data"),
        "checkpoint_url": str(store / "store/checkpoints"),
        "load_path": str(store / "cache/checkpoints"),
        "train_url": str(store / "store/result"),
        "output_path": str(store / "cache/run"),
    }
    return Config(**{**values, **changes})


def copies(store):
    log = store / "package/copies.log"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_nothing_happens_without_enable_modelarts(store):
    config = make_config(store, enable_modelarts=False)
    with synchronised(config) as same:
        assert same == config
    assert copies(store) == []
    assert "moxing" not in sys.modules


def test_data_and_checkpoints_come_and_the_run_folder_goes(store):
    config = make_config(store, pre_trained="best.ckpt", resume_ckpt="auto", checkpoint_file_path="/abs/x.ckpt")
    with synchronised(config) as local:
        assert (Path(local.data_path) / "train/a/1.png").is_file()
        assert Path(local.pre_trained).read_text(encoding="utf-8") == "checkpoints/best.ckpt"
        assert (local.resume_ckpt, local.checkpoint_file_path) == ("auto", "/abs/x.ckpt")
        Path(local.output_path).mkdir()
        (Path(local.output_path) / "metrics.jsonl").write_text("{}", encoding="utf-8")
    assert (store / "store/result/metrics.jsonl").is_file()
    assert len(copies(store)) == 3


def test_the_run_folder_goes_after_a_failure_too_but_from_rank_0_alone(store):
    for rank in (1, 0):
        with pytest.raises(RuntimeError), synchronised(make_config(store), rank=rank) as local:
            Path(local.output_path).mkdir(exist_ok=True)
            raise RuntimeError
        assert (store / "store/result").exists() == (rank == 0)


def test_empty_urls_copy_nothing(store):
    config = download(make_config(store, data_url="", checkpoint_url="", pre_trained="best.ckpt"))
    assert config.pre_trained == "best.ckpt"
    upload(config)  # no run folder yet
    assert copies(store) == []


def test_ranks_of_a_node_share_one_copy_and_the_next_job_copies_anew(store):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from covpool.config import load_config\n"
        "from covpool.config.modelarts import download\n"
        "config = download(load_config(sys.argv[2]))\n"
        "open(config.data_path + '/train/a/1.png').close()\n"
    )
    config = make_config(store, checkpoint_url="", run_distribute=True, device_num=3)
    config.dump(store / "config.yaml")
    command = [sys.executable, "-c", code, str(store / "package"), str(store / "config.yaml")]
    ranks = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0, 0]
    assert len(copies(store)) == 1
    config.replace(run_distribute=False, device_num=1).dump(store / "config.yaml")
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    assert len(copies(store)) == 2


def test_a_failed_copy_is_named_and_tried_again(store):
    config = make_config(store, data_url=str(store / "store/missing"))
    with pytest.raises(UserError, match=r"copy of .*missing to .*failed"):
        download(config)
    (store / "store/missing").mkdir()
    download(config)
    assert len(copies(store)) == 2


def test_a_local_folder_that_cannot_be_made_is_named(store):
    (store / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="cannot hold the copy"):
        download(make_config(store))


def test_absent_moxing_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="needs the package moxing"):
        download(make_config(tmp_path))
