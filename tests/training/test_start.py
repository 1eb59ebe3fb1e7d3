"""What a training does with its run folder before, while and after it goes on from a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from covpool.build import build_model, build_source, description
from covpool.checkpoints.format import read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.runtime.distributed import World
from covpool.training import fit
from covpool.training.recipe import recipe_optimizer, recipe_rates
from covpool.training.run_folder import RunFolder
from covpool.training.start import prepare

CLASSES = ("bag", "coat", "shoe")


@pytest.fixture(autouse=True)
def pynative_mode() -> None:
    """A training of a dozen steps takes two seconds, half of what it takes with compilation."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


def make_images(root: Path, names: tuple[str, ...] = CLASSES, white: bool = False) -> Path:
    """8 images of 8 x 8 pixels a class and split; noise, or black ones to train on and white ones to evaluate on."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for index in range(8):
                values = rng.integers(0, 256, (8, 8, 3), np.uint8)
                if white:
                    values[:] = 255 * (split == "val")
                Image.fromarray(values).save(root / split / name / f"{index}.png")
    return root


def config(data: Path, run: Path, **changes: object) -> Config:
    values: dict[str, object] = {
        "net_name": "resnet10",
        "base_width": 2,
        "pooling": "gap",
        "stem": "small",
        "class_num": 3,
        "augmentation": "none",
        "train_image_size": 8,
        "eval_image_size": 8,
        "batch_size": 8,
        "epoch_size": 4,
        "log_interval": 1,
        "lr_max": 0.01,
        "lr_decay_mode": "linear",
        "num_workers": 1,
        "data_path": str(data),
        "output_path": str(run),
    }
    return Config(**{**values, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of four epochs of three steps."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(config(data, folder), World())
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that training to work on."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def index_of(run: Path) -> dict:
    return json.loads((run / "checkpoints" / "index.json").read_text())


def test_a_recipe_for_weights_that_is_given_none(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warning = "config/own_images.yaml"
    prepare(config(data, tmp_path / "run"), World(), RunFolder(tmp_path / "run"))
    assert warning not in caplog.text
    prepare(config(data, tmp_path / "run", fine_tune=True), World(), RunFolder(tmp_path / "run"))
    assert warning in caplog.text


def test_rates_take_the_factor_of_the_pooling(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rate of every step, its maximum and the factor in the log; a number overrides the pooling's own."""
    plain = recipe_rates(config(data, tmp_path, pooling="bcnn"), 3, 4)
    for given, factor in (("auto", 10), (3.0, 3)):
        rates = recipe_rates(config(data, tmp_path, pooling="bcnn", lr_factor=given), 3, 4)
        np.testing.assert_allclose(rates, factor * plain, rtol=1e-6)
        assert rates.dtype == np.float32
    np.testing.assert_array_equal(recipe_rates(config(data, tmp_path, lr_factor="auto"), 3, 4), plain)
    fit(config(data, tmp_path / "run", pooling="bcnn", lr_factor="auto", epoch_size=1), World())
    assert "rate up to 0.1 (linear, lr_factor 10 of bcnn included)" in capsys.readouterr().out


REFUSED = {
    "pooling": ({"pooling": "dropcvo"}, "dropcvo"),
    "data": ({"data_path": "nowhere"}, "nowhere"),
    "classes": ({"class_num": 2}, "has 3 classes"),
    "pre_trained": ({"pre_trained": "none.ckpt"}, r"none\.ckpt"),
    "sink": ({"enable_sink": True}, "no data sink on CPU"),
    "loss scale": ({"amp_level": "O2", "loss_scale_mode": "dynamic"}, "MindSpore has none on CPU"),
    "batch": ({"batch_size": 25}, "at least one global batch"),
    "train_images": ({"train_images": 99, "bad_images": "skip"}, "train_images = 99"),
    "resumed pooling": ({"resume_ckpt": "auto", "pooling": "gcp"}, "pooling is 'gap' in the checkpoint and 'gcp'"),
    "resumed file": ({"resume_ckpt": "none.ckpt"}, r"none\.ckpt"),
    "resumed optimiser": ({"resume_ckpt": "auto", "nesterov": True}, "state of another optimiser"),
}


@pytest.mark.parametrize("why", [*REFUSED, "val", "renamed class"])
def test_a_start_that_is_refused_leaves_the_folder_alone(why: str, data: Path, run: Path, tmp_path: Path) -> None:
    changes, message = REFUSED.get(why, ({"resume_ckpt": "auto"}, ""))
    if why == "val":
        data, message = Path(shutil.copytree(data, tmp_path / "data")), "val"
        shutil.rmtree(data / "val")
    if why == "renamed class":
        data = make_images(tmp_path / "data", ("bag", "coat", "zshoe"))
        message = "does not fit the classes of the data: 'zshoe' is not among the 3 classes"
    before = contents(run)
    with pytest.raises(UserError, match=message):
        fit(config(data, run, **changes), World())
    assert contents(run) == before
    new = tmp_path / "new" / "run"
    if "resume_ckpt" not in changes:
        with pytest.raises(UserError, match=message):
            fit(config(data, new, **changes), World())
        assert not new.parent.exists()


def test_an_earlier_checkpoint_begins_a_new_branch_with_steps_of_its_own(data: Path, run: Path) -> None:
    """Resumed after epoch 1 of 3 steps with epochs of 6: rates follow the epochs, what came after epoch 1 is aside."""
    before, index = contents(run), index_of(run)
    first, *others = index["checkpoints"]
    assert len(others) == 3
    # An old best one beyond the position: the new branch must not be measured by it.
    (best,) = [entry for entry in others if entry["file"] == "epoch_0003.ckpt"]
    index["best"] = {**best, "file": "best.ckpt", "metric": 1.0}
    shutil.copyfile(run / "checkpoints" / best["file"], run / "checkpoints" / "best.ckpt")
    (run / "checkpoints" / "index.json").write_text(json.dumps(index))
    resumed = run / "checkpoints" / first["file"]
    summary = fit(config(data, run, batch_size=4, resume_ckpt=str(resumed)), World())

    epochs = RunFolder(run).records("epoch")
    assert [e["epoch"] for e in epochs] == [1, 2, 3, 4]
    assert [e["learning_rate"] for e in epochs[1:]] == pytest.approx([0.01 * (24 - s) / 24 for s in (11, 17, 23)])
    steps = RunFolder(run).records("step")
    assert [(s["epoch"], s["step"]) for s in steps] == [
        *((1, s) for s in (1, 2, 3)),
        *((e, s) for e in (2, 3, 4) for s in range(6 * e - 5, 6 * e + 1)),
    ]
    last = read_checkpoint(run / "checkpoints" / "epoch_0004.ckpt")
    assert last.about["step"] == 24 and last.optimizer["global_step"].asnumpy().tolist() == [24]
    assert [e["file"] for e in index_of(run)["checkpoints"]] == [f"epoch_000{e}.ckpt" for e in (1, 2, 3, 4)]
    assert summary.best == index_of(run)["best"]["metric"] == max(e["top_1_accuracy"] for e in epochs)

    aside = contents(run / "earlier-1")
    assert {name for name in aside if "ckpt" in name} == {
        "checkpoints/best.ckpt",
        *(f"checkpoints/epoch_000{e}.ckpt" for e in (2, 3, 4)),
    }
    assert aside["metrics.jsonl"] == before["metrics.jsonl"]
    assert aside["checkpoints/epoch_0004.ckpt"] == before["checkpoints/epoch_0004.ckpt"]
    log = (run / "train.log").read_text()
    assert log.count("what came after") == 1 and "an epoch has 6 steps here and had 3 before" in log


def test_a_checkpoint_of_another_run_moves_the_run_that_is_there(data: Path, run: Path, finished: Path) -> None:
    before = contents(run)
    changed = finished.parent / "elsewhere.ckpt"  # no file of this run, which has the same bytes
    fit(config(data, run.parent / "other", seed=2, epoch_size=1), World())
    shutil.copyfile(run.parent / "other" / "checkpoints" / "epoch_0001.ckpt", changed)
    fit(config(data, run, epoch_size=1, resume_ckpt=str(changed)), World())
    assert before.items() <= contents(run / "earlier-1").items()
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.parametrize("how", ["damaged", "missing", "damaged with its epoch", "infinite"])
def test_the_best_checkpoint_is_whole_after_a_resumption(how: str, data: Path, run: Path) -> None:
    folder, index = run / "checkpoints", index_of(run)
    best = folder / "best.ckpt"
    whole, metric = best.read_bytes(), index["best"]["metric"]
    rated = [e for e in index["checkpoints"] if e["metric"] == metric]
    if how == "missing":
        best.unlink()
    elif how == "infinite":
        text = (folder / "index.json").read_text()
        (folder / "index.json").write_text(text.replace(f'"metric": {metric}', '"metric": Infinity'))
    else:
        best.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    if how == "damaged with its epoch":
        for entry in rated:
            (folder / entry["file"]).write_bytes(b"")
    resumed = str(folder / "epoch_0004.ckpt") if how == "infinite" else "auto"
    fit(config(data, run, resume_ckpt=resumed), World())
    again = read_checkpoint(best, checksum_required=True).about
    left = [e["metric"] for e in index["checkpoints"] if how != "damaged with its epoch" or e not in rated]
    assert again["metric"] == index_of(run)["best"]["metric"] == max(left)


def test_auto_without_a_checkpoint_keeps_the_metrics_and_names_earlier_runs(data: Path, run: Path) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    fit(config(data, run, epoch_size=1, save_checkpoint=False, save_best_ckpt=False), World())
    assert (run / "earlier-1" / "metrics.jsonl").read_bytes() == metrics
    metrics = (run / "metrics.jsonl").read_bytes()
    fit(config(data, run, epoch_size=1, save_checkpoint=False, save_best_ckpt=False, resume_ckpt="auto"), World())
    assert (run / "earlier-2" / "metrics.jsonl").read_bytes() == metrics
    log = (run / "train.log").read_text()
    assert f"nothing to resume from in {run / 'checkpoints'}: starting anew; {run / 'earlier-1'} holds an" in log
    assert sorted(p.name for p in run.glob("earlier-*")) == ["earlier-1", "earlier-2"]


def test_an_evaluation_that_overflows_stops_the_training(tmp_path: Path) -> None:
    """Training sees black images, so every statistic stays small; the covariance of the white ones overflows."""
    data, run = make_images(tmp_path / "data", white=True), tmp_path / "run"
    scale: dict[str, object] = {"pooling": "gcp", "reduction_dim": 4, "mean": (0.0,) * 3, "std": (1e-30,) * 3}
    with pytest.raises(UserError, match=r"^the evaluation after epoch 1 overflows: 24 of 24 images.*bag/0\.png"):
        fit(config(data, run, **scale), World())
    assert not list(run.rglob("*.ckpt"))

    def reject(text: str) -> None:
        raise AssertionError(text)

    lines = [json.loads(line, parse_constant=reject) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "evaluation" and lines[-1]["eval_loss"] is None
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == []


def test_fine_tuning_on_as_many_other_classes(run: Path, tmp_path: Path) -> None:
    """The classifier is a new one; epochs of one step have no speed to tell."""
    data, best = make_images(tmp_path / "data", ("bag", "coat", "tree")), run / "checkpoints" / "best.ckpt"
    options = {"pre_trained": str(best), "batch_size": 24, "epoch_size": 2, "lr_max": 0.0}
    fit(config(data, tmp_path / "tuned", **options), World())
    log = (tmp_path / "tuned" / "train.log").read_text()
    assert f"started from {best} without its classifier: it has other classes ('tree' is not among the 3" in log
    assert "nan" not in log and log.count("images/s") == 0
    old, new = (read_checkpoint(p).network for p in (best, tmp_path / "tuned" / "checkpoints" / "epoch_0002.ckpt"))
    assert (old["conv1.weight"].asnumpy() == new["conv1.weight"].asnumpy()).all()
    assert (old["fc.weight"].asnumpy() != new["fc.weight"].asnumpy()).any()


def test_curves_that_cannot_be_drawn_do_not_undo_a_training(data: Path, run: Path) -> None:
    (run / "curves.png").unlink()
    (run / "curves.png").mkdir()
    shutil.rmtree(run / "evaluation")
    (run / "evaluation").touch()
    (run / "checkpoints" / "epoch_0004.ckpt").unlink()
    assert fit(config(data, run, resume_ckpt="auto"), World()).epochs == 4
    log = (run / "train.log").read_text()
    assert "curves.png was not drawn: IsADirectoryError" in log and "evaluation was not drawn: FileExistsE" in log


def test_what_the_last_evaluation_confused_is_in_the_run_folder(data: Path, finished: Path) -> None:
    folder = finished / "evaluation"
    assert {p.name for p in folder.iterdir()} == {"confusion_matrix.csv", "confusion_matrix.png", "mistakes.png"}
    rows = [line.split(",") for line in (folder / "confusion_matrix.csv").read_text().splitlines()]
    counts = np.array([row[1:] for row in rows[1:]], np.int64)
    last = RunFolder(finished).records("epoch")[-1]
    assert counts.sum(1).tolist() == [8, 8, 8] and np.trace(counts) == round(24 * last["top_1_accuracy"])
    assert f"evaluation loss {last['eval_loss']:.4f}, top-1 " in (finished / "train.log").read_text()


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: values by tag and step, without those that a later session declared void."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted((run / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):  # length, its checksum, event, its checksum
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16
            if event.HasField("session_log"):
                found = {tag: {s: v for s, v in by.items() if s < event.step} for tag, by in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_event_files_say_what_the_records_say_and_go_on_where_a_run_is_resumed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"tensorboard": True, "epoch_size": 2}
    fit(config(data, run, **options), World())
    (run / "checkpoints" / "epoch_0002.ckpt").unlink()  # as if the second epoch had been lost
    fit(config(data, run, **options, resume_ckpt="auto"), World())
    assert len(list((run / "tensorboard").iterdir())) == 2
    found, folder = scalars(run), RunFolder(run)
    for kind in ("step", "epoch"):
        records = folder.records(kind)
        for name in {"step": ("loss", "learning_rate"), "epoch": ("loss", "eval_loss", "top_1_accuracy")}[kind]:
            assert found[f"{kind}/{name}"] == pytest.approx({record["step"]: record[name] for record in records})
    assert list(found["step/loss"]) == list(range(1, 7)) and list(found["epoch/loss"]) == [3, 6]


def test_tensorboard_that_is_not_installed_is_told_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"^tensorboard=True needs a package: pip install tensorboardX") as raised:
        fit(config(data, tmp_path / "run", tensorboard=True), World())
    assert raised.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(data: Path, run: Path, tmp_path: Path) -> None:
    new, before = RunFolder(tmp_path / "new"), contents(run)
    other = RunFolder(run)
    with other.exclusive(), new.exclusive():
        new.lock()  # of a folder that is made only now
        for folder in (run, new.path):
            with pytest.raises(UserError, match=rf"{folder} is in use by another training \(process {os.getpid()} on "):
                fit(config(data, folder, resume_ckpt="auto"), World())
        assert {name: text for name, text in contents(run).items() if name != ".lock"} == before
    assert contents(run) == before and not list(new.path.iterdir())
    with other.exclusive():
        assert other._lock is not None
        os.dup2(os.open(os.devnull, os.O_RDONLY), other._lock)  # as the system closes the files of a dead process
        with RunFolder(run).exclusive():
            assert (run / ".lock").read_text().startswith("process ")


def test_images_are_normalised_as_the_checkpoint_says(data: Path, finished: Path, tmp_path: Path) -> None:
    """When resumed with every part of the evaluation's transform, when fine-tuned with mean and standard deviation."""
    first = config(data, finished, mean=(0.1, 0.2, 0.3), eval_crop_ratio=0.5)
    network = build_model(first)
    known = tmp_path / "known.ckpt"
    optimizer = recipe_optimizer(first, network, recipe_rates(first, 3, 4))
    about = {**description(first, build_source(first, "train", World())), "epoch": 1, "step": 3}
    save_checkpoint(known, network, optimizer, about)
    for key, crop_ratio in (("resume_ckpt", 0.5), ("pre_trained", 0.875)):
        run = prepare(config(data, tmp_path / "run", **{key: str(known)}), World(), RunFolder(tmp_path / "run"))
        assert (run.config.mean, run.config.eval_crop_ratio) == ((0.1, 0.2, 0.3), crop_ratio)
        assert run.state.about["mean"] == [0.1, 0.2, 0.3]
        given = config(data, tmp_path / "run", **{key: str(known)}, mean=(0.4, 0.4, 0.4))
        assert prepare(given, World(), RunFolder(tmp_path / "run")).config.mean == (0.4, 0.4, 0.4)
