"""`ssmseq dna`: its results against the Python interface, its files, its streams and its exit codes."""

import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from dna_networks import random_dna
from test_dna_tracks import small_model

import ssmseq
from ssmseq.cli import dna, dna_fit, main
from ssmseq.dna import Fasta
from ssmseq.dna.alphabet import reverse_complement
from ssmseq.dna.markov import MarkovBaseline, markov_table
from ssmseq.dna.tracks import stream_track, write_track

SIZES = {"d_model": 8, "n_layers": 1, "d_state": 4, "length": 64, "batch_size": 8, "max_epochs": 2, "random_state": 0}
SMALL = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
CONTIGS = {
    "c": random_dna(900, 1),
    "b": random_dna(400, 2, "AACG") + "NNR" + "acgt",
    "n": "NNN",
    "a": random_dna(300, 3),
}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("fasta") / "four.fa"
    path.write_text("".join(f">{name} and more\n{letters}\n" for name, letters in CONTIGS.items()))
    return str(path)


@pytest.fixture(scope="module")
def model(fasta, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("models") / "model")
    words = ["dna", "fit", fasta, "--save", folder, "--validation", "b,a", "--markov", "none", "--quiet"]
    assert main([*words, *SMALL, "--reverse_complement", "average"]) == 0
    return folder


@pytest.fixture
def fail(capsys):
    """Run a command that must fail; return its exit code and its one line on stderr."""

    def run(*argv):
        code = main(["dna", *map(str, argv)])
        out, err = capsys.readouterr()
        assert (out, err[:15], err.count("\n")) == ("", "ssmseq: error: ", 1)
        return code, err

    return run


def test_fit_equals_the_python_interface_and_names_the_markov_models(fasta, tmp_path, capsys):
    words = ["dna", "fit", fasta, "--save", str(tmp_path), "--validation", "b,a", "--markov", "0-2,4", *SMALL]
    assert main(words) == 0
    out, err = capsys.readouterr()
    direct = ssmseq.DNALanguageModel(**SIZES).fit(fasta, validation=["b", "a"])
    saved = ssmseq.load(tmp_path)
    assert saved.history_["valid_loss"].tolist() == direct.history_["valid_loss"].tolist()
    held_out, train = [CONTIGS["b"], CONTIGS["a"]], [CONTIGS["c"], CONTIGS["n"]]
    lines = dict(line.strip().rsplit(None, 1) for line in out.splitlines() if line.startswith("  "))
    assert lines["this model"] == f"{direct.bits_per_base(held_out):.4f}"
    table = markov_table(train, held_out, [0, 1, 2, 4])
    assert [lines[f"Markov, order {k}"] for k in (0, 1, 2, 4)] == [f"{bits:.4f}" for bits in table["bits_per_base"]]
    assert "903 letters to train on, 707 held out" in out
    assert "704 bases" in out
    assert "base/s" in err
    assert "epoch=2/2" in err
    assert saved.verbose == 0


def test_fit_on_regions_as_json(fasta, tmp_path, capsys):
    (tmp_path / "train.bed").write_text("c\t0\t600\nb\t100\t300\n")
    (tmp_path / "valid.bed").write_text("c\t600\t900\t.\t.\t-\nb\t0\t50\n")
    regions = ["--regions", str(tmp_path / "train.bed"), "--validation", str(tmp_path / "valid.bed")]
    words = ["dna", "fit", fasta, "--save", str(tmp_path / "m"), *regions, "--markov", "3", *SMALL, "--json", "--quiet"]
    words += ["--reverse_complement", "none"]  # so that Markov models count one strand too
    assert main([*words, "--max_epochs", "1"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert (document["letters"], document["epochs"]) == ({"train": 800, "validation": 350}, 1)
    held_out = [reverse_complement(CONTIGS["c"][600:]), CONTIGS["b"][:50]]
    found = document["validation"]
    assert found["bits_per_base"] == pytest.approx(ssmseq.load(tmp_path / "m").bits_per_base(held_out), abs=1e-6)
    markov = MarkovBaseline(order=3, both_strands=False).fit([CONTIGS["c"][:600], CONTIGS["b"][100:300]])
    assert found["markov"] == {"3": pytest.approx(markov.bits_per_base(held_out))}
    assert document["best_validation_loss"] > 1


def test_fit_takes_a_file_of_options_and_holds_nothing_out(fasta, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    lines = ["max_epochs: 7", "validation_fraction: 0", "length_schedule: [[0.0, 32], [0.5, 64]]", "quiet: true"]
    config.write_text("\n".join(lines))
    words = ["dna", "fit", fasta, "--save", str(tmp_path / "m"), *SMALL, "--config", str(config)]
    assert main(words) == 0
    out, _ = capsys.readouterr()
    saved = ssmseq.load(tmp_path / "m")
    assert (saved.max_epochs, saved.validation_fraction, len(saved.history_)) == (2, 0, 2)
    assert [list(stage) for stage in saved.length_schedule] == [[0.0, 32], [0.5, 64]]
    assert "0 held out" in out
    assert "Markov" not in out


def test_the_table_of_a_bidirectional_model_warns_of_itself(fasta, tmp_path, capsys):
    words = ["dna", "fit", fasta, "--save", str(tmp_path), "--validation", "a", "--markov", "1", *SMALL, "--quiet"]
    assert main([*words, "--bidirectional", "true", "--max_epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "do not compare" in out
    bits = ssmseq.load(tmp_path).bits_per_base([CONTIGS["a"]])
    assert f"this model           {bits:.4f}" in out


def test_an_interrupted_fit_saves_its_best_weights_and_goes_on(fasta, tmp_path, monkeypatch, capsys):
    from ssmseq.training import Callback

    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    words = ["dna", "fit", fasta, "--save", str(tmp_path), "--resume", "--markov", "none", *SMALL, "--max_epochs", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(dna_fit, "_bar", Interrupt)
        assert main([*words, "--json"]) == 130
    out, err = capsys.readouterr()
    assert (json.loads(out)["interrupted"], "keeps the best weights so far" in err) == (True, True)
    direct = ssmseq.DNALanguageModel(**{**SIZES, "max_epochs": 4}).fit(fasta)
    wanted = direct.history_["valid_loss"].tolist()
    assert ssmseq.load(tmp_path).history_["valid_loss"].tolist() == wanted[:2]
    assert main([*words, "--quiet"]) == 0
    assert ssmseq.load(tmp_path).history_["valid_loss"].tolist() == wanted


def test_scores_and_markov_columns(fasta, model, tmp_path, capsys):
    train = tmp_path / "train.fa"
    train.write_text(f">one\n{random_dna(3000, 9, 'AACG')}\n")
    assert main(["dna", "score", model, fasta, "--train", str(train), "--markov", "0,3"]) == 0
    out, err = capsys.readouterr()
    table, loaded = pd.read_csv(io.StringIO(out)), ssmseq.load(model)
    assert table["name"].tolist() == list(CONTIGS)
    assert table["length"].tolist() == [900, 407, 3, 300]
    assert table["bases"].tolist() == [900, 404, 0, 300]
    wanted = loaded.log_likelihood(list(CONTIGS.values()))
    np.testing.assert_allclose(table["log_likelihood"], wanted, rtol=1e-6, atol=1e-9)
    bits = [np.nan if letters == "NNN" else loaded.bits_per_base([letters]) for letters in CONTIGS.values()]
    np.testing.assert_allclose(table["bits_per_base"], bits, rtol=1e-6)
    for order in (0, 3):
        markov = MarkovBaseline(order=order).fit(str(train))
        wanted = [np.nan if letters == "NNN" else markov.bits_per_base([letters]) for letters in CONTIGS.values()]
        np.testing.assert_allclose(table[f"markov_{order}"], wanted, rtol=1e-6)
        assert f"markov_{order} {markov.bits_per_base(list(CONTIGS.values())):.4f}" in err
    assert f"all 1,604 bases: model {loaded.bits_per_base(list(CONTIGS.values())):.4f}" in err


@pytest.mark.parametrize("strands", ["forward", "average"])
def test_streamed_and_joint_scores_are_the_same(fasta, model, strands, monkeypatch, capsys):
    found = {}
    for at_once in (1 << 18, 350, 1):
        monkeypatch.setattr(dna, "BASES_AT_ONCE", at_once)
        assert main(["dna", "score", model, fasta, "--strands", strands, "--json", "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        found[at_once] = json.loads(out)
    for at_once in (350, 1):
        for mine, wanted in zip(found[at_once]["scores"], found[1 << 18]["scores"], strict=True):
            assert mine.keys() == wanted.keys()
            for key, value in wanted.items():
                assert mine[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    total = found[1]["total"]
    assert total["bases"] == 1604
    wanted = ssmseq.load(model).log_likelihood(list(CONTIGS.values()), strands=strands).sum()
    assert total["log_likelihood"] == pytest.approx(wanted, rel=1e-6)


def test_scores_into_a_file(fasta, model, tmp_path, capsys):
    assert main(["dna", "score", model, fasta, "--output", str(tmp_path / "x.csv"), "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["scores"], document["total"]["bases"]) == (None, 1604)
    assert pd.read_csv(tmp_path / "x.csv")["name"].tolist() == list(CONTIGS)


def test_embeddings_of_sequences(fasta, model, tmp_path, monkeypatch, capsys):
    names, loaded = ["c", "b", "n", "a"], ssmseq.load(model)
    wanted = loaded.embed(list(CONTIGS.values()), pooling="last")
    for at_once in (1 << 18, 500):
        monkeypatch.setattr("ssmseq.cli.dna_write.BASES_AT_ONCE", at_once)
        for name in ("x.npy", "x.csv"):
            words = ["dna", "embed", model, fasta, "--output", str(tmp_path / name), "--pooling", "last"]
            assert main([*words, "--quiet", "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["rows"] == 4
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), wanted, rtol=0, atol=2e-6)
        table = pd.read_csv(tmp_path / "x.csv", dtype={"contig": str})
        assert table["contig"].tolist() == names
        np.testing.assert_allclose(table.iloc[:, 3:], wanted, rtol=0, atol=2e-6)
    places = (tmp_path / "x.npy.bed").read_text().splitlines()
    assert places == [f"{name}\t0\t{len(CONTIGS[name])}" for name in names]


def test_embeddings_of_bins(fasta, model, tmp_path, capsys):
    words = ["dna", "embed", model, fasta, "--output", str(tmp_path / "x.npy"), "--bin_length", "128"]
    assert main([*words, "--contigs", "c", "a", "--strands", "forward"]) == 0
    assert "base/s" in capsys.readouterr().err
    per_base = ssmseq.load(model).embed([CONTIGS["c"], CONTIGS["a"]], per_base=True)
    wanted = [states[i : i + 128].mean(0) for states in per_base for i in range(0, len(states), 128)]
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), wanted, rtol=0, atol=5e-6)


def test_tracks(fasta, model, tmp_path, capsys):
    path, direct = tmp_path / "x.bedGraph", tmp_path / "y.bedGraph"
    words = ["dna", "tracks", model, fasta, "--output", str(path), "--kind", "entropy", "--resolution", "10"]
    assert main([*words, "--contigs", "b", "a", "--strands", "forward", "--json"]) == 0
    out, err = capsys.readouterr()
    options = {"kind": "entropy", "resolution": 10, "contigs": ["b", "a"], "strands": "forward"}
    n = write_track(ssmseq.load(model), fasta, direct, **options)
    assert path.read_text() == direct.read_text()
    assert (json.loads(out)["intervals"], n) == (41 + 30, 41 + 30)
    assert "base/s" in err
    ((_, values),) = stream_track(ssmseq.load(model), Fasta(fasta), "a", kind="entropy", strands="forward")
    last = [line.split("\t") for line in path.read_text().splitlines()][-1]
    assert last[:3] == ["a", "290", "300"]
    assert float(last[3]) == pytest.approx(values[290:].mean(), rel=1e-6)


def sequences_of(text: str) -> dict[str, str]:
    found = {}
    for record in text.split(">")[1:]:
        header, _, lines = record.partition("\n")
        assert all(len(line) <= 60 for line in lines.splitlines())
        found[header] = lines.replace("\n", "")
    return found


def test_samples_are_those_of_the_model(model, capsys):
    words = ["dna", "sample", model, "-n", "2", "--length", "130", "--seed", "3", "--prompt", "ACGT"]
    sampling = {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
    words += [word for name, value in sampling.items() for word in (f"--{name}", str(value))]
    assert main(words) == 0
    out, err = capsys.readouterr()
    wanted = ssmseq.load(model).sample(2, 130, prompt="ACGT", **sampling, random_state=3)
    assert (sequences_of(out), err) == (dict(zip(("sample_1", "sample_2"), wanted, strict=True)), "")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sequences"] == wanted


def test_samples_of_a_label(tmp_path, capsys, fail):
    labelled = ssmseq.DNALanguageModel(**{**SIZES, "validation_fraction": 0})
    labelled.fit(["ACAC" * 30, "GTGT" * 30] * 4, [7, 8] * 4).save(tmp_path)
    words = ["sample", str(tmp_path), "--length", "40", "--seed", "0"]
    found = []
    for label in ("7", "8"):
        assert main(["dna", *words, "--label", label]) == 0
        found.append(sequences_of(capsys.readouterr().out)[f"sample_1 label={label}"])
        assert found[-1] == labelled.sample(1, 40, label=int(label), random_state=0)[0]
    assert found[0] != found[1]
    code, err = fail(*words, "--label", "9")
    assert (code, "--label 9 is no label" in err, "it has 7, 8" in err) == (1, True, True)


@pytest.fixture(scope="module")
def vcf(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vcf") / "three.vcf"
    wrong = "A" if CONTIGS["a"][9] != "A" else "C"
    other = "A" if CONTIGS["c"][49] != "A" else "C"
    rows = [("c", 50, CONTIGS["c"][49], other), ("a", 10, wrong, "G" if wrong != "G" else "T")]
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    path.write_text("\n".join([*lines, *(f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t." for c, p, r, a in rows)]) + "\n")
    return str(path)


def test_options_reach_score_variants(fasta, model, vcf, tmp_path, monkeypatch, capsys):
    given = {}

    def score_variants(self, variants, genome, **options):
        given.update(options, variants=variants, contigs=list(genome.contigs))
        return pd.Series({"ok": 3, "ref_mismatch": 1})

    monkeypatch.setattr(ssmseq.DNALanguageModel, "score_variants", score_variants)
    words = ["dna", "variants", model, vcf, fasta, "--output", "x.tsv", "--reference", "flip", "--length", "33"]
    assert main([*words, "--strands", "forward", "--embeddings"]) == 0
    options = {"length": 33, "strands": "forward", "reference": "flip", "embeddings": True, "output": "x.tsv"}
    assert given == {"variants": vcf, "contigs": list(CONTIGS), **options}
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()] == [["ok", "3"], ["ref_mismatch", "1"]]
    assert err.startswith("4 alleles in ")
    assert main([*words, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["alleles"], err) == ({"ok": 3, "ref_mismatch": 1}, "")


def test_variants_for_real(fasta, model, vcf, tmp_path, fail, capsys):
    words = ["dna", "variants", model, vcf, fasta, "--output", str(tmp_path / "x.tsv"), "--length", "64"]
    code, err = fail(*words[1:], "--quiet")
    assert (code, "a" in err) == (1, True)
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--reference", "skip", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (sum(json.loads(out)["alleles"].values()), "2.00/2.00" in err) == (2, True)
    table = pd.read_csv(tmp_path / "x.tsv", sep="\t")
    loaded, letters = ssmseq.load(model), CONTIGS["c"]
    score = table["log_likelihood_ratio"].dropna().tolist()
    alt = "A" if letters[49] != "A" else "C"
    windows = [letters[17:81], letters[17:49] + alt + letters[50:81]]
    ref_score, alt_score = loaded.log_likelihood(windows)
    assert score == [pytest.approx(alt_score - ref_score, abs=1e-4)]


USAGE_ERRORS = [
    ("none", "invalid choice: 'none'"),
    ("score M", "required: FASTA"),
    ("score M F --markov 0-13 --train F", "up to 12; got '0-13'"),
    ("score M F --markov x --train F", "got 'x'"),
    ("fit F", "save"),
    ("fit F --save S --d_model x", "--d_model must be int, got 'x'"),
    ("fit F --save S --markov 13", "up to 12; got '13'"),
    ("fit F --save S --depth 3", "--depth"),
    ("embed M F --output x.txt", "--output must end in .npy, .csv or .parquet, got x.txt"),
    ("embed M F --output x.npy --bin_length 8 --pooling last", "leave --pooling out"),
    ("tracks M F", "required: --output"),
    ("tracks M F --output x.bw --kind gc", "invalid choice: 'gc'"),
    ("variants M V F --output x.vcf --reference maybe", "invalid choice: 'maybe'"),
    ("sample M -n x", "invalid int value: 'x'"),
]


@pytest.mark.parametrize(("line", "said"), USAGE_ERRORS)
def test_wrong_usage_is_exit_2(line, said, fail):
    code, err = fail(*line.split())
    assert (code, said in err) == (2, True), err


def test_missing_files_are_exit_3(fasta, model, tmp_path, fail):
    missing, save = tmp_path / "missing", tmp_path / "save"
    lines = [
        ("score", model, missing),
        ("score", missing, fasta),
        ("score", model, fasta, "--train", missing),
        ("fit", missing, "--save", save),
        ("fit", fasta, "--save", save, "--regions", missing),
        ("fit", fasta, "--save", save, "--validation", f"c,{missing}"),
        ("variants", model, missing, fasta, "--output", "x.vcf"),
    ]
    for line in lines:
        code, err = fail(*line)
        assert (code, str(missing) in err) == (3, True), err
    assert not save.exists()


def test_failures_are_exit_1(fasta, model, tmp_path, fail):
    protein = tmp_path / "protein.fa"
    protein.write_text(">one\nMKLVF\n")
    ssmseq.NaiveForecaster(horizon=1, lookback=2).fit(np.arange(9.0)[:, None]).save(tmp_path / "naive")
    bidirectional = ssmseq.DNALanguageModel(**SIZES, bidirectional=True).fit(["ACGT" * 20] * 4)
    bidirectional.save(tmp_path / "both")
    lines = [
        (("score", model, protein, "--quiet"), f"{protein}"),
        (("score", tmp_path / "naive", fasta), "NaiveForecaster: give the folder of a DNALanguageModel"),
        (("tracks", tmp_path / "both", fasta, "--output", tmp_path / "x.bg", "--quiet"), "bidirectional=False"),
        (("tracks", model, fasta, "--output", tmp_path / "x.bed"), "must end in .bedGraph"),
        (("tracks", model, fasta, "--output", tmp_path / "x.bg", "--contigs", "z"), "no contig 'z'"),
        (("embed", model, fasta, "--output", tmp_path / "no" / "x.npy", "--quiet"), "there is no folder"),
        (("sample", model, "--temperature", "-1"), "temperature must be a number at least 0"),
        (("fit", fasta, "--save", tmp_path / "s", "--n_layers", "0"), "n_layers must be an integer at least 1"),
    ]
    for line, said in lines:
        code, err = fail(*line)
        assert (code, said in err) == (1, True), err


def test_help_names_every_action(capsys):
    assert main(["dna", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in dna.ACTIONS)
    for name in dna.ACTIONS:
        assert main(["dna", name, "--help"]) == 0
        assert f"ssmseq dna {name}" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = "import sys; from ssmseq.cli import main; main(['dna', 'score', '--help']); print([m for m in ('torch', "
    code += "'pandas', 'lightning', 'matplotlib') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_part_on_the_other_strand_is_scored_as_its_reverse_complement(fasta):
    from ssmseq.dna.tracks import base_bar

    causal, parts = small_model(), [("c", 0, 900, "-"), ("c", 100, 300, "+")]
    wanted = causal.log_likelihood([reverse_complement(CONTIGS["c"]), CONTIGS["c"][100:300]])
    with base_bar(1100, False) as bar:
        found = list(dna.score_parts(causal, Fasta(fasta), parts, "forward", bar))
    np.testing.assert_allclose([score.log_likelihood for score in found], wanted, rtol=1e-6)
    assert [score.bases for score in found] == [900, 200]
