"""
DNA, from a FASTA file to scores of variants
============================================

A language model gives each base a probability from those before it. This page trains a small one on 400,000 bases of
*E. coli*, sets it beside models that count, and uses it: likelihood along genes, scores of single changes, a map of all
changes at the start of a gene, new sequence. The network has some 35,000 weights and reads the training bases twice;
one that is of use takes minutes to hours (:doc:`/dna`).
"""

# %%
# The genome
# ----------
#
# ``Fasta`` reads a file by position, plain or packed. The page takes the first 400,000 bases of *E. coli* K-12 MG1655
# (RefSeq NC_000913.3) to train on, and holds out the 100,000 that follow. The annotation comes with the genome; both
# files lie in ``genomics/ecoli`` of the folder that SSMSEQ_DATA names, and are from NCBI's assembly GCF_000005845.2.

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from ssmseq.dna import Fasta
from ssmseq.dna.regions import read_regions

folder = Path(os.environ.get("SSMSEQ_DATA", "."), "genomics", "ecoli")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # says, once, where the unpacked copy lies
    genome = Fasta(folder / "GCF_000005845.2_ASM584v2_genomic.fna.gz")
(contig,) = genome.contigs
BORDER, END = 400_000, 500_000
train, held_out = genome.fetch(contig, 0, BORDER), genome.fetch(contig, BORDER, END)
genes = read_regions(folder / "GCF_000005845.2_ASM584v2_genomic.gff.gz", genome, feature="CDS")
genes = genes[(genes["start"] >= BORDER) & (genes["end"] <= END)]
print(f"{contig}: {genome.contigs[contig]:,} bases, {len(genes)} coding sequences in the held-out part")

# %%
# Fit
# ---
#
# A model that reads from left to right; in training a strand is drawn for each window. With ``validation_fraction=0``
# all of the training bases are trained on, for as many epochs as are asked for. ``fit`` takes the path of a FASTA as
# well, and regions of it.

from ssmseq import DNALanguageModel

model = DNALanguageModel(
    d_model=48, n_layers=2, d_state=8, length=512, batch_size=4, max_epochs=2, validation_fraction=0, random_state=0
)
_ = model.fit([train])
model.history_.round(4)

# %%
# Bits per base, beside counting
# ------------------------------
#
# A likelihood says little by itself: 2 bits per base is what a model has that knows nothing, and counting how often a
# base follows the last few is a strong rival on so little sequence. ``markov_table`` counts the same training bases, on
# both strands, with contexts of up to 10 bases.

import matplotlib.pyplot as plt

from ssmseq.dna.markov import markov_table

bits = model.bits_per_base([held_out])
table = markov_table([train], [held_out], orders=range(11))
best = table["bits_per_base"].min()

_, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
axis.plot(table["order"], table["bits_per_base"], marker="o", color="#1f2937", label="Markov models")
axis.axhline(bits, color="#d9480f", linewidth=1.6, label=f"language model ({bits:.4f})")
axis.axhline(2, color="#6b7280", linewidth=0.8, linestyle="--", label="knows nothing")
axis.set(xlabel="order: bases of context", ylabel="bits per base, held-out part", xticks=table["order"])
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(frameon=False)

# %%
# Along the genome
# ----------------
#
# ``stream_track`` reads a contig of any length in constant memory, and ``model.track(fasta, "likelihood.bw")`` writes a
# track for a genome browser. Here the bits of each base over 15,000 bases of the held-out part, averaged over 300, with
# the coding sequences of either strand below.

from ssmseq.dna.streaming import stream_track

per_base = np.concatenate(
    [x for _, x in stream_track(model, genome, contig, BORDER, END, kind="bits", strands="average")]
)
low, high = BORDER + 20_000, BORDER + 35_000
smooth = np.convolve(per_base, np.full(300, 1 / 300), mode="same")

figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(9, 3.8), height_ratios=(3, 1), layout="constrained")
places = np.arange(low, high) / 1000
upper.plot(places, smooth[low - BORDER : high - BORDER], color="#d9480f", linewidth=1.2)
upper.axhline(per_base.mean(), color="#6b7280", linewidth=0.8, linestyle="--")
upper.set(ylabel="bits per base")
for gene in genes[(genes["end"] > low) & (genes["start"] < high)].itertuples():
    level = 1 if gene.strand == "+" else 0
    lower.barh(
        level, (gene.end - gene.start) / 1000, left=gene.start / 1000, height=0.6, color="#0072B2", edgecolor="white"
    )
lower.set(yticks=[0, 1], yticklabels=["strand -", "strand +"], xlabel=f"position in {contig} (kb)", ylim=(-0.6, 1.6))
lower.set_xlim(low / 1000, high / 1000)
for axis in (upper, lower):
    axis.spines[["top", "right"]].set_visible(False)

# %%
# The same as two figures: bases inside and outside of coding sequences, over all of the held-out part.

coding = np.zeros(END - BORDER, bool)
for gene in genes.itertuples():
    coding[gene.start - BORDER : gene.end - BORDER] = True
print(f"coding {per_base[coding].mean():.3f}, between {per_base[~coding].mean():.3f} bits per base")

# %%
# Scores of single changes
# ------------------------
#
# ``score_variants`` takes a VCF file or a frame, checks REF against the genome, and gives the log-likelihood ratio of
# the window with ALT to that with REF. Two kinds of changes of one base within the genes of the + strand are compared:
# those that make a stop codon, and as many of the others at the same places in a codon, drawn at random.

STOPS = {"TAA", "TAG", "TGA"}
changes = []
for gene in genes[genes["strand"] == "+"].itertuples():
    letters = genome.fetch(contig, gene.start, gene.end)
    for codon_start in range(3, len(letters) - 3, 3):
        codon = letters[codon_start : codon_start + 3]
        for i in range(3):
            for base in "ACGT".replace(codon[i], ""):
                stop = codon[:i] + base + codon[i + 1 :] in STOPS
                changes.append((contig, gene.start + codon_start + i + 1, codon[i], base, i + 1, stop))
changes = pd.DataFrame(changes, columns=["chrom", "pos", "ref", "alt", "place", "stop"])
changes = changes.drop_duplicates(["pos", "alt"]).sort_values(["pos", "alt"])
stops = changes[changes["stop"]].sample(250, random_state=0)
others = pd.concat(
    changes[~changes["stop"] & (changes["place"] == place)].sample(n, random_state=0)
    for place, n in stops["place"].value_counts().items()
)
variants = pd.concat([stops, others], ignore_index=True)
scores = model.score_variants(variants[["chrom", "pos", "ref", "alt"]], genome, length=256)
ratio = scores["log_likelihood_ratio"].to_numpy()

_, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
edges = np.linspace(*np.percentile(ratio, [0.5, 99.5]), 40)
for name, chosen, color in (
    ("makes a stop codon", variants["stop"], "#B2182B"),
    ("other", ~variants["stop"], "#5F6B7A"),
):
    axis.hist(ratio[chosen], edges, histtype="step", linewidth=1.5, color=color, label=name)
axis.axvline(0, color="black", linewidth=0.6)
axis.set(xlabel="log-likelihood ratio of ALT to REF (nats)", ylabel="changes")
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(frameon=False)

# %%
# The chance that a change which makes a stop is scored below another one; 0.5 is guessing. The three stop codons are
# words of three letters, and ``TAG`` is rare in this genome altogether, so a model that counts gets the same windows to
# score.

from sklearn.metrics import roc_auc_score

from ssmseq.dna import MarkovBaseline

counts = MarkovBaseline(order=6).fit([train])


def windows(letter: str) -> list[str]:
    """Return the 256 bases around each variant with the letter of a column at its place."""
    found = []
    for row in variants.itertuples():
        letters = genome.fetch(contig, row.pos - 129, row.pos + 127)
        found.append(letters[:128] + getattr(row, letter) + letters[129:])
    return found


counted = counts.log_likelihood(windows("alt")) - counts.log_likelihood(windows("ref"))
auc = {name: roc_auc_score(variants["stop"], -x) for name, x in (("language model", ratio), ("order 6", counted))}
print(", ".join(f"{name} {value:.3f}" for name, value in auc.items()))

# %%
# All changes of a region
# -----------------------
#
# The sixty bases around the start of a gene: what each other base would do to the likelihood of what is read. Blue
# lowers it. Letters of the sequence are beneath; the gene begins where the title says.

gene = genes[genes["strand"] == "+"].iloc[3]
display = model.mutagenesis(genome, contig, gene.start - 30, gene.start + 30, after=128).plot()
display.ax_.set_xlabel(f"position in {contig}; {gene['name']} begins at {gene.start + 1:,}")
display.ax_.axvline(gene.start + 0.5, color="black", linewidth=1)
line = display.mean_ax_.axvline(gene.start + 0.5, color="black", linewidth=1)

# %%
# New sequence
# ------------
#
# ``sample`` draws bases one after another. Whether new sequence is like the genome can be counted: the shares of all
# words of four letters, in 16,000 sampled bases and in the held-out part.

sampled = model.sample(16, 1000, random_state=0)
print(sampled[0][:100])


def word_shares(sequences: list[str], length: int = 4) -> pd.Series:
    """Return the share of each word, in percent."""
    words = [s[i : i + length] for s in sequences for i in range(len(s) - length + 1)]
    return 100 * pd.Series(words).value_counts(normalize=True)


shares = pd.DataFrame({"real": word_shares([held_out]), "sampled": word_shares(sampled)}).fillna(0.0)
_, axis = plt.subplots(figsize=(4.4, 4.4), layout="constrained")
axis.plot(shares["real"], shares["sampled"], ".", color="#0072B2")
axis.axline((0, 0), slope=1, color="black", linewidth=0.7)
axis.set(xlabel="share in the held-out part (%)", ylabel="share in sampled sequence (%)", aspect="equal")
axis.spines[["top", "right"]].set_visible(False)

# %%
# What was seen
# -------------

r = np.corrcoef(shares["real"], shares["sampled"])[0, 1]
n_weights = sum(p.numel() for p in model.network_.parameters())
print(f"{n_weights:,} weights: {bits:.4f} bits per base")
print(f"best Markov model: {best:.4f}, order {table['bits_per_base'].idxmin()}")
print(f"bases of coding sequence {per_base[coding].mean():.3f} bits, between them {per_base[~coding].mean():.3f}")
print("stop codons against other changes, area:", ", ".join(f"{name} {value:.3f}" for name, value in auc.items()))
print(f"shares of 4-letter words, sampled against real: correlation {r:.2f}")

# %%
# Two epochs on 400,000 bases do not bring the network below the best of the models that count: so little sequence is
# soon counted, and learned slowly. A stretch of 100,000 bases is a small test, too; another one, with 100,000 bases
# more to train on, put the two in the other order by a thousandth. With all of the genome and 18 minutes the network is
# 0.05 bits below counting, see the table in :doc:`/dna`. Its sequence has the words of *E. coli* and means nothing.
#
# The ratio of a variant says how unusual a change is, and not how harmful: a change to a stop codon is the plainest
# harm there is, and this model tells it from others somewhat better than guessing, as counting does. Do not rank
# variants of patients by it, and where words of a few letters are all you need, count. Other tasks start from a
# language model: :doc:`/auto_examples/dna/plot_dna_classifier`.
