"""Predictions of image files from exported files alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from covpool.errors import UserError
from covpool.export import FORMATS, ExportedModel, export_network, find_images, open_exported, predict
from tests.export.conftest import SAMPLE, tiny, transform

NAMES = ["first", "second", "third", "fourth"]
ABOUT = {"class_names": NAMES, "transform": transform(24, 32)}

pytestmark = pytest.mark.usefixtures("pynative_mode")


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, images, tmp_path_factory) -> ExportedModel:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    folder = tmp_path_factory.mktemp("exported")
    return open_exported(export_network(tiny(), folder / "net", request.param, images[:6], ABOUT).path)


def prepared(file: Path) -> np.ndarray:
    """The transform of ``conftest`` for 28 x 28 images, by Pillow: to 32 x 32 pixels, then the middle 24 rows."""
    image = Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    return ((np.asarray(image, np.float32) / 255 - 0.3) / 0.35).transpose(2, 0, 1)[:, 4:28]


def test_predictions_equal_the_network(exported, image_files):
    network = tiny()
    predictions = list(predict(exported, image_files[:7], top=4, batch_size=3))
    assert [p.image for p in predictions] == image_files[:7]
    for prediction, file in zip(predictions, image_files):
        logits = network(ms.Tensor(prepared(file)[None])).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert prediction.classes == tuple(NAMES[i] for i in np.argsort(-probabilities))
        np.testing.assert_allclose(prediction.probabilities, np.sort(probabilities)[::-1], rtol=0.02)


def test_batch_size_changes_nothing(exported, image_files):
    one, many = (list(predict(exported, image_files[:4], batch_size=size)) for size in (1, 4))
    for a, b in zip(one, many):
        assert (a.image, a.classes) == (b.image, b.classes)
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=1e-5)


@pytest.mark.parametrize("top", [1, 4, 100])
def test_top(top, exported, image_files):
    (prediction,) = predict(exported, image_files[:1], top=top)
    assert len(prediction.classes) == len(prediction.probabilities) == min(top, 4)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    if top >= 4:
        assert sum(prediction.probabilities) == pytest.approx(1)


class Constant:
    """A file whose logits do not depend on the image."""

    def __init__(self, about: dict, logits: list[float]) -> None:
        self.about, self.logits = about, np.asarray(logits, np.float32)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (3, 24, 32) and images.dtype == np.float32
        return np.tile(self.logits, (len(images), 1))


def test_classes_without_a_name_are_numbered(image_files):
    model = Constant({"transform": transform(24, 32), "class_names": ["only"]}, [0, 5, 1])
    (prediction,) = predict(model, image_files[:1])
    assert prediction.classes == ("1", "2", "only")


def test_large_logits(image_files):
    (prediction,) = predict(Constant(ABOUT, [1e4, -1e4, 0, 1e4]), image_files[:1])
    assert prediction.classes == ("first", "fourth", "third", "second")
    assert prediction.probabilities == pytest.approx((0.5, 0.5, 0, 0))


def test_a_file_without_transform(image_files):
    with pytest.raises(UserError, match=r"does not say how images are prepared: export it with export\.py"):
        list(predict(Constant({}, [1.0]), image_files))


def test_an_image_that_cannot_be_read(exported, image_files, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(image_files[0].read_bytes()[:100])
    with pytest.raises(UserError, match=r"damaged\.png"):
        list(predict(exported, [image_files[0], damaged]))
    problems: dict[Path, str] = {}
    mixed = [image_files[0], damaged, image_files[1], tmp_path / "gone.png", image_files[2]]
    found = list(predict(exported, mixed, batch_size=2, problems=problems))
    alone = predict(exported, [mixed[0], mixed[2], mixed[4]], batch_size=3)
    assert [(p.image, p.classes) for p in found] == [(p.image, p.classes) for p in alone]
    assert list(problems) == [damaged, tmp_path / "gone.png"] and "truncated" in problems[damaged]


def test_find_images(tmp_path):
    source = next((SAMPLE / "val").rglob("*.png"))
    for name in ("b/2.png", "b/1.PNG", "a/deep/ä 3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images([tmp_path]) == [tmp_path / name for name in ("a/deep/ä 3.png", "b/1.PNG", "b/2.png")]
    assert find_images([tmp_path / "b/2.png", tmp_path / "a"]) == [tmp_path / "b/2.png", tmp_path / "a/deep/ä 3.png"]
    with pytest.raises(UserError, match=r"no image file or folder at .*missing"):
        find_images([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image \(.*\.png\) in .*empty"):
        find_images([tmp_path / "empty"])
