"""Model cards: what a saved model is, how it was trained and what it is not for, as Markdown beside its weights."""

import inspect
import math
import re

LIMITS = {
    "ECGMambaClassifier": "Not a medical device: its output is for research, not for decisions about patients. It "
    "knows the recorders, the population and the labelling of its training recordings, and no others.",
    "DNALanguageModel": "A likelihood says how usual a sequence is for what the model was trained on, not how harmful "
    "a change of it is.",
    "DNAClassifier": "It knows sequences like those that it was trained on, of about their length.",
    "DNARegressor": "It knows sequences like those that it was trained on, of about their length.",
}
OTHERS = (
    "It extends what its training series did. Compare it with `RidgeForecaster` and `NaiveForecaster` on the same rows "
    "before relying on it."
)


def model_card(estimator) -> str:
    """Return the card of a fitted estimator, in Markdown with the metadata that the Hugging Face Hub reads.

    Parameters
    ----------
    estimator : fitted estimator of this library

    Returns
    -------
    str
    """
    from ssmseq import __version__

    name = type(estimator).__name__
    summary, references = _from_docstring(type(estimator))
    lines = ["---", "library_name: ssmseq", "tags: [ssmseq, mamba, state-space-model]", "---", "", f"# {name}", ""]
    lines += [summary, "", "```python", "import ssmseq", "", 'model = ssmseq.load("this folder")', "```", ""]
    lines += ["## What it is", "", *_table(_facts(estimator, __version__)), ""]
    if changed := _changed(estimator):
        lines += ["Parameters that differ from the defaults:", "", *_table(changed), ""]
    if training := _training(estimator):
        lines += ["## Training", "", *_table(training), ""]
    lines += ["The validation loss chose the epoch: measure the model on data that chose nothing.", ""]
    lines += ["## What it is not for", "", LIMITS.get(name, OTHERS), ""]
    if references:
        lines += ["## References", "", *references, ""]
    return "\n".join(lines)


def _from_docstring(kind: type) -> tuple[str, list[str]]:
    """Return the first line of a class's docstring without marks of references, and the references as a list."""
    text = inspect.getdoc(kind) or ""
    summary = re.sub(r"\s*\[\d+\]_,?", "", text.partition("\n\n")[0]).replace("\n", " ")
    found = re.search(r"\nReferences\n-+\n(.*?)(?=\n\w[^\n]*\n-{3,}\n|\Z)", text, re.DOTALL)
    entries = re.split(r"\n(?=\.\. \[)", found[1].strip()) if found else []
    return summary, ["- " + " ".join(re.sub(r"^\.\. \[\d+\]", "", entry).split()) for entry in entries]


def _facts(estimator, version: str) -> dict[str, object]:
    facts: dict[str, object] = {"made by": f"ssmseq {version}"}
    network = getattr(estimator, "network_", None)
    if network is not None:
        facts["weights"] = f"{sum(p.numel() for p in network.parameters()):,}"
    for title, attribute in (("labels", "classes_"), ("input columns", "feature_names_in_"), ("leads", "leads")):
        values = getattr(estimator, attribute, None)
        if values is not None and len(values):
            shown = [str(value) for value in list(values)[:20]]
            facts[title] = ", ".join(shown) + (f" and {len(values) - 20} more" if len(values) > 20 else "")
    return facts


def _changed(estimator) -> dict[str, object]:
    usual = type(estimator)().get_params(deep=False)
    given = estimator.get_params(deep=False)
    hidden = ("callbacks", "logger", "verbose", "checkpoint_folder", "language_model", "trainer_params")
    return {k: v for k, v in given.items() if k not in hidden and repr(v) != repr(usual[k])}


def _training(estimator) -> dict[str, object]:
    history = getattr(estimator, "history_", None)
    if history is None or not len(history):
        return {}
    facts: dict[str, object] = {"epochs": max(history["epoch"]), "seconds": f"{history['seconds'].sum():.0f}"}
    if "network" in history:
        facts = {"networks": max(history["network"]), **facts}
    losses = history["valid_loss"].tolist() if "valid_loss" in history else []
    best = min((x for x in losses if math.isfinite(x)), default=None)
    if best is not None:
        facts["best validation loss"] = f"{best:.4g} in epoch {history['epoch'].iloc[losses.index(best)]}"
    return facts


def _table(facts: dict[str, object]) -> list[str]:
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in facts.items()]
    return ["| | |", "|---|---|", *rows]
