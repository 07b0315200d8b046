"""training/trainer.py and training/muon.py: the optimizers and the learning rate."""

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from helpers import random_image
from muon import Muon
from trainer import Recipe


def test_muon_takes_the_steps_of_pytorchs_own():
    shapes = [(24, 12), (24, 12), (12, 24), (8, 8)]
    theirs, ours = (
        [
            torch.nn.Parameter(random_image(*shape, seed=seed))
            for seed, shape in enumerate(shapes)
        ]
        for _ in range(2)
    )
    reference = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0, adjust_lr_fn="match_rms_adamw"
    )
    muon = Muon(ours, lr=0.01)
    for step in range(3):
        for number, (first, second) in enumerate(zip(theirs, ours, strict=True)):
            first.grad = random_image(*first.shape, seed=10 * step + number) - 0.5
            second.grad = first.grad.clone()
        reference.step()
        muon.step()
    for seed, (first, second) in enumerate(zip(theirs, ours, strict=True)):
        moved = (first - random_image(*first.shape, seed=seed)).norm()
        # PyTorch's own rounds to bfloat16 on the way, 1/256 in each product.
        assert (first - second).norm() < 0.02 * moved


def test_the_rate_is_constant_and_falls_in_the_last_tenth():
    recipe = Recipe(
        "small", 2, 100, 1, 8, "muon", 0.5, 10, 0.9, 0.0, 0, "float32", "", "", ""
    )
    rates = [recipe.rate_at(iteration) for iteration in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[10:91] == [0.5] * 81
    assert rates[90:] == pytest.approx([0.05 * (10 - i) for i in range(10)])
