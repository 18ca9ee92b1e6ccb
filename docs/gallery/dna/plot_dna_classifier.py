"""
Classify DNA, and find what the classifier looks at
===================================================

Two words in one order or in the other: a task with a known answer. Counting words cannot solve it, since both classes
hold the same words, and whether the network looks at the right places can be checked. A language model is pre-trained
on the sequences without their labels for two epochs, and fine-tuned for four.
"""

# %%
# The task
# --------
#
# Sequences of 80 bases from a random Markov chain. Into each, ``TTGACA`` and ``TATAAT`` are planted 15 to 19 bases
# apart, at any place; they are the consensus of the two boxes of a bacterial promoter. In class 1 they stand in this
# order, in class 0 in the other.

import numpy as np

from ssmseq.datasets import make_markov_sequence

N, LENGTH = 2400, 80
BOXES = ("TTGACA", "TATAAT")
rng = np.random.default_rng(0)
background, _ = make_markov_sequence(order=2, length=N * LENGTH, random_state=1)
y = rng.integers(0, 2, N)
sequences, starts = [], []
for i, label in enumerate(y):
    first, second = BOXES if label else BOXES[::-1]
    gap = int(rng.integers(15, 20))
    a = int(rng.integers(0, LENGTH - 12 - gap + 1))
    b = a + 6 + gap
    s = background[i * LENGTH : (i + 1) * LENGTH]
    sequences.append(s[:a] + first + s[a + 6 : b] + second + s[b + 6 :])
    starts.append((a, b))
X = np.array(sequences)
X_train, y_train, X_test, y_test = X[:1600], y[:1600], X[1600:], y[1600:]
print(X_test[0], y_test[0])

# %%
# Words, counted
# --------------
#
# What to try first on DNA: how often each word of k letters occurs, and a logistic regression on that.

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

accuracy = {}
for k in (4, 6):
    words = CountVectorizer(analyzer="char", ngram_range=(k, k), lowercase=False)
    counted = make_pipeline(words, LogisticRegression(max_iter=1000)).fit(X_train, y_train)
    accuracy[f"words of {k} letters"] = counted.score(X_test, y_test)

# %%
# Pre-train and fine-tune
# -----------------------
#
# ``DNAClassifier`` starts from the network of a fitted language model and trains all of its weights with a head;
# ``tuning`` can be "lora" or "head" instead. The strand matters here, so no reverse complement is used. A language
# model that is not fitted only names the architecture, which is then trained from scratch.

from ssmseq import DNAClassifier, DNALanguageModel

architecture = {"d_model": 32, "n_layers": 2, "length": LENGTH, "reverse_complement": "none"}
language_model = DNALanguageModel(**architecture, max_epochs=2, batch_size=16, random_state=0).fit(list(X_train))
tuning = {
    "pooling": "mean",
    "learning_rate": 4e-3,
    "dropout": 0.0,
    "max_epochs": 4,
    "batch_size": 32,
    "random_state": 0,
}
tuned = DNAClassifier(language_model=language_model, **tuning).fit(X_train, y_train)
scratch = DNAClassifier(language_model=DNALanguageModel(**architecture), **tuning).fit(X_train, y_train)
accuracy["from scratch, 4 epochs"] = scratch.score(X_test, y_test)
accuracy["pre-trained, then 4 epochs"] = tuned.score(X_test, y_test)

# %%
# The losses of the part of the training sequences that is held out to choose the epoch, and the accuracy on the test
# sequences.

import matplotlib.pyplot as plt

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, fitted, color in (("pre-trained", tuned, "#D55E00"), ("from scratch", scratch, "#0072B2")):
    left.plot(fitted.history_["epoch"], fitted.history_["valid_loss"], marker="o", color=color, label=name)
left.axhline(np.log(2), color="#6b7280", linewidth=0.8, linestyle="--", label="guessing")
left.set(xlabel="epoch of fine-tuning", ylabel="cross entropy (nats), held out", xticks=range(1, 5), ylim=(0, None))
left.legend(frameon=False)
bars = right.barh(list(accuracy), list(accuracy.values()), color=["#5F6B7A"] * 2 + ["#0072B2", "#D55E00"])
right.bar_label(bars, fmt="%.3f", label_type="center", color="white")
right.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
right.set(xlabel="accuracy, test", xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1])
right.invert_yaxis()
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)

# %%
# What the decision rests on
# --------------------------
#
# ``mutagenesis`` changes every base to every other, and draws what that does to the log-odds of the class. If the
# classifier has found the boxes, the colour is there. They are shaded green above the map, since this task's answer is
# known.

chosen = int(np.flatnonzero(y_test == 1)[0])
boxes = starts[1600 + chosen]
display = tuned.mutagenesis(str(X_test[chosen]), label=1).plot()
for start in boxes:
    shade = display.mean_ax_.axvspan(start + 0.5, start + 6.5, color="#009E73", alpha=0.15, linewidth=0)

# %%
# Over ten sequences: which share of the absolute change lies in the first box, in the second, and in the other 68
# bases. The box that comes first decides the class, so a reader that has recognised it does not need the second.

shares = []
for i in range(10):
    effect = np.abs(tuned.mutagenesis(str(X_test[i])).changes).sum(1)
    shares.append([100 * effect[start : start + 6].sum() / effect.sum() for start in starts[1600 + i]])
first, second = np.mean(shares, axis=0)

# %%
# What was seen
# -------------

print(", ".join(f"{name}: {value:.3f}" for name, value in accuracy.items()))
print(f"share of the changes: first box {first:.0f} %, second {second:.0f} %, elsewhere {100 - first - second:.0f} %")

# %%
# Words alone are at chance by the making of the task. The network that has seen the sequences before, without labels,
# solves it in these few epochs; from scratch it has not begun to. The map of changes points to the boxes, though not to
# both alike: it shows what this network rests on, and not all that tells the classes apart.
#
# This task was made so that counting fails. Most real ones are not: on a task of GUE, words of four or six letters
# reach a correlation of 0.70 where fine-tuned networks have 0.76, and for splice junctions, which stand at one place of
# each sequence, a regression on the base at each place is ahead of them (:doc:`/dna`). Count first, and do not
# pre-train on a few thousand short sequences for the sake of embeddings.
