"""Recordings in EDF and BDF [1]_ and in DICOM [2]_, read by edfio and pydicom, which the extra `ecg` installs.

Each reader takes the path and `choose`, which maps the names of the channels to the numbers of those to read, so that
the other channels of a long recording are left on the disk. It returns the sampling rate in Hz, the names and units of
all channels, a dict of the chosen signals, what is known of the patient, and remarks on what disagrees in the file.

SCP-ECG, HL7 aECG and the formats of single manufacturers are not read: convert them to one of these.

References
----------
.. [1] Kemp, B. and Olivan, J. (2003). European data format 'plus' (EDF+), an EDF alike standard format for the exchange
   of physiological data. Clinical Neurophysiology 114(9). https://doi.org/10.1016/S1388-2457(03)00123-8
.. [2] Digital Imaging and Communications in Medicine, part 3, C.10.9: Waveform module. https://dicomstandard.org
"""

import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmseq.ecg.wfdb_format import OLDEST

Choice = Callable[[Sequence[str]], list[int]]
Content = tuple[float, list[str], list[str], dict[int, np.ndarray], dict[str, Any], list[str]]
_EDF_PATIENT = re.compile(r"(?P<code>\S+) (?P<sex>[FMX]) (X|\d\d-\w{3}-\d{4})( .*)?")
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def read_edf(path: Path, choose: Choice) -> Content:
    """Read an EDF, EDF+C, BDF or BDF+C file.

    Raises
    ------
    ImportError
        If edfio is not installed.
    ValueError
        If the file is damaged or has interruptions, or the chosen channels differ in their rates.
    """
    edfio = _library("edfio", path)
    read = edfio.read_bdf if path.suffix.lower() == ".bdf" else edfio.read_edf
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        file = _opened(read, path, path.suffix[1:].upper(), header_encoding="latin-1")
    if file.reserved[4:5] == "D":  # edfio would join the pieces
        raise ValueError(f"{path} is an interrupted recording ({file.reserved[:5]}): cut it into continuous files")
    names = [signal.label or f"channel {i + 1}" for i, signal in enumerate(file.signals)]
    chosen = choose(names)
    rates = {names[i]: file.signals[i].sampling_frequency for i in chosen}
    if len(set(rates.values())) > 1:
        stated = ", ".join(f"{name!r} {rate:g} Hz" for name, rate in rates.items())
        raise ValueError(f"{path} has channels of several rates ({stated}): name leads of one rate with leads=[...]")
    signals = {i: np.asarray(file.signals[i].data, np.float64) for i in chosen}
    remarks = [f"{path.name}: {warning.message}" for warning in told]
    units = [signal.physical_dimension for signal in file.signals]
    return float(rates[names[chosen[0]]]), names, units, signals, _edf_patient(file), remarks


def read_dicom(path: Path, choose: Choice) -> Content:
    """Read the longest original group of channels of a DICOM waveform; groups that were derived from it are left out.

    Raises
    ------
    ImportError
        If pydicom is not installed.
    ValueError
        If the file is damaged or holds no waveform.
    """
    file = _opened(_library("pydicom", path).dcmread, path, "DICOM")
    groups = list(file.get("WaveformSequence", []))
    original = [i for i, group in enumerate(groups) if group.get("WaveformOriginality", "ORIGINAL") == "ORIGINAL"]
    if not original:
        raise ValueError(f"{path} holds no original waveform: it is a DICOM file of something else")
    seconds = [groups[i].NumberOfWaveformSamples / groups[i].SamplingFrequency for i in original]
    number = original[int(np.argmax(seconds))]
    group, remarks = groups[number], []
    if len(original) > 1:
        remarks = [f"{path.name}: holds {len(original)} original waveforms, of which number {number + 1} is read"]
    channels = list(group.ChannelDefinitionSequence)
    names = [_dicom_name(channel, i) for i, channel in enumerate(channels)]
    units = [str(_first(channel, "ChannelSensitivityUnitsSequence").get("CodeValue", "")) for channel in channels]
    chosen = choose(names)
    values = _opened(file.waveform_array, number, "a DICOM waveform", path=path).T
    if "WaveformPaddingValue" in group:
        values[_dicom_gaps(file, group, number)] = np.nan
    return float(group.SamplingFrequency), names, units, {i: values[i] for i in chosen}, _dicom_patient(file), remarks


READERS: dict[str, Callable[[Path, Choice], Content]] = {".edf": read_edf, ".bdf": read_edf, ".dcm": read_dicom}


def _library(name: str, path: Path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{path}: {path.suffix} files are read by the package {name}: install it, as in pip install "ssmseq[ecg]"'
        ) from error


def _opened(read: Callable, source, what: str, *, path: Path | None = None, **options):
    try:
        return read(source, **options)
    except Exception as error:  # a damaged file makes these libraries raise anything
        where = path or source
        raise ValueError(
            f"{where} cannot be read as {what} ({type(error).__name__}: {error}); it is damaged or of another kind"
        ) from error


def _edf_patient(file) -> dict[str, Any]:
    """Return what the patient field tells where it is written as EDF+ asks; X stands for unknown."""
    match = _EDF_PATIENT.fullmatch(file.local_patient_identification)
    if match is None:
        return {}
    known = {"patient_id": match["code"], "sex": match["sex"]}
    known = {name: value for name, value in known.items() if value != "X"}
    try:
        days = (file.recording.startdate - file.patient.birthdate).days
    except (ValueError, IndexError):  # edfio's, of what is unknown or no date
        return known
    return known | _age(days * _YEARS["D"])


def _dicom_patient(file) -> dict[str, Any]:
    age = str(file.get("PatientAge", ""))
    known: dict[str, Any] = {"patient_id": str(file.PatientID)} if file.get("PatientID") else {}
    if file.get("PatientSex") in ("F", "M"):
        known["sex"] = str(file.PatientSex)
    return known | (_age(int(age[:-1]) * _YEARS[age[-1]]) if age[:-1].isdigit() and age[-1] in _YEARS else {})


def _age(years: float) -> dict[str, float]:
    return {"age": float(years)} if 0 <= years <= OLDEST else {}


def _dicom_name(channel, number: int) -> str:
    """Return "Lead I" for "Lead I (Einthoven)"."""
    name = str(_first(channel, "ChannelSourceSequence").get("CodeMeaning", "") or channel.get("ChannelLabel", ""))
    return name.partition("(")[0].strip() or f"channel {number + 1}"


def _dicom_gaps(file, group, number: int) -> np.ndarray:
    """Return where the samples (channels, times) stand for missing ones."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    stored = group.WaveformPaddingValue
    samples = multiplex_array(file, number, as_raw=True).T
    padding = np.frombuffer(stored, samples.dtype)[0] if isinstance(stored, bytes) else stored
    return samples == padding


def _first(item, name: str):
    return item[name].value[0] if item.get(name) else {}
