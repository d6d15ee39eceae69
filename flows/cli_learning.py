"""The commands of ``cmseg`` that make models: data sets, training, and the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from cmseg_core.schema import Stage
from flows.console import Console
from flows.options import Json, Settings, StatedVoxelSize, stated

dataset = App(name="dataset", help="Versioned sets of labelled cells.")
models = App(name="models", help="The models that are known here.")


@dataset.command(name="create")
def create_dataset(name: str, /, *, taxonomy: Path | None = None, json: Json = False) -> int:
    """Create an empty data set in the store.

    Parameters
    ----------
    name
        Letters, digits, dots, _ and -; new to the store.
    taxonomy
        Its classes, JSON or YAML: {"classes": [{"id": 0, "name": "background"}, ...]}, where id 0 is what lies
        outside; by default those of C. merolae.
    """
    from flows.dataset import create_local

    return create_local(Console(json), name, taxonomy)


@dataset.command(name="add")
def add_to_dataset(
    dataset: str,
    /,
    *,
    image: Path,
    labels: Path,
    cells: Path | None = None,
    stage: Stage | None = None,
    voxel_size: StatedVoxelSize = None,
    kind: Literal["cell", "field", "sections"] | None = None,
    name: str | None = None,
    json: Json = False,
) -> int:
    """Add labelled cells, or a labelled field, which makes a new version of the data set.

    Parameters
    ----------
    dataset
        Its name.
    image
        TIFF stack, folder of one-slice images, or OME-Zarr. Of the image.tif of a cell in a result of `cmseg run` the
        origin is kept, and its neighbours are left out as they were there.
    labels
        Class ids on the grid of the image. The same image with other labels is a correction: it takes the place of the
        former in the new version.
    cells
        Ids of the cells of a field: every cell becomes a sample, with the stage that an acquisition.json beside the
        image states.
    stage
        Cell-cycle stage of a single cell, 1 to 5.
    kind
        cell: brought to the size that the network sees; field: keeps its scale; sections: of a stack whose labelled
        sections are not neighbours, every labelled one is a sample of its own. By default what is labelled in one
        piece, with the borders free, is a cell, and all else a field.
    name
        Of the sample; by default made of folder and file.
    """
    from flows.dataset import Labelled, add_local

    given = Labelled(image, labels, cells, stated(voxel_size), stage, kind, name)
    return add_local(Console(json), dataset, given)


@dataset.command(name="show")
def show_dataset(dataset: str, /, *, picture: Path | None = None, json: Json = False) -> int:
    """Show what a data set holds, and draw a picture of each class.

    Parameters
    ----------
    dataset
        Its name, or name@version.
    picture
        PNG file for the picture; by default in the folder datasets of CMSEG_WORKSPACE.
    """
    from flows.dataset import show_local

    return show_local(Console(json), dataset, picture)


def train(
    dataset: str,
    /,
    *,
    model: Literal["unet", "sam", "stage"] = "unet",
    preset: str = "best",
    config: Path | None = None,
    validation: str | None = None,
    initial: str | None = None,
    case: int | None = None,
    all_cases: bool = False,
    out: Path | None = None,
    max_minutes: float | None = None,
    seed: int | None = None,
    fresh: bool = False,
    unet: str | None = None,
    json: Json = False,
) -> int:
    """Train a model on labelled acquisitions, track it in MLflow and register it as challenger.

    The training of a U-Net that was broken off goes on when the same command is given again.

    Parameters
    ----------
    dataset
        Data set (name, or name@version for a version other than the latest), or a folder of acquisitions with truth as
        `cmseg phantom` writes them, or one of those.
    model
        The network for organelles, the one that finds cells, or the classifier of the cell-cycle stage.
    preset
        Of the U-Net: best or paper.
    config
        Settings of the training (YAML or JSON) that differ from the preset.
    validation
        Another one, never trained on; by default every fifth acquisition, or every fifth cell where there are fewer
        than five acquisitions. none: everything is trained on, and the last weights are kept.
    initial
        Start from the weights of this model: packaged, a file, models:/name/version or models:/name@alias; for a model
        that finds cells also an official Segment Anything. Its architecture and classes then hold; only the `channels`
        of a U-Net may be raised.
    case
        Of six cases of a cross-validation, 1 to 6: each leaves out one cell of every stage.
    all_cases
        Train and score every case: prints the cells and sections of each, and the scores over all of them.
    out
        New file for the model, besides the registry.
    max_minutes
        End the training after so long.
    seed
        The same seed and data give the same model on the same machine, unless --max-minutes is given.
    fresh
        Start from the beginning what an earlier command left unfinished.
    unet
        Let a classifier of the stage learn from the labels that this U-Net gives the cells, besides the true ones.
    """
    from flows.train import train_local

    changes = {name: value for name, value in {"max_minutes": max_minutes, "seed": seed}.items() if value is not None}
    return train_local(
        Console(json),
        model,
        dataset,
        preset=preset,
        config=config,
        validation=validation,
        initial=initial,
        case=case,
        all_cases=all_cases,
        out=out,
        fresh=fresh,
        changes=changes,
        unet=unet,
    )


def evaluate(
    model: str,
    dataset: str,
    /,
    *,
    config: Settings = None,
    case: int | None = None,
    predictions: Path | None = None,
    role: Literal["unet", "sam", "stage"] | None = None,
    unet: str | None = None,
    json: Json = False,
) -> int:
    """Score a model on labelled cells or fields.

    One for organelles per class and stage, one direction against three; one that finds cells by how well it tells them
    apart, beside the classical method; a classifier of the cell-cycle stage by its confusion matrix, beside that of the
    rule.

    Parameters
    ----------
    model
        champion, challenger, packaged, a file, sam-vit-b, sam-vit-l, sam-vit-h, models:/name/version or
        models:/name@alias.
    dataset
        Data set (name, or name@version), or a folder of acquisitions with truth; only the latter where cells are found.
    case
        Score only with the cells that this case of the cross-validation leaves out, 1 to 6.
    predictions
        Folder for the labels that the model gives each sample: one TIFF stack each.
    role
        What the model is for, where its name does not tell: that of `packaged` is unet by default.
    unet
        Of a classifier of the stage: score it on the labels that this U-Net gives, in place of the true ones.
    """
    from flows.evaluate import evaluate_local

    return evaluate_local(Console(json), model, dataset, config, case, predictions, role, unet)


@models.command(name="list")
def list_models(*, json: Json = False) -> int:
    """List the packaged models and every version in the registry."""
    from flows.models import show_models

    return show_models(Console(json))


@models.command(name="import")
def import_model(
    file: Path,
    /,
    *,
    role: Literal["unet", "sam", "stage"],
    name: str | None = None,
    alias: str | None = None,
    json: Json = False,
) -> int:
    """Register a model file as a new version.

    Parameters
    ----------
    file
        A .keras or .json file that cmseg trained, or weights of a Segment Anything model (.pt, .pth).
    role
        What the model is for.
    name
        Name in the registry; by default cmseg-unet, cmseg-sam or cmseg-stage.
    alias
        Such as challenger; champion and former come from `promote` alone.
    """
    from flows.models import import_file

    return import_file(Console(json), file, role, name, alias)


@models.command(name="fetch")
def fetch_model(
    name: Literal["sam-vit-b", "sam-vit-l", "sam-vit-h"], /, *, url: str | None = None, json: Json = False
) -> int:
    """Fetch a checkpoint of Segment Anything from Meta, and check it; after a break, the same command goes on.

    Then `cmseg run --sam NAME` uses it. On a machine without internet, import the file by `cmseg models import`.

    Parameters
    ----------
    name
        sam-vit-b (375 MB), sam-vit-l (1.2 GB) or sam-vit-h (2.6 GB).
    url
        Mirror (https, http or file) that gives the same file.
    """
    from flows.models import fetch_file

    return fetch_file(Console(json), name, url)


@models.command(name="promote")
def promote_model(
    model: str, dataset: str, /, *, config: Settings = None, approval: bool = False, json: Json = False
) -> int:
    """Let a challenger take the champion's place, if it passes the gate.

    Both are scored on the same cells, or fields where they find cells. A challenger is refused where a class falls in a
    stage, or over all cells, beyond the bootstrap interval of the difference, or where the mean over the classes falls.
    Exit status 3 then, and 0 where it is champion. Every decision is kept: `cmseg models audit`.

    Parameters
    ----------
    model
        challenger (the latest training of a U-Net), models:/name/version or models:/name@alias.
    dataset
        Data set (name, or name@version), or a folder of acquisitions with truth. Best one that neither was trained on.
    approval
        Having passed, wait for a person's yes in the Prefect UI, a day at most.
    """
    from flows.models import promote_model

    return promote_model(Console(json), model, dataset, config, approval)


@models.command(name="rollback")
def roll_back(name: str = "cmseg-unet", /, *, json: Json = False) -> int:
    """Let the former champion be champion again; once more leads to the one before it.

    Parameters
    ----------
    name
        Name in the registry.
    """
    from flows.models import roll_back

    return roll_back(Console(json), name)


@models.command(name="audit")
def show_audit(name: str | None = None, /, *, json: Json = False) -> int:
    """List every promotion, refusal and rollback, with the figures.

    Parameters
    ----------
    name
        Name in the registry; by default all.
    """
    from flows.models import show_audit

    return show_audit(Console(json), name)


@models.command(name="export")
def export_model(model: str, file: Path, /, *, json: Json = False) -> int:
    """Write a model to a file.

    Parameters
    ----------
    model
        champion, challenger, packaged, models:/name/version or models:/name@alias.
    file
        New file, .keras or .pt; its ending tells which of the packaged models is meant.
    """
    from flows.models import export_file

    return export_file(Console(json), model, file)
