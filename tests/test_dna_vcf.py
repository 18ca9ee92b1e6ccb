"""Files of variants: lines that stay as they are, headers, keys of INFO, tables."""

import gzip
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest

from ssmseq.dna.alleles import VariantRecord
from ssmseq.dna.vcf import InfoField, VariantReader, VCFWriter, allele_frame, write_alleles

HEADER = (
    "##fileformat=VCFv4.2\n"
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tNA1\n"
)


def record(*fields, number=1) -> VariantRecord:
    fields = tuple(map(str, fields))
    return VariantRecord(fields, "\t".join(fields), number)


def variant(contig, pos, ref, alt) -> VariantRecord:
    return record(contig, pos, "rs1", ref, alt)


# Reading --------------------------------------------------------------------------------------------------------------

BODY = ["chr1\t5\trs5\tA\tG,T\t50\tPASS\tDP=7\tGT\t0/1", "chr2\t9\t.\tAC\tA\t.\t.\t.\tGT\t1/1"]


def write(path, text, packed=False):
    with (gzip.open if packed else open)(path, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_reader_gives_header_and_lines(tmp_path, packed, end, mark):
    text = (mark + HEADER + BODY[0] + "\n\n  \n" + BODY[1] + "\n").replace("\n", end).encode()
    path = tmp_path / "v.txt"  # the suffix does not matter, and bgzip packs in several members
    path.write_bytes(gzip.compress(text[:90]) + gzip.compress(text[90:]) if packed else text)
    reader = VariantReader(path)
    assert reader.header == tuple(HEADER.splitlines())
    assert reader.n_columns == 10
    for _ in range(2):  # each loop begins anew
        assert [r.line for r in reader] == BODY
    assert [r.fields for r in reader] == [tuple(line.split("\t")) for line in BODY]
    assert [r.line_number for r in reader] == [4, 7]


def test_reader_takes_text_without_header_between_spaces(tmp_path):
    reader = VariantReader(write(tmp_path / "v.txt", "I 3080 gk463204 A  T\nI\t7\t\tA\tG x\n# late\nI 8\n"))
    assert reader.header == ()
    assert reader.n_columns == 5
    fields = [("I", "3080", "gk463204", "A", "T"), ("I", "7", "", "A", "G x"), ("#", "late"), ("I", "8")]
    assert [r.fields for r in reader] == fields
    assert [r.reason for r in reader] == ["ok", "ok", "comment", "malformed"]


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("contig", ["chrom", "contig"])
def test_reader_takes_frames(library, contig):
    frame = library({"alt": ["G", "C,T", None], "pos": [5, 9, 4], contig: ["1", "X", "X"], "ref": ["A", "G", None]})
    lines = ["1\t5\t.\tA\tG", "X\t9\t.\tG\tC,T", "X\t4\t.\t.\t."]
    reader = VariantReader(frame)
    assert (reader.path, reader.header, reader.n_columns) == (None, (), 5)
    assert [r.line for r in reader] == lines
    assert [r.line_number for r in reader] == [1, 2, 3]
    assert [a.reason for r in reader for a in r.alleles] == ["ok", "ok", "ok", "empty_ref"]


def test_reader_takes_whole_floats_missing_positions_and_names():
    frame = pd.DataFrame(
        {"chrom": [1, 2, 3], "pos": [5.0, np.nan, 2.5], "id": ["a", None, "c"], "ref": "A", "alt": "C"}
    )
    assert [r.line for r in VariantReader(frame)] == ["1\t5\ta\tA\tC", "2\t.\t.\tA\tC", "3\t2.5\tc\tA\tC"]
    nullable = frame.astype({"pos": "Float64"}).iloc[:2].astype({"pos": "Int64"})
    assert [r.line for r in VariantReader(nullable)] == ["1\t5\ta\tA\tC", "2\t.\t.\tA\tC"]


def test_reader_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of variants .*none\.vcf"):
        VariantReader(tmp_path / "none.vcf")
    with pytest.raises(ValueError, match="is BCF, which is not read: run bcftools"):
        VariantReader(write(tmp_path / "v.bcf", "BCF\x02\x02\x00", packed=True))
    whole = gzip.compress((HEADER + "\n".join(BODY * 500)).encode())
    (tmp_path / "cut.vcf.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"cut\.vcf\.gz cannot be read as text .*: copy or download it again"):
        list(VariantReader(tmp_path / "cut.vcf.gz"))
    with pytest.raises(ValueError, match="no column 'chrom', 'alt'; it has pos, ref"):
        VariantReader(pd.DataFrame({"pos": [1], "ref": ["A"]}))
    with pytest.raises(TypeError, match="path of a file or a data frame, got int"):
        VariantReader(3)


def test_reader_of_nothing(tmp_path):
    reader = VariantReader(write(tmp_path / "v.vcf", HEADER))
    assert list(reader) == []
    assert len(reader.header) == 3
    assert list(VariantReader(write(tmp_path / "empty.vcf", ""))) == []


# Writing --------------------------------------------------------------------------------------------------------------

LLR = InfoField("LLR", "A", "Float", 'Ratio of "ALT" to REF, C:\\')
FIELDS = [
    LLR,
    InfoField("WHY", "A", "String", "Reason"),
    InfoField("N", "1", "Integer", "Number"),
    InfoField("LIST", ".", "Float", "Several"),
    InfoField("SEEN", "0", "Flag", "Flag"),
]


def written(path) -> list[str]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        return file.read().decode("utf-8", "surrogateescape").split("\n")


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz"])
def test_vcf_keeps_every_line_and_adds_keys(tmp_path, name):
    lines = [*BODY, "# a comment; DP=3", "chr9", "chrM\tx\t\udcff\tA\tC\t9\tq10\tDP=3;OLD\tGT\t."]
    reader = VariantReader(write(tmp_path / "in.vcf", HEADER + "\n".join(lines)))
    with VCFWriter(tmp_path / name, reader, FIELDS) as writer:
        for number, one in enumerate(reader):
            alleles = len(one.alleles)
            values = {"LLR": [-1.5, None, 7.0][:alleles], "WHY": ["a=b;c,d %\t"] * alleles, "N": np.int64(number)}
            writer.write(one, values | {"LIST": [1e-9, 123456789.0], "SEEN": number == 1})
    found = written(tmp_path / name)
    assert found[:2] == HEADER.splitlines()[:2]
    assert found[2] == r'##INFO=<ID=LLR,Number=A,Type=Float,Description="Ratio of \"ALT\" to REF, C:\\">'
    assert found[6] == '##INFO=<ID=SEEN,Number=0,Type=Flag,Description="Flag">'
    assert found[7] == HEADER.splitlines()[2]
    text = "a%3Db%3Bc%2Cd%20%25%09"
    tail = "LIST=1e-09,1.23457e+08"
    assert found[8:] == [
        f"chr1\t5\trs5\tA\tG,T\t50\tPASS\tDP=7;LLR=-1.5,.;WHY={text},{text};N=0;{tail}\tGT\t0/1",
        f"chr2\t9\t.\tAC\tA\t.\t.\tLLR=-1.5;WHY={text};N=1;{tail};SEEN\tGT\t1/1",
        "# a comment; DP=3",
        f"chr9\t.\t.\t.\t.\t.\t.\tLLR=-1.5;WHY={text};N=3;{tail}",
        f"chrM\tx\t\udcff\tA\tC\t9\tq10\tDP=3;OLD;LLR=-1.5;WHY={text};N=4;{tail}\tGT\t.",
        "",
    ]


def test_vcf_without_values_is_what_was_read(tmp_path):
    source = write(tmp_path / "in.vcf", HEADER + "\n".join(BODY) + "\n")
    reader = VariantReader(source)
    with VCFWriter(tmp_path / "out.vcf", reader, []) as writer:
        for one in reader:
            writer.write(one, {})
    assert (tmp_path / "out.vcf").read_bytes() == source.read_bytes()


def test_vcf_leaves_out_keys_without_a_value(tmp_path):
    reader = VariantReader(write(tmp_path / "in.vcf", HEADER + "\n".join(BODY)))
    with VCFWriter(tmp_path / "out.vcf", reader, FIELDS) as writer:
        first, second = reader
        writer.write(first, {"LLR": [None, np.nan], "N": None, "SEEN": False})
        writer.write(second, {"LLR": [np.float32("nan")], "LIST": []})
    assert written(tmp_path / "out.vcf")[8:10] == BODY


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("I 5 x A T\n", "#CHROM POS ID REF ALT QUAL FILTER INFO"),
        ("#CHROM POS ID REF ALT\nI 5 x A T\n", "#CHROM POS ID REF ALT QUAL FILTER INFO"),
        ("I 5 x A T . . . GT 0 1\n", "#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT sample_1 sample_2"),
        ("# made by hand\nI 5 x A T\n", "#CHROM POS ID REF ALT QUAL FILTER INFO"),
        ("", "#CHROM POS ID REF ALT QUAL FILTER INFO"),
    ],
)
def test_vcf_gets_the_header_that_is_missing(tmp_path, text, columns):
    reader = VariantReader(write(tmp_path / "in.txt", text))
    with VCFWriter(tmp_path / "out.vcf", reader, [LLR]) as writer:
        for one in reader:
            writer.write(one, {"LLR": [0.5]})
    header = [line for line in written(tmp_path / "out.vcf") if line.startswith("#")]
    assert header[0] == "##fileformat=VCFv4.3"
    assert header[-1] == columns.replace(" ", "\t")
    assert header[-2] == LLR.line
    assert ("# made by hand" in header) == ("by hand" in text)
    again = VariantReader(tmp_path / "out.vcf")
    assert [r.fields[:8] for r in again] == [("I", "5", "x", "A", "T", ".", ".", "LLR=0.5")] * bool("I" in text)


def test_vcf_says_what_is_wrong(tmp_path):
    reader = VariantReader(write(tmp_path / "in.vcf", HEADER + "\n".join([*BODY, BODY[0].replace("DP=7", "LLR=1;B")])))
    with pytest.raises(ValueError, match=r"in\.vcf is read while it would be written: choose another path"):
        VCFWriter(tmp_path / "in.vcf", reader, [LLR])
    with pytest.raises(ValueError, match="header has an INFO key DP already: rename"):
        VCFWriter(tmp_path / "out.vcf", reader, [InfoField("DP", "1", "Float", "")])
    for key in ("1LLR", "L L", "", "A=B"):
        with pytest.raises(ValueError, match=f"{key!r} is no key of INFO"):
            VCFWriter(tmp_path / "out.vcf", reader, [InfoField(key, "1", "Float", "")])
    first, second, third = reader
    with VCFWriter(tmp_path / "out.vcf", reader, [LLR]) as writer:
        with pytest.raises(ValueError, match="'P' is none of the fields LLR"):
            writer.write(first, {"P": 1})
        with pytest.raises(ValueError, match="line 4 has 2 alleles and 1 values for LLR"):
            writer.write(first, {"LLR": [1.0]})
        with pytest.raises(ValueError, match="line 6 has an INFO key LLR already"):
            writer.write(third, {"LLR": [1.0, 2.0]})


@pytest.mark.parametrize("n_bytes", [0, 10, 300_000])
def test_packed_files_are_blocks_with_a_mark_at_the_end(tmp_path, n_bytes):
    letters = "".join(map(chr, np.random.default_rng(0).integers(33, 127, n_bytes)))
    reader = VariantReader(write(tmp_path / "in.vcf", HEADER + f"1\t2\t{letters}\tA\tC\n"))
    with VCFWriter(tmp_path / "out.vcf.gz", reader, []) as writer:
        for one in reader:
            writer.write(one, {})
    packed = (tmp_path / "out.vcf.gz").read_bytes()
    assert gzip.decompress(packed).endswith(f"1\t2\t{letters}\tA\tC\t.\t.\t.\n".encode())
    # As in the SAM specification, sections 4.1 and 4.1.2.
    assert packed.endswith(bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000"))
    start = blocks = 0
    while start < len(packed):
        assert packed[start : start + 4] == b"\x1f\x8b\x08\x04"
        assert packed[start + 10 : start + 16] == b"\x06\x00BC\x02\x00"
        size = int.from_bytes(packed[start + 16 : start + 18], "little") + 1
        assert len(gzip.decompress(packed[start : start + size])) <= 1 << 16
        start, blocks = start + size, blocks + 1
    assert start == len(packed)
    assert blocks >= 2 + n_bytes // (1 << 16)


def test_pysam_reads_what_was_written(tmp_path):
    pysam = pytest.importorskip("pysam")
    contig = "##contig=<ID=chr1,length=100>\n##contig=<ID=chr2,length=100>\n"
    fields = '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n##FILTER=<ID=q10,Description="Low">\n'
    text = HEADER.replace("#CHROM", contig + fields + "#CHROM")
    reader = VariantReader(write(tmp_path / "in.vcf", text + "\n".join(BODY) + "\n"))
    with VCFWriter(tmp_path / "out.vcf.gz", reader, FIELDS) as writer:
        first, second = reader
        writer.write(first, {"LLR": [-1.5, None], "WHY": ["a;b", "c"], "N": 3})
        writer.write(second, {"LLR": [2.0], "SEEN": True})
    assert pysam.tabix_index(str(tmp_path / "out.vcf.gz"), preset="vcf", force=True)
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        assert [found.pos for found in file.fetch("chr2", 0, 50)] == [9]
    with pysam.VariantFile(str(tmp_path / "out.vcf.gz")) as file:
        one, two = file
        assert file.header.info["LLR"].number == "A"
    assert (one.chrom, one.pos, one.ref, one.alts, one.info["DP"]) == ("chr1", 5, "A", ("G", "T"), 7)
    assert (one.info["LLR"], one.info["N"]) == ((-1.5, None), 3)
    assert (two.info["LLR"], two.info["SEEN"]) == ((2.0,), True)


SOME = [
    variant("chr1", 5, "A", "G,<DEL>"),
    record("# comment"),
    variant("chr2", 9, "ac", "a"),
    record("chr3"),
]
ROWS = [
    (allele, {"llr": llr, "note": "x"}) for one in SOME for allele, llr in zip(one.alleles, (0.5, None), strict=False)
]


@pytest.mark.parametrize("name", ["table.tsv", "table.tsv.gz", "table.parquet"])
def test_tables_have_a_row_for_each_allele(tmp_path, name):
    path = tmp_path / name
    write_alleles(path, iter(ROWS))
    if path.suffix == ".parquet":
        found = pl.read_parquet(path).rows()
        columns = pl.read_parquet(path).columns
    else:
        frame = pd.read_csv(
            path, sep="\t", dtype={"pos": "Int64"}, keep_default_na=False, na_values={"pos": "", "llr": ""}
        )
        columns = list(frame.columns)
        found = [tuple(None if pd.isna(v) else v for v in row) for row in frame.astype(object).itertuples(index=False)]
    assert columns == ["line", "chrom", "pos", "id", "ref", "alt", "allele", "reason", "llr", "note"]
    assert found == [
        (1, "chr1", 5, "rs1", "A", "G", 1, "ok", 0.5, "x"),
        (1, "chr1", 5, "rs1", "A", "<DEL>", 2, "symbolic", None, "x"),
        (1, "chr2", 9, "rs1", "ac", "a", 1, "ok", 0.5, "x"),
        (1, "chr3", None, "", "", "", 1, "malformed", 0.5, "x"),
    ]


def test_tables_can_be_read_as_variants(tmp_path):
    write_alleles(tmp_path / "table.tsv", ROWS[:2])
    again = VariantReader(pd.read_csv(tmp_path / "table.tsv", sep="\t"))
    assert [one.line for one in again] == ["chr1\t5\trs1\tA\tG", "chr1\t5\trs1\tA\t<DEL>"]


@pytest.mark.parametrize("name", ["table.tsv", "table.parquet"])
def test_tables_without_rows_have_columns(tmp_path, name):
    write_alleles(tmp_path / name, [])
    read = pl.read_parquet if name.endswith("parquet") else pd.read_csv
    kept = {} if name.endswith("parquet") else {"sep": "\t"}
    columns = ["line", "chrom", "pos", "id", "ref", "alt", "allele", "reason"]
    assert list(read(tmp_path / name, **kept).columns) == columns


def test_tables_may_have_their_columns_named(tmp_path):
    write_alleles(tmp_path / "table.tsv", [], columns=["note", "llr"])
    assert (tmp_path / "table.tsv").read_text().split()[-3:] == ["reason", "note", "llr"]
    frame = allele_frame(ROWS, columns=["note", "llr"])
    assert list(frame.columns)[-2:] == ["note", "llr"]
    assert frame["note"].tolist() == ["x"] * 4
    assert frame["llr"].dropna().tolist() == [0.5] * 3


@pytest.mark.parametrize("missing", [None, np.nan, np.float32("nan"), pd.NA])
def test_missing_values_are_empty_in_text(tmp_path, missing):
    write_alleles(tmp_path / "table.tsv", [(ROWS[0][0], {"llr": missing})])
    assert (tmp_path / "table.tsv").read_text().endswith("\tok\t\n")


def test_tables_of_unequal_rows_are_refused(tmp_path):
    allele = ROWS[0][0]
    with pytest.raises(ValueError, match="line 1 has the values b, and those before have a"):
        write_alleles(tmp_path / "table.tsv", [(allele, {"a": 1}), (allele, {"b": 1})])


def test_rows_go_to_the_file_one_by_one(tmp_path):
    def rows():
        for number in range(30_000):
            if number == 29_999:
                size.append((tmp_path / "table.tsv").stat().st_size)
            yield ROWS[0]

    size = []
    write_alleles(tmp_path / "table.tsv", rows())
    assert size[0] > 0.9 * (tmp_path / "table.tsv").stat().st_size


def test_variants_load_no_torch():
    command = "import sys, ssmseq.dna.vcf, ssmseq.dna.markov; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
