"""Run in a fresh process by the GPU benchmark: print the seconds of the first forward and backward pass as JSON."""

import json
import sys
import time

import torch
from cuda_cases import DTYPES, NAMES, make_inputs


def main() -> None:
    asked = json.loads(sys.argv[1])
    device = torch.device(asked["device"])
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    inputs = make_inputs(tuple(asked["sizes"]), DTYPES[asked["dtype"]], device)
    leaves = [inputs[name].requires_grad_() for name in NAMES]
    synchronize()
    began = time.perf_counter()
    import ssmseq_kernels

    imported = time.perf_counter()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        y = ssmseq_kernels.selective_scan(*leaves)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
        synchronize()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"import_s": imported - began, "first_s": seconds[0], "second_s": seconds[1]}))


if __name__ == "__main__":
    main()
