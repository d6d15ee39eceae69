"""Training and scoring as people start them from Prefect's pages; the command line calls the same functions.

A flow's parameters are checked before it begins. Its result is left as an artifact of the run.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.console import Console

log = logging.getLogger("cmseg.flows")

Role = Literal["unet", "sam", "stage"]
Preset = Literal["best", "paper"]
Minutes = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class Page(Console):
    """Leaves the result of a command as an artifact of the run, and what it tells in the run's log.

    Parameters
    ----------
    key : str
        Of the artifact.
    """

    def __init__(self, key: str) -> None:
        super().__init__(as_json=False)
        self.key = key
        self.document: Any = None

    def result(self, document: Any, text: str) -> None:
        """Keep the outcome: `document` for who called the flow, `text` for who looks at the run."""
        self.document = document
        create_markdown_artifact(key=self.key, markdown=f"```\n{text}\n```")

    def say(self, line: str) -> None:
        """Tell how work goes on."""
        log.info("%s", line)


@flow(name="train", flow_run_name="train-{model}-{dataset}", persist_result=False)
def train(
    dataset: str,
    model: Role = "unet",
    preset: Preset = "best",
    validation: str | None = None,
    initial: str | None = None,
    max_minutes: Minutes | None = None,
    seed: Seed | None = None,
    settings: dict[str, Any] | None = None,
) -> Any:
    """Train a model, track it in MLflow and register it as challenger.

    A training that was broken off goes on when a run with the same parameters is begun.

    Parameters
    ----------
    dataset : str
        Data set in the store (name, or name@version).
    model : {"unet", "sam", "stage"}
        The network for organelles, the one that finds cells, or the classifier of the cell-cycle stage.
    preset : {"best", "paper"}
        Of the U-Net.
    validation : str, optional
        Another data set, never trained on; by default a part of `dataset` is kept.
    initial : str, optional
        Start from the weights of this model: packaged, models:/name/version or models:/name@alias.
    max_minutes : float, optional
        End the training after so long.
    seed : int, optional
    settings : dict, optional
        Settings of the training that differ from the preset.
    """
    chosen = {"max_minutes": max_minutes, "seed": seed}
    changes = {**(settings or {}), **{name: value for name, value in chosen.items() if value is not None}}
    return _trained("training", dataset, model, preset, changes, validation=validation, initial=initial)


@flow(name="cross-validate", flow_run_name="cross-validate-{dataset}", persist_result=False)
def cross_validate(
    dataset: str, preset: Preset = "best", max_minutes: Minutes | None = None, settings: dict[str, Any] | None = None
) -> Any:
    """Train and score the U-Net in six cases, each of which leaves out one cell of every stage.

    Parameters
    ----------
    dataset : str
        Data set in the store (name, or name@version).
    preset : {"best", "paper"}
    max_minutes : float, optional
        End each training after so long.
    settings : dict, optional
        Settings of the trainings that differ from the preset.
    """
    changes = {**(settings or {}), **({} if max_minutes is None else {"max_minutes": max_minutes})}
    return _trained("cross-validation", dataset, "unet", preset, changes, all_cases=True)


@flow(name="evaluate", flow_run_name="evaluate-{model}", persist_result=False)
def evaluate(model: str, dataset: str, role: Role | None = None, unet: str | None = None) -> Any:
    """Score a model on labelled cells or fields.

    Parameters
    ----------
    model : str
        champion, challenger, packaged, models:/name/version or models:/name@alias.
    dataset : str
        Data set in the store (name, or name@version).
    role : {"unet", "sam", "stage"}, optional
        What the model is for, where its name does not tell.
    unet : str, optional
        Of a classifier of the stage: score it on the labels that this U-Net gives, in place of the true ones.
    """
    from flows.evaluate import evaluate_local

    page = Page("evaluation")
    evaluate_local(page, model, dataset, None, None, None, role, unet)
    return page.document


def _trained(
    key: str,
    dataset: str,
    model: Role,
    preset: Preset,
    changes: dict[str, Any],
    *,
    validation: str | None = None,
    initial: str | None = None,
    all_cases: bool = False,
) -> Any:
    from flows.train import train_local

    page = Page(key)
    train_local(
        page, model, dataset, preset=preset, config=None, validation=validation, initial=initial, case=None,
        all_cases=all_cases, out=None, fresh=False, changes=changes,
    )  # fmt: skip
    return page.document
