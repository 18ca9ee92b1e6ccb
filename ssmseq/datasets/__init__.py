"""Benchmark data sets with checksums, and generators that need no download.

The public names are imported on first use, so ``import ssmseq.datasets`` loads neither torch nor pandas.
"""

import importlib
from typing import TYPE_CHECKING

_HOME = {
    "DatasetNotFoundError": "files",
    "fetch_dataset": "loading",
    "fetch_electricity": "many_variates",
    "fetch_epf": "fetchers",
    "fetch_ett": "fetchers",
    "fetch_exchange_rate": "fetchers",
    "fetch_file": "files",
    "fetch_m4_hourly": "fetchers",
    "fetch_national_illness": "fetchers",
    "fetch_pems": "many_variates",
    "fetch_solar": "many_variates",
    "fetch_traffic": "many_variates",
    "fetch_weather": "fetchers",
    "list_datasets": "inventory",
    "make_lorenz96": "generators",
    "make_markov_sequence": "generators",
    "make_transformer_load": "generators",
    "verify_dataset": "inventory",
}

if TYPE_CHECKING:
    from ssmseq.datasets.fetchers import (
        fetch_epf,
        fetch_ett,
        fetch_exchange_rate,
        fetch_m4_hourly,
        fetch_national_illness,
        fetch_weather,
    )
    from ssmseq.datasets.files import DatasetNotFoundError, fetch_file
    from ssmseq.datasets.generators import make_lorenz96, make_markov_sequence, make_transformer_load
    from ssmseq.datasets.inventory import list_datasets, verify_dataset
    from ssmseq.datasets.loading import fetch_dataset
    from ssmseq.datasets.many_variates import fetch_electricity, fetch_pems, fetch_solar, fetch_traffic

__all__ = [
    "DatasetNotFoundError",
    "fetch_dataset",
    "fetch_electricity",
    "fetch_epf",
    "fetch_ett",
    "fetch_exchange_rate",
    "fetch_file",
    "fetch_m4_hourly",
    "fetch_national_illness",
    "fetch_pems",
    "fetch_solar",
    "fetch_traffic",
    "fetch_weather",
    "list_datasets",
    "make_lorenz96",
    "make_markov_sequence",
    "make_transformer_load",
    "verify_dataset",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'ssmseq.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ssmseq.datasets.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
