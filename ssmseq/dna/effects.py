"""What `DNALanguageModel` says of changes of a sequence: scores of variants, and of all substitutions in a region."""

import os
from typing import TYPE_CHECKING, Any, Literal

from sklearn.utils.validation import check_is_fitted

from ssmseq.dna import mutagenesis as saturation
from ssmseq.dna import variants as scoring

if TYPE_CHECKING:
    import pandas as pd

    from ssmseq.dna.displays import MutagenesisDisplay
    from ssmseq.dna.fasta import Fasta


class VariantEffects:
    """Methods of `DNALanguageModel` that need no more than its network and its parameters."""

    def score_variants(
        self,
        variants: Any,
        fasta: "str | os.PathLike | Fasta",
        *,
        length: int | None = None,
        strands: str | None = None,
        reference: Literal["error", "warn", "flip", "skip"] = "error",
        embeddings: bool = False,
        output: str | os.PathLike | None = None,
        batch_size: int | None = None,
    ) -> "pd.DataFrame | pd.Series":
        """Score variants by windows of the reference with REF and with ALT.

        The log-likelihood ratio is the log-likelihood of the window with ALT less that of the window with REF. A causal
        model reads what the two begin with once. A bidirectional one compares the two letters of a single-nucleotide
        variant behind a mask, and masks all letters of longer substitutions that differ [1]_; of insertions and
        deletions the ratio is the difference of pseudo-log-likelihoods, which is on another scale.

        Parameters
        ----------
        variants : path, pandas or polars frame
            VCF, its first five columns as text, or a frame; see `ssmseq.dna.vcf.VariantReader`. In any order.
        fasta : path or Fasta
            The reference that they were called on.
        length : int, optional
            Of the windows, in bases, with the variant in the middle; by default that of the training windows.
        strands : {"forward", "average"}, optional
            Read the windows, or also those of the other strand and average; by default as `reverse_complement` says.
        reference : {"error", "warn", "flip", "skip"}
            What a REF that is not the reference leads to: an error; a warning, and it is scored as if it were; REF and
            ALT change places if ALT is the reference; or the reason "ref_mismatch".
        embeddings : bool
            Add distances of the mean states of the two windows, as ``embed(pooling="mean")`` gives them.
        output : path, optional
            Write the scores while they are made, in constant memory: ".vcf" or ".vcf.gz" with keys added to INFO,
            ".tsv" or ".tsv.gz", or ".parquet", for which all rows are held in memory.
        batch_size : int, optional
            Variants read at once; changes memory and speed alone. By default as many as make 65,536 tokens.

        Returns
        -------
        pandas.DataFrame, or with `output` pandas.Series
            One row for each allele, in the order of the records and of their ALT: line, chrom, pos (from 1), id, ref,
            alt, allele (its place in ALT), reason, log_likelihood_ratio in nats, with both strands also
            log_likelihood_ratio_forward and log_likelihood_ratio_reverse, and with `embeddings` embedding_l2 and
            embedding_cosine (1 less the cosine). Where the reason (see `ssmseq.dna.alleles.Reason`) says that there is
            no score, values are NaN. With `output` the number of alleles for each reason.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        FileNotFoundError
            If there is no such file, or no folder to write to.
        ValueError
            For an argument out of range, a suffix that names no format, or, with ``reference="error"``, a REF that is
            not the reference.

        Notes
        -----
        Insertions and deletions are first written as far left as they can be, so that scores do not depend on how a
        file writes them. See `ssmseq.dna.alleles.equal_windows` for their windows, of which equal letters count in
        both; where a window ends before REF and ALT differ, as in long repeats, the ratio is 0.

        The ratio of a model trained on one genome says how unusual a change is, not how harmful: for regulatory
        variants, published models of this kind are close to chance.

        References
        ----------
        .. [1] Meier et al., "Language models enable zero-shot prediction of the effects of mutations on protein
           function", NeurIPS 2021.
        """
        check_is_fitted(self)
        return scoring.score_variants(
            self,
            variants,
            fasta,
            length=length,
            strands=strands,
            reference=reference,
            embeddings=embeddings,
            output=output,
            batch_size=batch_size,
        )

    def mutagenesis(
        self,
        sequence_or_fasta: "str | os.PathLike | Fasta",
        contig: str | None = None,
        start: int | None = None,
        end: int | None = None,
        *,
        after: int | None = None,
        context: int | None = None,
        strands: str | None = None,
    ) -> "MutagenesisDisplay":
        """Score every substitution of one base in a region: in-silico saturation mutagenesis.

        The log-likelihood ratio is that of what is read with the other base, less that of what is read as it is. A
        causal model walks along the region once and reads what follows each other base from a copy of its state; a
        bidirectional one compares the four bases behind a mask.

        Parameters
        ----------
        sequence_or_fasta : str, path or Fasta
            A sequence; or with `contig` a FASTA.
        contig : str, optional
            Of the FASTA.
        start, end : int, optional
            The region, in bases from 0; `end` is not included. By default all of the sequence or contig.
        after : int, optional
            Bases behind each place whose probabilities count; for a bidirectional model, that are read behind the
            region. By default half a training window. The work grows with the product of region and `after`.
        context : int, optional
            Bases that are read before the region; by default half a training window.
        strands : {"forward", "average"}, optional
            As in `score_variants`; on the other strand, `context` and `after` lie on the other sides.

        Returns
        -------
        MutagenesisDisplay
            ``.frame()`` has the numbers, ``.plot()`` draws them.

        Raises
        ------
        NotFittedError
            If `fit` has not run.
        ValueError
            For a letter that is not of DNA, a region that does not lie in the sequence, or an argument out of range.
        """
        check_is_fitted(self)
        return saturation.mutate(
            self, sequence_or_fasta, contig, start, end, after=after, context=context, strands=strands
        )
