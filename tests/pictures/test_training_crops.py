"""Training crops: they lie where they should, clean or degraded."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import SAMPLE
from PIL import Image

from aethernet.pictures.degradations import MARGIN
from aethernet.pictures.training_crops import TrainingCrops, detail, training_pair


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two parts of the sample, one of them gray."""
    folder = tmp_path_factory.mktemp("photographs")
    pixels = np.asarray(Image.open(SAMPLE))
    Image.fromarray(pixels[50:251, :181]).save(folder / "0.png")
    Image.fromarray(pixels[20:140, 60:180]).convert("L").save(folder / "gray.png")
    return folder


def test_degraded_crops_lie_where_their_hr_lies(photographs):
    crops = TrainingCrops([photographs / "0.png"], 2, degrade=True)
    lr, hr = crops.batch(24, 16, np.random.default_rng(0))
    assert (lr.shape, hr.shape) == ((24, 3, 16, 16), (24, 3, 32, 32))
    assert lr.min() >= 0
    assert lr.max() <= 1
    means = hr.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        moved = means.roll((dy, dx), (2, 3))[..., 1:-1, 1:-1]
        there = (lr - means).abs()[..., 1:-1, 1:-1].mean()
        assert there < 0.6 * (lr[..., 1:-1, 1:-1] - moved).abs().mean()


def test_degraded_crops_follow_from_the_random_numbers_alone(photographs):
    batches = [
        TrainingCrops(sorted(photographs.iterdir()), 2, degrade=True).batch(
            8, 16, np.random.default_rng(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert all(map(torch.equal, batches[0], batches[1]))
    assert not torch.equal(batches[0][0], batches[2][0])


def test_degraded_crops_need_a_margin(photographs):
    sizes = [
        TrainingCrops([photographs / "gray.png"], 2, degrade=degrade).largest_size
        for degrade in (False, True)
    ]
    assert sizes == [60, 60 - MARGIN]


def test_lr_is_that_of_the_whole_picture(photographs):
    # No edge of a crop shows in it: LR lies in the reduced picture.
    crops = TrainingCrops([photographs / "0.png"], 2)
    lr, hr = crops.batch(8, 16, np.random.default_rng(0))
    assert (lr.shape, hr.shape) == ((8, 3, 16, 16), (8, 3, 32, 32))
    whole, _ = training_pair(photographs / "0.png", 2)
    windows = (whole.float() / 255).unfold(1, 16, 1).unfold(2, 16, 1)
    for crop in lr:
        turned = [crop.rot90(k, (1, 2)) for k in range(4)]
        views = [*turned, *(view.flip(2) for view in turned)]
        assert any(
            (windows == view[:, None, None]).all(0).all(-1).all(-1).any()
            for view in views
        )


def test_gray_becomes_colour(photographs):
    lr, hr = training_pair(photographs / "gray.png", 2)
    assert (lr.shape, hr.shape) == ((3, 60, 60), (3, 120, 120))
    assert torch.equal(hr[0], hr[2])


def test_skies_are_left_out(tmp_path):
    pixels = np.asarray(Image.open(SAMPLE))[50:250, 80:180]
    sky = np.full((200, 400, 3), (90, 140, 220), np.uint8)
    path = tmp_path / "landscape.png"
    Image.fromarray(np.concatenate((sky, pixels), axis=1)).save(path)
    hr = {}
    for least in (0, 1.5):
        random = np.random.default_rng(0)
        _, hr[least] = TrainingCrops([path], 2, least_detail=least).batch(40, 8, random)
    shares = {
        least: np.mean([detail(image * 255) < 1.5 for image in images])
        for least, images in hr.items()
    }
    assert shares[0] > 0.6
    assert shares[1.5] < 0.1
