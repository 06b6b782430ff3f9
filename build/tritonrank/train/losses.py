"""Losses over lists of candidates."""

import torch
from torch.nn import functional


def list_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean loss over lists.

    Args:
        logits, labels: (lists, candidates); a label above 0 is a positive.
        kind: ``listwise`` is the softmax cross-entropy of ListNet's top-one model (Cao et al. 2007) with the labels
            normalized to sum 1; ``pairwise`` is RankNet's logistic loss over positive-negative pairs (Burges et al.
            2005); ``binary`` is the cross-entropy of each candidate alone.
    """
    labels = labels.to(logits.dtype)
    if kind == "listwise":
        targets = labels / labels.sum(dim=1, keepdim=True).clamp(min=1)
        return functional.cross_entropy(logits, targets)
    if kind == "binary":
        return functional.binary_cross_entropy_with_logits(logits, labels)
    pairs = (labels[:, :, None] > labels[:, None, :]).to(logits.dtype)
    losses = functional.softplus(logits[:, None, :] - logits[:, :, None]) * pairs
    return losses.sum() / pairs.sum().clamp(min=1)


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
