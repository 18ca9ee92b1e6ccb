"""
Electrocardiograms, from files to figures with intervals
========================================================

Not a medical device: what a model says here is for research, and not for decisions about patients.

This page reads recordings of PTB-XL, looks at their quality, trains a small convolutional network, measures it on
patients that it has not seen, and shows what it looks at. It is built on the first 500 recordings of the 21,799 and
trains for a few epochs, which is enough to see each step and too little for a figure to quote.
"""

# %%
# The recordings
# --------------
#
# PTB-XL [1]_ is on PhysioNet under CC BY 4.0: 12 leads, 10 seconds, five superclasses of diagnoses, of which a
# recording can have several. ``read_ptbxl`` reads its folder, the whole set as well as a part; here the part that lies
# in ``ecg/ptbxl500`` of the folder that SSMSEQ_DATA names, where the signals are packed.

import os
import shutil
import tempfile
from pathlib import Path

from ssmseq.ecg.folders import read_ptbxl

folder = Path(os.environ.get("SSMSEQ_DATA", "."), "ecg", "ptbxl500")
with tempfile.TemporaryDirectory() as unpacked:
    if (folder / "records100.tar.xz").is_file():
        shutil.unpack_archive(folder / "records100.tar.xz", unpacked, filter="data")
        for name in ("ptbxl_database.csv", "scp_statements.csv"):
            shutil.copy(folder / name, unpacked)
        folder = Path(unpacked)
    data = read_ptbxl(folder, sampling_rate=100)
print(f"{len(data.records)} recordings of {len(set(data.groups))} patients")
data.y.sum().rename("recordings").to_frame().T

# %%
# On paper
# --------
#
# 25 mm to a second and 10 mm to a millivolt; the figure has the size at which this is true.

from ssmseq.ecg import ECGDisplay

first = data.records[0]
display = ECGDisplay(first).plot()

# %%
# Quality
# -------
#
# ``quality_report`` has a row for each recording and lead, and a verdict in words. Nothing is changed or left out by
# it. The thresholds are plain, and meant to be adapted to a device.

from ssmseq.ecg.quality import quality_report

quality = quality_report(data.records)
columns = ["record", "lead", "range", "baseline_wander", "verdict"]
quality[quality["verdict"] != "good"].sort_values("baseline_wander", ascending=False)[columns].head().round(2)

# %%
# The lead whose baseline wanders most, by itself. A row is as high as its signals need, up to 4 mV on either side; what
# reaches further is cut, and said so.

import dataclasses

worst = quality.loc[quality["baseline_wander"].idxmax()]
shown = next(record for record in data.records if record.record_id == worst["record"])
alone = shown.lead_names.index(worst["lead"])
strip = dataclasses.replace(shown, signal=shown.signal[[alone]], lead_names=(worst["lead"],))
display = ECGDisplay(strip).plot()

# %%
# Folds by patient
# ----------------
#
# PTB-XL comes with ten folds, and no patient is in two. Folds 1 to 8 train; a tenth of their patients, held out within
# ``fit``, chooses the epoch and the thresholds. Folds 9 and 10 are left for measuring: with all of PTB-XL one would
# keep fold 9 for choices, but of 500 recordings one fold is too little to measure anything on.

import numpy as np

from ssmseq.ecg.splits import check_disjoint

held_out = data.folds >= 9
check_disjoint(data.groups[~held_out], data.groups[held_out], names=("training", "test"))
train = [record for record, out in zip(data.records, held_out, strict=True) if not out]
test = [record for record, out in zip(data.records, held_out, strict=True) if out]
y_train, y_test = data.y[~held_out], data.y[held_out]
print(f"{len(train)} recordings to train on, {len(test)} to test, of {len(set(data.groups[held_out]))} patients")

# %%
# Fit
# ---
#
# "cnn" is the preset of the baseline, a residual convolutional network on crops of 2.5 seconds. "dense" has
# bidirectional Mamba in its place, and takes about as long. ``thresholds="f1"`` chooses for each label the probability
# from which on it is predicted.

from ssmseq import ECGMambaClassifier

model = ECGMambaClassifier.from_preset(
    "cnn", d_model=32, thresholds="f1", max_epochs=8, learning_rate=3e-3, random_state=0
)
_ = model.fit(train, y_train)
print({str(label): round(float(t), 2) for label, t in zip(model.classes_, model.thresholds_, strict=True)})

# %%
# The losses by epoch. Eight epochs of so few recordings are a start; the weights kept are those of the epoch with the
# lowest validation loss.

import matplotlib.pyplot as plt

_, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
model.history_.plot(x="epoch", y=["train_loss", "valid_loss"], color=["#5F6B7A", "#D55E00"], ax=axis)
axis.set(xlabel="epoch", ylabel="cross entropy of a label (nats)")
axis.spines[["top", "right"]].set_visible(False)

# %%
# Measure
# -------
#
# The macro AUROC is the mean over labels of the chance that a recording with the label is ranked above one without it;
# 0.5 is guessing. Recordings of one patient are alike, so whole patients are resampled for the interval of 95 %.

from ssmseq.ecg.metrics import bootstrap_interval, label_report, macro_auroc

prob = model.predict_proba(test)
interval = bootstrap_interval(macro_auroc, y_test, prob, groups=data.groups[held_out])
label_report(y_test, prob, model.thresholds_)[["n", "prevalence", "auroc", "f1", "sensitivity", "specificity"]].round(2)

# %%
# The curves of all labels, with the number of recordings that have each: the fewer, the rougher the line. To the right,
# how often a label is there when the model gives it a probability.

from ssmseq.ecg import LabelCurvesDisplay

figure, axes = plt.subplots(1, 2, figsize=(9, 6.2), layout="constrained")
curves = {"roc": {}, "reliability": {"n_bins": 4}}
for axis, (kind, options) in zip(axes, curves.items(), strict=True):
    display = LabelCurvesDisplay.from_predictions(y_test, prob, kind=kind, **options).plot(ax=axis)

# %%
# What the model looks at
# -----------------------
#
# The recording of the test part that has an infarction (MI) and is given the highest probability of one, shaded where
# the logit of that label depends on it. This is about the model and not about the heart.

mi = list(model.classes_).index("MI")
surest = int(np.argmax(np.where(y_test["MI"] == 1, prob[:, mi], -1)))
display = ECGDisplay.from_estimator(model, test[surest], label="MI").plot()

# %%
# The same by lead and time. Hiding segments costs a pass through the network for each, and says what the model does
# without them.

from ssmseq.ecg import SaliencyDisplay

display = SaliencyDisplay.from_estimator(
    model, test[surest], label="MI", method="occlusion", stop=5.0, width=0.25
).plot()

# %%
# What a fitted model refuses
# ---------------------------
#
# Rate, order of leads and units are part of the model. A lead that is missing is derived or masked with a warning; a
# record whose microvolts are stated as millivolts is refused.

wrong = dataclasses.replace(first, signal=1000 * first.signal)
try:
    model.predict([wrong])
except ValueError as error:
    print(error)

# %%
# What was seen
# -------------

share = (quality["verdict"] != "good").mean()
print(f"leads with a remark: {100 * share:.1f} % of {len(quality):,}")
print(f"macro AUROC {interval.point:.3f}, 95 % of resampled patients {interval.low:.3f} to {interval.high:.3f}")
print(f"{model.n_iter_} epochs, {sum(p.numel() for p in model.network_.parameters()):,} weights")

# %%
# Some hundred recordings of one period and few devices are enough to rank labels better than by chance, and the
# interval says how little that is: with so few recordings to test on, differences between models smaller than its width
# cannot be told from luck. Thresholds that a tenth of the training patients chose are rough as well.
#
# Do not use this to decide about patients, do not compare its figures with those of the whole of PTB-XL, and do not
# read a saliency as a location in the heart. For a result, fit "dense" and "cnn" on all folds over several seeds, keep
# fold 10 until the end, and print both beside a regression on plain features. The same steps from the command line,
# other file formats and reports as one page are in :doc:`/ecg`.
#
# .. [1] Wagner, P. et al. (2020). PTB-XL, a large publicly available electrocardiography dataset. Scientific Data 7,
#    154. https://doi.org/10.1038/s41597-020-0495-6
