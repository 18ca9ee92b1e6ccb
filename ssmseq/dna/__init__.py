"""Language models of DNA: from a FASTA file to likelihoods, embeddings, variant scores and new sequences.

The names are imported on first use: sequences, regions and Markov baselines load no torch.
"""

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "DNAClassifier": "ssmseq.dna.finetune",
    "DNALanguageModel": "ssmseq.dna.language_model",
    "DNARegressor": "ssmseq.dna.finetune",
    "Fasta": "ssmseq.dna.fasta",
    "MarkovBaseline": "ssmseq.dna.markov",
    "MutagenesisDisplay": "ssmseq.dna.displays",
}

if TYPE_CHECKING:
    from ssmseq.dna.displays import MutagenesisDisplay
    from ssmseq.dna.fasta import Fasta
    from ssmseq.dna.finetune import DNAClassifier, DNARegressor
    from ssmseq.dna.language_model import DNALanguageModel
    from ssmseq.dna.markov import MarkovBaseline

__all__ = ["DNAClassifier", "DNALanguageModel", "DNARegressor", "Fasta", "MarkovBaseline", "MutagenesisDisplay"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ssmseq.dna' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
