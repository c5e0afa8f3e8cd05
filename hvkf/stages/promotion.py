"""Putting a LoRA into use: its file is kept, its card written, and last the registry changed."""

import getpass
import os
import socket
from collections.abc import Mapping, Sequence

from hvkf.errors import BadInput
from hvkf.loras import Lora, local_lora_file
from hvkf.records import RunRecord
from hvkf.registry import (
    CARD_NAME,
    Candidate,
    Version,
    keep_lora,
    lora_folder,
    promote,
)
from hvkf.storage import Store
from hvkf.training.runs import read_run

RUN_NAME = "run.json"


def person() -> str:
    """Name who runs this process: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def candidate_of(store: Store, lora: Lora, *, decided_by: str, note: str = "") -> Candidate:
    """Gather what is known of a LoRA from the run that made it.

    Raises:
        BadInput: it is the base model, which has no file.
    """
    if lora.sha256 is None:
        raise BadInput("The base model without a LoRA cannot be promoted: name a LoRA.")
    run = None if lora.run_id is None else read_run(store, lora.run_id)
    return Candidate(
        lora_sha256=lora.sha256,
        origin=lora.name,
        run_id=lora.run_id,
        checkpoint=lora.checkpoint,
        decided_by=decided_by,
        data_digest=None if run is None else run.settings.get("latents"),
        config_digest=None if run is None else run.digest,
        note=note,
    )


def put_into_use(
    store: Store, name: str, lora: Lora, candidate: Candidate, *, over: int
) -> Version:
    """Keep a LoRA's file, write its model card beside it, and promote it.

    Raises:
        TryAgain: meanwhile another version came into use.
        BadInput, CorruptData: the LoRA's file is gone or has other bytes.
    """
    file = local_lora_file(lora, store)
    assert file is not None
    keep_lora(store, file, candidate.lora_sha256)
    run = None if lora.run_id is None else read_run(store, lora.run_id)
    folder = lora_folder(candidate.lora_sha256)
    store.put(f"{folder}/{CARD_NAME}", model_card(name, candidate, run).encode())
    if run is not None:
        store.put(f"{folder}/{RUN_NAME}", run.to_json())
    return promote(store, name, candidate, over=over)


def model_card(name: str, candidate: Candidate, run: RunRecord | None) -> str:
    """Write the card in the layout of the Hugging Face hub: YAML front matter, then Markdown."""
    settings = {} if run is None else flat(run.settings)
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: image-to-video",
        "tags: [lora, hunyuan-video, keyframe-control, image-to-video]",
        "---",
        "",
        f"# {name}",
        "",
        "A keyframe-control LoRA for HunyuanVideo: give the first and the last image, get the "
        "video between. It needs a transformer whose input is widened by the keyframes' latents.",
        "",
        "## Use",
        "",
        f"    hvkf render --config FILE --render.lora=registry:{name}",
        "",
        "Elsewhere: `hvkf export-lora` writes it for diffusers, ComfyUI or the reference.",
        "",
        "## Where it comes from",
        "",
        *_table(
            ("", ""),
            [
                ("sha256", candidate.lora_sha256),
                ("made by", candidate.origin),
                ("data digest", candidate.data_digest or "unknown"),
                ("settings digest", candidate.config_digest or "unknown"),
                ("decided by", candidate.decided_by),
                ("evaluation", candidate.evaluation or "none"),
                ("base transformer", settings.get("transformer", "unknown")),
            ],
        ),
        "",
        "## Evaluation",
        "",
    ]
    if candidate.figures:
        figures = [(key, f"{value:.4g}") for key, value in sorted(candidate.figures.items())]
        lines += _table(("figure", "value"), figures)
        lines += ["", "On held-out videos that it was not trained on; see the evaluation's report."]
    else:
        lines.append("It was promoted without an evaluation.")
    if settings:
        lines += ["", "## Training", "", *_table(("setting", "value"), list(settings.items()))]
    lines += [
        "",
        "## Limits",
        "",
        "What it was not trained on (long videos, other sizes, cuts between the keyframes) is not "
        "measured here. HunyuanVideo's own licence holds for what is made with it.",
        "",
    ]
    return "\n".join(lines)


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested settings to dotted names."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _table(header: tuple[str, str], rows: Sequence[tuple[str, object]]) -> list[str]:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    lines += [f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in rows]
    return lines
