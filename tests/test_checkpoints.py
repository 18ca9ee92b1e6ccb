"""Parts of resuming: orders of windows, fingerprints, and what is refused before any training."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

import ssmseq.training
from ssmseq import checkpoints
from ssmseq.forecasting.windows import Windows
from ssmseq.sampling import EpochSampler, mixed_seed


def keeping(est, folder):
    est.checkpoint_folder = folder
    return est


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    def order(seed, *epochs):
        sampler = EpochSampler(50, seed)
        for epoch in epochs:
            sampler.set_epoch(epoch)
            found = list(sampler)
        return found

    assert sorted(order(0, 3)) == list(range(50))
    assert order(0, 0, 1, 2, 3) == order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert len({mixed_seed(seed, epoch, rank) for seed in range(9) for epoch in range(9) for rank in (1, 2)}) == 162


def test_a_warm_start_from_other_weights_is_another_run(small, waves, tmp_path):
    folder = tmp_path / "warm"
    torch.manual_seed(0)
    networks = [torch.nn.Linear(8, 4) for _ in range(2)]
    windows = Windows(waves.to_numpy(), n_targets=3, lookback=8, horizon=4)
    for warm, refused in ((False, False), (True, True)):
        est = keeping(small(), folder)
        est.warm_start = warm
        prints = [checkpoints.fingerprint(est, network, windows, None, 0) for network in networks]
        assert (prints[0] != prints[1]) == refused
        assert prints[0] == checkpoints.fingerprint(est, networks[0], windows, None, 0)


def test_large_tensors_are_known_by_blocks_spread_over_them(monkeypatch):
    monkeypatch.setattr(checkpoints, "HASHED_WHOLE", 4096)
    monkeypatch.setattr(checkpoints, "BLOCK", 512)
    values = torch.arange(100_000, dtype=torch.float32)
    whole = checkpoints._checksum({"x": values})
    for place, seen in ((0, True), (99_999, True), (14_300, True), (500, False)):
        other = values.clone()
        other[place] += 0.5
        assert (checkpoints._checksum({"x": other}) != whole) == seen, place
    assert checkpoints._checksum({"x": values.numpy()}) == whole
    with pytest.raises(TypeError, match="holds no tensor"):
        checkpoints._checksum({"x": [1, 2]})


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(
    small, waves, tmp_path, no_training, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"checkpoint_folder='.*file.*' cannot be written to \(.+\); set it to"):
            keeping(small(), folder).fit(waves)
    with pytest.raises(TypeError, match="checkpoint_folder must be a path or None, got 3"):
        keeping(small(), 3).fit(waves)

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write anywhere
    with pytest.raises(ValueError, match=r"cannot be written to \(Permission denied\)"):
        keeping(small(), tmp_path / "closed").fit(waves)


def test_a_callback_whose_state_cannot_be_kept_is_refused(small, waves, tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"self": self}

    with pytest.raises(TypeError, match="cannot keep the state of the callback .*Odd, only.*leave out the callback"):
        keeping(small(callbacks=[Odd()]), tmp_path).fit(waves)
    assert not list(tmp_path.iterdir())


def test_a_strategy_that_splits_the_network_is_refused():
    keeper = ssmseq.training._Keeper(None, {}, None, None)
    with pytest.raises(ValueError, match="which SimpleNamespace does not promise: set strategy='ddp'"):
        keeper.on_fit_start(SimpleNamespace(strategy=SimpleNamespace()), None)
