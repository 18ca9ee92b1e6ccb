"""The diagnoses that the PhysioNet/CinC challenges of 2020 and 2021 score, and which codes mean the same one."""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ssmseq.base import check_choice

if TYPE_CHECKING:
    import pandas as pd

# The 26 scored classes of 2021 in the order of its weights; a class of two codes is one diagnosis under two names.
_SCORED_2021 = """
164889003=AF 164890007=AFL 6374002=BBB 426627000=Brady 733534002|164909002=CLBBB|LBBB 713427006|59118001=CRBBB|RBBB
270492004=IAVB 713426002=IRBBB 39732003=LAD 445118002=LAnFB 164947007=LPR 251146004=LQRSV 111975006=LQT
698252002=NSIVCB 426783006=NSR 284470004|63593006=PAC|SVPB 10370003=PR 365413008=PRWP 427172004|17338001=PVC|VPB
164917005=QAb 47665007=RAD 427393009=SA 426177001=SB 427084000=STach 164934002=TAb 59931005=TInv
"""
# Codes that occur in the data of the challenges and are not scored.
_UNSCORED = """
233892002 164951009 251187003 61277005 426664006 251139008 57054005 413444003 426434006 54329005 251173003 195080001
195126007 251268003 106068003 713422000 233917008 50799005 29320008 251166008 233897008 251170000 418818005 74615001
426749004 251199005 61721007 698247007 27885002 204384007 53741008 413844008 251198002 82226007 428417006 13640000
164942001 84114007 368009 251259000 251200008 195042002 426183003 425419005 251120003 704997005 49260003 426995002
251164006 426648003 253352002 67741000119109 446813000 425623009 445211001 164873001 55827005 370365005 164865005
164861001 54016002 428750005 164867002 282825002 251205003 67198005 425856008 164912004 253339007 164921003 446358003
67751000119106 314208002 89792004 17366009 65778007 5609005 60423000 49578007 77867006 55930002 429622005 164931005
164930006 251168009 426761007 266257000 251223006 164937009 11157007 164884008 75532003 81898007 164896001 111288001
266249003 195060002 251266004 251182009 164895002 251180001 195101003 74390002
"""


def scored_labels(year: int = 2021) -> dict[str, str]:
    """Return the classes that the PhysioNet/CinC challenge of a year scores.

    Parameters
    ----------
    year : {2020, 2021}

    Returns
    -------
    dict of str to str
        SNOMED CT codes to abbreviations, 24 classes for 2020 and 26 for 2021. Codes that count as the same diagnosis
        are one class, written as the weights of 2021 do: ``"713427006|59118001": "CRBBB|RBBB"``.

    References
    ----------
    .. [1] Alday, E. A. P. et al. (2020). Classification of 12-lead ECGs: the PhysioNet/Computing in Cardiology
       Challenge 2020. Physiological Measurement 41, 124003. https://doi.org/10.1088/1361-6579/abc960
    .. [2] Reyna, M. A. et al. (2021). Will two do? Varying dimensions in electrocardiography: the PhysioNet/Computing
       in Cardiology Challenge 2021. https://doi.org/10.23919/CinC53138.2021.9662687
    """
    check_choice("year", year, (2020, 2021))
    classes = {code: name for code, _, name in (pair.partition("=") for pair in _SCORED_2021.split())}
    if year == 2020:
        classes = {("164909002" if k == "733534002|164909002" else k): v for k, v in classes.items()}
        classes["164909002"] = "LBBB"
        del classes["6374002"], classes["365413008"]
    return classes


def challenge_indicator(
    label_sets: Iterable, *, year: int = 2021, unknown: str = "ignore", index=None
) -> "pd.DataFrame":
    """Turn sets of SNOMED CT codes into the scored classes of a challenge.

    Parameters
    ----------
    label_sets : iterable of sequences of str
        The codes of each recording. Codes that the challenge knows and does not score are left out.
    year : {2020, 2021}
    unknown : {"ignore", "error"}
        What to do about codes that no mapping file of the challenges has: leave them out with one warning that lists
        them, or raise.
    index : sequence, optional
        Of the frame.

    Returns
    -------
    DataFrame (n, classes) of int8
        1 where any of a class's codes is given; columns as the keys of `scored_labels`. A recording without a scored
        diagnosis is a row of zeros, as in the challenges.

    Raises
    ------
    ValueError
        If a code is unknown and `unknown` is "error".
    """
    import pandas as pd

    check_choice("unknown", unknown, ("ignore", "error"))
    classes = list(scored_labels(year))
    column = {code: i for i, name in enumerate(classes) for code in name.split("|")}
    everything = {code for name in scored_labels(2021) for code in name.split("|")} | set(_UNSCORED.split())
    label_sets = [tuple(labels) for labels in label_sets]
    odd = sorted({code for labels in label_sets for code in labels} - everything)
    if odd and unknown == "error":
        raise ValueError(f"unknown diagnosis codes {odd}; correct them, or leave them out with unknown='ignore'")
    if odd:
        warnings.warn(f"unknown diagnosis codes are left out: {', '.join(odd)}", stacklevel=2)
    values = np.zeros((len(label_sets), len(classes)), np.int8)
    for row, labels in zip(values, label_sets, strict=True):
        row[[column[code] for code in labels if code in column]] = 1
    return pd.DataFrame(values, index=index, columns=classes)
