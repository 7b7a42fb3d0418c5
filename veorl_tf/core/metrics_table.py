"""Every metric that is logged, described once: pattern, unit, meaning.

`*` in a pattern stands for any text within one part of a name, `**` for anything. docs/metrics.md
is made from this table. A metric without an entry is an error where the logger is strict, as in
tests.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Metric(NamedTuple):
    """What a metric means."""

    unit: str
    description: str


METRICS: dict[str, Metric] = {
    "time/updates_per_second": Metric(
        "1/s", "Updates per second of wall clock since the last line, everything included."
    ),
    "time/data": Metric("s", "Time per update spent waiting for batches."),
    "time/update": Metric("s", "Time per update spent in the compiled update."),
    "time/evaluation": Metric("s", "Time of the last evaluation."),
    "time/total": Metric("s", "Wall clock of the run, earlier starts included."),
    "time/*": Metric("s", "Time spent in a part of the run."),
    "loss/total": Metric("1", "The weighted sum of the losses that one gradient step descends."),
    "loss/image": Metric(
        "nats",
        "Half the squared pixel error summed over an image: Normal(mean, 1) without its constant; "
        "on DreamerV3 parts the squared error.",
    ),
    "loss/reward": Metric(
        "nats",
        "Half the squared error of the predicted reward; on DreamerV3 parts the cross-entropy of "
        "its two-hot target.",
    ),
    "loss/discount": Metric(
        "nats",
        "Cross-entropy of the predicted discount to the stored one, times gamma where the head's "
        "mean is used.",
    ),
    "loss/kl": Metric("nats", "Balanced KL of posterior and prior, free nats applied to the mean."),
    "loss/dyn": Metric("nats", "KL that trains the prior, free nats applied to every element."),
    "loss/rep": Metric("nats", "KL that trains the posterior, free nats applied to every element."),
    "loss/replay_critic": Metric(
        "nats", "The critic's loss on stored sequences, whose states imagined returns bootstrap."
    ),
    "loss/vq": Metric("1", "Codebook loss plus beta times commitment loss."),
    "loss/mmd": Metric("1", "Squared distance of the mean embeddings of source and target frames."),
    "loss/plan_image_*": Metric(
        "nats",
        "Image error of the plan net at valid key frames, divided by all slots, on target or source.",
    ),
    "loss/plan_kl_*": Metric(
        "nats", "KL of the plan net over valid key frames, on target or source."
    ),
    "loss/plan_dyn_*": Metric("nats", "As `dyn`, of the plan net over valid key frames."),
    "loss/plan_rep_*": Metric("nats", "As `rep`, of the plan net over valid key frames."),
    "loss/bc_*": Metric(
        "1", "Squared error of the cloned next behaviour code, on target, source, or trunk states."
    ),
    "loss/actor": Metric("1", "Minus the weighted objective and entropy of the actor."),
    "loss/critic": Metric(
        "1",
        "Half the squared error of the critic to the lambda-return, weighted; on DreamerV3 parts "
        "the cross-entropy, and that to the slow critic.",
    ),
    "kl_nats": Metric("nats", "Mean KL of posterior and prior before free nats."),
    "posterior_entropy": Metric("nats", "Mean entropy of the posterior."),
    "prior_entropy": Metric("nats", "Mean entropy of the prior."),
    "plan_kl_nats_*": Metric(
        "nats", "Mean KL of the plan net over valid key frames before free nats."
    ),
    "plan_image_per_frame_*": Metric("nats", "Image error of the plan net per valid key frame."),
    "runs_*": Metric("runs", "Behaviour runs per window before any are dropped."),
    "codes_*/perplexity": Metric(
        "codes", "exp of the entropy of code usage in the batch: 1 is a collapsed codebook."
    ),
    "codes_*/used": Metric("share", "Share of the codebook that occurs in the batch."),
    "codes_*/jump_rate": Metric("share", "Share of neighbouring transitions whose codes differ."),
    "extrinsic_reward": Metric(
        "reward", "Mean reward that the reward head predicts in imagination."
    ),
    "intrinsic_reward": Metric(
        "reward", "Mean intrinsic reward in imagination, before intrinsic_scale."
    ),
    "imagined_reward": Metric(
        "reward", "Mean of what the returns are made of: extrinsic plus scaled intrinsic reward."
    ),
    "plan_distance_stoch": Metric("1", "Distance of reached and planned state, stochastic part."),
    "plan_distance_deter": Metric(
        "1", "Distance of reached and planned state, deterministic part."
    ),
    "return": Metric("reward", "Mean lambda-return in imagination."),
    "return_low": Metric(
        "reward", "Running 5th percentile of the lambda-returns, where they are normalised."
    ),
    "return_high": Metric(
        "reward", "Running 95th percentile of the lambda-returns, where they are normalised."
    ),
    "return_std": Metric("reward", "Standard deviation of the lambda-returns."),
    "value": Metric("reward", "Mean of the critic's prediction in imagination."),
    "actor_entropy": Metric("nats", "Mean entropy of the policy in imagination."),
    "*/grad_norm": Metric("1", "Global gradient norm of an optimiser group before clipping."),
    "skipped_in_a_row": Metric(
        "updates",
        "Updates skipped since the last that was made: a loss or a gradient was not finite.",
    ),
    "*/skipped": Metric(
        "steps", "Steps of a group skipped so far because a loss or a gradient was not finite."
    ),
    "loss_scale": Metric("1", "Loss scale of float16."),
    "validation/**": Metric("1", "The same quantity on held-out episodes."),
    "evaluation/return": Metric("reward", "Mean undiscounted return of the evaluation episodes."),
    "evaluation/return_error": Metric("reward", "Standard error of that mean."),
    "evaluation/success": Metric("share", "Share of evaluation episodes that succeed at any step."),
    "evaluation/success_error": Metric("share", "Standard error of that share."),
    "evaluation/length": Metric("decisions", "Mean length of the evaluation episodes."),
    "evaluation/episodes": Metric("episodes", "Number of evaluation episodes."),
    "evaluation/failures": Metric(
        "simulators", "Simulators that failed in the evaluation; their episodes were begun again."
    ),
    "evaluation/final_*": Metric("1", "The same quantity of the evaluation that ends the run."),
}


def describe(name: str) -> Metric | None:
    """The entry for a metric's name, exact ones first; None when there is none."""
    if name in METRICS:
        return METRICS[name]
    return next(
        (
            metric
            for pattern, metric in METRICS.items()
            if "*" in pattern and _regex(pattern).fullmatch(name)
        ),
        None,
    )


def markdown() -> str:
    """The table for the documentation."""
    rows = [
        f"| `{pattern}` | {metric.unit} | {metric.description} |"
        for pattern, metric in METRICS.items()
    ]
    return "\n".join(["| metric | unit | meaning |", "|---|---|---|", *rows, ""])


@lru_cache(maxsize=None)
def _regex(pattern: str) -> re.Pattern:
    parts = re.split(r"(\*\*|\*)", pattern)
    return re.compile(
        "".join({"**": ".+", "*": "[^/]+"}.get(part) or re.escape(part) for part in parts)
    )
