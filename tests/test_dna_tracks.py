"""Tracks and embeddings of whole contigs: against log_likelihood and embed, and by readers of other libraries."""

import gzip
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dna_networks import random_dna, small_network

from ssmseq import DNALanguageModel
from ssmseq.dna import Fasta, tracks
from ssmseq.dna.alphabet import reverse_complement
from ssmseq.dna.streaming import KINDS
from ssmseq.dna.tracks import (
    index_path,
    stream_embeddings,
    stream_log_probabilities,
    stream_track,
    write_embeddings,
    write_track,
)

# "b" begins and ends with letters that are no bases, and the order is not that of the alphabet.
CONTIGS = {
    "c": random_dna(130, 1),
    "b": "NN" + random_dna(61, 2) + "RNNN" + random_dna(30, 3).lower() + "N",
    "empty": "",
    "a": random_dna(7, 4),
    "gap": "N" * 20,
}


def small_model(kind: str = "mamba", *, strands: str = "none", chunk_length: int = 16) -> DNALanguageModel:
    model = DNALanguageModel(reverse_complement=strands, chunk_length=chunk_length, accelerator="cpu", d_model=16)
    model.network_, model.classes_ = small_network(kind), np.array([])
    model.n_features_out_ = 16
    return model


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Fasta:
    path = tmp_path_factory.mktemp("fasta") / "five.fa"
    path.write_text("".join(f">{name}\n{letters}\n" for name, letters in CONTIGS.items()))
    return Fasta(path)


def joined(stream, length: int, *, chunk_length: int | None = None) -> np.ndarray:
    """Put the chunks together, each where it says that it belongs."""
    found, covered = np.full(length, np.inf), 0
    for place, values in stream:
        assert place == covered
        assert chunk_length is None or len(values) == min(chunk_length, length - place)
        found[place : place + len(values)] = values
        covered += len(values)
    assert covered == length
    return found


@pytest.mark.parametrize("strands", ["forward", "average"])
@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hybrid"])
def test_streamed_log_probabilities_are_those_of_whole_sequences(fasta, kind, strands):
    model = small_model(kind)
    for name, letters in CONTIGS.items():
        (wanted,) = model.log_likelihood([letters], per_base=True, strands=strands)
        found = joined(stream_log_probabilities(model, fasta, name, strands=strands), len(letters), chunk_length=16)
        if strands == "forward":
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


def test_strands_are_averaged_as_the_model_says(fasta):
    both = joined(stream_log_probabilities(small_model(strands="average"), fasta, "c"), 130)
    one = joined(stream_log_probabilities(small_model(), fasta, "c"), 130)
    average = joined(stream_log_probabilities(small_model(), fasta, "c", strands="average"), 130)
    np.testing.assert_array_equal(both, average)
    assert abs(both - one).max() > 1e-3


@pytest.mark.parametrize("strands", ["forward", "average"])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(fasta, kind, strands):
    wanted = None
    for chunk_length in (1000, 64, 13, 1):
        model = small_model(chunk_length=chunk_length)
        found = joined(stream_track(model, fasta, "b", kind=kind, strands=strands), len(CONTIGS["b"]))
        wanted = found if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_a_part_is_read_as_if_there_were_nothing_else(fasta):
    model = small_model()
    for start, end in ((0, 130), (40, 97), (129, 130), (50, 50)):
        for strands in ("forward", "average"):
            stream = list(stream_log_probabilities(model, fasta, "c", start, end, strands=strands))
            (wanted,) = model.log_likelihood([CONTIGS["c"][start:end]], per_base=True, strands=strands)
            found = np.concatenate([np.empty(0), *(values for _, values in stream)])
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
            assert [place for place, _ in stream] == list(range(start, end, 16))


def predicted(model, letters: str) -> np.ndarray:
    """The distribution (L, 4) of each letter, from the likelihoods of four sequences that end in each base."""
    rows = []
    for i in range(len(letters)):
        four = model.log_likelihood([letters[:i] + base for base in "ACGT"], per_base=True, strands="forward")
        rows.append([np.exp(values[-1]) for values in four])
    return np.array(rows)


def test_bits_and_entropies(fasta):
    model, letters = small_model(), CONTIGS["b"]
    known = np.array([letter in "ACGTacgt" for letter in letters])
    (nats,) = model.log_likelihood([letters], per_base=True)
    found = joined(stream_track(model, fasta, "b", kind="bits"), len(letters))
    np.testing.assert_allclose(found, -nats / np.log(2), rtol=0, atol=1e-12)
    p, q = predicted(model, letters), predicted(model, reverse_complement(letters))[::-1]
    np.testing.assert_allclose(p.sum(1), 1)
    one, other = (-(x * np.log2(x)).sum(1) for x in (p, q))
    entropies = joined(stream_track(model, fasta, "b", kind="entropy"), len(letters))
    np.testing.assert_allclose(entropies, np.where(known, one, np.nan), rtol=0, atol=2e-6)
    # Both strands' entropies are of the same base, not of its two neighbours.
    entropies = joined(stream_track(model, fasta, "b", kind="entropy", strands="average"), len(letters))
    np.testing.assert_allclose(entropies, np.where(known, (one + other) / 2, np.nan), rtol=0, atol=2e-6)


def test_what_cannot_be_streamed_is_said_at_once(fasta, tmp_path):
    model = small_model()
    with pytest.raises(ValueError, match=r"no contig 'z'.*its contigs are c, b"):
        stream_log_probabilities(model, fasta, "z")
    with pytest.raises(ValueError, match="c:5-131 is no part"):
        stream_embeddings(model, fasta, "c", 5, 131)
    with pytest.raises(ValueError, match="kind must be one of 'log_likelihood', 'bits', 'entropy', got 'gc'"):
        stream_track(model, fasta, "c", kind="gc")
    with pytest.raises(ValueError, match="bin_length must be an integer at least 1"):
        stream_embeddings(model, fasta, "c", bin_length=0)
    with pytest.raises(ValueError, match="bidirectional=False"):
        stream_track(small_model().set_params(bidirectional=True), fasta, "c")
    with pytest.raises(ValueError, match="not fitted"):
        stream_track(DNALanguageModel(), fasta, "c")


def test_a_full_disk_is_named_with_a_remedy(fasta, monkeypatch):
    class Full:
        def seek(self, place):
            pass

        def write(self, content):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    with pytest.raises(OSError, match=r'No space left.*TMPDIR.*strands="forward"'):
        list(stream_log_probabilities(small_model(), fasta, "c", strands="average"))


# Files ----------------------------------------------------------------------------------------------------------------


def wanted_values(model, name: str, *, strands: str | None = None) -> np.ndarray:
    (values,) = model.log_likelihood([CONTIGS[name]], per_base=True, strands=strands)
    return values


def read_bedgraph(path: Path) -> dict[str, list[tuple[int, int, np.float32]]]:
    rows = (gzip.open if path.suffix == ".gz" else open)(path, "rt").read().splitlines()
    found: dict = {}
    for contig, start, end, value in (row.split("\t") for row in rows):
        found.setdefault(contig, []).append((int(start), int(end), np.float32(value)))
    return found


def read_wig(path: Path) -> dict[str, list[tuple[int, int, np.float32]]]:
    found: dict = {}
    for line in (gzip.open if path.suffix == ".gz" else open)(path, "rt"):
        if line.startswith("fixedStep"):
            fields = dict(word.split("=") for word in line.split()[1:])
            place, step, span = int(fields["start"]) - 1, int(fields["step"]), int(fields["span"])
        else:
            found.setdefault(fields["chrom"], []).append((place, place + span, np.float32(line)))
            place += step
    return found


def read_bigwig(path: Path) -> dict[str, list[tuple[int, int, np.float32]]]:
    file = pytest.importorskip("pyBigWig").open(str(path))
    assert list(file.chroms()) == sorted(file.chroms())
    found = {name: [(a, b, np.float32(v)) for a, b, v in file.intervals(name) or []] for name in file.chroms()}
    return {name: rows for name, rows in found.items() if rows}


READERS = {"x.bedGraph": read_bedgraph, "x.bg.gz": read_bedgraph, "x.wig": read_wig, "x.wig.gz": read_wig}
READERS |= {"x.bw": read_bigwig, "x.bigWig": read_bigwig}


@pytest.mark.parametrize("name", READERS)
def test_tracks_hold_every_base_at_its_place(fasta, tmp_path, name):
    model, path = small_model(), tmp_path / name
    n = model.track(fasta, path, strands="average")
    found = READERS[name](path)
    if name.startswith("x.b") and "g" in name[3:4]:
        assert list(found) == ["c", "b", "a"]  # the order of the FASTA; contigs without a base have no interval
    for contig in ("a", "b", "c"):
        values = joined(stream_log_probabilities(model, fasta, contig, strands="average"), len(CONTIGS[contig]))
        np.testing.assert_allclose(values, wanted_values(model, contig, strands="average"), rtol=0, atol=2e-6)
        rows = [(i, i + 1, np.float32(value)) for i, value in enumerate(values) if not np.isnan(value)]
        assert found[contig] == rows
    assert set(found) == {"a", "b", "c"}
    assert n == sum(map(len, found.values())) == 130 + 7 + 91
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("resolution", [3, 10, 16, 50, 1000])
@pytest.mark.parametrize("name", ["x.bedGraph", "x.wig", "x.bw"])
def test_intervals_hold_means_of_their_bases(fasta, tmp_path, name, resolution):
    model, path = small_model(), tmp_path / name
    write_track(model, fasta, path, resolution=resolution, kind="bits")
    found = READERS[name](path)
    for contig in ("a", "b", "c"):
        size, rows = len(CONTIGS[contig]), []
        bits = -wanted_values(model, contig) / np.log(2)
        for start in range(0, size, resolution):
            if not np.isnan(part := bits[start : start + resolution]).all():
                rows.append((start, min(start + resolution, size), np.nanmean(part)))
        assert [row[:2] for row in found[contig]] == [row[:2] for row in rows]
        np.testing.assert_allclose([row[2] for row in found[contig]], [row[2] for row in rows], rtol=1e-6)


def test_a_packed_track_is_the_same_every_time(fasta, tmp_path):
    contents = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        write_track(small_model(), fasta, tmp_path / str(i) / f"{i}.bg.gz", contigs=["a", "c"])
        contents.append((tmp_path / str(i) / f"{i}.bg.gz").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0][4:8] == bytes(4)  # no time of writing
    assert set(read_bedgraph(tmp_path / "0" / "0.bg.gz")) == {"a", "c"}


def test_a_track_that_fails_leaves_the_earlier_file(fasta, tmp_path, monkeypatch):
    path = tmp_path / "x.bg"
    path.write_text("earlier")
    chunks = iter([(0, np.zeros(16))])

    def broken(*args, **kwargs):
        yield next(chunks)
        raise RuntimeError("the model broke")

    monkeypatch.setattr(tracks, "stream_track", broken)
    with pytest.raises(RuntimeError, match="the model broke"):
        write_track(small_model(), fasta, path)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_and_contigs_that_cannot_be(fasta, tmp_path, monkeypatch):
    model = small_model()
    for name in ("x.bed", "x.bw.gz", "x"):
        with pytest.raises(ValueError, match=r"must end in \.bedGraph"):
            write_track(model, fasta, tmp_path / name)
    with pytest.raises(ValueError, match=r"must end in \.npy, \.csv, \.parquet"):
        write_embeddings(model, fasta, tmp_path / "x.txt")
    with pytest.raises(ValueError, match=r"write \['c'\]"):
        write_track(model, fasta, tmp_path / "x.bg", contigs="c")
    with pytest.raises(ValueError, match="no contig 'z'"):
        write_track(model, fasta, tmp_path / "x.bg", contigs=["c", "z"])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_track(model, fasta, tmp_path / "none" / "x.bg")
    with pytest.raises(ValueError, match="resolution must be an integer at least 1"):
        write_track(model, fasta, tmp_path / "x.bg", resolution=0)
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    with pytest.raises(ImportError, match=r"x\.bw.*pip install 'ssmseq\[dna\]'"):
        write_track(model, fasta, tmp_path / "x.bw")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"x\.parquet.*pip install pyarrow"):
        write_embeddings(model, fasta, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_bar_counts_the_bases_of_both_strands(fasta, tmp_path, capsys, monkeypatch):
    counted = []
    for strands in ("forward", "average"):
        list(stream_track(small_model(), fasta, "c", strands=strands, advance=counted.append))
        assert sum(counted) == {"forward": 130, "average": 260}[strands]
        counted.clear()
    small_model().track(fasta, tmp_path / "x.bg")
    assert capsys.readouterr().err == ""
    small_model().set_params(verbose=1).track(fasta, tmp_path / "x.bg", contigs=["c"], strands="average")
    assert "260/260" in (err := capsys.readouterr().err)
    assert "base/s" in err


# Embeddings -----------------------------------------------------------------------------------------------------------


def wanted_embeddings(model, name: str, bin_length: int, *, average: bool) -> np.ndarray:
    letters = CONTIGS[name]
    (states,) = model.embed([letters], per_base=True)
    if average:
        states = (states + model.embed([reverse_complement(letters)], per_base=True)[0][::-1]) / 2
    return np.array([states[i : i + bin_length].mean(0) for i in range(0, len(letters), bin_length)])


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("bin_length", [1, 5, 16, 48, 50, 1000])
def test_streamed_embeddings_are_means_of_the_states(fasta, bin_length, average):
    model = small_model()
    for name in ("a", "b", "c"):
        places, found = [], []
        strands = "average" if average else "forward"
        for place, rows in stream_embeddings(model, fasta, name, bin_length=bin_length, strands=strands):
            assert rows.dtype == np.float32
            places += [place + i * bin_length for i in range(len(rows))]
            found.append(rows)
        assert places == list(range(0, len(CONTIGS[name]), bin_length))
        wanted = wanted_embeddings(model, name, bin_length, average=average)
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=0, atol=5e-6)


def test_one_bin_is_the_embedding_of_the_contig(fasta):
    model = small_model("mamba2")
    for strands in ("forward", "average"):
        ((place, found),) = stream_embeddings(model, fasta, "c", bin_length=130, strands=strands)
        assert place == 0
        wanted = model.embed([CONTIGS["c"]], pooling="mean", strands=strands)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)


def test_embeddings_of_a_part(fasta):
    model = small_model()
    for strands in ("forward", "average"):
        stream = list(stream_embeddings(model, fasta, "c", 40, 97, bin_length=30, strands=strands))
        (states,) = model.embed([CONTIGS["c"][40:97]], per_base=True)
        if strands == "average":
            other = model.embed([reverse_complement(CONTIGS["c"][40:97])], per_base=True)[0]
            states = (states + other[::-1]) / 2
        assert [place for place, _ in stream] == [40, 70]
        wanted = np.stack([states[:30].mean(0), states[30:].mean(0)])
        np.testing.assert_allclose(np.concatenate([rows for _, rows in stream]), wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.parquet"])
def test_files_of_embeddings(fasta, tmp_path, name):
    if name == "x.parquet":
        pytest.importorskip("pyarrow")
    model, path = small_model(), tmp_path / name
    n = write_embeddings(model, fasta, path, contigs=["c", "empty", "gap", "a"], bin_length=50)
    wanted = np.concatenate([wanted_embeddings(model, c, 50, average=False) for c in ("c", "gap", "a")])
    places = [("c", 0, 50), ("c", 50, 100), ("c", 100, 130), ("gap", 0, 20), ("a", 0, 7)]
    if name == "x.npy":
        found = np.load(path, mmap_mode="r")
        assert index_path(path).read_text() == "".join(f"{c}\t{a}\t{b}\n" for c, a, b in places)
    else:
        frame = (pd.read_csv if name == "x.csv" else pd.read_parquet)(path)
        assert list(frame.columns[3:]) == model.get_feature_names_out().tolist()
        assert list(frame[["contig", "start", "end"]].itertuples(index=False, name=None)) == places
        found = frame.iloc[:, 3:].to_numpy(np.float32)
    assert (n, found.shape, found.dtype) == (5, (5, 16), np.float32)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)


MEMORY = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    sys.path.insert(0, {tests!r})
    from test_dna_tracks import small_model
    from ssmseq.dna.tracks import write_track, write_embeddings
    folder, length = Path({folder!r}), int(sys.argv[1])
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", "u1"), length).tobytes().decode()
    path = folder / f"{{length}}.fa"
    path.write_text(">one\\n" + "\\n".join(letters[i : i + 60] for i in range(0, length, 60)) + "\\n")
    del letters
    model = small_model(chunk_length=4096)
    write_track(model, path, folder / "x.bw", strands="average", resolution=4)
    write_embeddings(model, path, folder / "x.npy", strands="average")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_chromosome(tmp_path):
    pytest.importorskip("pyBigWig")
    code = textwrap.dedent(MEMORY.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    peaks = []
    for length in (1 << 17, 1 << 21):
        run = subprocess.run([sys.executable, "-c", code, str(length)], capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout) / 1024)  # MiB
    # Of the longer one 8 bytes per base would be 15 MiB more, and its tokens as int64 as much.
    assert peaks[1] - peaks[0] < 12, peaks
