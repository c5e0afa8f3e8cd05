"""An evaluation's videos as VBench-I2V reads custom input (Huang et al. 2025, VBench++).

VBench pins packages of its own, so it runs in an environment of its own. It takes a folder of
videos `NAME-0.mp4` and one of images `NAME.jpg`, where NAME is the prompt.
"""

import re
from pathlib import Path

from hvkf.progress import progress
from hvkf.stages.evaluate_records import FIRST_FRAME, LORA_VIDEO, find_metrics
from hvkf.stages.previews import read_picture
from hvkf.storage import Store
from hvkf.stored import read_object

VIDEOS, IMAGES = "videos", "images"
MAX_PROMPT_BYTES = 150
JPEG_QUALITY = 95


def export_for_vbench(store: Store, evaluation: str, folder: Path) -> int:
    """Write the LoRA's videos and their first keyframes; files of these names are replaced.

    Args:
        store: The workspace.
        evaluation: Path of its metrics.json, or of the folder with it.
        folder: Where `videos/` and `images/` come.

    Returns:
        How many pairs there are.

    Raises:
        BadInput: there is no such evaluation.
    """
    _, metrics = find_metrics(store, evaluation)
    for name in (VIDEOS, IMAGES):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with progress("pairs", len(metrics.pairs)) as shown:
        for pair in metrics.pairs:
            name = file_name(pair.prompt, pair.key)
            video = read_object(store, pair.files[Path(LORA_VIDEO).stem])
            (folder / VIDEOS / f"{name}-0.mp4").write_bytes(video)
            image = read_picture(store, pair.files[Path(FIRST_FRAME).stem])
            image.save(folder / IMAGES / f"{name}.jpg", quality=JPEG_QUALITY)
            shown.advance()
    return len(metrics.pairs)


def how_to_run(folder: Path) -> str:
    """Say which command measures what was exported, and which weights it wants where."""
    return (
        "In an environment and a clone of VBench's own (Vchitect/VBench):\n"
        "  python evaluate_i2v.py --mode=custom_input --ratio 16-9 --dimension i2v_subject \\\n"
        f"    --videos_path {folder.absolute() / VIDEOS} \\\n"
        f"    --custom_image_folder {folder.absolute() / IMAGES}\n"
        "i2v_subject wants DINO ViT-B/16 as dino_model/dino_vitbase16_pretrain.pth, beside its\n"
        "repository as dino_model/facebookresearch_dino_main/, under $VBENCH_CACHE_DIR or\n"
        "~/.cache/vbench; what is missing is fetched. docs/evaluation.md lists the dimensions."
    )


def file_name(prompt: str, key: str) -> str:
    """Make a prompt a file's name, with its pair's key: prompts may repeat, and are long."""
    words = re.sub(r"[^\w ,.()'-]+", " ", prompt).strip()
    cut = words.encode()[:MAX_PROMPT_BYTES].decode(errors="ignore").strip()
    return f"{cut} ({key[:8]})"
