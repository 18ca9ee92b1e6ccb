"""The selective-scan core of ssmseq: for each operator one definition, and one kernel per kind of device."""

from ssmseq_kernels.conv import causal_conv1d, causal_conv1d_update
from ssmseq_kernels.mamba3 import mamba3_scan, mamba3_state_update
from ssmseq_kernels.scan import (
    available_backends,
    bidirectional_selective_scan,
    processor,
    selective_scan,
    selective_state_update,
    sequence_index,
)
from ssmseq_kernels.ssd import ssd_scan, ssd_state_update

__all__ = [
    "available_backends",
    "bidirectional_selective_scan",
    "causal_conv1d",
    "causal_conv1d_update",
    "mamba3_scan",
    "mamba3_state_update",
    "processor",
    "selective_scan",
    "selective_state_update",
    "sequence_index",
    "ssd_scan",
    "ssd_state_update",
]
