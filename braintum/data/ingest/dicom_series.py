"""Which series of a study is taken: the contrast-enhanced T1, by description and tags; and under which names.

Nothing of a header leaves this module but what tells volumes apart: a patient becomes a keyed hash, a study the running
number of the patient's scans in the order of time, a file its running number and the digest of its content.
"""

from __future__ import annotations

import hmac
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from braintum.data.ingest.dicom_files import Header, Unreadable, named
from braintum.data.ingest.dicom_geometry import Frame
from braintum.data.ingest.slicing import AXES, Plane

# descriptions are matched in lower case, with _ as a space
DERIVED = re.compile(r"\b(sub(traction)?|mip|minip|map|perf\w*|dce|dsc|dyn\w*|loc|localizer|scout|survey|calib\w*)\b")
OTHER = re.compile(
    r"t2|flair|stir|\b(dwi|adc|dti|diff\w*|tracew?|swi|swan|tof|mra|mrv|angio\w*|asl|bold|fmri|mrs|csi|svs|pd|rcbv|cbv|cbf)\b"
)
T1 = re.compile(r"t1|mp-?rage|spgr|bravo|\b(tfl|tfe|vibe|lava|thrive|flash)")
NATIVE = re.compile(  # in the languages of the scanners' consoles
    r"\b(pre|nativ[aeo]?|plain|unenhanced|without|w/?o(ut)?|minus|before|nc|ohne|vor|sans|avant|sin|sem|senza|prima)\b|"
    r"\b(pre|non?|o\.?)[- ]?(c\b|contrast|enh|gd|gad|inj|km|mdc)|\bs/c\b|\bbasal\b(?! gang)|(?<!\w)-c\b|\bc-(?!\w)"
)
CONTRAST = re.compile(
    r"\+ ?(c\b|gd|gad|km|contrast)|\bc ?\+|\b(gd|gad\w*|ce|km|mdc|c/c|inj(ect\w*)?)\b|(\b|t1w?)post\b(?! ?-?op)|"
    r"contrast|enhanced|t1w?[- ]?(c|ce|gd)\b"
)
NO_AGENT = ("", "none", "no", "n", "0", "nil", "without")
UNUSED = "is a segmentation of no series that was taken; choose that one with --series, or remove the segmentation"
NOT_ORIGINAL = ("PROJECTION IMAGE", "SUBTRACTION", "LOCALIZER")


@dataclass(frozen=True)
class Series:
    """One volume to read: its files, and the files that may hold its mask. `refused`: why it cannot be taken."""

    where: str
    case_id: str
    scan: int
    files: tuple[Path, ...] = ()
    segmentations: tuple[Path, ...] = ()
    refers: bool = False
    beside: tuple[Path, ...] = ()
    label: str | None = None
    bits: int = 16
    refused: str | None = None


@dataclass(frozen=True)
class Choice:
    """What decides which series is taken. `pattern`: of descriptions, instead of the rules here."""

    pattern: re.Pattern[str] | None
    plane: Plane
    allow_burned_in: bool


def pseudonym(patient: str, salt: str) -> str:
    """A patient's name in the dataset: 64 bits of HMAC-SHA256, which says nothing to those who have no salt."""
    return hmac.new(salt.encode(), patient.encode(), "sha256").hexdigest()[:16]


def chosen(
    headers: Sequence[Header],
    unreadable: Sequence[Unreadable],
    niftis: Sequence[Path],
    labels: Mapping[str, str],
    salt: str,
    choice: Choice,
) -> list[Series]:
    """One series a study, in the order of patients' hashes and of time; then files that cannot be used, masks first."""
    studies: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for header in headers:
        studies[header.patient, header.study].append(header)
    places = defaultdict(set)
    for header in headers:
        places[header.path.parent].add((header.patient, header.study))
    masks = [header for header in headers if header.is_mask]
    known = {uid for header in headers if not header.is_mask for uid in (header.series, header.instance)}
    scans: dict[str, int] = defaultdict(int)
    items = []
    for (patient, study), files in sorted(studies.items(), key=lambda item: _moment(item[1])):
        images = [header for header in files if not header.is_mask]
        if not images:
            continue  # masks of series in other studies
        case_id = pseudonym(patient, salt)
        scans[case_id] += 1
        all_masks = [mask for mask in masks if mask.patient == patient]
        series, reason = _best(_series(images), all_masks, choice)
        if not patient:
            reason = "no PatientID, so one patient could be on both sides of a split; give each patient one"
        first = (series or images)[0]
        where = f"case {case_id} scan {scans[case_id]} ({named(first.number, first.path)})"
        if reason is not None:
            items.append(Series(where, case_id, scans[case_id], files=(first.path,), refused=reason))
            continue
        its_masks = [mask for mask in all_masks if _is_of(mask, series)]
        orphans = [mask for mask in all_masks if mask.study == study and not mask.refers & known]
        folders = {header.path.parent for header in series}
        alone = [path for path in niftis if path.parent in folders and len(places[path.parent]) == 1]
        items.append(
            Series(
                where, case_id, scans[case_id], tuple(header.path for header in series),
                tuple(mask.path for mask in its_masks or orphans), bool(its_masks), tuple(alone), labels.get(patient),
                max(header.bits for header in series),
            )
        )  # fmt: skip
    items.sort(key=lambda item: (item.case_id, item.scan))
    used = {path for item in items for path in item.segmentations}
    left = [Unreadable(mask.number, mask.path, UNUSED) for mask in masks if mask.path not in used]
    return items + [
        Series(named(file.number, file.path), "", 0, files=(file.path,), refused=file.reason)
        for file in (*left, *unreadable)
    ]


def _moment(files: Sequence[Header]) -> tuple[str, int]:
    return min(header.time for header in files), files[0].number


def _series(images: Sequence[Header]) -> list[list[Header]]:
    """Images by series, each once: exports often hold copies."""
    by_uid: dict[str, dict[str, Header]] = defaultdict(dict)
    for header in images:
        by_uid[header.series].setdefault(header.instance, header)
    return [list(series.values()) for series in by_uid.values()]


def _best(every: Sequence[list[Header]], masks: Sequence[Header], choice: Choice) -> tuple[list[Header], str | None]:
    """The series to take, or why there is none.

    Of several: one with a mask of its own, else of the finest pixels in the plane, else of most slices, else the first.
    """
    fitting = [series for series in every if series[0].is_mr and _fits(series[0], choice)]
    if not fitting:
        rule = (
            "its description and tags say that it is contrast-enhanced T1; give --series, a regular expression of "
            "its description"
            if choice.pattern is None
            else "--series matches its description"
        )
        return [], f"of {len(every)} series there is none of which {rule}"
    clean = [series for series in fitting if choice.allow_burned_in or not any(header.burned_in for header in series)]
    if not clean:
        return fitting[0], "BurnedInAnnotation is YES: names may be drawn into its pixels; look, then --allow-burned-in"

    def rank(series: list[Header]) -> tuple[bool, float, int]:
        frames = [frame for header in series for frame in header.frames]
        return not any(_is_of(mask, series) for mask in masks), round(_pixel_mm(frames, choice.plane), 1), -len(frames)

    return min(clean, key=rank), None


def _is_of(mask: Header, series: Sequence[Header]) -> bool:
    return series[0].series in mask.refers or any(header.instance in mask.refers for header in series)


def _pixel_mm(frames: Sequence[Frame], plane: Plane) -> float:
    """The longer side of a plane's pixel, as far as directions, sizes and places say it."""
    if len(frames) < 2:
        return np.inf
    affine = frames[0].affine
    along = np.array([frame.position for frame in frames]) @ np.cross(frames[0].row, frames[0].column)
    affine[:3, 2] *= np.ptp(along) / (len(frames) - 1)
    axes = np.abs(affine[:3, :3]).argmax(axis=0).tolist()  # which of X, Y, Z each of I, J, K runs along
    sizes: dict[int, float] = dict(zip(axes, np.linalg.norm(affine[:3, :3], axis=0).tolist(), strict=True))
    return max(sizes.get(axis, np.inf) for axis in AXES[plane][1:])


def _fits(header: Header, choice: Choice) -> bool:
    if choice.pattern is not None:
        return choice.pattern.search(header.description) is not None
    return is_contrast_t1(header)


def is_contrast_t1(header: Header) -> bool:
    """Whether description and tags say T1, and contrast agent.

    T1: the description says so or names a T1 sequence, and no other weighting; where it says nothing, a spin echo of
    short times or a gradient echo (MPRAGE's repetition time is long). Contrast: the description says so; where it
    says neither with nor without, ContrastBolusAgent is filled in (which many scanners do for the whole examination).
    Subtractions, projections, perfusion and localisers are neither.
    """
    said = header.description.lower().replace("_", " ")
    if DERIVED.search(said) or any(word in header.image_type.upper() for word in NOT_ORIGINAL):
        return False
    if "t1" in said:
        is_t1 = True
    elif OTHER.search(said):
        is_t1 = False
    else:
        is_t1 = T1.search(said) is not None or _short(header)
    if not is_t1 or NATIVE.search(said):
        return False
    return CONTRAST.search(said) is not None or header.agent.strip().lower() not in NO_AGENT


def _short(header: Header) -> bool:
    echo_ms, repetition_ms = header.echo_ms, header.repetition_ms
    if echo_ms is None or repetition_ms is None:
        return False
    if "GR" in header.sequence.split("\\"):
        return echo_ms <= 10 and repetition_ms <= 3000
    return "SE" in header.sequence.split("\\") and echo_ms <= 30 and repetition_ms <= 1000
