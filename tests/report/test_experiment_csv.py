"""An experiment's figures as CSV."""

from __future__ import annotations

import csv
import io

from tests.support.made_experiment_report import REPORT

from enginehouse.report.experiment_csv import experiment_csv


def test_csv_has_a_row_for_every_figure():
    """Numbers in full, empty where there is none; nothing that a spreadsheet would calculate."""
    rows = list(csv.DictReader(io.StringIO(experiment_csv(REPORT))))
    assert len(rows) == 2 * 3 + 2 * (2 + 2 * 3) + 2 + 1
    by_what = {row["what"] for row in rows}
    assert by_what == {"team", "pairing", "seat", "difference in place", "rating"}
    cooperation = next(r for r in rows if r["what"] == "seat" and r["measure"] == "cooperation")
    assert (cooperation["seat"], cooperation["value"], cooperation["low"]) == (
        "team_a", "0.795", "0.765",
    )  # fmt: skip
    first = next(r for r in rows if r["what"] == "difference in place")
    assert (first["other"], first["p_corrected"], first["count"]) == ("base", "0.008", "20")
    assert {row["team"] for row in rows} == {"base", "'=lora", ""}
    equal = next(r for r in rows if r["measure"] == "first_defection")
    assert (equal["value"], equal["low"], equal["method"]) == ("3.0", "", "")
