from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from dna_networks import random_dna
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ssmseq import DNALanguageModel, load
from ssmseq.datasets import make_markov_sequence
from ssmseq.dna.alphabet import reverse_complement

TINY = {"d_model": 16, "n_layers": 2, "d_state": 4, "length": 64, "batch_size": 4, "head_dim": 8}
TINY |= {"max_epochs": 2, "random_state": 0, "accelerator": "cpu"}
ARCHITECTURES = {
    "mamba": {},
    "mamba2": {"architecture": "mamba2"},
    "hybrid": {"architecture": "hybrid", "attention_period": 2, "attention_offset": 1},
    "average": {"reverse_complement": "average"},
    "equivariant": {"bidirectional": True, "reverse_complement": "equivariant"},
    "hydra": {"architecture": "mamba2", "bidirectional": True},
}


def strings(n: int = 6, length: int = 300) -> list[str]:
    return [random_dna(length + i, i) for i in range(n)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def fitted(request):
    return DNALanguageModel(**TINY, **ARCHITECTURES[request.param]).fit(strings())


def test_a_saved_model_gives_the_same(fitted, tmp_path):
    again = load(fitted.save(tmp_path) and tmp_path)
    X = ["ACGTNNACG", random_dna(200), "A"]
    assert (again.log_likelihood(X) == fitted.log_likelihood(X)).all()
    assert (again.transform(X) == fitted.transform(X)).all()
    assert again.get_params() == fitted.get_params()
    pd.testing.assert_frame_equal(again.history_, fitted.history_)


def test_scores_add_up_and_depend_on_no_batch(fitted):
    X = [random_dna(length, length, "ACGTN") for length in (1, 2, 30, 64, 131)]
    found, terms = fitted.log_likelihood(X), fitted.log_likelihood(X, per_base=True)
    for x, value, parts in zip(X, found, terms, strict=True):
        assert parts.shape == (len(x),)
        assert (np.isnan(parts) == (np.array(list(x)) == "N")).all()
        assert value == pytest.approx(np.nansum(parts))
        assert fitted.log_likelihood([x])[0] == pytest.approx(value, abs=2e-5)
    bases = sum(len(x) - x.count("N") for x in X)
    assert fitted.bits_per_base(X) == pytest.approx(-found.sum() / bases / np.log(2))
    assert fitted.perplexity(X) == pytest.approx(2 ** fitted.bits_per_base(X))
    assert fitted.score(X) == -fitted.bits_per_base(X)


def test_lower_case_and_u_are_read_as_the_bases(fitted):
    x = random_dna(50)
    same = fitted.log_likelihood([x, x.lower(), x.replace("T", "U")])
    np.testing.assert_allclose(same, same[0], atol=1e-5)


def test_both_strands_score_alike_when_averaged(fitted):
    X = [random_dna(length, length, "ACGTN") for length in (1, 30, 131)]
    others = [reverse_complement(x) for x in X]
    np.testing.assert_allclose(
        fitted.log_likelihood(X, strands="average"), fitted.log_likelihood(others, strands="average"), atol=2e-5
    )
    one, other = (fitted.log_likelihood(x, per_base=True, strands="average") for x in (X, others))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b[::-1], atol=2e-5)
    np.testing.assert_allclose(fitted.embed(X, strands="average"), fitted.embed(others, strands="average"), atol=1e-5)
    averages = fitted.reverse_complement in ("average", "equivariant")
    default = fitted.log_likelihood(X)
    assert (default == fitted.log_likelihood(X, strands="average" if averages else "forward")).all()


def test_embeddings_have_names_and_may_be_of_each_base(fitted):
    X = [random_dna(20), random_dna(33)]
    assert fitted.transform(X).shape == (2, fitted.n_features_out_) == (2, 16)
    assert fitted.get_feature_names_out()[:2].tolist() == ["dnalanguagemodel0", "dnalanguagemodel1"]
    per_base = fitted.embed(X, per_base=True)
    assert [len(x) for x in per_base] == [20, 33]
    columns = 32 if fitted.reverse_complement == "equivariant" else 16
    assert per_base[0].shape[1] == fitted.embed(X, strands="forward").shape[1] == columns


def test_equivariant_embeddings_turn_around_exactly():
    model = DNALanguageModel(**TINY, **ARCHITECTURES["equivariant"], precision="64-true").fit(strings())
    x = random_dna(40, 3)
    (one,), (other,) = (model.embed([s], per_base=True) for s in (x, reverse_complement(x)))
    np.testing.assert_allclose(one, other[::-1, ::-1], atol=1e-6)


def test_a_known_source_is_learnt():
    """Each base follows from the one before it, but for one in ten: the entropy is known."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> str:
        out = [0]
        for random in rng.random(n):
            out.append((out[-1] * 3 + 1) % 4 if random < 0.9 else int(rng.integers(4)))
        return "".join("ACGT"[i] for i in out[1:])

    q = 0.9 + 0.1 / 4
    entropy = -(q * np.log2(q) + 3 * 0.025 * np.log2(0.025))
    model = DNALanguageModel(**{**TINY, "max_epochs": 12, "reverse_complement": "none", "batch_size": 16})
    model.fit([draw(20_000)], validation=[draw(4_000)])
    bits = model.bits_per_base([draw(8_000)])
    assert entropy - 0.03 < bits < entropy + 0.03
    assert model.history_["valid_loss"].min() == pytest.approx(bits, abs=0.05)
    (sequence,) = model.sample(1, 6000, random_state=0)
    tokens = np.array(["ACGT".index(x) for x in sequence])
    assert (tokens[1:] == (tokens[:-1] * 3 + 1) % 4).mean() == pytest.approx(q, abs=0.02)


def test_labels_tell_sources_apart():
    X, y = ["AC" * 60, "GT" * 60] * 8, ["left", "right"] * 8
    model = DNALanguageModel(**{**TINY, "max_epochs": 10, "reverse_complement": "none"}).fit(X, y)
    assert model.classes_.tolist() == ["left", "right"]
    assert set(model.sample(1, 50, label="left", temperature=0)[0]) == {"A", "C"}
    assert set(model.sample(1, 50, label="right", temperature=0)[0]) == {"G", "T"}
    right, wrong = (model.log_likelihood(["ACACAC", "GTGTGT"], labels=labels) for labels in (y[:2], y[1:3]))
    assert (right > wrong + 1).all()
    with pytest.raises(ValueError, match="'middle' is not one that fit was given: left, right"):
        model.sample(label="middle")
    with pytest.raises(ValueError, match="one label, or one for each of the 2"):
        model.log_likelihood(["A", "C"], labels=["left"])


def test_samples_of_a_label_have_the_words_of_its_source():
    sources = [make_markov_sequence(2, 24_000, random_state=seed)[0] for seed in (1, 2)]
    X = [source[i : i + 120] for i in range(0, 16_000, 120) for source in sources]
    y = ["one", "two"] * (len(X) // 2)
    sizes = {**TINY, "length": 128, "max_epochs": 15, "batch_size": 8, "learning_rate": 0.01}
    model = DNALanguageModel(**{**sizes, "reverse_complement": "none"}).fit(X, y)

    def shares(sequences):
        counts = CountVectorizer(
            analyzer="char", ngram_range=(3, 3), vocabulary=list(map("".join, product("acgt", repeat=3)))
        )
        found = np.asarray(counts.fit_transform(sequences).sum(0))[0]
        return found / found.sum()

    truth = [shares([source[16_000:]]) for source in sources]  # of the part that was not trained on
    apart = np.abs(truth[0] - truth[1]).sum() / 2
    assert apart > 0.3
    for label, own, other in zip(("one", "two"), truth, truth[::-1], strict=True):
        drawn = shares(model.sample(80, 100, label=label, random_state=0))
        distance = np.abs(drawn - own).sum() / 2  # total variation: the share of words that are out of place
        assert distance < 0.1
        assert np.abs(drawn - other).sum() / 2 > apart - 0.1


def test_samples_repeat_and_go_on_from_the_prompt():
    model = DNALanguageModel(**TINY).fit(strings())
    first = model.sample(3, 40, prompt="ACCGT", random_state=1, top_k=3, top_p=0.95, temperature=0.8)
    assert first == model.sample(3, 40, prompt="ACCGT", random_state=1, top_k=3, top_p=0.95, temperature=0.8)
    assert [len(x) for x in first] == [40] * 3
    assert len(set(first)) == 3
    assert set("".join(first)) <= set("ACGT")
    state = torch.get_rng_state()
    model.sample(1, 5)
    assert torch.equal(state, torch.get_rng_state())


def test_runs_repeat_and_resume(tmp_path):
    options = {**TINY, "max_epochs": 4, "reverse_complement": "augment", "length_schedule": [(0, 16), (0.5, 64)]}
    whole = DNALanguageModel(**options).fit(strings())
    assert whole.score(strings()) == DNALanguageModel(**options).fit(strings()).score(strings())

    class Stop(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class Interruption(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise Stop

    options["checkpoint_folder"] = tmp_path
    with pytest.raises(Stop):
        DNALanguageModel(**options, callbacks=[Interruption()]).fit(strings())
    resumed = DNALanguageModel(**options).fit(strings())
    assert resumed.score(strings()) == whole.score(strings())
    pd.testing.assert_frame_equal(
        resumed.history_.drop(columns="seconds"), whole.history_.drop(columns="seconds"), check_exact=True
    )


def test_the_rate_rises_and_falls_by_steps():
    rates = []
    from lightning.pytorch.callbacks import Callback

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = DNALanguageModel(**{**TINY, "max_epochs": 5, "learning_rate": 1e-2}, callbacks=[Watch()])
    model.fit(strings())
    steps = len(rates)
    rising = round(0.1 * steps)
    assert np.argmax(rates) in (rising - 1, rising)
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(1e-2 / rising)
    middle = rising + (steps - rising) // 2
    assert rates[middle] == pytest.approx(1e-2 * 0.55, rel=0.1)
    assert rates[-1] == pytest.approx(1e-3, rel=0.1)


def test_in_a_pipeline_and_cloned():
    model = DNALanguageModel(**{**TINY, "max_epochs": 1})
    assert clone(model).get_params() == model.get_params()
    X, y = strings(12, 60), [0, 1] * 6
    pipe = make_pipeline(model, LogisticRegression()).fit(pd.Series(X), y)
    assert pipe.predict(X).shape == (12,)
    frame = clone(model).set_output(transform="pandas").fit(X).transform(X)
    assert frame.shape == (12, 16)


def test_fasta_with_regions(tmp_path):
    path = tmp_path / "genome.fa"
    contigs = {"one": random_dna(900, 1), "two": random_dna(400, 2), "three": random_dna(200, 3)}
    path.write_text("".join(f">{name} text\n{sequence}\n" for name, sequence in contigs.items()))
    (tmp_path / "part.bed").write_text("one\t100\t500\nthree\t0\t200\n")
    model = DNALanguageModel(**TINY).fit(path, regions=tmp_path / "part.bed", validation=["three"])
    assert len(model.history_) == 2
    np.testing.assert_allclose(model.log_likelihood(path), model.log_likelihood(list(contigs.values())), atol=1e-4)
    assert np.isfinite(DNALanguageModel(**TINY).fit(str(path)).score(path))
    with pytest.raises(ValueError, match="y labels strings"):
        DNALanguageModel(**TINY).fit(path, y=[0, 1, 2])
    with pytest.raises(FileNotFoundError, match="no FASTA file"):
        DNALanguageModel(**TINY).fit(tmp_path / "none.fa")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "lstm"}, "architecture must be one of"),
        ({"reverse_complement": "equivariant"}, "set bidirectional=True"),
        ({"architecture": "hybrid", "attention_offset": 2}, "no attention layer"),
        ({"attention_offset": 8}, "attention_offset"),
        ({"length": 0}, "length must be"),
        ({"length_schedule": [(0, 5)]}, "does not divide"),
        ({"mask_fraction": 1.0}, "mask_fraction"),
        ({"gradient_clip": 0}, "gradient_clip"),
        ({"lr_schedule": "linear"}, "lr_schedule must be one of"),
        ({"pooling": "median"}, "pooling must be one of"),
    ],
)
def test_parameters_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=message):
        DNALanguageModel(**{**TINY, **change}).fit(strings())


def test_data_that_cannot_work():
    model = DNALanguageModel(**TINY)
    for X, message in [
        (["ACGT!", "A"], "'!' at position 5"),
        (["NNNN", "NN"], "has a window"),
        (["ACGT"], "give valid"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(X)
    with pytest.raises(TypeError, match=r"X\[1\] must be a string"):
        model.fit(["A", 3])
    with pytest.raises(ValueError, match="regions are of a FASTA"):
        model.fit(strings(), regions="x.bed")
    with pytest.raises(ValueError, match="one label for each of the 6"):
        model.fit(strings(), y=[1])
    model.fit(strings())
    with pytest.raises(ValueError, match=r"X\[1\] is empty"):
        model.transform(["A", ""])
    with pytest.raises(ValueError, match="no A, C, G or T"):
        model.bits_per_base(["NN"])
    assert model.log_likelihood(["", "N"]).tolist() == [0, 0]
    both = DNALanguageModel(**TINY, bidirectional=True).fit(strings())
    with pytest.raises(ValueError, match="bidirectional=False to sample"):
        both.sample()
