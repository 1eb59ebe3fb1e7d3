"""scripts/setup.sh repairs what an interrupted run left; the lock is what is installed; the package works elsewhere."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OWN = {"covpool", "pip", "setuptools", "wheel"}  # the project, and what a new environment comes with


def _locked(root: Path) -> dict[str, str]:
    lines = [Requirement(line) for line in (root / "requirements.lock").read_text().splitlines()]
    return {canonicalize_name(r.name): str(r.specifier) for r in lines if r.marker is None or r.marker.evaluate()}


def test_the_lock_is_what_is_installed(root: Path) -> None:
    if Path(sys.prefix) != root / ".venv":
        pytest.skip("the lock describes the environment that scripts/setup.sh makes; this is another one")
    locked = _locked(root)
    for found in importlib.metadata.distributions():
        name = canonicalize_name(found.metadata["Name"])
        if name not in OWN:
            assert locked.get(name) == f"=={found.version.partition('+')[0]}", name


def test_a_half_made_environment_is_made_again(root: Path, tmp_path: Path) -> None:
    """Python without pip is what a set-up leaves that was interrupted in `python -m venv`."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").write_bytes((root / "scripts" / "setup.sh").read_bytes())
    (tmp_path / "requirements.txt").write_text("# nothing\n")
    (tmp_path / "requirements.lock").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "empty"\nversion = "0"\n[build-system]\nrequires = []\n'
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    (tmp_path / ".venv" / "left").write_text("over")
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "setup.sh"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "making .venv" in done.stdout and not (tmp_path / ".venv" / "left").exists(), done.stderr
    subprocess.run([tmp_path / ".venv" / "bin" / "python", "-c", "import pip"], check=True)
    wrong = subprocess.run(["bash", tmp_path / "scripts" / "setup.sh", "nothing.txt"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: nothing.txt: no such file")


def test_without_the_environment_one_line_names_it(root: Path, tmp_path: Path) -> None:
    """The system's Python has none of the packages; so has an isolated one without its site-packages."""
    for command in (["train.py", "--config_path=config/quickstart.yaml"], ["eval.py", "--help"]):
        done = subprocess.run([sys.executable, "-S", *command], cwd=root, capture_output=True, text=True)
        assert done.returncode == 1 and "source .venv/bin/activate" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.slow
def test_a_wheel_works_in_a_folder_of_its_own(root: Path, tmp_path: Path) -> None:
    """Built from a clean clone, used where other folders are called `src` and `config`."""
    run = subprocess.run
    run(["git", "clone", "-q", root, tmp_path / "clone"], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run([*pip, "wheel", "--no-deps", "-w", tmp_path / "wheels", tmp_path / "clone"], check=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    run([*pip, "--python", str(python), "install", "--no-deps", wheel], check=True)
    # The dependencies are those of the lock, installed already; the new environment borrows them, after its own.
    site = next((tmp_path / "venv" / "lib").glob("python3*")) / "site-packages"
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    work = tmp_path / "work"
    for folder in ("src", "config", "data"):
        (work / folder).mkdir(parents=True)
        (work / folder / "__init__.py").write_text("raise SystemExit('not the package')\n")
    (work / "config" / "mine.yaml").write_text(
        "base: base/small_images.yaml\nnet_name: resnet10\nbase_width: 4\nepoch_size: 1\nbatch_size: 50\n"
        "class_num: 10\ntrain_images: 100\nreduction_dim: 8\nrun_eval: False\ncpu_kernels: compiled\n"
        f"data_path: {root / 'data' / 'fashion_mnist_sample'}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import covpool; print(covpool.__file__, type(covpool.create_model('resnet18')).__name__)"
    made = run([python, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    assert made.returncode == 0 and made.stdout.startswith(str(site)), made.stderr
    trained = run(
        [tmp_path / "venv" / "bin" / "covpool", "train", "--config_path=config/mine.yaml", "--output_path=run"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    assert (work / "run" / "checkpoints" / "epoch_0001.ckpt").is_file()
