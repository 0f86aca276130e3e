"""Records of several calls as one row. Trusted: the rows that were put in, and the names of a store's files."""

import numpy as np
import pandas as pd

from reptrace.records.joining import joined
from reptrace.records.store import Store

ONE = {"weights": "a", "probe": "p", "ranks": [12, 100]}
SPECTRUM = np.array([2.0, 1.0])


def table(tmp_path, *records):
    store = Store(tmp_path)
    for identity, rows in records:
        store.write(identity, [{"eigenvalues": SPECTRUM, **row} for row in rows])
    return pd.concat([store.read(store.path(identity)) for identity, _ in records], ignore_index=True)


def test_columns_of_all_measures_stand_in_one_row_a_layer(tmp_path):
    layers = [{"layer": "1"}, {"layer": "final"}]
    found = joined(table(tmp_path, (ONE, [each | {"rankme": k} for k, each in enumerate(layers)]),
                         (ONE | {"measures": ["cka"], "first": "b"}, [each | {"cka": 0.5 + k} for k, each in
                                                                     enumerate(layers)]),
                         (ONE | {"weights": "b"}, [layers[0] | {"rankme": 7}])))
    assert found[["layer", "rankme"]].values.tolist() == [["1", 0], ["final", 1], ["1", 7]]
    assert found.cka.tolist()[:2] == [0.5, 1.5] and pd.isna(found.cka[2])
    assert "conflicts" not in found and all(np.array_equal(each, SPECTRUM) for each in found.eigenvalues)


def test_another_value_is_told_with_the_record_that_has_it(tmp_path):
    again = ONE | {"measures": ["rankme"]}
    found = joined(table(tmp_path, (ONE, [{"layer": "1", "rankme": 2.5, "wall_seconds": 1.0}]),
                         (again, [{"layer": "1", "rankme": 3.5, "eigenvalues": SPECTRUM * 2, "wall_seconds": 2.0}])))
    record = Store(tmp_path).path(again).stem
    assert found.rankme.tolist() == [2.5] and found.wall_seconds.tolist() == [1.0]
    assert set(found.conflicts[0].split("; ")) == {f"rankme 3.5 (record {record})",
                                                   f"eigenvalues otherwise (record {record})"}


def test_lists_with_the_same_gaps_are_no_conflict(tmp_path):
    row = {"layer": "1", "sentence_entropy_parts": [0.5, float("nan")]}
    assert "conflicts" not in joined(table(tmp_path, (ONE, [row]), (ONE | {"measures": ["rankme"]}, [row])))


def test_a_checkpoint_that_stands_there_twice_stays_twice(tmp_path):
    rows = table(tmp_path, (ONE, [{"layer": "1", "rankme": 2.5}]), (ONE | {"measures": ["cka"]}, [{"layer": "1",
                                                                                                "cka": 0.5}]))
    found = joined(pd.concat([rows.assign(suite="a"), rows.assign(suite="b")], ignore_index=True))
    assert found[["suite", "rankme", "cka"]].values.tolist() == [["a", 2.5, 0.5], ["b", 2.5, 0.5]]


def test_what_was_measured_beside_a_gap_of_the_same_layer_joins(tmp_path):
    gap = {"layer": "1", "status": "failed", "reason": "cka: no", "eigenvalues": None}
    found = joined(table(tmp_path, (ONE | {"measures": ["cka", "norm"]}, [gap, {"layer": "1", "norm": 0.5}]),
                         (ONE, [{"layer": "1", "rankme": 2.5}])))
    assert found.status.tolist() == ["failed", "measured"]
    assert found.loc[1, ["norm", "rankme"]].tolist() == [0.5, 2.5] and found.loc[0, ["norm", "rankme"]].isna().all()


def test_gaps_and_tables_without_anything_to_join_stay_as_they_are(tmp_path):
    failed = {"status": "failed", "reason": "no weights"}
    rows = table(tmp_path, (ONE, [{"layer": "1", "rankme": 2.5}]), (ONE | {"measures": ["cka"]}, [failed]),
                 (ONE | {"weights": "c"}, [failed]))
    pd.testing.assert_frame_equal(joined(rows), rows)
    assert joined(pd.DataFrame({"status": ["quarantined"]})).status.tolist() == ["quarantined"]
