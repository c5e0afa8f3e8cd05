"""The model card of a promoted LoRA, and the picture that it shows."""

from collections.abc import Mapping, Sequence

from hvkf.records import RunRecord
from hvkf.registry import SAMPLES_NAME, Candidate
from hvkf.storage import Store
from hvkf.stored import read_record

SHOWN_FILES = ("first", "last", "lora")


def draw_samples(store: Store, evaluation: str | None) -> bytes | None:
    """Draw the first pairs of an evaluation, given beside made.

    Returns:
        A JPEG; None without an evaluation, or when its images and videos were deleted since.
    """
    if evaluation is None:
        return None
    # Here, because these load NumPy and PyAV, for which `hvkf --help` does not wait.
    from hvkf.stages.evaluate_records import Metrics
    from hvkf.stages.pictures import draw_keyframes

    metrics = read_record(store, evaluation, Metrics)
    pairs = [
        pair
        for pair in metrics.pairs
        if all(name in pair.files and store.exists(pair.files[name]) for name in SHOWN_FILES)
    ]
    return draw_keyframes(store, pairs) if pairs else None


def model_card(
    name: str, candidate: Candidate, run: RunRecord | None, *, has_samples: bool = False
) -> str:
    """Write the card in the layout of the Hugging Face hub: YAML front matter, then Markdown."""
    settings = {} if run is None else flat(run.settings)
    lines = [
        "---",
        "library_name: diffusers",
        *_base_model(str(settings.get("transformer", ""))),
        "license: other",
        "license_name: tencent-hunyuan-community",
        "license_link: https://huggingface.co/tencent/HunyuanVideo/blob/main/LICENSE",
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
    if has_samples:
        lines += [
            "",
            "Held-out pairs: the given first image, the first and last frame made, the given last:",
            "",
            f"![Given and made keyframes]({SAMPLES_NAME})",
        ]
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


def _base_model(transformer: str) -> list[str]:
    """Name the base model by its hub id; a checkpoint in a folder has none."""
    scheme, _, rest = transformer.partition(":")
    return [f"base_model: {rest.partition('@')[0]}"] if scheme == "hub" else []


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
