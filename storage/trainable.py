"""What a frozen data set has to train on, for methods that want different things of it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlite_utils import Database

from storage.rows import one


@dataclass(frozen=True)
class Trainable:
    """Of a data set's part for training.

    Attributes:
        pairs: preferences.
        samples: samples that were frozen with the pairs; none in data sets of version 0.2 and before.
        scored: samples with at least one scored answer.
        answers: scored answers.
        references: samples with a reference answer.
    """

    pairs: int
    samples: int
    scored: int
    answers: int
    references: int


def trainable(db: Database, dataset_id: int) -> Trainable:
    """Count what training could use."""
    found = one(
        db,
        """SELECT count(*) FILTER (WHERE kind = 'pair') AS pairs,
                  count(*) FILTER (WHERE kind = 'sample') AS samples,
                  count(*) FILTER (WHERE kind = 'sample' AND json_array_length(row, '$.answers') > 0) AS scored,
                  coalesce(sum(CASE WHEN kind = 'sample' THEN json_array_length(row, '$.answers') END), 0) AS answers,
                  count(*) FILTER (WHERE kind = 'sample' AND trim(coalesce(json_extract(row, '$.reference'), ''))
                                   <> '') AS reference_count
           FROM dataset_rows WHERE dataset_id = ? AND split = 'train'""",
        [dataset_id],
    )
    assert found is not None, "an aggregate has one row"
    return Trainable(
        pairs=found["pairs"],
        samples=found["samples"],
        scored=found["scored"],
        answers=found["answers"],
        references=found["reference_count"],
    )
