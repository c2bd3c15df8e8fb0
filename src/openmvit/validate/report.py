"""What a validation found, as text."""

from __future__ import annotations

from typing import Any

METRICS = ("top1", "top5", "mAP", "one_view_top1", "one_view_mAP")


def results_text(results: dict[str, Any], most: int = 50) -> str:
    """`validate`'s results: notes, the classes (of many the worst), protocol, and one line of totals."""
    if results.get("task") == "detection":
        return _detector_text(results, most)
    noun = results["noun"]
    metric = "average_precision" if "mAP" in results else "accuracy"
    rows = [row for row in results["classes"] if row["count"]]
    shown = rows if len(rows) <= most else sorted(rows, key=lambda row: row[metric])[:most]
    width = max([len("class"), *(len(row["name"]) for row in shown)])
    lines = [f"note: {note}" for note in results["notes"]]
    lines += [f"unreadable, left out: {path}" for path in results["unreadable"]]
    lines.append(f"{'class':<{width}}  {noun}  {metric}" + ("  most often taken for" if metric == "accuracy" else ""))
    for row in shown:
        wrong = f"  {row['confused_with']} ({row['confused_count']})" if row.get("confused_with") else ""
        lines.append(f"{row['name']:<{width}}  {row['count']:>{len(noun)}}  {row[metric]:>{len(metric)}.4f}{wrong}")
    if len(rows) > len(shown):
        lines.append(f"... the worst {most} of {len(rows)} classes")
    lines.append(f"{results['data']}, {results['split']}: {results['view']}")
    totals = " ".join(f"{key}={results[key]:.4f}" for key in METRICS if key in results)
    count = f"clips={results['samples']} views={results['views']}" if "views" in results else None
    return "\n".join([*lines, f"val {totals} {count or 'samples=' + str(results['samples'])}"])


def _detector_text(results: dict[str, Any], most: int) -> str:
    """The same of a detector: AP of every class, and COCO's 12 numbers of boxes and masks."""
    kinds = [kind for kind in ("box", "mask") if results[kind] is not None]
    rows = [row for row in results["classes"] if row["count"]]
    shown = rows if len(rows) <= most else sorted(rows, key=lambda row: row["box_AP"])[:most]
    width = max([len("class"), *(len(row["name"]) for row in shown)])
    lines = [f"note: {note}" for note in results["notes"]]
    lines += [f"unreadable, left out: {path}" for path in results["unreadable"]]
    lines.append(f"{'class':<{width}}  objects" + "".join(f"  {kind + ' AP':>7}" for kind in kinds))
    for row in shown:
        lines.append(f"{row['name']:<{width}}  {row['count']:>7}" + "".join(f"  {row[k + '_AP']:7.4f}" for k in kinds))
    if len(rows) > len(shown):
        lines.append(f"... the worst {most} of {len(rows)} classes")
    lines.append(f"{'':<5}" + "".join(f"{name:>8}" for name in results["box"]))
    # COCO's -1 stands where there is nothing to find.
    lines += [f"{k:<5}" + "".join(f"{n:8.4f}" if n >= 0 else f"{'-':>8}" for n in results[k].values()) for k in kinds]
    lines.append(f"{results['data']}, {results['split']}: {results['view']}")
    totals = " ".join(f"{kind}_{name}={results[kind][name]:.4f}" for kind in kinds for name in ("AP", "AP50"))
    return "\n".join([*lines, f"val {totals} samples={results['samples']}"])
