"""Draw docs/images/scan_memory.png: what step sizes do to a state (python docs/images/scan_memory.py)."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from ssmseq_kernels import selective_scan

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")

steps, sizes = 60, (0.02, 0.05, 0.2, 1.0)
u = torch.zeros(1, steps, len(sizes))
u[:, 5] = 1 / torch.tensor(sizes)  # so that each state takes up the same amount
delta = torch.tensor(sizes).expand(1, steps, -1).contiguous()
ones = torch.ones(1, steps, 1)
y = selective_scan(u, delta, -torch.ones(len(sizes), 1), ones, ones, delta_softplus=False)
for column, size in enumerate(sizes):
    left.plot(y[0, :, column], label=f"step size {size:g}")
left.set(xlabel="time step", ylabel="state", title="An impulse at step 5, four constant step sizes")
left.legend(frameon=False)

signal = torch.randn(1, steps, 1, generator=torch.Generator().manual_seed(0))
signal[:, 10], signal[:, 40] = 2.0, -1.5
delta = torch.full((1, steps, 1), 0.005)
delta[:, [10, 40]] = 4.0
y = selective_scan(signal, delta, -torch.ones(1, 1), ones, ones, delta_softplus=False)
right.bar(range(steps), signal[0, :, 0], color="0.8", label="input")
right.plot(y[0, :, 0] / 4, color="C3", label="state / 4")
for step in (10, 40):
    right.axvline(step, color="0.4", linestyle=":", linewidth=1)
right.set(xlabel="time step", title="Large steps at 10 and 40 write, small ones keep")
right.legend(frameon=False)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)
