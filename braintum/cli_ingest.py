"""`braintum ingest ...`: a command a source. See `braintum.cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from braintum.options import Json, NewUrl, Strict, given, show, stdout_for
from braintum.settings import ConfigError

if TYPE_CHECKING:
    from braintum.data.ingest.volumes import MaskValues

ingest = typer.Typer(help="Writes a dataset: Parquet shards and a card. Each source has its own --help.")

Name = Annotated[str | None, typer.Option(callback=given, help="Name of the dataset; else the folder's.")]
Licence = Annotated[str | None, typer.Option(help="Licence of the images, for the card.")]

CHOICE = "Which slices"
Slices = Annotated[
    str,
    typer.Option(
        help="How many a case, those with most tumour, spread along the axis; or all, or tumour: all with any.",
        rich_help_panel=CHOICE,
    ),
]
Healthy = Annotated[
    int,
    typer.Option(min=0, help="So many more a case with an empty mask, labelled no_tumor.", rich_help_panel=CHOICE),
]
Plane = Annotated[
    Literal["axial", "coronal", "sagittal"],
    typer.Option(help="As radiologists see it; nothing is interpolated.", rich_help_panel=CHOICE),
]
Size = Annotated[
    int,
    typer.Option(
        min=16,
        help="Pixels of a side: cut or padded around the head, shrunk if that is larger.",
        rich_help_panel=CHOICE,
    ),
]
Intensity = Annotated[
    Literal["percentile", "minmax"],
    typer.Option(
        help="What becomes 0 and 1: percentiles 0.5 and 99.5 of the head, or its extremes.", rich_help_panel=CHOICE
    ),
]
Context = Annotated[
    int, typer.Option(min=0, help="So many neighbours on either side become channels.", rich_help_panel=CHOICE)
]

MASKS = "What mask values mean"
Tumour = Annotated[str, typer.Option(help="Values that are tumour, such as 1,4.", rich_help_panel=MASKS)]
Oedema = Annotated[str, typer.Option(help="Values that are oedema; '' for none.", rich_help_panel=MASKS)]
Background = Annotated[str, typer.Option(help="Values that are neither, beside 0.", rich_help_panel=MASKS)]


@ingest.command("folder")
def ingest_folder(
    path: Annotated[str, typer.Argument(callback=given, help="Folder with manifest.csv and the images that it names.")],
    out: NewUrl,
    name: Annotated[str | None, typer.Option(help="Name of the dataset; else the folder's.")] = None,
    size: Annotated[int | None, typer.Option(min=16, help="Height and width to store, pixels.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the images, for the card.")] = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ingests images, masks and labels listed in a CSV manifest.

    Masks hold 0, 1 (tumour) and 2 (oedema), or are pictures of a white tumour on black.
    """
    from braintum.console import print_card
    from braintum.data.ingest import folder

    with stdout_for(as_json):
        card = folder.ingest_folder(path, out, name=name, size=size, licence=licence, strict=strict)
    show(card.model_dump(mode="json"), as_json, print_card)


@ingest.command("nifti")
def ingest_nifti(
    path: Annotated[
        str,
        typer.Argument(callback=given, help="Folder of volumes, or a CSV with the columns image, mask, case, label."),
    ],
    out: NewUrl,
    image: Annotated[
        str | None,
        typer.Option(help="Of a folder: which volumes, as '*_t1.nii.gz'; * is any text and names the volume."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Of a folder: their masks, as '*_seg.nii.gz', with the same text for *.")
    ] = None,
    case: Annotated[
        str | None,
        typer.Option(help="Of a folder: regular expression for the patient in a volume's name, as '^[^/]+'."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Of a folder: the label of all volumes.")] = None,
    slices: Slices = "20",
    healthy: Healthy = 0,
    plane: Plane = "axial",
    size: Size = 256,
    intensity: Intensity = "percentile",
    context: Context = 0,
    tumour: Tumour = "1",
    oedema: Oedema = "2",
    background: Background = "",
    name: Name = None,
    licence: Licence = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ingests NIfTI volumes (.nii, .nii.gz): a folder by a pattern, or a CSV.

    No split parts the volumes of one patient: --case, or the CSV's column, says which are.
    """
    from braintum.console import print_card
    from braintum.data.ingest import nifti
    from braintum.data.ingest.slicing import Slicing

    with stdout_for(as_json):
        card = nifti.ingest_nifti(
            path, out, image=image, mask=mask, case=case, label=label, name=name, licence=licence, strict=strict,
            mask_values=_mask_values(tumour, oedema, background),
            slicing=Slicing(_slices(slices), healthy, plane, size, intensity, context),
        )  # fmt: skip
    show(card.model_dump(mode="json"), as_json, print_card)


@ingest.command("brats")
def ingest_brats(
    path: Annotated[str, typer.Argument(callback=given, help="Folder with the cases' folders, as unpacked.")],
    out: NewUrl,
    modalities: Annotated[str, typer.Option(help="Of flair, t1, t1ce, t2: several become channels.")] = "t1ce",
    label: Annotated[str | None, typer.Option(help="Of all cases; else HGG or LGG, where that is known.")] = None,
    slices: Slices = "20",
    healthy: Healthy = 0,
    plane: Plane = "axial",
    size: Size = 256,
    intensity: Intensity = "percentile",
    context: Context = 0,
    name: Name = None,
    licence: Licence = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ingests BraTS 2018 to 2021 as downloaded.

    Tumour is the necrotic core and the enhancing tumour (1, 3, 4), oedema is 2. The grade is that of the folder (2018,
    2019) or of name_mapping.csv (2020).
    """
    from braintum.console import print_card
    from braintum.data.ingest import brats
    from braintum.data.ingest.slicing import Slicing

    with stdout_for(as_json):
        card = brats.ingest_brats(
            path, out, modalities=[modality.strip() for modality in modalities.split(",")], label=label, name=name,
            licence=licence, strict=strict, slicing=Slicing(_slices(slices), healthy, plane, size, intensity, context),
        )  # fmt: skip
    show(card.model_dump(mode="json"), as_json, print_card)


@ingest.command("dicom")
def ingest_dicom(
    path: Annotated[str, typer.Argument(callback=given, help="Folder; DICOM files in it are found by their content.")],
    out: NewUrl,
    salt: Annotated[
        str | None,
        typer.Option(
            envvar="BRAINTUM_SALT",
            help="Key of the hashes that patients become; 16 characters or more, secret. Else random, and not kept: "
            "a stopped ingest then starts over.",
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            help="Regular expression of the SeriesDescription to take; else contrast-enhanced T1 by its tags."
        ),
    ] = None,
    mask: Annotated[str, typer.Option(help="Names of NIfTI masks in a series' folder, as '*_seg.nii.gz'.")] = "*",
    labels: Annotated[
        str | None, typer.Option(callback=given, help="CSV with the columns patient (the PatientID) and label.")
    ] = None,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Take series that say that text is drawn into their pixels.")
    ] = False,
    demographics: Annotated[
        bool, typer.Option("--demographics", help="Also store age in years (90 for all above) and sex.")
    ] = False,
    slices: Slices = "20",
    healthy: Healthy = 0,
    plane: Plane = "axial",
    size: Size = 256,
    intensity: Intensity = "percentile",
    context: Context = 0,
    tumour: Tumour = "1",
    oedema: Oedema = "2",
    background: Background = "",
    name: Annotated[str, typer.Option(callback=given, help="Name of the dataset.")] = "dicom",
    licence: Licence = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ingests one contrast-enhanced T1 series of each study, without anybody's identity.

    Masks are DICOM segmentations (their segments' numbers are the mask's values), or a NIfTI in the series' folder.
    Patients become hashes; no text of a header is stored or shown. Faces are not removed from the pixels.
    """
    from braintum.console import print_card
    from braintum.data.ingest import dicom
    from braintum.data.ingest.slicing import Slicing

    with stdout_for(as_json):
        card = dicom.ingest_dicom(
            path, out, series=series, mask=mask, labels=labels, salt=salt, allow_burned_in=allow_burned_in,
            demographics=demographics, name=name, licence=licence, strict=strict,
            mask_values=_mask_values(tumour, oedema, background),
            slicing=Slicing(_slices(slices), healthy, plane, size, intensity, context),
        )  # fmt: skip
    show(card.model_dump(mode="json"), as_json, print_card)


@ingest.command("brisc")
def ingest_brisc(
    path: Annotated[str, typer.Argument(callback=given, help="Folder with classification_task, segmentation_task.")],
    out: NewUrl,
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "brisc2025",
    size: Annotated[int, typer.Option(min=16, help="Height and width to store, pixels.")] = 256,
    licence: Annotated[str, typer.Option(help="Licence of the images, for the card.")] = "CC-BY-4.0",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ingests BRISC 2025 as downloaded. Its test part is never trained on; files that it holds twice are taken once."""
    from braintum.console import print_card
    from braintum.data.ingest import brisc

    with stdout_for(as_json):
        card = brisc.ingest_brisc(path, out, name=name, size=size, licence=licence, strict=strict)
    show(card.model_dump(mode="json"), as_json, print_card)


@ingest.command("figshare")
def ingest_figshare(
    path: Annotated[str, typer.Argument(callback=given, help="Folder with the .zip or .mat files, and cvind.mat.")],
    out: NewUrl,
    name: Annotated[str, typer.Option(help="Name of the dataset.")] = "cheng",
    size: Annotated[int, typer.Option(min=16, help="Height and width to store, pixels.")] = 256,
    licence: Annotated[str, typer.Option(help="Licence of the images, for the card.")] = "CC-BY-4.0",
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Ingests Jun Cheng's set (figshare 1512427) as downloaded, with its patients and the author's folds."""
    from braintum.console import print_card
    from braintum.data.ingest import figshare

    with stdout_for(as_json):
        card = figshare.ingest_figshare(path, out, name=name, size=size, licence=licence, strict=strict)
    show(card.model_dump(mode="json"), as_json, print_card)


@ingest.command("phantom")
def ingest_phantom(
    out: NewUrl,
    cases: Annotated[int, typer.Option(min=4, help="Number of patients.")] = 120,
    slices_per_case: Annotated[int, typer.Option(min=1, help="Slices of each.")] = 4,
    size: Annotated[int, typer.Option(min=32, help="Height and width, pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Draws a made-up dataset of brain-like slices, for trying things out."""
    from braintum.console import print_card
    from braintum.data.ingest import phantom

    with stdout_for(as_json):
        card = phantom.ingest_phantom(out, cases=cases, slices_per_case=slices_per_case, size=size, seed=seed)
    show(card.model_dump(mode="json"), as_json, print_card)


def _slices(slices: str) -> int | str:
    return int(slices) if slices.isdecimal() else slices


def _mask_values(tumour: str, oedema: str, background: str) -> MaskValues:
    from braintum.data.ingest.volumes import MaskValues

    return MaskValues(
        *(_values(*option) for option in (("tumour", tumour), ("oedema", oedema), ("background", background)))
    )


def _values(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in text.split(",") if text.strip())
    except ValueError:
        raise ConfigError(f"--{option} {text}: expected whole numbers with commas between, as 1,4") from None
