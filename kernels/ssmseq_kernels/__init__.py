"""The selective-scan core of ssmseq: for each operator one definition, and one kernel per kind of device."""

from ssmseq_kernels.conv import causal_conv1d
from ssmseq_kernels.scan import available_backends, processor, selective_scan

__all__ = ["available_backends", "causal_conv1d", "processor", "selective_scan"]
