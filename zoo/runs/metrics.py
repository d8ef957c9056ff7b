"""``metrics.csv``: written, read again, and drawn."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from zoo.core.files import written_whole
from zoo.core.pictures import save_figure

METRICS_FILE = "metrics.csv"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a metrics.csv, each without its empty cells."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


class RunLogger(CSVLogger):
    """Writes ``metrics.csv``; a resumed run appends to the file of its folder.

    Args:
        save_dir, name, version: the folder, ``save_dir/name/version``.
        resumed_step: rows that were logged from this optimizer step on are dropped, because the
            resumed run will log them again; None for a fresh run.
    """

    def __init__(
        self,
        save_dir: str,
        name: str,
        version: str | None = None,
        resumed_step: int | None = None,
    ) -> None:
        super().__init__(save_dir, name, version)
        self.resumed_step = resumed_step

    @property
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            path = Path(self.log_dir)
            path.mkdir(parents=True, exist_ok=True)
            writer = _Writer(log_dir=str(path))
            if self.resumed_step is not None:
                rows = read_metrics(path / METRICS_FILE)
                writer.metrics = [row for row in rows if row["step"] < self.resumed_step]
            self._experiment = writer
        return self._experiment  # type: ignore[return-value]


class _Writer(ExperimentWriter):
    """Writes all rows anew each time, whole or not at all: a kill loses none."""

    def _check_log_dir_exists(self) -> None:
        """Lightning would warn of a folder that is not empty, and delete what it finds."""

    def save(self) -> None:
        rows, self.metrics = self.metrics, []
        super().save()  # without rows: hparams.yaml alone
        self.metrics = rows
        if not rows:
            return
        self.metrics_keys = sorted({name for row in rows for name in row})
        with (
            written_whole(Path(self.metrics_file_path)) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def run_name(folder: Path) -> str:
    """Returns ``RECIPE/VERSION`` of a run's folder."""
    return f"{folder.parent.name}/{folder.name}"


def duration(seconds: float) -> str:
    """Formats seconds as ``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def curves(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Finds the lines of a run's picture in the rows of its ``metrics.csv``.

    Returns:
        ``loss`` and ``accuracy``, those of them that the run logged: for each the lines by label
        ("training", "validation", for a GAN "training discriminator"), a list of (epoch from 1,
        value) each. Where clean training images were measured, they are "training": what was
        logged of augmented images under dropout does not compare with validation.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    labels = {"train": "training", "val": "validation"}
    names = sorted({name for row in rows for name in row if "/" in name})
    for name in names:
        where, _, metric = name.rpartition("/")
        if where.endswith("train") and f"{where}_eval/{metric}" in names:
            continue
        stage = labels.get(where.rpartition("/")[2].removesuffix("_eval"))
        kind, *which = metric.split("_")  # a GAN has loss_discriminator and loss_generator
        if stage is None or kind not in ("loss", "accuracy"):
            continue
        points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
        found.setdefault(kind, {})[" ".join([stage, *which])] = points
    return dict(sorted(found.items(), reverse=True))  # loss first


def draw_curves(metrics: Path, picture: Path, title: str = "") -> None:
    """Draws losses and accuracy over epochs from a ``metrics.csv``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    kinds = curves(read_metrics(metrics))
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(1, len(kinds)), squeeze=False)[0]
    for axis, (kind, lines) in zip(axes, kinds.items(), strict=False):
        highest = max(lines, key=lambda label: lines[label][-1][1])
        for label, points in lines.items():
            style = "--" if label.startswith("training") else "-"  # differ in gray, too
            (line,) = axis.plot(*zip(*points, strict=True), style, marker=".", label=label)
            last = points[-1][1]
            text = f"{last:.2%}" if kind == "accuracy" else f"{last:.3f}"
            above = 5 if label == highest else -12  # on their own side of both lines
            axis.annotate(
                text,
                points[-1],
                xytext=(0, above),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=line.get_color(),
            )
        axis.set_xlabel("epoch")
        # Cross-entropy is in nats; a GAN's losses have names of their own and no unit.
        axis.set_ylabel("loss (nats)" if kind == "loss" and "training" in lines else kind)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    save_figure(figure, picture)
