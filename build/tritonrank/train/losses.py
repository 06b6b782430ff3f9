"""Losses over lists of candidates."""

import torch
from torch.nn import functional


def list_loss(
    logits: torch.Tensor, labels: torch.Tensor, kind: str, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean loss over lists.

    Args:
        logits, labels: (lists, candidates); a label is a gain g: 0 for a negative, 1 or its weight for a positive.
        weights: (lists, candidates), what a positive counts beside its gain, such as the inverse of the propensity with
            which its position is looked at: its terms below are multiplied by it (for pairs that of the better one,
            Joachims, Swaminathan & Schnabel 2017; for the softmax Ai et al. 2018). None: 1 each.
        kind: of the losses below. With one positive of gain 1 per list, each is the usual one for binary labels.

    ``listwise``: softmax cross-entropy (ListNet's top-one model, Cao et al. 2007; with binary labels bounded by NDCG,
    Bruch et al. 2019). A positive counts by its gain: sum over lists and candidates of -g log softmax(logits), over
    the sum of g.

    ``pairwise``: RankNet's logistic loss (Burges et al. 2005) over the pairs whose gains differ, each weighted by how
    much they do, as LambdaRank weighs them by the change of the gain (Burges 2010): sum of (g_i - g_j) softplus(s_j -
    s_i) where g_i > g_j, over the sum of the weights.

    ``binary``: cross-entropy of each candidate alone against positive or not; a positive weighs its gain, a negative 1,
    as confidences do in implicit feedback (Hu, Koren & Volinsky 2008).
    """
    labels = labels.to(logits.dtype)
    counted = labels if weights is None else labels * weights.to(logits.dtype)
    if kind == "listwise":
        return functional.cross_entropy(logits, counted / _or_one(counted.sum(dim=1).mean()))
    if kind == "binary":
        positive = (labels > 0).to(logits.dtype)
        each = torch.where(labels > 0, counted, positive.new_ones(()))
        return functional.binary_cross_entropy_with_logits(logits, positive, each / each.mean())
    pairs = (labels[:, :, None] - labels[:, None, :]).clamp(min=0)
    if weights is not None:
        pairs = pairs * weights.to(logits.dtype)[:, :, None]
    losses = functional.softplus(logits[:, None, :] - logits[:, :, None]) * pairs
    return losses.sum() / _or_one(pairs.sum())


def _or_one(total: torch.Tensor) -> torch.Tensor:
    """What to divide by: nothing where there is nothing to weigh."""
    return torch.where(total > 0, total, torch.ones_like(total))


def distillation_loss(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """How far the student's ranking distribution is from the teacher's: listwise soft labels.

    Cross-entropy of the softmax over each list, less the teacher's own entropy (so 0 when they agree), which is
    the distillation of Hinton et al. 2015 at temperature 1.

    Args:
        logits, teacher_logits: (lists, candidates).
    """
    teacher = functional.log_softmax(teacher_logits.to(logits.dtype), dim=1)
    student = functional.log_softmax(logits, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def disagreement(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How far two readings of the same lists differ: the mean of both Kullback-Leibler divergences between the softmax
    over each list (R-Drop, Liang et al. 2021), 0 where they agree.

    Args:
        first, second: (lists, candidates), logits; gradients go through both.
    """
    one, other = functional.log_softmax(first, dim=1), functional.log_softmax(second, dim=1)
    forth = functional.kl_div(one, other, reduction="batchmean", log_target=True)
    back = functional.kl_div(other, one, reduction="batchmean", log_target=True)
    return (forth + back) / 2
