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
    'time/updates_per_second': Metric(
        '1/s', 'Updates per second of wall clock since the last line, everything included.'
    ),
    'time/data': Metric('s', 'Time per update spent waiting for batches.'),
    'time/update': Metric('s', 'Time per update spent in the compiled update.'),
    'time/log': Metric('s', 'Time spent writing metrics, pictures and videos since the last line.'),
    'time/checkpoint': Metric('s', 'Time of the last checkpoint.'),
    'time/evaluation': Metric('s', 'Time of the last evaluation.'),
    'time/total': Metric('s', 'Wall clock of the run, earlier starts included.'),
    'time/*': Metric('s', 'Time spent in a part of the run.'),
    'evaluation/return': Metric('reward', 'Mean undiscounted return of the evaluation episodes.'),
    'evaluation/return_error': Metric('reward', 'Standard error of that mean.'),
    'evaluation/success': Metric('share', 'Share of evaluation episodes that succeed at any step.'),
    'evaluation/success_error': Metric('share', 'Standard error of that share.'),
    'evaluation/length': Metric('decisions', 'Mean length of the evaluation episodes.'),
    'evaluation/episodes': Metric('episodes', 'Number of evaluation episodes.'),
}


def describe(name: str) -> Metric | None:
    """The entry for a metric's name, exact ones first; None when there is none."""
    if name in METRICS:
        return METRICS[name]
    return next(
        (
            metric
            for pattern, metric in METRICS.items()
            if '*' in pattern and _regex(pattern).fullmatch(name)
        ),
        None,
    )


def markdown() -> str:
    """The table for the documentation."""
    rows = [
        f'| `{pattern}` | {metric.unit} | {metric.description} |'
        for pattern, metric in METRICS.items()
    ]
    return '\n'.join(['| metric | unit | meaning |', '|---|---|---|', *rows, ''])


@lru_cache(maxsize=None)
def _regex(pattern: str) -> re.Pattern:
    parts = re.split(r'(\*\*|\*)', pattern)
    return re.compile(
        ''.join({'**': '.+', '*': '[^/]+'}.get(part) or re.escape(part) for part in parts)
    )
