"""Losses of classifiers: of labels that may hold together, and of classes that exclude each other.

Targets are (B, 2, K): labels, and the weight of each. NaN in both marks what is not known; it gets no gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssmseq.nn.losses import Loss

LOSSES = ("cross_entropy", "focal", "asymmetric")
FOCUSING = {"focal": 2.0, "asymmetric": 4.0}  # the papers' exponents
MARGIN = 0.05  # by which the asymmetric loss shifts the probability of negatives


def label_losses(logits: Tensor, labels: Tensor, kind: str, focusing: float, positive_weights: Tensor | None) -> Tensor:
    r"""Return the loss of each label by itself.

    With :math:`p = \sigma(z)`, weight :math:`w` and exponent :math:`\gamma`,

    .. math::
        \text{cross entropy} &= -w y \log p - (1 - y) \log (1 - p) \\
        \text{focal} &= -w y (1 - p)^\gamma \log p - (1 - y) p^\gamma \log (1 - p) \\
        \text{asymmetric} &= -w y \log p - (1 - y) p_m^\gamma \log (1 - p_m), \quad p_m = \max(p - m, 0).

    Parameters
    ----------
    logits, labels : Tensor (B, K)
        Labels from 0 to 1.
    kind : {"cross_entropy", "focal", "asymmetric"}
    focusing : float
        The exponent.
    positive_weights : Tensor (K,) or None
        Weight of each label's positives.

    Returns
    -------
    Tensor (B, K)

    References
    ----------
    Lin et al., "Focal loss for dense object detection", arXiv 1708.02002; its balance is `positive_weights` here.
    Ridnik et al., "Asymmetric loss for multi-label classification", arXiv 2009.14119; m is 0.05, and positives have the
    exponent 0.
    """
    positive, negative = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    if kind == "focal":
        # Powers of probabilities by way of their logarithms, whose gradients stay finite.
        positive, negative = positive * torch.exp(-focusing * negative), negative * torch.exp(-focusing * positive)
    elif kind == "asymmetric":
        shifted = (torch.sigmoid(logits) - MARGIN).clamp(min=0)
        negative = -torch.log1p(-shifted) * shifted**focusing
    if positive_weights is not None:
        positive = positive * positive_weights
    return labels * positive + (1 - labels) * negative


def classification_loss(kind: str, *, exclusive: bool, focusing: float | None, positive_weights: Tensor | None) -> Loss:
    """Return a loss that maps logits (B, K) and targets (B, 2, K) to the weighted mean over the known labels.

    Parameters
    ----------
    kind : {"cross_entropy", "focal", "asymmetric"}
    exclusive : bool
        The K labels are classes, one of which holds: cross entropy of the softmax. `positive_weights` are then weights
        of the classes.
    focusing : float or None
        Exponent of the focal loss (2 by default) or of the asymmetric loss' negatives (4).
    positive_weights : Tensor (K,) or None

    Returns
    -------
    callable
    """
    exponent = FOCUSING.get(kind, 0.0) if focusing is None else focusing

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels, weights = targets.to(logits.dtype).unbind(1)
        known = ~labels.isnan()
        labels, weights = labels.masked_fill(~known, 0), weights.masked_fill(~known, 0)
        positive = None if positive_weights is None else positive_weights.to(logits)
        if exclusive:
            weighted = labels if positive is None else labels * positive
            each, count = -weighted * torch.log_softmax(logits, -1), known.any(-1).sum()
        else:
            each, count = label_losses(logits, labels, kind, exponent, positive), known.sum()
        return (weights * each).sum() / count.clamp(min=1)

    return loss
