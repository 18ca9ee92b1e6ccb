import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dna_cases import genomics, plain_read, write_fasta
from dna_variant_cases import CONTIGS, FORWARD, ONE, RATIO, REVERSE, SUBSTITUTIONS, frame_of, other, ready
from sklearn.exceptions import NotFittedError

from ssmseq import DNALanguageModel
from ssmseq.dna import variants
from ssmseq.dna.fasta import Fasta
from ssmseq.dna.vcf import VariantReader, VCFWriter


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Fasta:
    return Fasta(write_fasta(tmp_path_factory.mktemp("variants") / "two.fa", CONTIGS))


VCF = f"""##fileformat=VCFv4.2
##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tsample
two\t12\trs1\t{CONTIGS["two"][11]}\t{other(CONTIGS["two"][11])}\t9\tPASS\tDP=3\tGT\t0/1
one\t5\tmany\t{ONE[4]}\t{other(ONE[4])},<DEL>,*,{ONE[4]}GG\t.\t.\t.\tGT\t1/2
# a comment among them
one\t3\twrong\t{other(ONE[2])}\t{ONE[2]}\t.\t.\tDP=1\tGT\t0/1
chrUn\t3\t.\tA\tC\t.\t.\t.\tGT\t0/1
one\tx\t.\tA\tC\t.\t.\t.\tGT\t0/1
one\t{len(ONE) + 1}\t.\tA\tC\t.\t.\t.\tGT\t0/1
one\t2\tbig\t{ONE[1]}\t{ONE[1]}{"ACGTTGCA" * 3}\t.\t.\t.\tGT\t0/1
"""
REASONS = ["ok", "ok", "symbolic", "spanning_deletion", "ok", "ref_mismatch", "unknown_contig", "malformed"]
REASONS += ["out_of_contig", "too_long"]


@pytest.fixture
def vcf(tmp_path) -> Path:
    (tmp_path / "in.vcf").write_text(VCF)
    return tmp_path / "in.vcf"


def test_every_record_comes_back_in_its_order_with_a_reason(fasta, vcf):
    found = ready("mamba", average=True).score_variants(vcf, fasta.path, reference="skip", embeddings=True)
    assert found.columns.tolist() == [
        *["line", "chrom", "pos", "id", "ref", "alt", "allele", "reason", RATIO, FORWARD, REVERSE],
        *["embedding_l2", "embedding_cosine"],
    ]
    assert found["reason"].tolist() == REASONS
    assert found["line"].tolist() == [4, 5, 5, 5, 5, 7, 8, 9, 10, 11]
    assert found["allele"].tolist() == [1, 1, 2, 3, 4, 1, 1, 1, 1, 1]
    assert (found[RATIO].notna() == found["reason"].eq("ok")).all()
    assert (found["embedding_l2"].notna() == found["reason"].eq("ok")).all()


def test_what_a_wrong_reference_leads_to(fasta, vcf):
    model = ready("mamba")
    with pytest.raises(ValueError, match="line 7: REF is"):
        model.score_variants(vcf, fasta)
    flipped = model.score_variants(vcf, fasta, reference="flip")
    right = model.score_variants(frame_of([("one", 3, ONE[2], other(ONE[2]))]), fasta)
    assert flipped["reason"][5] == "flipped"
    assert flipped[RATIO][5] == pytest.approx(right[RATIO][0], abs=1e-6)
    with pytest.warns(UserWarning, match="line 7: REF is"):
        kept = model.score_variants(vcf, fasta, reference="warn")
    assert kept["reason"][5] == "ref_mismatch_kept"
    assert kept[RATIO][5] == pytest.approx(-right[RATIO][0], abs=1e-6)


def test_letters_of_a_wrong_reference_are_kept(fasta):
    """REF and ALT both end with a letter that the reference has not there; leaving it out would leave it unread."""
    model, wrong = ready("mamba"), other(ONE[31])
    row = ("one", 31, ONE[30] + wrong, other(ONE[30]) + wrong)
    with pytest.warns(UserWarning, match="line 1"):
        (found,) = model.score_variants(frame_of([row]), fasta, reference="warn")[RATIO]
    windows = [ONE[15:30] + letters + ONE[32:45] for letters in row[2:]]
    one, two = model.log_likelihood(windows)
    assert found == pytest.approx(two - one, abs=1e-5)


@pytest.mark.parametrize("suffix", [".vcf", ".vcf.gz", ".tsv", ".tsv.gz", ".parquet"])
def test_files_hold_what_the_frame_holds(fasta, vcf, suffix, tmp_path):
    model, path = ready("mamba", average=True), tmp_path / f"out{suffix}"
    whole = model.score_variants(vcf, fasta, reference="skip", embeddings=True)
    counts = model.score_variants(vcf, fasta, reference="skip", embeddings=True, output=str(path))
    assert counts.to_dict() == pd.Series(REASONS).value_counts().to_dict()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.vcf", path.name]
    if suffix == ".parquet":
        pd.testing.assert_frame_equal(
            pd.read_parquet(path) if _has_pyarrow() else _polars(path), whole, check_dtype=False
        )
    elif "vcf" not in suffix:
        found = pd.read_csv(path, sep="\t", dtype={"pos": "Int64"})
        found["id"] = found["id"].astype(object)
        pd.testing.assert_frame_equal(found, whole, check_dtype=False, rtol=1e-6)
    else:
        content = path.read_bytes()
        check_annotated((gzip.decompress(content) if suffix.endswith("gz") else content).decode(), whole)


def _has_pyarrow() -> bool:
    import importlib.util

    return importlib.util.find_spec("pyarrow") is not None


def _polars(path) -> pd.DataFrame:
    import polars

    return pd.DataFrame(polars.read_parquet(path).to_dict(as_series=False)).astype({"pos": "Int64"})


def check_annotated(text: str, whole: pd.DataFrame) -> None:
    """The VCF is the one that was read, but for what is added to the header and to INFO."""
    lines, keys = text.splitlines(), ["SSMSEQ_LLR", "SSMSEQ_LLR_FWD", "SSMSEQ_LLR_REV", "SSMSEQ_L2", "SSMSEQ_COSINE"]
    assert [line for line in lines if not line.startswith("##INFO=<ID=SSMSEQ")][:3] == VCF.splitlines()[:3]
    assert sum(line.startswith("##INFO=<ID=SSMSEQ") and "Number=A" in line for line in lines) == 6
    body = [line for line in lines if not line.startswith("##INFO=<ID=SSMSEQ")]
    rows = iter(whole.itertuples())
    for before, after in zip(VCF.splitlines()[3:], body[3:], strict=True):
        old, new = before.split("\t"), after.split("\t")
        assert old[:7] + old[8:] == new[:7] + new[8:]
        if before.startswith("#"):
            continue
        info = dict(entry.partition("=")[::2] for entry in new[7].split(";"))
        assert old[7] == "." or new[7].startswith(old[7])
        own = [next(rows) for _ in range(len(old[4].split(",")))]
        assert info["SSMSEQ_REASON"].split(",") == [row.reason for row in own]
        for key, column in zip(keys, whole.columns[8:], strict=True):
            for value, row in zip(info.get(key, ",".join("." * len(own))).split(","), own, strict=True):
                wanted = getattr(row, column)
                assert (value == ".") == np.isnan(wanted)
                assert value == "." or float(value) == pytest.approx(wanted, rel=1e-5)
    assert next(rows, None) is None


def test_records_are_written_before_the_next_are_read(monkeypatch, fasta, tmp_path):
    """What is held at once does not grow with the file."""
    n, ahead, read, written = 40, [], [0], [0]
    text = "\n".join(f"one\t15\t.\t{ONE[14]}\t{other(ONE[14])}" for _ in range(n))
    (tmp_path / "in.vcf").write_text(text)
    rows, write = VariantReader.__iter__, VCFWriter.write

    def counted(self):
        for record in rows(self):
            read[0] += 1
            ahead.append(read[0] - written[0])
            yield record

    def count(self, *arguments):
        written[0] += 1
        write(self, *arguments)

    monkeypatch.setattr(VariantReader, "__iter__", counted)
    monkeypatch.setattr(VCFWriter, "write", count)
    monkeypatch.setattr(variants, "BATCHES_AT_ONCE", 3)
    ready("mamba").score_variants(tmp_path / "in.vcf", fasta, batch_size=2, output=tmp_path / "out.vcf")
    assert (read, written) == ([n], [n])
    assert max(ahead) == 6


def test_a_run_that_fails_leaves_no_file(fasta, vcf, tmp_path):
    for name in ("out.vcf", "out.tsv.gz", "out.parquet"):
        with pytest.raises(ValueError, match="line 7: REF"):
            ready("mamba").score_variants(vcf, fasta, output=tmp_path / name)
    (tmp_path / "out.vcf").write_text("earlier")
    with pytest.raises(ValueError, match="line 7: REF"):
        ready("mamba").score_variants(vcf, fasta, output=tmp_path / "out.vcf")
    assert (tmp_path / "out.vcf").read_text() == "earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.vcf", "out.vcf"]


def test_no_records_give_an_empty_table(fasta, tmp_path):
    (tmp_path / "in.vcf").write_text("\n".join(VCF.splitlines()[:3]) + "\n")
    found = ready("mamba").score_variants(tmp_path / "in.vcf", fasta)
    assert len(found) == 0
    assert found.columns[-1] == RATIO
    assert len(ready("mamba").score_variants(tmp_path / "in.vcf", fasta, output=tmp_path / "o.tsv")) == 0
    assert pd.read_csv(tmp_path / "o.tsv", sep="\t").columns[-1] == RATIO


def test_progress_is_shown_if_asked_for(fasta, capsys):
    ready("mamba").score_variants(frame_of(SUBSTITUTIONS), fasta)
    assert capsys.readouterr() == ("", "")
    ready("mamba", verbose=1).score_variants(frame_of(SUBSTITUTIONS), fasta)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{len(SUBSTITUTIONS)}.00/{len(SUBSTITUTIONS)}.00" in err


def test_what_cannot_be_scored(fasta, vcf, tmp_path):
    model = ready("mamba")
    for change, error, message in [
        ({"length": 0}, ValueError, "length must be an integer at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"strands": "both"}, ValueError, "strands must be one of 'forward', 'average'"),
        ({"reference": "ignore"}, ValueError, "reference must be one of 'error'"),
        ({"output": tmp_path / "o.bcf"}, ValueError, r"o.bcf' names no known format: let it end in .vcf"),
        ({"output": tmp_path / "none" / "o.vcf"}, FileNotFoundError, "no folder .*none"),
        ({"output": vcf, "reference": "skip"}, ValueError, "choose another output"),
    ]:
        with pytest.raises(error, match=message):
            model.score_variants(vcf, fasta, **change)
    assert vcf.read_text() == VCF
    with pytest.raises(FileNotFoundError, match="no FASTA file"):
        model.score_variants(vcf, tmp_path / "none.fa")
    with pytest.raises(NotFittedError):
        DNALanguageModel().score_variants(vcf, fasta)
    protein = write_fasta(tmp_path / "protein.fa", {"p": "ACGTMKVLEFACGT"})
    with pytest.raises(ValueError, match=r"protein.fa around p:2: the letter 'L'"):
        model.score_variants(frame_of([("p", 2, "C", "T")]), protein)


def test_all_variants_of_c_elegans_come_back(tmp_path):
    """Strains of the 1 % sample: ten REF alleles are not in this reference."""
    given_, letters = genomics("small", "C.elegans.1pct.vcf.gz"), genomics("small", "C.elegans.1pct.fa.gz")
    model = ready("mamba", average=True)
    out = tmp_path / "out.vcf.gz"
    fasta = Fasta(write_fasta(tmp_path / "worm.fa", plain_read(letters)))
    counts = model.score_variants(given_, fasta, length=16, reference="skip", output=out)
    assert counts["ref_mismatch"] == 10
    with gzip.open(given_, "rt") as before, gzip.open(out, "rt") as after:
        old, new = ([x.split("\t") for x in file if not x.startswith("#")] for file in (before, after))
    assert len(old) == 8713
    assert [row[:5] for row in new] == [[*row[:4], row[4].rstrip("\n")] for row in old]
    assert sum("SSMSEQ_LLR=" in row[7] for row in new) >= counts["ok"] - 10 > 8000
