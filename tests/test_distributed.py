"""Two processes on a CPU (DDP, gloo) train as one does with a batch as large as both of theirs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssmseq import load
from ssmseq.datasets import make_transformer_load
from ssmseq.sampling import EpochSampler, PartSampler

FORECAST = "fit SMambaForecaster data.csv --horizon 8 --lookback 16 --d_model 8 --d_ff 8 --max_epochs 2 --dropout 0"
DNA = """
import sys
import numpy as np
from ssmseq import DNALanguageModel
strings = ["".join(np.random.default_rng(i).choice(list("ACGT"), 300)) for i in range(5)]
model = DNALanguageModel(d_model=8, n_layers=1, d_state=4, length=32, max_epochs=2, random_state=0, accelerator="cpu",
                         batch_size=int(sys.argv[2]), devices=int(sys.argv[3]), strategy=sys.argv[4])
model.fit(strings)
from lightning.pytorch.utilities.rank_zero import rank_zero_only
rank_zero_only(model.save)(sys.argv[1])
"""


def run(command: list, folder: Path, processes: int) -> None:
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    done = subprocess.run(
        [*launcher, *command], cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr


def same_history(one, two, rtol: float) -> None:
    for name in ("train_loss", "valid_loss", "learning_rate"):
        np.testing.assert_allclose(one.history_[name], two.history_[name], rtol=rtol)


def test_a_forecaster_under_torchrun(tmp_path):
    make_transformer_load(150).to_csv(tmp_path / "data.csv")
    common = ["ssmseq", *FORECAST.split(), "--random_state", "0", "--accelerator", "cpu"]
    run([*common, "--batch_size", "16", "--save", "one"], tmp_path, 1)
    two = ["--batch_size", "8", "--save", "two", "--devices", "2", "--strategy", "ddp", "--checkpoint_folder", "states"]
    run([*common, *two], tmp_path, 2)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    same_history(one, two, 1e-5)
    np.testing.assert_allclose(one.predict().iloc[:, 1:], two.predict().iloc[:, 1:], rtol=1e-5, atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {"data.csv", "one", "two", "states"}
    assert {p.name for p in (tmp_path / "two").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.slow
def test_a_language_model_whose_windows_are_drawn_by_epoch(tmp_path):
    (tmp_path / "dna_fit.py").write_text(DNA)
    run(["dna_fit", "one", "8", "1", "auto"], tmp_path, 1)
    run(["dna_fit", "two", "4", "2", "ddp"], tmp_path, 2)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    same_history(one, two, 1e-4)  # windows cut short weigh more where they share a step with fewer others
    X = ["ACGTTGCA" * 5]
    np.testing.assert_allclose(one.log_likelihood(X), two.log_likelihood(X), rtol=1e-4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_processes_share_one_order(world_size):
    whole = EpochSampler(23, 5, numbers_epochs=True)
    whole.set_epoch(2)
    order, parts = list(whole), []
    for rank in range(world_size):
        sampler = EpochSampler(23, 5, numbers_epochs=True)
        sampler.share(rank, world_size)
        sampler.set_epoch(2)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1]) == 23 // world_size
    assert np.array(parts).T.ravel().tolist() == order[: 23 // world_size * world_size]


@pytest.mark.parametrize(("size", "world_size"), [(9, 2), (2, 2), (1, 3), (0, 1)])
def test_validation_windows_are_scored_once(size, world_size):
    parts = []
    for rank in range(world_size):
        sampler = PartSampler(size)
        sampler.share(rank, world_size)
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
    if size >= world_size:
        assert sorted(i for part in parts for i in part) == list(range(size))
    else:
        assert parts == [list(range(size))] * world_size  # a mean of the same windows, in all processes
