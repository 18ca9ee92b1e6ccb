"""Losses of the classifier of electrocardiograms against their definitions, and its crops against what they are of."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from ssmseq.ecg.losses import classification_loss
from ssmseq.ecg.training_data import Crops, mixup_share, read_augmentations, window_starts
from ssmseq.sampling import EpochSampler


def label_loss(kind: str, z: float, y: float, weight: float, focusing: float) -> float:
    """The definitions, for one logit."""
    p = 1 / (1 + np.exp(-z))
    if kind == "focal":
        return -weight * y * (1 - p) ** focusing * np.log(p) - (1 - y) * p**focusing * np.log(1 - p)
    if kind == "asymmetric":
        m = max(p - 0.05, 0)
        return -weight * y * np.log(p) - (1 - y) * m**focusing * np.log(1 - m)
    return -weight * y * np.log(p) - (1 - y) * np.log(1 - p)


def unknowing_pair():
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(7, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 2, (7, 3), generator=generator).double()
    labels[0] = torch.tensor([0.25, 0.5, 1.0])  # mixed
    weights = torch.rand(7, 1, generator=generator).expand(7, 3).double()
    labels[2, 1] = labels[5] = torch.nan
    return logits, torch.stack([labels, weights.where(~labels.isnan(), torch.nan)], 1)


@pytest.mark.parametrize("positive", [None, [0.5, 1.0, 20.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("kind", "focusing", "default"), [("cross_entropy", 0, 0), ("focal", 1.5, 2), ("asymmetric", 2.5, 4)]
)
def test_losses_are_means_of_the_definition_over_known_labels(kind, focusing, default, positive):
    logits, targets = unknowing_pair()
    tensor = None if positive is None else torch.tensor(positive)
    for given, used in ((focusing, focusing), (None, default)):
        loss = classification_loss(kind, exclusive=False, focusing=given, positive_weights=tensor)
        found = [
            targets[i, 1, k].item()
            * label_loss(kind, logits[i, k].item(), targets[i, 0, k].item(), (positive or [1] * 3)[k], used)
            for i in range(7)
            for k in range(3)
            if not targets[i, 0, k].isnan()
        ]
        assert loss(logits, targets).item() == pytest.approx(np.mean(found), rel=1e-12)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "asymmetric"])
def test_unknown_labels_get_no_gradient_and_known_ones_the_right_one(kind):
    logits, targets = unknowing_pair()
    loss = classification_loss(kind, exclusive=False, focusing=None, positive_weights=None)
    loss(logits, targets).backward()
    assert (logits.grad[targets[:, 0].isnan()] == 0).all()
    assert (logits.grad[~targets[:, 0].isnan()] != 0).all()
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits)
    assert loss(logits[5:6], targets[5:6]).item() == 0  # nothing is known


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "asymmetric"])
def test_losses_and_gradients_stay_finite_far_out(kind):
    logits = torch.tensor([[-300.0, 300.0, -300.0, 300.0]], requires_grad=True)
    targets = torch.tensor([[[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
    loss = classification_loss(kind, exclusive=False, focusing=0.5, positive_weights=None)
    loss(logits, targets).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 2:] != 0).any()


def test_classes_have_the_cross_entropy_of_their_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 4, (9,), generator=generator)
    weights = torch.rand(9, generator=generator).double()
    targets = torch.stack([F.one_hot(classes, 4).double(), weights[:, None].expand(9, 4)], 1)
    loss = classification_loss("cross_entropy", exclusive=True, focusing=None, positive_weights=None)
    truth = log_loss(
        classes.numpy(),
        torch.softmax(logits, 1).numpy(),
        labels=range(4),
        sample_weight=weights.numpy(),
        normalize=False,
    )
    assert loss(logits, targets).item() == pytest.approx(truth / 9, rel=1e-12)
    by_class = torch.tensor([1.0, 2.0, 0.5, 4.0])
    weighted = classification_loss("cross_entropy", exclusive=True, focusing=None, positive_weights=by_class)
    expected = F.cross_entropy(logits, classes, by_class.double(), reduction="none") @ weights / 9
    assert weighted(logits, targets).item() == pytest.approx(expected.item(), rel=1e-12)


def crops(n: int = 6, length: int = 50, n_times: int = 20, **changes) -> Crops:
    rng = np.random.default_rng(0)
    signals = [rng.normal(size=(2, length + i)).astype(np.float32) for i in range(n)]
    targets = np.stack([np.eye(n), np.ones((n, n))], 1)
    settings = {"n_times": n_times, "mean": 0.3, "scale": 2.0, "dtype": np.float64, "sampling_rate": 10.0}
    settings |= {"augmentations": {}, "max_epochs": 8, "seed": 5}
    masks = np.ones((n, 2), bool)
    return Crops(signals, masks, None, targets, **settings | changes)


def test_crops_are_pieces_of_the_normalised_recording_and_differ_between_epochs():
    data = crops()
    starts = set()
    for epoch in range(40):
        inputs, targets = data.__getitems__([epoch * len(data) + 2])
        whole = (data.signals[2].astype(np.float64) - 0.3) / 2
        views = np.lib.stride_tricks.sliding_window_view(whole, 20, axis=1)
        (start,) = np.flatnonzero((views == inputs["signal"][0].numpy()[:, None]).all((0, 2)))
        starts.add(start)
        assert inputs["n_valid"].item() == 20
        assert targets[0, 0].tolist() == np.eye(6)[2].tolist()
    assert len(starts) > 15
    assert min(starts) <= 3
    assert max(starts) >= 52 - 20 - 3


def test_what_is_drawn_depends_on_seed_epoch_and_recording_alone():
    strengths = read_augmentations(["time_shift", "noise", "baseline_wander", "lead_dropout", "mixup"])
    data = crops(augmentations=strengths)
    together, _ = data.__getitems__(range(30))
    for i in (29, 3, 17):
        alone, _ = crops(augmentations=strengths).__getitems__([i])
        assert (alone["signal"][0] == together["signal"][i]).all()
    assert (crops(augmentations=strengths, seed=6).__getitems__([3])[0]["signal"] != together["signal"][3]).any()
    assert (together["signal"][3] != together["signal"][3 + 6]).any()


def test_samplers_number_the_epochs_for_data_that_draw():
    sampler, plain = EpochSampler(7, 0, numbers_epochs=True), EpochSampler(7, 0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        plain.set_epoch(epoch)
        found = list(sampler)
        assert [i - 7 * epoch for i in found] == list(plain)
        assert sorted(found) == list(range(7 * epoch, 7 * epoch + 7))


def test_short_recordings_and_masked_leads_become_zeros():
    data = crops(n_times=60)
    data.masks[1, 0] = False
    inputs, _ = data.__getitems__([0, 1])
    assert inputs["n_valid"].tolist() == [50, 51]
    assert (inputs["signal"][0, :, 50:] == 0).all()
    assert (inputs["signal"][0, :, :50] != 0).all()
    assert (inputs["signal"][1, 0] == 0).all()
    assert inputs["lead_mask"].tolist() == [[1, 1], [0, 1]]


def test_windows_cover_each_recording_once():
    assert window_starts([50, 20, 7], 20, 20) == [(0, 0), (0, 20), (0, 30), (1, 0), (2, 0)]
    assert window_starts([50], 20, 10) == [(0, 0), (0, 10), (0, 20), (0, 30)]
    data = crops(starts=[(3, 30), (1, 0)])
    inputs, targets = data.__getitems__([0, 1])
    whole = (data.signals[3].astype(np.float64) - 0.3) / 2
    np.testing.assert_array_equal(inputs["signal"][0], whole[:, 30:50])
    assert targets[:, 0].argmax(1).tolist() == [3, 1]
    assert len(data) == 2
    assert not data.numbers_epochs
    data.masks[3, 1] = False
    masked = data.__getitems__([0])[0]["signal"]
    np.testing.assert_array_equal(masked[0, 0], whole[0, 30:50])
    assert (masked[0, 1] == 0).all()


def test_the_share_of_mixed_crops_rises_to_the_published_one():
    shares = [mixup_share(0.8, epoch, 8) for epoch in range(8)]
    np.testing.assert_allclose(shares, [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])
    assert mixup_share(0.8, 0, 1) == 0.2
    n = 400
    data = crops(n=n, augmentations={"mixup": 0.8})
    for epoch, share in ((0, 0.2), (7, 0.8)):
        _, targets = data.__getitems__(range(epoch * n, epoch * n + n))
        mixed = ((targets[:, 0] > 0) & (targets[:, 0] < 1)).any(1).float().mean()
        assert mixed == pytest.approx(share, abs=0.07)


def test_mixing_gives_signals_labels_and_weights_the_same_shares():
    data = crops(mean=0.0, scale=1.0, augmentations={"mixup": 1.0}, max_epochs=4)
    data.signals = [np.full_like(s, 10.0**i) for i, s in enumerate(data.signals)]
    data.targets[:, 1] = np.arange(1, 7)[:, None]
    last = range(18, 24)
    inputs, targets = data.__getitems__(last)
    shares = targets[:, 0].numpy()
    np.testing.assert_allclose(inputs["signal"][:, 0, 0], shares @ 10.0 ** np.arange(6))
    np.testing.assert_allclose(targets[:, 1, 0], shares @ np.arange(1.0, 7.0))
    mixed = (shares > 0).sum(1) == 2
    assert mixed.sum() >= 3
    data.targets[:, 0, 5] = np.where(np.arange(6) == shares[mixed][0].argmax(), np.nan, 0)
    assert data.__getitems__(last)[1][np.flatnonzero(mixed)[0], 0, 5].isnan()


def test_augmentations_have_the_strength_they_are_given():
    still = {"length": 4000, "n_times": 4000, "mean": 0.0, "scale": 1.0}
    plain = crops(**still).__getitems__([0])[0]["signal"][0].numpy()
    noise = crops(**still, augmentations={"noise": 0.5}).__getitems__([0])[0]["signal"][0].numpy() - plain
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    data = crops(n=200, **still, augmentations={"baseline_wander": 0.5})
    bare = crops(n=200, **still)
    found = [(d.__getitems__(range(200))[0]["signal"].numpy()) for d in (data, bare)]
    wander = found[0] - found[1]
    assert wander.std() == pytest.approx(0.5, rel=0.15)
    power = np.abs(np.fft.rfft(wander, axis=-1)) ** 2
    frequencies = np.fft.rfftfreq(4000, 0.1)[power.argmax(-1)]
    assert frequencies.min() >= 0.04
    assert frequencies.max() <= 0.51


def test_what_is_padded_and_masked_stays_zero_under_noise():
    data = crops(n_times=60, augmentations={"noise": 0.5, "baseline_wander": 0.5})
    data.masks[0, 1] = False
    signal = data.__getitems__([0])[0]["signal"][0]
    assert (signal[0, :50] != 0).all()
    assert (signal[0, 50:] == 0).all()
    assert (signal[1] == 0).all()


def test_dropped_leads_are_masked_and_one_always_stays():
    data = crops(n=500, augmentations={"lead_dropout": 0.6})
    inputs, _ = data.__getitems__(range(500))
    mask = inputs["lead_mask"].bool()
    assert mask.any(1).all()
    assert (inputs["signal"].abs().amax(2) > 0).equal(mask)
    # Both stay with 0.16, and with 0.36, because none would.
    assert mask.all(1).float().mean() == pytest.approx(0.52, abs=0.07)


def test_time_shifts_pad_with_zeros_and_keep_half_in_view():
    data = crops(n=300, length=20, n_times=20, augmentations={"time_shift": 5.0})
    inputs, _ = data.__getitems__(range(300))
    there = (inputs["signal"] != 0).all(1)
    first = there.float().argmax(1)
    assert set(first.tolist()) >= {0, 1, 5, 10}
    assert there.sum(1).min() >= 9
    for i in range(0, 300, 29):
        end = int(inputs["n_valid"][i])
        assert there[i, first[i] : end].all()
        assert not there[i, end:].any()


@pytest.mark.parametrize(
    ("augment", "match"),
    [("noise", "list of names"), (["shift"], "'shift'"), ({"mixup": 2}, "mixup.*at most 1"), ({"noise": -1}, "noise")],
)
def test_impossible_augmentations_are_named(augment, match):
    with pytest.raises(ValueError, match=match):
        read_augmentations(augment)
    assert read_augmentations(None) == {}
    assert read_augmentations({"noise": 0.2}) == {"noise": 0.2}
    assert read_augmentations(("mixup",)) == {"mixup": 0.8}
