"""The gate: whether an evaluated LoRA comes into use, decided by a rule over paired figures.

The candidate is compared on the same pairs with the LoRA in use, by that one's own evaluation; with
the base model where nothing is in use yet.
"""

from typing import ClassVar, Literal

from hvkf.code_version import code_version
from hvkf.errors import AlreadyExists, BadInput
from hvkf.journal import note_completed
from hvkf.ledger import on_conflict_again
from hvkf.loras import resolve_lora
from hvkf.records import FORMAT_VERSION, Record, digest
from hvkf.registry import FOLDER, OutOfDate, Version, find_registered
from hvkf.settings.evaluation import GateConfig, GateFigure
from hvkf.shown import counted
from hvkf.stages.evaluate_records import ClipFidelity, Metrics, find_metrics, video_of
from hvkf.stages.evaluate_statistics import MIN_VIDEOS, Interval, num_videos, video_interval
from hvkf.stages.promotion import candidate_of, put_into_use
from hvkf.storage import Store
from hvkf.training.lineage import read_lineage

DECISIONS = f"{FOLDER}/decisions"
DECIDED_BY = "gate"
BASE = "the base model"

Outcome = Literal["promote", "keep", "no-verdict"]


class Finding(Record):
    """What one figure showed: the gain over what it was compared with, and whether that will do."""

    figure: GateFigure
    rule: Literal["better", "not-worse"]
    gain: Interval
    margin: float
    is_met: bool


class Verdict(Record):
    """What the gate says of an evaluation, and why, in words.

    `against_version` is the version in use that it was compared with; 0 where none was.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    against: str
    against_version: int
    findings: tuple[Finding, ...] = ()


class Decision(Record):
    """The record of a verdict: by what rule, on which figures, about which LoRA."""

    IS_STRICT: ClassVar[bool] = False  # it holds settings
    format_version: int = FORMAT_VERSION
    registry: str
    evaluation: str
    lora_sha256: str
    rule: GateConfig
    verdict: Verdict
    code_version: str
    data_digest: str | None
    config_digest: str | None


class Gated(Record):
    """What came of a decision: its record, and the version in use after it (0: none)."""

    verdict: Verdict
    decision: str
    version_in_use: int
    is_promoted: bool


def figure_of(clip: ClipFidelity, figure: GateFigure) -> float:
    """Read a figure; those of keyframes are the mean of the first and the last frame."""
    if figure == "clip_psnr_db":
        return clip.clip.psnr_db
    if figure == "clip_ssim":
        return clip.clip.ssim
    if figure == "keyframe_psnr_db":
        return (clip.first.psnr_db + clip.last.psnr_db) / 2
    return (clip.first.ssim + clip.last.ssim) / 2


def judge(rule: GateConfig, metrics: Metrics, champion: Metrics | None, version: int) -> Verdict:
    """Compare a LoRA with the one in use on the pairs that both rendered; decides, does nothing.

    Args:
        rule: What must be shown.
        metrics: The candidate's evaluation.
        champion: The evaluation of the LoRA in use; None: compare with the base model.
        version: The version in use; 0 for none.
    """
    against = BASE if champion is None else f"version {version} ({champion.lora_sha256[:12]})"

    def no_verdict(reason: str) -> Verdict:
        return Verdict(
            outcome="no-verdict", reasons=(reason,), against=against, against_version=version
        )

    if champion is not None and champion.settings != metrics.settings:
        return no_verdict(
            f"{against} was evaluated with other settings (steps, guidance, seed, precision or "
            "models): evaluate both with the same"
        )
    others = {
        pair.key: pair.base if champion is None else pair.lora
        for pair in (metrics if champion is None else champion).pairs
    }
    common = [pair for pair in metrics.pairs if pair.key in others]
    pairs = [(pair.lora, others[pair.key]) for pair in common]
    videos = [video_of(pair) for pair in common]
    if num_videos(videos) < MIN_VIDEOS:
        return no_verdict(
            f"{counted(len(pairs), 'pair')} of {counted(num_videos(videos), 'source video')} "
            f"{'was' if len(pairs) == 1 else 'were'} rendered with both, and fewer than "
            f"{MIN_VIDEOS} videos give no verdict: hold out more videos (ingest.min_holdout), and "
            "set evaluate.num_pairs to at least as many"
        )
    rules: list[tuple[GateFigure, Literal["better", "not-worse"]]] = [
        *((figure, "better") for figure in rule.better),
        *((figure, "not-worse") for figure in rule.not_worse),
    ]
    findings = []
    for figure, kind in rules:
        differences = [figure_of(a, figure) - figure_of(b, figure) for a, b in pairs]
        gain = video_interval(differences, videos)
        margin = 0.0
        if kind == "not-worse":
            margin = rule.margin_db if figure.endswith("db") else rule.margin_ssim
        is_met = gain.low > 0 if kind == "better" else gain.low >= -margin
        findings.append(Finding(figure=figure, rule=kind, gain=gain, margin=margin, is_met=is_met))
    return Verdict(
        outcome="promote" if all(finding.is_met for finding in findings) else "keep",
        reasons=tuple(_sentence(finding, against) for finding in findings),
        against=against,
        against_version=version,
        findings=tuple(findings),
    )


def _sentence(finding: Finding, against: str) -> str:
    gain = finding.gain
    wanted = "above 0" if finding.rule == "better" else f"above {-finding.margin:g}"
    return (
        f"{finding.figure}: {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] over "
        f"{gain.num_pairs} pairs of {gain.num_videos} videos against {against}; the interval must "
        f"lie {wanted}: {'it does' if finding.is_met else 'it does not'}"
    )


def verdict_on(rule: GateConfig, store: Store, metrics: Metrics) -> Verdict:
    """Say what the rule makes of an evaluation against what is in use now; changes nothing."""
    registered = find_registered(store, rule.registry)
    return _verdict(rule, store, metrics, None if registered is None else registered.in_use)


def gate(rule: GateConfig, store: Store, evaluation: str) -> Gated:
    """Judge an evaluation, record the decision, and promote the LoRA if that is the verdict.

    The same evaluation again finds its LoRA in use, and changes nothing. When another LoRA comes
    into use meanwhile, it is judged again, against that one.

    Args:
        rule: What must be shown, and under which name it would come into use.
        store: The workspace.
        evaluation: Path of its metrics.json, or of the folder with it.

    Raises:
        BadInput: there is no such evaluation.
        CorruptData: the LoRA's file is gone or has other bytes.
        TryAgain: one LoRA after the other came into use meanwhile.
    """
    return on_conflict_again(
        lambda: _gate(rule, store, evaluation), f"{rule.registry!r}", OutOfDate
    )


def _gate(rule: GateConfig, store: Store, evaluation: str) -> Gated:
    path, metrics = find_metrics(store, evaluation)
    registered = find_registered(store, rule.registry)
    present = None if registered is None else registered.in_use
    lora = resolve_lora(f"run:{metrics.run_id}/{metrics.checkpoint}", store)
    verdict = _verdict(rule, store, metrics, present)
    candidate = candidate_of(store, lora, decided_by=DECIDED_BY)
    decision = Decision(
        registry=rule.registry,
        evaluation=path,
        lora_sha256=metrics.lora_sha256,
        rule=rule,
        verdict=verdict,
        code_version=code_version(),
        data_digest=candidate.data_digest,
        config_digest=candidate.config_digest,
    )
    decision_path = _put_decision(store, decision)
    if verdict.outcome == "promote":
        if lora.sha256 != metrics.lora_sha256:
            raise BadInput(
                f"The checkpoint {lora.name} has another LoRA than {path} evaluated: evaluate anew."
            )
        candidate = candidate.model_copy(
            update={
                "figures": _figures(metrics, verdict),
                "evaluation": path,
                "decision": decision_path,
                "note": f"better than {verdict.against}",
            }
        )
        present = put_into_use(store, rule.registry, lora, candidate, over=verdict.against_version)
    return Gated(
        verdict=verdict,
        decision=decision_path,
        version_in_use=0 if present is None else present.version,
        is_promoted=verdict.outcome == "promote",
    )


def _verdict(rule: GateConfig, store: Store, metrics: Metrics, present: Version | None) -> Verdict:
    if reason := _seen(store, metrics):
        return Verdict(
            outcome="no-verdict",
            reasons=(reason,),
            against=BASE if present is None else f"version {present.version}",
            against_version=0 if present is None else present.version,
        )
    if present is None:
        return judge(rule, metrics, None, 0)
    against = f"version {present.version}"
    if present.lora_sha256 == metrics.lora_sha256:
        return Verdict(
            outcome="keep",
            reasons=(f"{against} is this LoRA already",),
            against=against,
            against_version=present.version,
        )
    if present.evaluation is None:
        return Verdict(
            outcome="no-verdict",
            reasons=(
                f"{against} of {rule.registry!r} was promoted without an evaluation to compare "
                f"with: evaluate {present.origin} with the same settings and promote it by "
                "`hvkf gate`, or promote this one by hand",
            ),
            against=against,
            against_version=present.version,
        )
    return judge(rule, metrics, find_metrics(store, present.evaluation)[1], present.version)


def _seen(store: Store, metrics: Metrics) -> str:
    """Say why a LoRA cannot be judged on these pairs: it was, or may be, trained on them."""
    trained = read_lineage(store, metrics.run_id)
    if trained is None:
        return (
            f"what {metrics.run_id} was trained on is not recorded, so it may be the held-out "
            "videos: train it again, or promote it by hand with `hvkf registry promote`"
        )
    seen = sorted(
        {pair.source for pair in metrics.pairs if pair.source_sha256 in set(trained.sources)}
    )
    if seen:
        return (
            f"{metrics.run_id}, or a LoRA that it began from, was trained on {len(seen)} of the "
            f"held-out videos ({', '.join(seen[:3])}): its figures say nothing. Train from scratch "
            "on this data set, or evaluate on videos that it never saw"
        )
    if trained.unknown:
        return (
            f"it is not known which videos are in {', '.join(trained.unknown)}: train from scratch "
            "on an ingested data set, or promote it by hand with `hvkf registry promote`"
        )
    return ""


def _put_decision(store: Store, decision: Decision) -> str:
    path = f"{DECISIONS}/{digest(decision.model_dump(mode='json'))}.json"
    try:
        store.put_new(path, decision.to_json())
    except AlreadyExists:
        return path
    note_completed(store, path)
    return path


def _figures(metrics: Metrics, verdict: Verdict) -> dict[str, float]:
    figures = {
        "keyframe_psnr_db": (metrics.lora.first.psnr_db + metrics.lora.last.psnr_db) / 2,
        "clip_psnr_db": metrics.lora.clip.psnr_db,
        "clip_ssim": metrics.lora.clip.ssim,
        "num_pairs": float(len(metrics.pairs)),
    }
    for finding in verdict.findings:
        figures[f"gain_{finding.figure}"] = finding.gain.mean
        figures[f"gain_{finding.figure}_low"] = finding.gain.low
        figures[f"gain_{finding.figure}_high"] = finding.gain.high
    return figures
