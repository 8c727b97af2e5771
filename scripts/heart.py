"""Write the four UCI heart disease files as sites of `studies/heart.toml`.

Run as `python scripts/heart.py FOLDER OUT`: FOLDER holds processed.cleveland.data and the three
others, OUT gets NAME/participants.tsv and the site file NAME.toml for each.
"""

import csv
import sys
from pathlib import Path

SITES = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
# Some copies of the files have 0 where the value is missing.
NEVER_ZERO = ("trestbps", "chol", "thalach", "slope", "thal")


def main(source: Path, out: Path) -> None:
    for site in SITES:
        folder = out / site
        folder.mkdir(parents=True, exist_ok=True)
        with (source / f"processed.{site}.data").open(newline="") as file:
            patients = [row for row in csv.reader(file) if row]
        with (folder / "participants.tsv").open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(["participant_id", *COLUMNS])
            for number, row in enumerate(patients, start=1):
                cells = [cell(name, value) for name, value in zip(COLUMNS, row, strict=True)]
                table.writerow([f"sub-{number:03d}", *cells])
        (out / f"{site}.toml").write_text(f'name = "{site}"\ndata = "{site}"\n')


def cell(name: str, value: str) -> str:
    missing = value == "?" or (name in NEVER_ZERO and float(value) == 0)
    return "n/a" if missing else value


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
