"""Rows that begin alike, laid out as one: which token stands where, and what it sees (shared_prefix.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """Where each token of the packed rows comes from and what it sees.

    R stacked rows of T tokens, in B groups that begin alike; B packed rows of L.
    """

    source: torch.Tensor  #: (B, L): index into the R × T stacked tokens
    columns: torch.Tensor  #: (B, L): the token's column in its own stacked row; its position in plain text
    shared: torch.Tensor  #: (B,): tokens that all rows of the group begin with
    heads: torch.Tensor  #: (B,): the first row of each group
    causal: int  #: the first so many packed tokens are shared in every group: plain causal attention
    sees: torch.Tensor  #: (B, 1, L − causal, L), bool: what the other tokens see
    picks: torch.Tensor  #: (labels,): index into the B × L packed tokens of what predicts each label
    targets: torch.Tensor  #: (labels,): the labels, in the order of the stacked rows
    labelled: torch.Tensor  #: (R, T − 1), bool: where the scores belong


def lay_out(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    all_masked: bool = False,
    groups: Sequence[int] | None = None,
) -> Layout:
    """Plan the packed rows of a stacked batch.

    Args:
        input_ids, attention_mask, labels: (R, T), padded on the right; labels are −100 where a token isn't scored.
        all_masked: no plain causal part; `sees` covers every token, for eager attention.
        groups: the group of each row, numbered from 0 in the order in which they first occur; None for pairs,
            chosen rows over rejected rows.

    Raises:
        ValueError: pairs with an odd number of rows, groups that aren't numbered so, or padding on the left.
    """
    rows, width = input_ids.shape
    if groups is None:
        if rows % 2:
            raise ValueError(f"{rows} rows are not chosen rows over rejected rows")
        groups = [*range(rows // 2)] * 2
    device = input_ids.device
    first = {number: groups.index(number) for number in groups}
    if len(groups) != rows or [*first] != [*range(len(first))]:
        raise ValueError(f"{groups} are not the groups of {rows} rows, numbered as they occur")
    heads = torch.tensor([*first.values()], device=device)
    group = torch.tensor(groups, device=device)
    head, count, row = heads[group], len(first), torch.arange(rows, device=device)

    real = attention_mask.bool()
    sizes = real.sum(dim=1)
    same = (input_ids == input_ids[head]) & real & real[head]
    shared = sizes.new_full((count,), width).scatter_reduce(
        0, group, same.long().cumprod(dim=1).sum(dim=1), "amin"
    )
    begins = shared[group]
    own = (sizes - 1 - begins).clamp(min=0)  # the last token of a row predicts nothing
    ends = shared.scatter_add(0, group, own)
    ragged = (real[:, 1:] & ~real[:, :-1]).any()
    length, causal, padded_left = torch.stack([ends.max(), shared.min(), ragged.long()]).tolist()
    if padded_left:
        raise ValueError("the rows are padded on the left; the shared prefix takes right-padded rows")
    # Where all rows of all groups are the same, one token is left to the mask: attention takes no empty part.
    causal = 0 if all_masked else min(causal, length - 1)

    # Where each stacked token lies among the packed ones; of the shared part the group's first row is taken.
    before = ((group[:, None] == group) & (row[:, None] > row)).long()
    moved = (before * own).sum(dim=1)  # tokens of the group's earlier rows
    column = torch.arange(width, device=device)
    in_own = column >= begins[:, None]
    place = group[:, None] * length + column + in_own * moved[:, None]
    kept = torch.where(in_own, column < sizes[:, None] - 1, (row == head)[:, None])
    # Padding repeats the first row's last token: an answer's, never an image's.
    last = heads * width + sizes[heads] - 1
    source = torch.cat([last[:, None].expand(count, length).flatten(), last[:1]])
    stacked = row[:, None] * width + column
    source = source.scatter(0, torch.where(kept, place, count * length).flatten(), stacked.flatten())
    source = source[:-1].view(count, length)
    columns = source % width

    at = torch.arange(length, device=device)
    # 0 for what is shared, then each row its own number. Padding stands behind all that could see it.
    part = torch.where(at < shared[:, None], 0, 1 + source // width)
    asking, asked = part[:, causal:, None], part[:, None, :]
    sees = ((asked == 0) | (asked == asking)) & (at <= at[causal:, None])

    labelled = labels[:, 1:] != -100
    picks = place[:, :-1][labelled]  # a label is predicted by the token before it
    return Layout(
        source=source,
        columns=columns,
        shared=shared,
        heads=heads,
        causal=causal,
        sees=sees[:, None],
        picks=picks,
        targets=labels[:, 1:][labelled],
        labelled=labelled,
    )
