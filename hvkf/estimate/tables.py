"""A plan as tables for people."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from hvkf.estimate.cards import USABLE
from hvkf.estimate.plan import HOUR_S, Plan
from hvkf.estimate.stages import StageEstimate
from hvkf.shown import counted

GB = 1e9
TERA = 1e12


def print_plan(plan: Plan, console: Console) -> None:
    """Print parts, memory, arithmetic, bytes and hours."""
    console.print(f"Model: {plan.model}. Nothing was loaded, and no GPU was used.")
    for table in (_parts(plan), _memory(plan), _stored(plan), _totals(plan)):
        console.print(table)
    if plan.tried:
        console.print(_options(plan))
        for sentence in _how_to(plan):
            console.print(sentence, highlight=False, soft_wrap=True)
    for sentence in _notes(plan):
        console.print(sentence, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _parts(plan: Plan) -> Table:
    table = _table("Parts", "part", "weights", "GB")
    for name, (count, size) in plan.parts.items():
        table.add_row(name, f"{count / 1e6:,.1f} M", _gb(size))
    return table


def _memory(plan: Plan) -> Table:
    machine = plan.machine
    title = (
        f"Peak memory and arithmetic of each stage on {machine.card.name} "
        f"({_gb(machine.card.usable_bytes)} GB of it usable)"
    )
    table = _table(title, "stage", "bucket", "peak GB", "in", "fits", "TFLOP", "s")
    for one in plan.stages:
        table.add_row(
            one.stage,
            str(one.bucket),
            _gb(one.peak_bytes),
            one.peak_pass,
            _yes(plan, one),
            f"{one.flops / TERA:,.0f}",
            f"{machine.hours(one.flops) * HOUR_S:,.1f}",
        )
    return table


def _yes(plan: Plan, estimate: StageEstimate) -> str:
    return "yes" if plan.machine.fits(estimate) else "NO"


def _options(plan: Plan) -> Table:
    table = _table("What makes the largest smaller", "stage and option", "peak GB", "fits", "TFLOP")
    for one in plan.tried:
        found = one.estimate
        table.add_row(
            f"{found.stage}: {one.option.name}",
            _gb(found.peak_bytes),
            _yes(plan, found),
            f"{found.flops / TERA:,.0f}",
        )
    return table


def _how_to(plan: Plan) -> Iterator[str]:
    for one in plan.tried:
        yield f"{one.estimate.stage}: {one.option.name} ({one.option.cost}):\n    {one.words}"


def _stored(plan: Plan) -> Table:
    table = _table("Bytes of a clip", "bucket", "clips", "scene MB", "latents MB", "text MB")
    for bucket, one in plan.stored.items():
        table.add_row(
            str(bucket),
            f"{plan.amounts.clips[bucket]:,}",
            f"at most {one.scene / 1e6:,.1f}",
            f"{(one.latents + one.condition) / 1e6:,.2f}",
            f"at most {one.text / 1e6:,.2f}",
        )
    return table


def _totals(plan: Plan) -> Table:
    totals, machine = plan.totals, plan.machine
    table = _table(f"In all, at {machine.utilisation:.0%} of the GPU's peak", "what", "amount")
    rows = (
        ("encoding", f"{totals['encode_gpu_hours']:,.1f} GPU-hours"),
        (
            f"training, {totals['train_steps']:,} steps on {counted(machine.num_ranks, 'GPU')}",
            f"{totals['train_gpu_hours']:,.1f} GPU-hours",
        ),
        (
            f"rendering {plan.amounts.videos:,} videos",
            f"{totals['render_gpu_hours']:,.1f} GPU-hours",
        ),
        ("scenes, at most", f"{_gb(totals['scenes_bytes'])} GB"),
        ("latents, at most", f"{_gb(totals['latents_bytes'])} GB"),
        ("read by training, at most", f"{_gb(totals['train_read_bytes'])} GB"),
        (
            f"{counted(plan.num_checkpoints, 'checkpoint')} of {_gb(plan.checkpoint_bytes)} GB",
            f"{_gb(totals['checkpoints_bytes'])} GB",
        ),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _notes(plan: Plan) -> Iterator[str]:
    yield f"Clips: {plan.amounts.source}."
    fitting = [f"{size:,} of {bucket}" for bucket, size in plan.encode_batches.items() if size]
    lacking = [str(bucket) for bucket, size in plan.encode_batches.items() if not size]
    if fitting:
        yield f"Samples that can be encoded together (encode.batch_size): {', '.join(fitting)}."
    if lacking:
        yield (
            f"Encoding does not fit, not even one sample of {', '.join(lacking)}: take a larger "
            "GPU for it, or smaller tiles (encode.vae_tile) or fewer captions together "
            "(encode.caption_batch_size) where these are the peak."
        )
    yield (
        "TFLOP and seconds (s) are of one clip encoded, one sample trained on, one video rendered; "
        f"{1 - USABLE:.0%} of the GPU's memory is left to CUDA and the allocator."
    )


def _gb(size: float) -> str:
    return f"{size / GB:,.1f}"
