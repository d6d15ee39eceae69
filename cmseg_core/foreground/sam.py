"""Segment Anything checkpoints: the official ones, and small ones of the same classes."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from cmseg_core.errors import InputError
from cmseg_core.foreground.head import CellHead
from cmseg_core.foreground.torchvision_ops import declare_missing
from cmseg_core.schema import Frozen

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

FORMAT = "cmseg-sam-1"
PADDING = 127
"""Grey of what lies outside a section smaller than the model's input: the middle of the range, as after SAM's own
normalisation."""
_OFFICIAL = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_MEND = "give an official vit_b, vit_l or vit_h checkpoint, or a file written by `cmseg train --model sam`"


Context = Literal["grey", "neighbours"]


class SamArchitecture(Frozen):
    """Size of a small Segment Anything model; the classes are segment_anything's own.

    The official models see 1024 x 1024 pixels in patches of 16. A small one sees `image_size` pixels in patches of
    `patch_size`; its masks have half the resolution of its input where the patches are 8 pixels wide.
    """

    image_size: int = 160
    patch_size: int = 8
    width: int = 160
    depth: int = 5
    heads: int = 5
    window: int = 10
    global_layers: tuple[int, ...] = (2, 4)
    prompt_width: int = 128
    context: Context = "neighbours"
    """What the three colour channels hold: the section thrice, or the section between its two neighbours."""


@dataclass(frozen=True, eq=False)
class SamModel:
    """A model ready for inference.

    Attributes
    ----------
    network : segment_anything.modeling.Sam
        On the CPU, or on the GPU where there is one; in evaluation mode.
    name : str
        ``vit_b``, ``vit_l``, ``vit_h`` or ``small``.
    context : {"grey", "neighbours"}
        What the colour channels hold.
    architecture : SamArchitecture or str
        What it is built like: its sizes, or the name of an official model.
    whole_cells : bool
        Trained by cmseg: every mask it gives is a whole cell. The official ones give whole, part and part of a part.
    facts : dict
        What the file says of its training; nothing in an official checkpoint.
    head : CellHead or None
        Reads cells with nothing asked; models that cmseg trained have one.
    """

    network: Sam
    name: str
    context: Context
    architecture: SamArchitecture | str
    whole_cells: bool
    facts: dict[str, Any] = field(default_factory=dict)
    head: CellHead | None = None

    @property
    def image_size(self) -> int:
        """Edge in pixels of the square input."""
        return self.network.image_encoder.img_size

    @property
    def knows_boxes(self) -> bool:
        """Whether boxes were among the prompts of its training."""
        return not self.whole_cells or self.facts.get("training", {}).get("box_share", 0) > 0

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.network.device


def build_small(architecture: SamArchitecture) -> Sam:
    """An untrained small model: segment_anything's own encoder, prompt encoder and mask decoder."""
    declare_missing()
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    a = architecture
    grid = a.image_size // a.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=a.image_size,
            patch_size=a.patch_size,
            embed_dim=a.width,
            depth=a.depth,
            num_heads=a.heads,
            out_chans=a.prompt_width,
            use_rel_pos=True,
            window_size=a.window,
            global_attn_indexes=a.global_layers,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=a.prompt_width,
            image_embedding_size=(grid, grid),
            input_image_size=(a.image_size, a.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=a.prompt_width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=a.prompt_width, num_heads=4, mlp_dim=4 * a.prompt_width
            ),
            iou_head_hidden_dim=a.prompt_width,
        ),
        pixel_mean=[127.5] * 3,
        pixel_std=[64.0] * 3,
    )


def save_sam(
    network: Sam,
    architecture: SamArchitecture | str,
    path: Path,
    facts: dict[str, Any] | None = None,
    head: CellHead | None = None,
) -> Path:
    """Write a model that was trained on cells, with half-precision weights, in one step.

    Parameters
    ----------
    network : segment_anything.modeling.Sam
        What :func:`build_small` built from `architecture`, or an official model that was trained further.
    architecture : SamArchitecture or str
        Sizes, or ``vit_b``, ``vit_l`` or ``vit_h``.
    path : Path
        Target file.
    facts : dict, optional
        Numbers and strings about the training, kept in the file.
    head : CellHead, optional
    """
    built = architecture if isinstance(architecture, str) else architecture.model_dump()
    content = {"format": FORMAT, "architecture": built, "facts": facts or {}, "weights": _halved(network)}
    if head is not None:
        content["head"] = _halved(head)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
    torch.save(content, staging)
    staging.replace(path)
    return path


def load_sam(path: str | Path) -> SamModel:
    """Read a checkpoint. Only tensors and plain values are unpickled; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        An official checkpoint (the architecture is told by its shapes) or a file of :func:`save_sam`.

    Raises
    ------
    InputError
        Where the file is missing, truncated, holds code, or is no Segment Anything model.
    """
    if not Path(path).is_file():
        raise InputError(path, "is no file", _MEND)
    try:
        with warnings.catch_warnings():  # of a pickle it says more than the one line that it gets
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(path, "is not a readable checkpoint of tensors", _MEND) from error
    if not isinstance(content, dict):
        raise InputError(path, "holds no model", _MEND)
    try:
        own = content.get("format") == FORMAT
        network, architecture = _from_own(content) if own else _from_official(content)
        facts = dict(content["facts"]) if own else {}
        head = _head_from(content["head"], network) if own and "head" in content else None
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(path, "does not fit Segment Anything's architecture", _MEND) from error
    for module in (network, head):
        if module is not None:
            module.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    official = isinstance(architecture, str)
    name, context = (architecture, "grey") if official else ("small", architecture.context)
    return SamModel(network, name, context, architecture, own, facts, head)


def new_head(network: Sam) -> CellHead:
    """An untrained head for a network."""
    encoder, prompts = network.image_encoder, network.prompt_encoder
    return CellHead(prompts.embed_dim, encoder.img_size // prompts.image_embedding_size[0])


def _head_from(weights: dict[str, torch.Tensor], network: Sam) -> CellHead:
    head = new_head(network)
    head.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return head


def _halved(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().half() for name, tensor in module.state_dict().items()}


def _from_own(content: dict[str, Any]) -> tuple[Sam, SamArchitecture | str]:
    built = content["architecture"]
    architecture = built if isinstance(built, str) else SamArchitecture.model_validate(built)
    network = _official(architecture) if isinstance(architecture, str) else build_small(architecture)
    network.load_state_dict({name: tensor.float() for name, tensor in content["weights"].items()})
    return network, architecture


def _from_official(content: dict[str, Any]) -> tuple[Sam, str]:
    name = _OFFICIAL[content["image_encoder.pos_embed"].shape[-1]]
    network = _official(name)
    network.load_state_dict(content)
    return network, name


def _official(name: str) -> Sam:
    """An official architecture without its weights."""
    declare_missing()
    from segment_anything import sam_model_registry

    return sam_model_registry[name](checkpoint=None)


def as_colours(volume: np.ndarray, index: int, context: Context) -> np.ndarray:
    """The colour picture of one section that a model sees.

    Parameters
    ----------
    volume : ndarray of uint8, shape (n, rows, columns)
    index : int
        Section.
    context : {"grey", "neighbours"}

    Returns
    -------
    ndarray of uint8, shape (rows, columns, 3)
    """
    if context == "grey":
        return np.repeat(volume[index][..., None], 3, axis=-1)
    last = len(volume) - 1
    return np.stack([volume[max(index - 1, 0)], volume[index], volume[min(index + 1, last)]], axis=-1)
