"""The losses, as functions of tensors. They know no model, no batch and no recipe.

MEXMA's objective (arXiv 2409.12737, section 3): with clean sentence vectors s and t of a pair,

    L = a * unmasking + b * alignment(s, t) + c * (koleo(s) + koleo(t)) / 2,   a = b = 1, c = 0.01

Unmasking is the cross-entropy of `training.vocabulary` over what `training.model` builds; the
others are here, with the in-batch contrastive loss that the paper's reviewers asked for as a
control. Each is computed in float32 (float64 stays) whatever autocast does around it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-8


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def alignment(source: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of sentence vectors `[n, dim]`, not normalised; a scalar.

    The mean is over pairs and components (arXiv 2409.12737, equation 2).
    """
    return (_precise(source) - _precise(target)).square().mean()


def koleo(vectors: Tensor, same: Tensor | None = None) -> Tensor:
    """Minus the mean log distance to the nearest other vector; a scalar. Spreads the vectors.

    The Kozachenko-Leonenko estimator of entropy as a regulariser (Sablayrolles et al. 2019,
    arXiv 1806.03198, equation 4) over L2-normalised `[n, dim]`. same: bool `[n, n]`, True where
    two rows are the same text, which is no neighbour: its distance is 0 and its gradient
    without bound. A vector without neighbours counts nothing; 0 where none has any.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = functional.normalize(_precise(vectors), dim=-1, eps=EPSILON)
        with torch.no_grad():
            cosine = unit @ unit.T  # [n, n]
            alone = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
            excluded = alone if same is None else alone | same
            best, neighbour = cosine.masked_fill(excluded, -torch.inf).max(1)
            counted = (best > -torch.inf).to(unit.dtype)
        distance = (unit - unit[neighbour]).square().sum(1).clamp_min(EPSILON**2).sqrt()
        return -(torch.log(distance + EPSILON) * counted).sum() / counted.sum().clamp_min(1)


@torch.no_grad()
def says_the_same(vectors: Tensor, cosine: float) -> Tensor:
    """Which of L2-normalised `[n, dim]` have a higher cosine than this; bool `[n, n]`.

    Negatives that a model finds nearly equal are mostly no negatives (Solatorio 2024, "GISTEmbed",
    arXiv 2402.16829, section 3, with the trained model as its own guide).
    """
    with torch.autocast(vectors.device.type, enabled=False):
        unit = functional.normalize(_precise(vectors), dim=-1, eps=EPSILON)
        return unit @ unit.T > cosine


def contrastive(
    source: Tensor, target: Tensor, *, temperature: float, same: Tensor | None = None
) -> Tensor:
    """In-batch contrastive loss over L2-normalised `[n, dim]`, mean of both directions; a scalar.

    Each sentence must find its translation among the batch's (InfoNCE, van den Oord et al. 2018,
    arXiv 1807.03748, equation 4; both directions as in LaBSE, arXiv 2007.01852, section 2.2).
    same: bool `[n, n]`, True where two pairs share a text; those are no negatives.
    """
    with torch.autocast(source.device.type, enabled=False):
        s = functional.normalize(_precise(source), dim=-1, eps=EPSILON)
        t = functional.normalize(_precise(target), dim=-1, eps=EPSILON)
        score = s @ t.T / temperature  # [n, n]
        own = torch.arange(len(s), device=s.device)
        if same is not None:
            alone = torch.eye(len(s), dtype=torch.bool, device=s.device)
            score = score.masked_fill(same & ~alone, -torch.inf)
        forth = functional.cross_entropy(score, own)
        back = functional.cross_entropy(score.T, own)
        return (forth + back) / 2
