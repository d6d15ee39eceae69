"""What a model file says of itself, read without the network and its libraries."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from cmseg_core.errors import InputError

MEMBER = "cmseg.json"
"""Member of the `.keras` archive that carries the metadata; Keras itself ignores it."""
FORMAT = 1
MEND = "give a .keras file that cmseg wrote (cmseg train, cmseg models export)"


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The content of the member ``cmseg.json`` of a model file.

    Parameters
    ----------
    path : str or Path
        A `.keras` file that :func:`cmseg_core.organelles.model.save_model` wrote.

    Returns
    -------
    dict
        ``format``, ``taxonomy``, ``section_size``, ``temperature``, ``metadata``; none of them checked but the first.

    Raises
    ------
    InputError
        Where the file is no archive (a pickle, say), is damaged, or was not written by cmseg.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(MEMBER))
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(path, "is not a .keras archive, or is damaged", MEND) from error
    except KeyError as error:
        raise InputError(path, f"carries no {MEMBER}", MEND) from error
    except ValueError as error:
        raise InputError(path, f"has damaged metadata ({error})", MEND) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(path, f"is not of format {FORMAT}", "update cmseg, or train the model again")
    return content
