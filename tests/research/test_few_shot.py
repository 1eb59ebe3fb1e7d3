"""Few-shot classification: vectors against NumPy on the same features, episodes where the answer is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.build import architecture, build_dataset, build_model, build_source, image_transform
from covpool.checkpoints.format import save_checkpoint
from covpool.commands.research import few_shot
from covpool.config import load_config
from covpool.errors import UserError
from covpool.evaluation import numpy_batches
from covpool.research.few_shot import episode_accuracies, half_width, pooled_vectors
from covpool.runtime.distributed import World
from tests.pooling.reference import covariance

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "fashion_mnist_sample"


def test_vectors_and_command(tmp_path: Path, graph_mode: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of five classes on the ten of the sample; the last batch is not full."""
    keys = ["net_name=resnet10", "base_width=2", "reduction_dim=4", "pooling=gcp", "class_num=5"]
    config = load_config(ROOT / "config" / "quickstart.yaml", [*keys, f"data_path={SAMPLE}", "batch_size=64"])
    network, file, world = build_model(config), tmp_path / "net.ckpt", World()
    source = build_source(config.replace(class_num="auto"), "val", world)
    about = {"architecture": architecture(config), "transform": image_transform(config, source).to_dict()}
    save_checkpoint(file, network, about=about)
    found, classes = pooled_vectors(file, config)
    features, labels = [], []
    for images, part in numpy_batches(build_dataset(config, source, False, world)):
        features.append(network.set_train(False).forward_features(ms.Tensor(images)).asnumpy())
        labels.append(part)
    rows, columns = np.triu_indices(4)
    expected = covariance(np.concatenate(features))[:, rows, columns]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_array_equal(classes, np.concatenate(labels))
    output = tmp_path / "few.json"
    arguments = [f"net={file},{file}", f"--data_path={SAMPLE}", "--episodes=20", f"--output={output}"]
    assert few_shot(arguments) == 0
    one = episode_accuracies(found, classes, 5, 1, 15, 20)
    entry = json.loads(output.read_text())["net"]["1-shot"]
    assert entry["accuracy"] == pytest.approx([one.mean()] * 2) and entry["half_width"][0] == pytest.approx(
        half_width(one)
    )
    assert re.search(
        rf"\| net \| 2 \| {100 * one.mean():.2f} ± {100 * half_width(one):.2f}; 0.00 \|", capsys.readouterr().out
    )


def test_episodes_where_the_answer_is_known() -> None:
    classes, random = np.repeat(np.arange(6), 30), np.random.default_rng(0)
    apart = np.eye(6)[classes] + 0.01 * random.standard_normal((180, 6))
    assert (episode_accuracies(apart, classes, 5, 1, 15, 50) == 1).all()
    nothing = episode_accuracies(random.standard_normal((180, 6)), classes, 5, 1, 15, 400)
    assert nothing.mean() == pytest.approx(0.2, abs=4 * half_width(nothing))
    more = [
        episode_accuracies(apart + random.standard_normal((180, 6)), classes, 3, shots, 10, 200).mean()
        for shots in (1, 20)
    ]
    assert more[1] > more[0], "a mean of many images is a better one"


def test_too_few_images_are_named() -> None:
    with pytest.raises(UserError, match=r"5 classes of 1 \+ 15 images are needed, and there are 2, the smallest of 10"):
        episode_accuracies(np.zeros((20, 3)), np.repeat([0, 1], 10), 5, 1, 15, 10)
