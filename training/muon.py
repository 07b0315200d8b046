"""The Muon optimizer in float32, for `training/train.py`."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum whose step for a matrix is made nearly orthogonal.

    K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; the step is
    scaled to the size of AdamW's as in J. Liu et al., 2025, arXiv 2502.16982, section
    2.2. The same step as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw",
    weight_decay=0)`, but in float32 and for all matrices of one shape at once: that
    one's bfloat16 products take as long as the rest of a training step on a processor
    without units for them.
    """

    MOMENTUM = 0.95
    COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic iteration
    STEPS = 5

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        """Take matrices, `(rows, columns)`, and a learning rate for AdamW's steps.

        The rate may become a tensor later, for CUDA graphs.
        """
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step by the gradients of all matrices."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = self._orthogonal(torch.stack([*map(self._update, matrices)]))
                size = 0.2 * math.sqrt(max(rows, columns)) * group["lr"]
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.sub_(update * size)

    def _update(self, matrix: Tensor) -> Tensor:
        """Nesterov's momentum of the matrix's gradient."""
        assert matrix.grad is not None
        gradient, state = matrix.grad.float(), self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - self.MOMENTUM)
        return gradient.lerp(state["momentum_buffer"], self.MOMENTUM)

    def _orthogonal(self, x: Tensor) -> Tensor:
        """`(N, rows, columns)` with all singular values brought near to 1."""
        if x.shape[1] > x.shape[2]:
            return self._orthogonal(x.mT).mT
        a, b, c = self.COEFFICIENTS
        x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
        for _ in range(self.STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x
