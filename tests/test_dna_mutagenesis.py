import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from dna_cases import reverse_complement, write_fasta
from dna_networks import CPU, random_dna, small_network
from dna_variant_cases import BOTH_WAYS, CLOSE, ready
from sklearn.exceptions import NotFittedError

from ssmseq import DNAClassifier, DNALanguageModel, DNARegressor, MutagenesisDisplay
from ssmseq.dna import likelihood
from ssmseq.dna.alphabet import MASK, encode
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.mutagenesis import causal_ratios

SEQUENCE = random_dna(17, 1) + "N" + random_dna(12, 2).lower() + random_dna(10, 3)
MOTIF = "TTGACA"


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


def mutants(sequence: str, start: int, end: int) -> list[tuple[int, str, str]]:
    places = [i for i in range(start, end) if sequence[i].upper() in "ACGT"]
    return [(i, b, sequence[:i] + b + sequence[i + 1 :]) for i in places for b in "ACGT" if b != sequence[i].upper()]


def rows_of(display: MutagenesisDisplay) -> dict[tuple[int, str], float]:
    frame = display.frame()
    found = {(row.position - 1, row.alt): row.log_likelihood_ratio for row in frame.itertuples()}
    assert len(found) == len(frame)
    return found


@pytest.mark.parametrize(
    ("kind", "at_once", "chunk_length"),
    [("mamba", 1, 7), ("mamba", 100, 3), ("mamba", 1 << 16, 1000), ("mamba2", 300, 13), ("hybrid", 1 << 16, 20)],
)
def test_ratios_are_those_of_whole_mutants(monkeypatch, kind, at_once, chunk_length):
    model = ready(kind, chunk_length=chunk_length)
    wanted = mutants(SEQUENCE, 0, len(SEQUENCE))
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", at_once)
    found = rows_of(model.mutagenesis(SEQUENCE, after=len(SEQUENCE)))
    assert set(found) == {(i, b) for i, b, _ in wanted}
    monkeypatch.undo()
    whole = model.log_likelihood([x for *_, x in wanted]) - model.log_likelihood([SEQUENCE])
    np.testing.assert_allclose([found[i, b] for i, b, _ in wanted], whole, **CLOSE)
    assert abs(whole).max() > 0.1


@pytest.mark.parametrize(
    ("kind", "after", "context"),
    [("mamba", 0, 0), ("mamba", 1, 4), ("mamba", 50, 2), ("mamba2", 6, 13), ("hybrid", 3, 5)],
)
def test_a_region_with_context_on_both_strands(tmp_path, kind, after, context):
    """Each place counts with what lies between the beginning of the context and the last letter that counts."""
    fasta = Fasta(write_fasta(tmp_path / "g.fa", {"a": "ACGT", "b": SEQUENCE}))
    start, end, model = 9, 20, ready(kind)
    display = model.mutagenesis(fasta, "b", start, end, after=after, context=context, strands="average")
    found = rows_of(display)
    other, n = reverse_complement(SEQUENCE), len(SEQUENCE)
    for i, base, _ in mutants(SEQUENCE, start, end):
        ratios = []
        for letters, place, first, alt in (
            (SEQUENCE, i, start, base),
            (other, n - 1 - i, n - end, reverse_complement(base)),
        ):
            low, high = max(first - context, 0), place + after + 1
            one, two = letters[low:high], letters[low:place] + alt + letters[place + 1 : high]
            ratios.append(np.subtract(*model.log_likelihood([two, one])))
        np.testing.assert_allclose(found[i, base], np.mean(ratios), **CLOSE)
    assert (display.reference, display.start, display.contig) == (SEQUENCE[start:end], start, "b")
    again = rows_of(model.mutagenesis(fasta.path, "b", start, end, after=after, context=context, strands="average"))
    assert again == found


def test_context_and_what_follows_are_half_a_window_by_default():
    model, sequence = ready("mamba", length=9), random_dna(60, 4)
    found = rows_of(model.mutagenesis(sequence, start=20, end=30))
    assert found == rows_of(model.mutagenesis(sequence, start=20, end=30, after=5, context=5))
    assert found != rows_of(model.mutagenesis(sequence, start=20, end=30, after=5, context=4))
    assert found != rows_of(model.mutagenesis(sequence, start=20, end=30, after=4, context=5))


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_models_that_read_both_ways_compare_bases_behind_a_mask(monkeypatch, kind):
    model, start, end = ready(kind), 9, 22
    whole = rows_of(model.mutagenesis(SEQUENCE, start=start, end=end, after=8, context=6, strands="average"))
    monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", 60)
    found = rows_of(model.mutagenesis(SEQUENCE, start=start, end=end, after=8, context=6, strands="average"))
    for i, base, _ in mutants(SEQUENCE, start, end):
        ratios = []
        for before, behind, turn in ((6, 8, str), (8, 6, reverse_complement)):
            letters = SEQUENCE[start - before : end + behind]
            tokens = encode(turn(letters)).astype(np.int64)
            place = i - start + before if turn is str else end + behind - 1 - i
            tokens[place] = MASK
            with torch.inference_mode():
                log_p = model.network_(torch.from_numpy(tokens)[None])[0, place].double().log_softmax(-1)
            own, new = (encode(turn(letter))[0] - 7 for letter in (SEQUENCE[i], base))
            ratios.append(float(log_p[new] - log_p[own]))
        np.testing.assert_allclose(found[i, base], np.mean(ratios), **CLOSE)
        np.testing.assert_allclose(found[i, base], whole[i, base], **CLOSE)


def test_it_agrees_with_the_scores_of_variants(tmp_path):
    """Of a place in the middle of the window, with as much on either side."""
    sequence = random_dna(80, 9)
    fasta = Fasta(write_fasta(tmp_path / "g.fa", {"c": sequence}))
    for kind in ("mamba2", "caduceus"):
        model = ready(kind)
        display = model.mutagenesis(fasta, "c", 40, 41, after=14, context=15, strands="forward")
        variants = display.frame().rename(columns={"position": "pos"}).assign(chrom="c")
        found = model.score_variants(variants, fasta, length=30, strands="forward")
        np.testing.assert_allclose(found["log_likelihood_ratio"], display.frame()["log_likelihood_ratio"], **CLOSE)


def test_the_region_is_walked_once():
    network, n, after = small_network("mamba"), 40, 6
    tokens, counts = encode(random_dna(100)), []
    network.core.embedding.register_forward_hook(lambda module, inputs, output: counts.append(inputs[0].numel()))
    with torch.inference_mode():
        causal_ratios(network, tokens, 30, n, after=after, chunk_length=1000, device=CPU)
    once = len(tokens)  # what the letters themselves have; then again up to the last place, with copies on the way
    assert sum(counts) == once + 30 + n + 3 * n * after
    assert sum(counts) < 4 * n * (30 + after) / 3


def test_frame_and_means():
    display = ready("mamba").mutagenesis("acNgu")
    frame = display.frame()
    assert frame.columns.tolist() == ["position", "ref", "alt", "log_likelihood_ratio"]
    assert frame["position"].tolist() == [1] * 3 + [2] * 3 + [4] * 3 + [5] * 3
    assert "".join(frame["ref"]) == "AAACCCGGGTTT"
    assert "".join(frame["alt"]) == "CGTAGTACTACG"
    means = frame.groupby("position")["log_likelihood_ratio"].mean()
    np.testing.assert_allclose(display.mean_changes, [means[1], means[2], np.nan, means[4], means[5]], rtol=1e-12)
    assert display.changes.shape == (5, 4)
    assert np.isnan(display.changes[2]).all()
    assert display.changes[0, 0] == 0


def test_a_plot_shows_the_numbers():
    rng = np.random.default_rng(0)
    reference, changes = "ACGTNACGTA", rng.normal(size=(10, 4))
    own = encode(reference).astype(int) - 7
    changes[4] = np.nan
    changes[np.arange(10)[own < 4], own[own < 4]] = 0
    display = MutagenesisDisplay(changes=changes, reference=reference, start=99, contig="chr1")
    assert display.plot() is display
    display.figure_.canvas.draw()
    ends = display.mean_ax_.get_tightbbox(), display.figure_.bbox
    assert ends[0].y1 <= ends[1].y1  # the title is not cut off
    (image,) = display.ax_.images
    shown = image.get_array()
    assert (shown.mask == (np.isnan(changes) | (np.arange(4) == own[:, None])).T).all()
    np.testing.assert_array_equal(shown.T[~shown.T.mask], changes[~shown.mask.T])
    most = np.nanmax(abs(changes))
    assert image.get_clim() == (-most, most)
    red, blue = image.cmap(image.norm(most)), image.cmap(image.norm(-most))
    assert red[0] > red[2] and blue[2] > blue[0]  # noqa: PT018
    assert image.get_extent() == [99.5, 109.5, 3.5, -0.5]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == list("ACGT")
    assert [text.get_text() for text in display.ax_.texts] == list(reference)
    assert [text.get_position()[0] for text in display.ax_.texts] == list(range(100, 110))
    assert display.ax_.get_xlabel() == "position in chr1"
    assert all(tick == int(tick) for tick in display.ax_.get_xticks())
    bars = {round(bar.get_x() + 0.5): bar.get_height() for bar in display.mean_ax_.patches}
    assert set(bars) == set(range(100, 110)) - {104}
    assert all(bars[100 + i] == pytest.approx(display.mean_changes[i]) for i in range(10) if i != 4)
    assert display.mean_ax_.get_xlim() == display.ax_.get_xlim()


def test_letters_are_left_out_where_they_cannot_be_read():
    wide = MutagenesisDisplay(changes=np.zeros((300, 4)), reference="A" * 300).plot()
    assert not wide.ax_.texts
    _, ax = plt.subplots(figsize=(6, 3))
    given = MutagenesisDisplay(changes=np.zeros((3, 4)), reference="ACG", label="yes", quantity="change").plot(ax=ax)
    assert given.ax_ is ax
    given.figure_.canvas.draw()
    boxes = [axes.get_window_extent() for axes in (given.ax_, given.mean_ax_)]
    assert boxes[0].y1 < boxes[1].y0
    assert boxes[1].y1 <= given.figure_.bbox.y1
    assert len(ax.texts) == 3
    assert "change of yes" in given.mean_ax_.get_title(loc="left")


def test_what_cannot_be_mutated(tmp_path):
    model, path = ready("mamba"), write_fasta(tmp_path / "g.fa", {"a": "ACGTACGT"})
    for arguments, change, error, message in [
        ((str(path),), {}, ValueError, "to read a FASTA file, name its contig"),
        ((path,), {}, ValueError, "no contig None: its contigs are a"),
        ((path, "b"), {}, ValueError, "no contig 'b'"),
        ((3,), {}, TypeError, "is needed, got int"),
        (("ACGT",), {"start": 3, "end": 3}, ValueError, "start=3 to end=3 is empty"),
        (("ACGT",), {"end": 5}, ValueError, "end must be an integer at least 0 and at most 4"),
        ((path, "a", -1), {}, ValueError, "start must be"),
        (("ACGT",), {"after": -1}, ValueError, "after must be"),
        (("ACGT",), {"context": 1.5}, ValueError, "context must be"),
        (("ACGT",), {"strands": "both"}, ValueError, "strands must be one of"),
    ]:
        with pytest.raises(error, match=message):
            model.mutagenesis(*arguments, **change)
    with pytest.raises(NotFittedError):
        DNALanguageModel().mutagenesis("ACGT")


def test_progress_is_shown_if_asked_for(capsys):
    ready("hybrid").mutagenesis("ACGTACGT")
    assert capsys.readouterr() == ("", "")
    ready("hybrid", verbose=1).mutagenesis("ACGTACGT")
    assert "8/8" in capsys.readouterr().err


# Fine-tuned estimators ------------------------------------------------------------------------------------------------

BASE = {"d_model": 16, "n_layers": 1, "d_state": 4}
QUICK = {"max_epochs": 1, "random_state": 0, "batch_size": 16, "accelerator": "cpu"}


def labelled(n: int, length: int = 40, n_classes: int = 2, seed: int = 0):
    """Sequences of which one class has a motif somewhere, and the places of it."""
    rng = np.random.default_rng(seed)
    y, places = np.arange(n) % n_classes, rng.integers(0, length - len(MOTIF), n)
    X = [random_dna(length, 1000 * seed + i).replace(MOTIF, "A" * 6) for i in range(n)]
    X = [x[:k] + MOTIF + x[k + len(MOTIF) :] if label == 1 else x for x, label, k in zip(X, y, places, strict=True)]
    return X, y, places


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_log_odds_of_a_class_are_compared(n_classes):
    X, y, _ = labelled(36, n_classes=n_classes)
    names = np.array(["no", "yes", "other"])[y]
    model = DNAClassifier(language_model=DNALanguageModel(**BASE), **QUICK).fit(X, names)
    sequence = X[1][:12].lower() + "N" + X[1][13:]
    wanted = mutants(sequence, 0, len(sequence))
    p = model.predict_proba([sequence, *(x for *_, x in wanted)])
    for label in (None, "yes", "no"):
        column = p[0].argmax() if label is None else model.classes_.tolist().index(label)
        odds = np.log(p[:, column] / (1 - p[:, column]))
        display = model.mutagenesis(sequence, label=label)
        frame = display.frame()
        assert display.label == model.classes_[column]
        assert [*zip(frame["position"] - 1, frame["alt"], strict=True)] == [(i, b) for i, b, _ in wanted]
        np.testing.assert_allclose(frame["change_of_the_log_odds"], odds[1:] - odds[0], rtol=1e-4, atol=1e-5)
    assert display.plot().mean_ax_.get_title(loc="left").startswith("change of the log-odds of no")
    if n_classes == 2:
        change = model.decision_function([x for *_, x in wanted]) - model.decision_function([sequence])
        np.testing.assert_allclose(frame["change_of_the_log_odds"], -change, atol=1e-5)
    with pytest.raises(ValueError, match="label must be one of 'no'"):
        model.mutagenesis(sequence, label="none")
    with pytest.raises(ValueError, match=r"X\[0\] is empty"):
        model.mutagenesis("")
    with pytest.raises(TypeError, match="sequence must be a string of DNA, got list"):
        model.mutagenesis([sequence])


def test_the_prediction_of_a_regressor_is_compared(monkeypatch):
    X, y, _ = labelled(20)
    model = DNARegressor(language_model=DNALanguageModel(**BASE), **QUICK).fit(X, 100 + 7.0 * y)
    wanted = mutants(X[0], 0, len(X[0]))
    change = model.predict([x for *_, x in wanted]) - model.predict(X[:1])
    monkeypatch.setattr("ssmseq.dna.mutagenesis.MUTANTS_AT_ONCE", 11)
    frame = model.mutagenesis(X[0]).frame()
    np.testing.assert_allclose(frame["change_of_the_prediction"], change, atol=1e-4)
    with pytest.raises(ValueError, match="label='yes' is of a classifier"):
        model.mutagenesis(X[0], label="yes")


def test_a_planted_motif_is_found_again():
    X, y, _ = labelled(600)
    base = DNALanguageModel(d_model=32, n_layers=1)
    options = {**QUICK, "max_epochs": 15, "pooling": "max", "learning_rate": 5e-3}
    model = DNAClassifier(language_model=base, **options).fit(X, y)
    unseen, _, places = labelled(60, seed=1)
    hits, n = 0, 0
    for sequence, place in list(zip(unseen, places, strict=True))[1::2]:
        if model.predict([sequence])[0] == 1:
            means = model.mutagenesis(sequence, label=1).mean_changes
            top = np.argsort(means)[: len(MOTIF)]  # what lowers the log-odds most
            hits += sum(place <= i < place + len(MOTIF) for i in top)
            n += len(top)
    assert n >= 20 * len(MOTIF)
    assert hits / n >= 0.9
