"""Write docs/settings.md from the settings' own models, so that the page cannot drift from the code."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cmseg_core.morphology.stage_training import StageTrainingConfig
from cmseg_core.organelles.augmentation import AugmentationConfig
from cmseg_core.organelles.training import FOR_FIELDS, PRESETS, TrainingConfig
from cmseg_core.schema import PAPER, PipelineConfig, Taxonomy, Workspace
from deployments.stack import StackSettings

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Settings

Written by `make settings` from the models that check them; a test holds the page and the code together.

Settings of the processing stand in a YAML or JSON file given with `--config`, by section and name:

```yaml
foreground:
  method: threshold
  cell_diameter_nm: 1800
organelles:
  filter: majority
```

or in the environment variable named beside each. A file wins over a variable, a variable over the default. In the file,
an unknown name or a value out of range stops the run before it starts (exit status 2), and `preset: paper` sets what
the column *paper* shows and leaves the rest alone; what the file itself says wins over the preset.
[method.md](method.md) says where each default comes from.
"""

WORKSPACE_INTRODUCTION = """\
## Workspace

Where state lives and which services are used. Set by environment variables.
"""

SERVICES_INTRODUCTION = """\
## Services

What `cmseg up` starts, and when the night begins ([production.md](production.md)). Set by environment variables.
"""

TRAINING_INTRODUCTION = """\
## Training

How a U-Net is trained. The defaults are the preset `best`; the preset `paper` takes what its column shows. Where
every sample of a data set is a field, `best` has {for_fields}.
"""

STAGE_TRAINING_INTRODUCTION = """\
## Training of the stage classifier

How the classifier of the cell-cycle stage is trained (`cmseg train --model stage`).
"""


def render() -> str:
    """The whole page as Markdown."""
    fields = PipelineConfig.model_fields
    sections = {name: f.annotation for name, f in fields.items() if _is_section(f.annotation)}
    plain = [name for name in fields if name not in sections]
    parts = [INTRODUCTION, "## Top level\n", _table(PipelineConfig, plain, "CMSEG_", {})]
    for name, model in sections.items():
        prefix = f"CMSEG_{name.upper()}__"
        parts += [f"## {name}\n", f"{_about(model)}\n", _table(model, None, prefix, PAPER.get(name, {}))]
    parts += [WORKSPACE_INTRODUCTION, _table(Workspace, None, "CMSEG_", {})]
    parts += [SERVICES_INTRODUCTION, _table(StackSettings, None, "CMSEG_", {})]
    for_fields = ", ".join(f"`{name}: {value}`" for name, value in FOR_FIELDS.items())
    parts += [TRAINING_INTRODUCTION.format(for_fields=for_fields), _table(TrainingConfig, None, None, PRESETS["paper"])]
    parts += [f"### augmentation\n\n{_about(AugmentationConfig)}\n", _table(AugmentationConfig, None, None, {})]
    parts += [STAGE_TRAINING_INTRODUCTION, _table(StageTrainingConfig, None, None, {})]
    return "\n".join(parts)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not Taxonomy


def _about(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").replace("``", "`")


def _table(model: type[BaseModel], names: list[str] | None, prefix: str | None, paper: dict[str, Any]) -> str:
    """One row a field; no column for a preset that says nothing, nor for variables where there are none."""
    properties = model.model_json_schema()["properties"]
    said = _attribute_docstrings(model)
    header = ["setting", "default", *(["paper"] if paper else []), "values"]
    header += [*([] if prefix is None else ["variable"]), "meaning"]
    rows = [header, ["---"] * len(header)]
    for name in names or model.model_fields:
        row = [f"`{name}`", _default(model.model_fields[name].default)]
        if paper:
            row.append(_default(paper[name]) if name in paper else "")
        row.append(_values(properties[name]))
        if prefix is not None:
            row.append(f"`{prefix}{name.upper()}`")
        rows.append([*row, said.get(name, "")])
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows) + "\n"


def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string that stands under each field, on one line, without the role marks of reStructuredText."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split()).replace("``", "`")
    return found


def _default(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Taxonomy):
        return ", ".join(value.names)
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, Path):
        return f"`{value}`"
    return f"`{json.dumps(value)}`"


def _values(schema: dict[str, Any]) -> str:
    """What a JSON schema admits, in words."""
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join("not set" if s.get("type") == "null" else _values(s) for s in schema["anyOf"])
    if "prefixItems" in schema:
        return " and ".join(_values(item) for item in schema["prefixItems"])
    if "$ref" in schema:
        return "a mapping"
    kind = {"number": "number", "integer": "whole number", "boolean": "`true`, `false`", "string": "text"}
    bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS if key in schema]
    return " ".join([kind[schema["type"]], *bounds])


_BOUNDS = (
    ("minimum", "from"),
    ("exclusiveMinimum", "over"),
    ("maximum", "to"),
    ("exclusiveMaximum", "under"),
)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
