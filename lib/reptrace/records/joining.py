"""Records of one checkpoint that were made in different calls, each of other measures, as one row."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from reptrace.records.store import name_of

# What a record says of its making, and of where its checkpoint stands: the first record's is kept, others may differ.
OF_THE_MAKING = ("identity", "status", "reason", "code", "packages", "python", "machine", "wall_seconds",
                 "batch_tokens", "model", "revision", "stage", "step", "tokens", "fault", "same_weights_as",
                 "same_geometry_as", "suite")
# What of an identity differs between records that belong together: the measures, and what they compare with.
APART = ("measures", "reference", "first", "last", "previous")
CONFLICTS = "conflicts"


def shared(identity: str) -> str:
    """What of a record's identity, as JSON, all records have that belong into one row."""
    return json.dumps({name: value for name, value in json.loads(identity).items() if name not in APART},
                      sort_keys=True)


def joined(table: pd.DataFrame) -> pd.DataFrame:
    """One row a checkpoint, probe, layer and setting, with the columns of all measures.

    Parameters
    ----------
    table : pandas.DataFrame, records of geometry, as `Store.table` or `trace` returns them
        Only measured rows are joined: gaps stay as they are, and as many.

    Returns
    -------
    pandas.DataFrame, in the order of the first rows. Where records hold different values of one column, the first's is
    kept, and the column `conflicts` names the others: "rankme 12.5 (record 0123456789abcdef01234567)", with "; "
    between them. There is no such column without a conflict.
    """
    if "identity" not in table or "layer" not in table:
        return table
    good = table.status.eq("measured") & table.identity.notna()
    # A checkpoint that stands in a table twice, under two names say, stays twice.
    again = table.groupby(["identity", "layer", "status"], dropna=False).cumcount()
    keys = [(shared(identity), layer, nth) if yes else number for number, (yes, identity, layer, nth) in
            enumerate(zip(good, table.identity, table.layer, again, strict=True))]
    if len(set(keys)) == len(table):
        return table
    rows: dict[object, dict] = {}
    for key, row in zip(keys, table.to_dict("records"), strict=True):
        _add(rows.setdefault(key, {}), row)
    found = pd.DataFrame(list(rows.values()))
    return found.reindex(columns=[*table.columns, *([CONFLICTS] if CONFLICTS in found else [])])


def _add(into: dict, row: dict) -> None:
    for name, value in row.items():
        if _missing(into.get(name)):
            into[name] = value
        elif name not in OF_THE_MAKING and not _missing(value) and not _same(into[name], value):
            record = name_of(json.loads(row["identity"]))
            shown = value if np.ndim(value) == 0 else "otherwise"
            into[CONFLICTS] = "; ".join([*filter(None, [into.get(CONFLICTS)]), f"{name} {shown} (record {record})"])


def _same(one, other) -> bool:
    """Equal; in lists, which are of numbers, one that is nan equals another."""
    return np.array_equal(one, other, equal_nan=np.ndim(one) == np.ndim(other) == 1)


def _missing(value) -> bool:
    return value is None or (np.ndim(value) == 0 and bool(pd.isna(value)))
