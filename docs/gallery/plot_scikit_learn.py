"""
The estimators in scikit-learn's tools
======================================

Every estimator keeps scikit-learn's contract: parameters by keyword, ``fit``, ``score`` where more is better, and
clones that know nothing of a fit. So pipelines, cross-validation and searches take them as they are. This page uses
small data and networks, and shows where care is needed: the order of time, and language models that a pipeline must not
fit again.
"""

# %%
# A grid over a forecaster
# ------------------------
#
# ``score`` is minus the mean squared error of all windows, on the scaled values. Rows are in the order of time, so the
# folds are those of ``TimeSeriesSplit``: each is trained on what precedes it. A test fold needs ``lookback + horizon``
# rows at least, the first ``lookback`` of which serve as history only. A grid over ``lookback`` would therefore compare
# errors of different rows; ``RidgeForecaster(lookback=[96, 168, 336])`` compares its candidates on the same.

from sklearn.model_selection import GridSearchCV, TimeSeriesSplit

from ssmseq import RidgeForecaster
from ssmseq.datasets import make_transformer_load

frame = make_transformer_load(4000, random_state=0)
search = GridSearchCV(
    RidgeForecaster(horizon=24, lookback=168, validation_fraction=0.0),
    {"alpha": [10.0**k for k in range(-4, 3)]},
    cv=TimeSeriesSplit(n_splits=4, test_size=600),
)
_ = search.fit(frame)
print(search.best_params_, f"mean squared error {-search.best_score_:.4f}")

# %%
# The error by the penalty, on each fold and in the mean. The folds differ among each other far more than the penalties
# do: seasons change, and a mean over folds is only as good as their number.

import matplotlib.pyplot as plt
import pandas as pd

results = pd.DataFrame(search.cv_results_)
alphas = results["param_alpha"].astype(float)
_, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for k in range(4):
    label = "a fold" if k == 0 else None
    axis.semilogx(alphas, -results[f"split{k}_test_score"], color="#6b7280", linewidth=0.9, label=label)
axis.semilogx(alphas, -results["mean_test_score"], color="#D55E00", marker="o", markersize=4, label="mean of the folds")
axis.set(xlabel="alpha, the penalty", ylabel="mean squared error (scaled)", ylim=(0, None))
axis.spines[["top", "right"]].set_visible(False)
legend = axis.legend(frameon=False)

# %%
# A network in the same search
# ----------------------------
#
# Parameters of networks are searched in the same way. ``random_state`` gives each fit the same draws, so that settings
# differ by their parameters and not by luck, though one seed says nothing of how much luck there is. Searches of hours
# belong into ``ssmseq tune``, which resumes and stops hopeless trials (:doc:`/tuning`).

from ssmseq import SMambaForecaster

small = SMambaForecaster(
    horizon=24, lookback=96, d_model=32, d_ff=32, n_layers=1, max_epochs=1, batch_size=64, random_state=0
)
rates = GridSearchCV(small, {"learning_rate": [1e-4, 1e-3, 1e-2]}, cv=TimeSeriesSplit(2, test_size=600), refit=False)
_ = rates.fit(frame.iloc[:2500])
pd.DataFrame(rates.cv_results_)[["param_learning_rate", "mean_test_score", "std_test_score"]].round(4)

# %%
# Clones
# ------
#
# A clone has the parameters and nothing of the fit, and parameters of a nested estimator have its name in front.

from sklearn.base import clone

best = search.best_estimator_
print(best, "fitted:", hasattr(best, "lookback_"))
print(clone(best).set_params(alpha=0.5), "fitted:", hasattr(clone(best), "lookback_"))

# %%
# Embeddings in a pipeline
# ------------------------
#
# A language model is a transformer: ``transform`` gives one embedding for each sequence. A pipeline fits all of its
# steps, so the model is frozen, or every fold would train it again. It was fitted on both sources without labels; the
# classifier is what the folds measure.

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssmseq import DNALanguageModel
from ssmseq.datasets import make_markov_sequence

sources = [make_markov_sequence(order=3, length=60_000, random_state=seed)[0] for seed in (0, 1)]
X = np.array([s[i : i + 40] for s in sources for i in range(0, 12_000, 40)])  # 300 sequences of each source
y = np.repeat([0, 1], 300)
model = DNALanguageModel(d_model=16, n_layers=1, length=256, max_epochs=2, reverse_complement="none", random_state=0)
_ = model.fit([s[12_000:] for s in sources])

pipelines = {
    "frozen embeddings": make_pipeline(FrozenEstimator(model), StandardScaler(), LogisticRegression(max_iter=1000)),
    "words of 3 letters": make_pipeline(
        CountVectorizer(analyzer="char", ngram_range=(3, 3), lowercase=False), LogisticRegression(max_iter=1000)
    ),
}
scores = pd.DataFrame({name: cross_val_score(pipeline, X, y, cv=5) for name, pipeline in pipelines.items()})
scores.rename_axis("fold").round(3)

# %%
# What was seen
# -------------

errors = -results["mean_test_score"]
print(f"ridge: {search.best_params_}, error {errors.min():.4f} (worst of the grid {errors.max():.4f})")
for name, column in scores.items():
    print(f"{name}: accuracy {column.mean():.3f}, folds {column.min():.3f} to {column.max():.3f}")

# %%
# Whatever scikit-learn does with an estimator it does with these. That an embedding fits into a pipeline does not make
# it the better choice: counted words tell these two sources apart more surely. Do not use its shuffled folds for
# series, nor folds that cut a patient's recordings apart: ``TimeSeriesSplit``, and the splits in :doc:`/ecg`. A long
# frame is no table whose rows can be folded either; there, ``backtest`` is what you want (:doc:`/forecasting`).
