"""Benchmark data sets with checksums, and a generator that needs no download.

The public names are imported on first use, so ``import ssmseq.datasets`` loads neither torch nor pandas.
"""

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "DatasetNotFoundError": "files",
    "fetch_file": "files",
    "fetch_ett": "fetchers",
    "fetch_exchange_rate": "fetchers",
    "fetch_national_illness": "fetchers",
    "fetch_weather": "fetchers",
    "list_datasets": "inventory",
    "make_transformer_load": "generators",
    "verify_dataset": "inventory",
}

if TYPE_CHECKING:
    from ssmseq.datasets.fetchers import fetch_ett, fetch_exchange_rate, fetch_national_illness, fetch_weather
    from ssmseq.datasets.files import DatasetNotFoundError, fetch_file
    from ssmseq.datasets.generators import make_transformer_load
    from ssmseq.datasets.inventory import list_datasets, verify_dataset

__all__ = [
    "DatasetNotFoundError",
    "fetch_ett",
    "fetch_exchange_rate",
    "fetch_file",
    "fetch_national_illness",
    "fetch_weather",
    "list_datasets",
    "make_transformer_load",
    "verify_dataset",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ssmseq.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ssmseq.datasets.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
